"""Leaks: what train and test share in a store, and whether a run's figures can be taken again from its files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from os import PathLike
from typing import Any

import numpy as np

from evaluation import runs
from evaluation.diarization import score
from evaluation.doctor import Check, Level
from evaluation.extraction import figures
from evaluation.runs import HYPOTHESIS, REFERENCE, RESULT, SCORES, VOICES, RunFiles
from evaluation.verification import evaluate_scores
from evaluation.voices import read_voices
from evaluation.words import decibels
from featstore import Store
from featstore.store.labels import label_digests, other_labels

# A figure taken again from a run's RTTM files, whose times are rounded to the millisecond.
_DER_TOLERANCE = 2e-3
_EER_TOLERANCE = 1e-6

# Mean features nearer than this share of their spread are taken for one recording.
_SAME_SHARE = 0.01
_BLOCK_ROWS = 1024


def check_store(store: Store) -> list[Check]:
    """What the splits of a store share (recordings, speakers, stretches of audio, equal features), and missing chunks.

    Names inside turns ("speaker1") may be local to a recording, so sharing them is a warning; so are speakers shared
    with dev, on which nothing is reported. All else is an error.
    """
    columns = ("id", "recording", "speaker", "split", "duration", "turns", "source", "start")
    rows = store.utterances.select(columns).to_pylist()
    counts = Counter(row["split"] or "" for row in rows)
    told = ", ".join(f"{count} {split or '(no split)'}" for split, count in sorted(counts.items())) or "none"
    checks = [Check(f"{store.address}: utterances", told, "", "info" if "" not in counts else "warning")]
    for feature, spec in store.features.items():
        if spec.warning:
            checks.append(Check(f"{store.address}: weights of {feature}", spec.warning, "trained weights", "warning"))
    lacking = {feature: _lacking_chunks(store, feature) for feature in store.features}
    for feature, chunks in lacking.items():
        if chunks:
            expected = "none; run: featstore verify"
            checks.append(Check(f"chunks of {feature} missing or cut", _listed(chunks), expected, "error"))
    splits = sorted(split for split in counts if split)
    holders, stretches = _holders(rows), _shared_audio(rows)
    copies = {feature: _equal_features(store, feature) for feature in store.features if not lacking[feature]}
    for pair in combinations(splits, 2):
        name = " and ".join(pair)
        found = [
            *_shared_names(pair, holders),
            _shared(f"{name}: audio in both", stretches.get(pair, []), "error"),
            *(
                _shared(f"{name}: utterances with equal {feature} features", pairs.get(pair, []), "error")
                for feature, pairs in copies.items()
            ),
        ]
        clean = Check(f"{name}: recordings, speakers, audio or equal features in both", "none", "none", "ok")
        checks += [check for check in found if check.level != "ok"] or [clean]
    for feature, pairs in copies.items():
        doubled = [item for split in splits for item in pairs.get((split, split), [])]
        if doubled:
            expected = "none; weight by sampling, not by copies"
            checks.append(Check(f"copies inside a split, by {feature}", _listed(doubled), expected, "warning"))
    return checks


def _lacking_chunks(store: Store, feature: str) -> list[str]:
    index = store.index(feature)
    return [f"{name}/{key}" for name, part in zip(index.part_names, index.parts, strict=True) for key in part.lacking()]


def _holders(rows: list[dict[str, Any]]) -> dict[str, dict[str, set[str]]]:
    """What splits may share → name → the splits that hold it."""
    holders: dict[str, dict[str, set[str]]] = {"recordings": {}, "speakers": {}, "names in turns": {}}
    for row in rows:
        if not row["split"]:
            continue
        holders["recordings"].setdefault(row["recording"], set()).add(row["split"])
        if row["speaker"]:
            holders["speakers"].setdefault(row["speaker"], set()).add(row["split"])
        for turn in row["turns"] or ():
            holders["names in turns"].setdefault(turn["speaker"], set()).add(row["split"])
    return holders


def _shared_names(pair: tuple[str, str], holders: Mapping[str, Mapping[str, set[str]]]) -> Iterator[Check]:
    for what, of in holders.items():
        mild = what == "names in turns" or (what == "speakers" and "dev" in pair)
        shared = sorted(name for name, where in of.items() if set(pair) <= where)
        yield _shared(f"{' and '.join(pair)}: {what} in both", shared, "warning" if mild else "error")


def _shared(name: str, items: list[str], level: Level) -> Check:
    return Check(name, _listed(items), "none", level if items else "ok")


def _listed(items: list[str]) -> str:
    if not items:
        return "none"
    return f"{len(items)}: {', '.join(items[:3])}" + (", …" if len(items) > 3 else "")


def _shared_audio(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Pairs of splits → pairs of utterances that take overlapping stretches of one source file."""
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["split"]:
            by_source[row["source"]].append(row)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for same in by_source.values():
        if len({row["split"] for row in same}) < 2:
            continue
        same.sort(key=lambda row: row["start"])
        for i, row in enumerate(same):
            end = row["start"] + row["duration"]
            for other in same[i + 1 :]:
                # A duration that is not known (NaN) reaches to the end of the file: never "after" it.
                if other["start"] >= end - 1e-6:
                    break
                if other["split"] != row["split"]:
                    pair = tuple(sorted((row["split"], other["split"])))
                    found[pair].append(f"{row['id']} = {other['id']}")
    return found


def _equal_features(store: Store, feature: str) -> dict[tuple[str, str], list[str]]:
    """Pairs of splits (also a split with itself) → pairs of utterances with as many frames and the same mean.

    Batching moves features a little, so “the same” is a distance below a hundredth of the spread over the store.
    """
    known = store.index(feature).rows
    table = store.utterances
    rows = [row for row in zip(*(table[c].to_pylist() for c in ("id", "split")), strict=True) if row[1]]
    rows = [row for row in rows if row[0] in known]
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    if len(rows) < 2:
        return found
    ids, splits = zip(*rows, strict=True)
    means = store.pooled(feature, ids)
    means = means - means.mean(axis=0, dtype=np.float64).astype(np.float32)
    near = (_SAME_SHARE**2) * float(np.einsum("ij,ij->", means, means, dtype=np.float64)) / len(means)
    lengths = np.array([store.num_frames(feature, id) for id in ids])
    order = np.argsort(lengths, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        vectors = means[group]
        norms = np.einsum("ij,ij->i", vectors, vectors)
        for start in range(0, len(group), _BLOCK_ROWS):
            block = vectors[start : start + _BLOCK_ROWS]
            squares = norms[start : start + _BLOCK_ROWS, None] + norms[start:] - 2 * (block @ vectors[start:].T)
            for i, j in zip(*np.nonzero(np.triu(squares <= near, 1)), strict=True):
                a, b = group[start + i], group[start + j]
                pair = tuple(sorted((splits[a], splits[b])))
                found[pair].append(f"{ids[a]} = {ids[b]}")
    return found


def check_run(path: str | PathLike[str], store: Store | None = None) -> list[Check]:
    """Whether a run's figures follow from its files, and whether it was trained on what it was measured on.

    Parameters
    ----------
    store : the store it was trained on, if at hand.

    Raises
    ------
    ValueError : not a run's folder, or a damaged one.
    """
    run = runs.open(path)
    result, sound = run.result(), run.protocol == "sound"
    checks = [
        Check(f"{run.path}: protocol", run.protocol, "sound", "ok" if sound else "warning"),
        *(Check(f"{run.path}: weights", warning, "trained weights", "warning") for warning in run.warnings),
        *(_check_features(run, store) if store is not None else ()),
    ]
    if result is None:
        return [*checks, Check(f"{run.path}: figures", f"none (no {RESULT})", "a finished run", "warning")]
    unsound: Level = "error" if sound else "warning"
    if (run.path / HYPOTHESIS).exists():
        checks += _check_diarizer(run, result, store, unsound)
    if (run.path / SCORES).exists():
        checks += _check_probe(run, result, unsound)
    if (run.path / VOICES).exists():
        checks += _check_voices(run, result, unsound)
    return checks


def _check_features(run: RunFiles, store: Store) -> list[Check]:
    checks = []
    for name, spec in run.features.items():
        found = store.features[name].fingerprint if name in store.features else "absent"
        level: Level = "ok" if found == spec.fingerprint else "error"
        checks.append(Check(f"{run.path}: {name} in {store.address}", found, spec.fingerprint, level))
    if then := run.config.get("labels"):
        others = other_labels(then, label_digests(store))
        name = f"{run.path}: labels in {store.address}"
        checks.append(Check(name, others or "as then", "those it was trained on", "warning" if others else "ok"))
    return checks


def _check_diarizer(run: RunFiles, result: Mapping[str, Any], store: Store | None, unsound: Level) -> list[Check]:
    path = run.path
    checks = []
    stated = (result.get("test") or {}).get("der")
    if stated is not None:
        reference, hypothesis, uem = run.diarization()
        again = score(reference, hypothesis, uem=uem).corpus.der
        level: Level = "ok" if abs(again - stated) <= _DER_TOLERANCE else "error"
        name = f"{path}: DER, taken again from {REFERENCE} and {HYPOTHESIS}"
        checks.append(Check(name, f"{100 * again:.2f} %", f"{100 * stated:.2f} %", level))
    tuned_on = (result.get("decoding") or {}).get("tuned_on", "unknown")
    checks.append(Check(f"{path}: decoding tuned on", tuned_on, "dev", "ok" if tuned_on == "dev" else "warning"))
    if store is not None:
        trained = set(store.select(split="train").utterances["recording"].to_pylist())
        shared = sorted(trained & set(result.get("recordings") or ()))
        # Without a test split, figures are on training recordings that were held out: no leak, but not test either.
        level = unsound if len(store.select(split="test")) else "warning"
        checks.append(_shared(f"{path}: measured on recordings of split=train", shared, level))
    return checks


def _check_voices(run: RunFiles, result: Mapping[str, Any], unsound: Level) -> list[Check]:
    found = read_voices(run)
    checks = []
    for name, again in figures(found, 2, 0).items():
        stated = result["extraction"][name]
        pairs = {"": (again["si_sdri"], stated["si_sdri"])}
        if stated.get("several"):
            pairs[" of mixtures of several"] = (again["several"]["si_sdri"], stated["several"]["si_sdri"])
        for of, (found_here, said) in pairs.items():
            level: Level = "ok" if found_here == said else "error"
            told = decibels(found_here, None), decibels(said, None)
            checks.append(Check(f"{run.path}: SI-SDRi{of}, {again['name']}, from {VOICES}", *told, level))
    shared = sorted(set(found["speaker"]) & set(run.model_facts().get("classes", ())))
    checks.append(_shared(f"{run.path}: test speakers that it was trained on", shared, unsound))
    return checks


def _check_probe(run: RunFiles, result: Mapping[str, Any], unsound: Level) -> list[Check]:
    found = run.scores()
    checks = []
    for name, stated in (result.get("systems") or {}).items():
        if name not in found.systems:
            continue
        again = evaluate_scores(found.systems[name], found.same).eer
        level: Level = "ok" if abs(again - stated["eer"]) <= _EER_TOLERANCE else "error"
        expected = f"{100 * stated['eer']:.2f} %"
        checks.append(Check(f"{run.path}: EER of {name}, from {SCORES}", f"{100 * again:.2f} %", expected, level))
    judged = {speaker for speaker in (*found.left_speakers, *found.right_speakers) if speaker is not None}
    shared = sorted(judged & set(run.model_facts().get("classes", ())))
    checks.append(_shared(f"{run.path}: trial speakers that it was trained on", shared, unsound))
    return checks
