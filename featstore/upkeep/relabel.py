"""relabel and remove: a store's labels put right, utterances taken out, without a new extraction."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from featstore.corpora.audio import TOLERANCE_S
from featstore.corpora.corrections import Correction
from featstore.store import lock, metadata
from featstore.store.changes import changed_rows, commit_change
from featstore.store.layout import StoreError
from featstore.store.reader import Store, store_utterances
from featstore.store.tables import utterance_table
from featstore.types import Utterance

#: What may be put right, by the attribute of an Utterance.
LABELS = ("split", "speaker", "recording", "turns", "audio", "start_s")


@dataclass
class Relabelled:
    """What a relabel changed.

    Attributes
    ----------
    utterances : of the store.
    changed : of them, how many are others now.
    by_label : of them, how many have another split, speaker, … now.
    splits : (before, after) of those that moved, and how many.
    first : of each label, an example: id, before, after.
    unknown : ids of the manifest that the store does not have.
    """

    utterances: int = 0
    changed: int = 0
    by_label: Counter[str] = field(default_factory=Counter)
    splits: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[str, tuple[str, Any, Any]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def note(self, old: Utterance, new: Utterance) -> None:
        """Count what is another now."""
        self.changed += 1
        for label in LABELS:
            was, now = getattr(old, label), getattr(new, label)
            if was != now:
                self.by_label[label] += 1
                self.first.setdefault(label, (old.id, was, now))
        if old.split != new.split:
            self.splits[old.split, new.split] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "utterances": self.utterances,
            "changed": self.changed,
            "by_label": dict(self.by_label),
            "splits": [{"before": was, "after": now, "utterances": n} for (was, now), n in self.splits.items()],
            "unknown": self.unknown,
        }


def relabel(path: str | PathLike[str], corrections: Sequence[Correction]) -> Relabelled:
    """Take over what a manifest says of utterances that the store has, all of it or nothing; frames stay as they are.

    Raises
    ------
    StoreError : not a store, something else is at work in it, no id of the manifest is in it, or a stretch of audio is
        another than the frames are of.
    """
    path = Path(path)
    metadata.check_version(path)
    with lock.hold(path, alone=True):
        store = Store(path)
        report = Relabelled(len(store))
        report.unknown = [c.id for c in corrections if c.id not in store]
        if corrections and len(report.unknown) == len(corrections):
            raise StoreError(
                f"{path}: none of the {len(corrections)} ids is in it, the first is {report.unknown[0]!r}"
                f"{_near(report.unknown[0], store.ids)}; ids are utt_id, else the audio's path as the manifest gives it"
            )
        pairs = [
            (old, _corrected(store, old, c)) for c in corrections if c.id in store for old in [store.utterance(c.id)]
        ]
        _commit(store, pairs, report)
        return report


def move_audio(path: str | PathLike[str], old: str, new: str) -> Relabelled:
    """Audio lies elsewhere now: in every source path, the folder `old` becomes `new`.

    Raises
    ------
    StoreError : not a store, something else is at work in it, no source begins with `old`, or none is in `new`.
    """
    path = Path(path)
    metadata.check_version(path)
    old, new = old.rstrip("/") or "/", new.rstrip("/") or "/"
    with lock.hold(path, alone=True):
        store = Store(path)
        report = Relabelled(len(store))
        below = old if old == "/" else old + "/"
        pairs = [
            (u, replace(u, audio=str(Path(new, u.audio[len(below) :]))))
            for u in store_utterances(store)
            if u.audio.startswith(below)
        ]
        if not pairs:
            there = next(store_utterances(store), None)
            raise StoreError(
                f"{path}: no audio of it is in {old}" + (f"; the first utterance's is {there.audio}" if there else "")
            )
        lacking = sorted({now.audio for _, now in pairs if not Path(now.audio).is_file()})
        if lacking:
            raise StoreError(
                f"{path}: {len(lacking)} audio file(s) of it are not in {new}, the first is {lacking[0]}; "
                "nothing was changed"
            )
        _commit(store, pairs, report)
        return report


def _corrected(store: Store, old: Utterance, correction: Correction) -> Utterance:
    start_s, duration_s = correction.start_s, correction.duration_s
    moved = start_s is not None and start_s != old.start_s and correction.labels.get("audio", old.audio) == old.audio
    if moved or (duration_s is not None and abs(duration_s - old.duration_s) > TOLERANCE_S):
        raise StoreError(
            f"{correction.where}: utterance {old.id!r} is {_stretch(start_s, duration_s)} of its audio here, the frames in "
            f"{store.path} are of {_stretch(old.start_s, old.duration_s)}; give it another utt_id and extract it"
        )
    labels = {**correction.labels, **({} if start_s is None else {"start_s": start_s})}
    if labels.get("turns"):
        if start_s is None and old.start_s:
            raise StoreError(
                f"{correction.where}: utterance {old.id!r} begins at {old.start_s:g} s of its audio: rttm_filepath needs the "
                "offset and the duration beside it"
            )
        inside = [t for t in labels["turns"] if t.start_s < old.duration_s]
        labels["turns"] = tuple(replace(t, end_s=min(t.end_s, old.duration_s)) for t in inside)
    try:
        return replace(old, **labels)
    except ValueError as error:
        raise StoreError(f"{correction.where}: {error}") from None


def _stretch(start_s: float | None, duration_s: float | None) -> str:
    long = "the rest" if duration_s is None or math.isnan(duration_s) else f"{duration_s:g} s"
    return f"{long} from {start_s or 0:g} s on"


def _commit(store: Store, pairs: Iterable[tuple[Utterance, Utterance]], report: Relabelled) -> None:
    changed = []
    for old, new in pairs:
        if old != new:
            report.note(old, new)
            changed.append(new)
    if changed:
        commit_change(store.path, changed_rows(store.part_ids(), utterance_table(changed), removed=False))


@dataclass
class Removed:
    """What a removal took out.

    Attributes
    ----------
    utterances, seconds : taken out.
    left : utterances that the store has still.
    bytes : of frames, which stay on the disk until the store is compacted.
    """

    utterances: int = 0
    seconds: float = 0.0
    left: int = 0
    bytes: int = 0


def remove(path: str | PathLike[str], ids: Sequence[str] = (), *, split: str | None = None) -> Removed:
    """Take utterances out of every feature, all of them or none. Their frames go at the next `compact`.

    Raises
    ------
    StoreError : not a store, something else is at work in it, or an id or the split is not in it.
    """
    path = Path(path)
    metadata.check_version(path)
    with lock.hold(path, alone=True):
        store = Store(path)
        if unknown := [id for id in ids if id not in store]:
            more = "" if len(unknown) == 1 else f", nor is {unknown[1]!r}"
            more = more if len(unknown) < 3 else f", nor are {len(unknown) - 1} others"
            raise StoreError(
                f"{path}: {unknown[0]!r} is not in it{more}{_near(unknown[0], store.ids)}; nothing was removed"
            )
        chosen = [store.select(id=list(ids))] if ids else []
        if split is not None:
            splits = Counter(store.utterances["split"].to_pylist())
            if split not in splits:
                there = ", ".join(f"{name or '(none)'} {count}" for name, count in sorted(splits.items()))
                raise StoreError(f"{path}: no utterance of split {split!r}; there are: {there}; nothing was removed")
            chosen.append(store.select(split=split))
        gone = {u.id: u for view in chosen for u in store_utterances(view)}
        if gone:
            rows = changed_rows(store.part_ids(), utterance_table(gone.values()), removed=True)
            commit_change(path, rows)
        size = 0
        for name, spec in store.features.items():
            index = store.index(name)
            frames = sum(int(index.num[row]) for id in gone if (row := index.rows.get(id)) is not None)
            size += frames * spec.dim * np.dtype(spec.dtype).itemsize
        seconds = float(sum(u.duration_s for u in gone.values()))
        return Removed(len(gone), seconds, len(store) - len(gone), size)


def _near(id: str, ids: Sequence[str]) -> str:
    known = {other.lower(): other for other in ids[:100_000]}
    near = difflib.get_close_matches(id.lower(), known, n=1, cutoff=0.7)
    return f"; did you mean {known[near[0]]!r}?" if near else ""
