"""The question of the whole project, and what these runs answer to it, in one sentence that its intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation import baselines
from evaluation.bootstrap import Interval
from evaluation.experiments import CODECS, SPEAKER_ENCODERS, called
from evaluation.results import der_difference, find, paired_difference, same_scope
from evaluation.rows import Row
from evaluation.words import FEW, more_needed, points, rate

Names = tuple[str, ...]
#: Heads of which one had more than this many times the other's steps of training are not compared.
_UNLIKE = 2


def pairs(rows: Sequence[Row]) -> list[tuple[Names, Names]]:
    """Codec and speaker encoder of these runs, as far as it is known which is which; Mimi with TitaNet first.

    A cascade says it by its parts (when, who), a fusion by its order (the first is the codec); Mimi is a codec and TitaNet a
    speaker encoder wherever they stand.
    """
    known = {feature for row in rows for feature in row.features}
    found: list[tuple[Names, Names]] = [(CODECS, SPEAKER_ENCODERS)] if known >= {*CODECS, *SPEAKER_ENCODERS} else []
    fusions = [
        sorted(row.features, key=_place)
        for row in rows
        if not row.whole_only and not row.unmixes and len(row.features) > 1
    ]
    parts = [(row.when, row.who) for row in rows if row.whole_only]
    for codec, voice in [*parts, *((tuple(names[:1]), tuple(names[1:])) for names in fusions)]:
        # One feature in both parts is no pair of two encoders.
        if not set(codec) & set(voice) and {*codec, *voice} not in [{*a, *b} for a, b in found]:
            found.append((codec, voice))
    return found or ([(CODECS, SPEAKER_ENCODERS)] if known & {*CODECS, *SPEAKER_ENCODERS} else [])


def _place(feature: str) -> int:
    return (feature not in CODECS) + (feature in SPEAKER_ENCODERS)


def part_of(features: Names, of: Sequence[tuple[Names, Names]]) -> str:
    """What one encoder alone is in these runs: codec, speaker encoder, or not known."""
    codec, voice = any(features == pair[0] for pair in of), any(features == pair[1] for pair in of)
    return "one encoder alone" if codec == voice else "codec alone" if codec else "speaker encoder alone"


def question(of: Sequence[tuple[Names, Names]], rows: Sequence[Row]) -> str:
    """The title's question, about the encoders that these runs have."""
    alone = {features: None for row in rows if len(features := tuple(row.features)) == 1}
    codec, voice = of[0] if of else (next(iter(alone), CODECS), ())
    return (
        f"Can {called(codec)} tell who speaks when, or does it need "
        f"{called(voice) + ' (a speaker encoder)' if voice else 'a speaker encoder'} beside it?"
    )


@dataclass(frozen=True)
class _Beside:
    """A head that has the speaker encoder too, and its difference to the codec's alone."""

    row: Row
    gap: Interval | None
    unlike: str = ""

    @property
    def verdict(self) -> str:
        if self.gap is None or self.unlike:
            return "unknown"
        if self.gap.high < 0:
            return "better"
        return "worse" if self.gap.low > 0 else "unclear"

    @property
    def told(self) -> str:
        """Its figure, the difference, and what keeps that from being judged."""
        text = f"{self.row.phrase} {der_of(self.row)}"
        if self.gap is not None:
            text += f", {points(self.gap.to_json())}"
        if self.unlike:
            return f"{text} (not judged: {self.unlike})"
        needed = more_needed(self.gap.to_json(), "recordings") if self.gap and self.verdict == "unclear" else ""
        return text + (f" ({needed})" if needed else "")


def der_of(row: Row) -> str:
    """A row's DER with its interval, over whole recordings where it was measured so, which is said."""
    figures = figures_of(row)
    whole = " over whole recordings" if row.recordings(True) else ""
    return f"{rate(figures['der'], figures.get('der_interval'))}{whole}"


def figures_of(row: Row) -> dict[str, Any]:
    """A row's figures over whole recordings where it has them by recording, else its own."""
    return row.figures["whole"] if "whole" in row.figures and row.recordings(True) else row.figures


def unlike_training(row: Row, other: Row) -> str:
    """Why two heads cannot be compared: one was trained far longer; "" where they can. A cascade's head is another kind."""
    steps, against = row.result["steps"], other.result["steps"]
    if row.whole_only or other.whole_only or 1 / _UNLIKE <= steps / max(against, 1) <= _UNLIKE:
        return ""
    return f"{steps} training steps against {against}"


def answer(rows: Sequence[Row], num_resamples: int, seed: int) -> dict[str, Any]:
    """The answer to `question`, as "lead" (without figures), "detail" (with them), "basis" (what it rests on), and the "text".

    ``verdict`` is "yes" (the codec alone does better), "no" (it tells nothing, the speaker encoder does), "partly" (it tells
    something, with the speaker encoder clearly more), "unclear" (the intervals do not say) or "unknown" (runs are missing).
    Where runs are of several pairs of encoders, the first pair's answer leads and the others' stand in its detail.
    """
    diarizers = [row for row in rows if row.diarizes and row.protocol == "sound"]
    of = pairs(diarizers) or pairs(rows)
    answers = [_of_pair(codec, voice, diarizers, num_resamples, seed) for codec, voice in of]
    told = [a for a in answers if a["verdict"] != "unknown"] or answers[:1]
    if not told:
        return _answer(
            "unknown", "These runs do not answer it", "no head on two encoders was fitted (trainers fit fusion)", []
        )
    first, others = told[0], told[1:]
    detail = " ".join([first["detail"], *(f"{a['lead']} {a['detail']} {a['basis']}" for a in others)])
    text = " ".join(filter(None, (first["lead"], detail, first["basis"])))
    return {**first, "detail": detail, "text": text, "demo": any(a["demo"] for a in told)}


def _of_pair(codec: Names, voice: Names, rows: Sequence[Row], num_resamples: int, seed: int) -> dict[str, Any]:
    alone, other = find(rows, "2", features=codec), find(rows, "2", features=voice)
    both = find(rows, "3", features=codec + voice) or find(rows, "2", features=codec + voice)
    cascade = next((r for r in rows if (r.when, r.who) == (codec, voice) and r.train_fraction == 1), None)
    unknown = f"These runs do not answer it for {called(codec)} and {called(voice)}"
    if not alone:
        told = f"no head on {called(codec)} alone was fitted (trainers fit adapter --set feature={'+'.join(codec)})"
        return _answer("unknown", unknown, told, [])
    first = f"{_first(alone.phrase)} alone is at DER {der_of(alone)}"
    beside = [_beside(row, alone, num_resamples, seed) for row in (both, cascade) if row]
    if not beside:
        return _answer("unknown", unknown, f"{first}, but no head with {called(voice)} beside it was fitted", [alone])
    by = {v: [b for b in beside if b.verdict == v] for v in ("better", "worse", "unclear", "unknown")}
    knows, trivial = _knows_something(alone, num_resamples, seed)
    able = [b for b in by["better"] if _knows_something(b.row, num_resamples, seed)[0]]
    if by["better"] and not knows and not able:
        verdict, lead = "unclear", f"Neither {called(codec)} alone nor {called(voice)} beside it tells it in these runs"
    elif able:
        verdict = "partly" if knows else "no"
        part = "part of it" if knows else "nothing of it"
        lead = f"{called(codec)} alone tells {part}; it needs {called(voice)} beside it"
    elif by["worse"] and not by["unclear"] and not by["unknown"] and knows:
        verdict, lead = "yes", f"{called(codec)} needs no {called(voice)} beside it in these runs: alone it does better"
    else:
        verdict, lead = "unclear", f"These runs do not say whether {called(codec)} needs {called(voice)} beside it"
    detail = f"{first}{trivial}; {'; '.join(b.told for b in beside)}.{_worth_of_codec(codec, both, other, num_resamples, seed)}"
    return _answer(verdict, lead, detail, [alone, *(b.row for b in beside), *([other] if other else [])])


def _beside(row: Row, alone: Row, num_resamples: int, seed: int) -> _Beside:
    gap = paired_difference(row, alone, num_resamples, seed)
    unlike = unlike_training(row, alone) or ("" if gap else "measured on other recordings")
    if gap and gap.high >= 0 and not same_scope(row, alone):
        unlike = "whole recordings are harder than windows"
    return _Beside(row, gap, unlike)


def _knows_something(alone: Row, num_resamples: int, seed: int) -> tuple[bool, str]:
    """Whether a head is clearly better than one speaker throughout, and that figure in words."""
    whole = bool(alone.recordings(True))
    trivial = alone.trivial.get((baselines.ONE_SPEAKER, whole))
    gap = der_difference(alone.recordings(whole), trivial, num_resamples, seed)
    if not trivial:
        return True, ""
    return gap is None or gap.high < 0, f" (one speaker throughout: {rate(baselines.der(trivial), None)})"


def _worth_of_codec(codec: Names, both: Row | None, other: Row | None, num_resamples: int, seed: int) -> str:
    """Whether the speaker encoder needs the codec: the fusion against the speaker encoder's own head."""
    gap = paired_difference(both, other, num_resamples, seed) if both and other else None
    if not both or not other or not gap or unlike_training(both, other):
        return ""
    words = "helps" if gap.high < 0 else "harms" if gap.low > 0 else "does not clearly help"
    return f" {called(codec)} in turn {words} {called(tuple(other.features))}: the fusion against {other.phrase} {points(gap.to_json())}."


def _basis(rows: Sequence[Row]) -> str:
    count, seconds = rows[0].figures["num_recordings"], rows[0].figures["scored_s"]
    text = f"From {count} recording{'' if count == 1 else 's'} ({seconds / 60:.0f} min of audio)"
    if count < FEW:
        text += f"; of fewer than {FEW} an interval is too narrow"
    if any(row.files.warnings for row in rows):
        text += "; with demo or untrained weights: it says nothing about the published models"
    return text + "."


def _answer(verdict: str, lead: str, detail: str, rows: Sequence[Row]) -> dict[str, Any]:
    told = {"lead": f"{lead}.", "detail": f"{_first(detail).removesuffix('.')}.", "basis": _basis(rows) if rows else ""}
    return {
        **told,
        "text": " ".join(filter(None, told.values())),
        "verdict": verdict,
        "num_recordings": rows[0].figures["num_recordings"] if rows else None,
        "demo": any(row.files.warnings for row in rows),
    }


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]
