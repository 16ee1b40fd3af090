"""What the sound runs say in sentences: each names its measure, its interval, and what knowing nothing would score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation import baselines, voices
from evaluation.answer import der_of, figures_of, unlike_training
from evaluation.experiments import EXPERIMENTS, called
from evaluation.proxy import sentences
from evaluation.results import der_difference, find, paired_difference, same_scope
from evaluation.rows import Row
from evaluation.words import points, rate, signed, verdict

Finding = dict[str, str]
_CEILINGS = {
    "true_when_own_who": "with the true number of speakers at any time",
    "own_when_true_who": "with the right voices",
}


def findings(rows: Sequence[Row], num_resamples: int, seed: int) -> list[Finding]:
    """Sentences as {"experiment", "measure", "text"}, in the order of the experiments; of what was not run, none."""
    told: list[Finding] = []
    for id in EXPERIMENTS:
        for row in rows:
            if row.train_fraction < 1 or row.experiment != ("1.5" if id == "1" else id):
                continue
            if id == "5":
                told += [
                    {"experiment": id, "measure": m, "text": t}
                    for m, t in sentences(row, seeds_of(row, row.figures["proxy"]))
                ]
            elif row.unmixes:
                told += [{"experiment": id, "measure": measure, "text": text} for measure, text in _of_sets(row)]
            elif row.extracts:
                told += [
                    {"experiment": id, "measure": measure, "text": text} for measure, text in voices.sentences(row)
                ]
            elif not row.diarizes:
                lines = _of_raw(row) if id == "1" else _of_a_probe(row, rows)
                told += [{"experiment": id, "measure": "EER", "text": line} for line in lines]
            elif row.protocol == "sound":
                lines = _of_a_head(row, rows, num_resamples, seed)
                told += [{"experiment": id, "measure": "DER", "text": line} for line in lines]
            else:
                told += [{"experiment": id, "measure": "DER", "text": line} for line in _of_fixed_channels(row)]
    return told


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_raw(row: Row) -> Iterator[str]:
    if row.protocol == "sound" and (raw := row.figures.get("raw")):
        yield (
            f"Raw cosine of mean-pooled frames of {called(tuple(row.features))}, no training: "
            f"EER {rate(raw['eer'], raw['interval'])} (random cosine: 50 %)."
        )


def _of_a_probe(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    trained, names = row.figures.get("probe"), called(tuple(row.features))
    if not trained:
        return
    if row.protocol == "sound":
        told = f"EER {rate(trained['eer'], trained['interval'])}{seeds_of(row, trained)} (random cosine: 50 %)"
        if gap := trained["against_raw"]:
            told += f", {points(gap)} against raw cosine: {verdict(gap, 'speakers')}"
        yield f"A linear probe on {names}, trained on other speakers than it is tried on: {told}."
    elif (sound := find(rows, "1.5", features=tuple(row.features))) and "probe" in sound.figures:
        own, honest = trained["eer"], sound.figures["probe"]["eer"]
        yield (
            f"The same probe on {names}, trained on its own test speakers as published: EER {rate(own, None)} instead of "
            f"{rate(honest, None)} (random cosine: 50 %); {signed(own - honest)} come of that alone."
        )


def _of_sets(row: Row) -> Iterator[tuple[str, str]]:
    systems, memory = row.figures["systems"], row.figures["memory"]
    own, rival = systems["unmix"], systems.get("windows")
    text = f"The {row.label}: names not found {rate(own['missed'], own['missed_interval'])}"
    beside = [f"{systems[name]['name']} {rate(systems[name]['missed'], None)}" for name in systems if name != "unmix"]
    text += f" ({'; '.join(beside)})"
    if rival and (gap := own["missed_gap"]):
        text += f", {points(gap)} against the grouped windows: {verdict(gap, 'speakers')}"
    yield "names not found", f"{text}."
    text = f"It miscounts {rate(own['miscounted'], own['miscounted_interval'])} of the mixtures"
    text += f" (always the most frequent number: {rate(row.figures['majority'], None)}"
    text += f"; grouped windows: {rate(rival['miscounted'], None)})" if rival else ")"
    yield "miscounted", f"{text}; one name comes twice in {rate(own['twice'], None)} of those with several voices."
    if found := memory.get("unmix"):
        text = f"With a memory it follows people through {found['recordings']} recordings: 1 − F1 "
        text += f"{rate(found['lost'], found['lost_interval'])}, {found['numbers']:.1f} voices kept for {found['people']:.1f} people"
        text += f", {found['switches']:.1f} switches a person; the same numbers in every chunk: {rate(memory['constant']['lost'], None)}"
        if (windows := memory.get("windows")) and (gap := found["lost_gap"]):
            text += (
                f" (the same memory on grouped windows: {rate(windows['lost'], None)}, {windows['numbers']:.1f} voices), "
                f"{points(gap)} against that: {verdict(gap, 'recordings')}"
            )
        yield "1 − F1", f"{text}."


def _of_a_head(row: Row, rows: Sequence[Row], num_resamples: int, seed: int) -> Iterator[str]:
    whole = bool(row.recordings(True))
    told = f"{_first(row.phrase)}: DER {der_of(row)}{seeds_of(row, figures_of(row))}"
    trivial = row.trivial.get((baselines.ONE_SPEAKER, whole))
    if trivial:
        told += f" (one speaker throughout: {rate(baselines.der(trivial), None)})"
        if gap := der_difference(row.recordings(whole), trivial, num_resamples, seed):
            told += f", {points(gap.to_json())} against that: {verdict(gap.to_json(), 'recordings')}"
    yield told + "."
    if against := [_against(row, other, num_resamples, seed) for other in _rivals(row, rows)]:
        yield f"{_first(row.phrase)}, DER {'; '.join(against)}."
    yield from _of_ceilings(row)
    yield from _of_whole(row, num_resamples, seed)


def _against(row: Row, other: Row, num_resamples: int, seed: int) -> str:
    gap = paired_difference(row, other, num_resamples, seed)
    if unlike := unlike_training(row, other) or ("" if gap else "measured on other recordings"):
        return f"against {other.phrase} cannot be judged: {unlike}"
    assert gap
    harder = "" if same_scope(row, other) else ", though over whole recordings, the other by window"
    return f"against {other.phrase} {points(gap.to_json())}: {verdict(gap.to_json(), 'recordings')}{harder}"


def _rivals(row: Row, rows: Sequence[Row]) -> Iterator[Row]:
    """What a head is compared with: heads on each of its encoders alone; a cascade also with the fusion of the two."""
    names = tuple(row.features)
    alone = [find(rows, "2", features=(name,)) for name in names]
    wanted = {"2.5": alone, "3": alone, "4": [find(rows, "3", features=names), *alone]}.get(row.experiment, [])
    yield from (other for other in wanted if other and other is not row)


def _of_ceilings(row: Row) -> Iterator[str]:
    ceilings = {words: row.result.get("ceilings", {}).get(name, {}).get("test") for name, words in _CEILINGS.items()}
    known = {words: test for words, test in ceilings.items() if test and test["der"] is not None}
    own = row.figures["der"]
    if known and own is not None:
        told = [f"{words} {rate(test['der'], None)} ({signed(test['der'] - own)})" for words, test in known.items()]
        yield f"{_first(row.phrase)}: DER {rate(own, None)} would be, {' and '.join(told)}: the larger gain is the weaker half."


def _of_whole(row: Row, num_resamples: int, seed: int) -> Iterator[str]:
    if not (split := whole_against_windows(row, num_resamples, seed)):
        return
    yield (
        f"{_first(row.phrase)}, whole recordings against windows of the same answer: DER {points(split['interval'])}, of which "
        f"{signed(split['identity'])} are identity (who is who across windows) and {signed(split['rest'])} the rest."
        if split["interval"]
        else f"{_first(row.phrase)}, whole recordings against windows: DER {signed(split['difference'])}, of which "
        f"{signed(split['identity'])} are identity (who is who across windows)."
    )


def whole_against_windows(row: Row, num_resamples: int, seed: int) -> dict[str, Any] | None:
    """One head's DER over whole recordings minus its DER by window, split; None where it was not measured both ways."""
    whole, windows = row.figures.get("whole"), row.figures
    if not whole or whole["der"] is None or windows["der"] is None:
        return None
    difference, identity = whole["der"] - windows["der"], whole["confusion"] - windows["confusion"]
    interval = der_difference(row.recordings(True), row.recordings(False), num_resamples, seed)
    return {
        "per_window": windows["der"],
        "whole": whole["der"],
        "difference": difference,
        "interval": interval.to_json() if interval else None,
        "identity": identity,
        "rest": difference - identity,
    }


def _of_fixed_channels(row: Row) -> Iterator[str]:
    if row.figures["fixed_der"] and row.figures["der"] is not None:
        share = row.figures["fixed_der"] - row.figures["der"]
        trivial = row.trivial.get((baselines.ONE_SPEAKER, False))
        beside = f" (one speaker throughout, mapped: {rate(baselines.der(trivial), None)})" if trivial else ""
        yield (
            f"{_first(row.phrase)}, reference protocol: of its DER with fixed channels, "
            f"{rate(row.figures['fixed_der'], None)}{beside}, {100 * share:.1f} points are that way of scoring."
        )


def seeds_of(row: Row, figures: dict[str, Any]) -> str:
    """ ", mean of 3 seeds, 30.1–31.9 %" where there are several."""
    spread = figures.get("spread")
    if not isinstance(spread, list):
        return ""
    return f", mean of {len(row.runs)} seeds ({100 * spread[0]:.1f}–{100 * spread[1]:.1f} %)"
