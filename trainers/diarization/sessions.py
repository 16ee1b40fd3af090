"""Which sessions of a store are trained on, tuned on and tested on: split by recording, leaks refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from featstore import FrameGrid, Store, Turn
from trainers.config import ConfigError
from trainers.diarization.config import SessionsConfig
from trainers.fraction import share_of


@dataclass(frozen=True, eq=False)
class Session:
    """One utterance with turns, on the frame grid.

    Attributes
    ----------
    first, last : (turns,) int64, frames ``first:last`` of the session are active; sorted by `first`.
    speaker : (turns,) int64 into `names`.
    names : speakers by their first turn in the session.
    turns : the same in seconds.
    """

    id: str
    recording: str
    split: str
    num_frames: int
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    speaker: NDArray[np.int64]
    names: tuple[str, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Sessions:
    """The sessions of a store by what they are for, and what was noticed on the way.

    Attributes
    ----------
    tuned_on : "dev", or "test": where there is no other, and under the reference protocol.
    """

    train: list[Session]
    dev: list[Session]
    test: list[Session]
    tuned_on: str
    grid: FrameGrid
    notes: list[str]


def common_grid(store: Store, features: Sequence[str]) -> FrameGrid:
    """The grid that all features lie on.

    Raises
    ------
    ConfigError : they lie on different ones.
    """
    grids = {name: store.features[name].grid for name in features}
    first = grids[features[0]]
    for name, grid in grids.items():
        if abs(grid.step_s - first.step_s) > 1e-6 or abs(grid.first_centre_s - first.first_centre_s) > first.step_s / 2:
            raise ConfigError(
                f"features {features[0]!r} ({first}) and {name!r} ({grid}) lie on different frames and cannot be "
                "concatenated; extract them on one grid"
            )
    return first


def load_sessions(store: Store, config: SessionsConfig) -> Sessions:
    """Every utterance with turns, split by recording.

    Where there is no ``split=dev``, a `dev_fraction` of the training recordings is held out, never all of them; where
    there is no ``split=test``, figures are on dev, and the notes say so.

    Raises
    ------
    ConfigError : nothing to train on; a recording in two splits (sound protocol); features that do not fit together.
    """
    grid = common_grid(store, config.features)
    notes = []
    found: list[Session] = []
    without = 0
    lengths = pc.fill_null(pc.list_value_length(store.utterances["turns"]), 0).to_pylist()
    speakers = store.utterances["speaker"].to_pylist()
    for id, num_turns, speaker in zip(store.ids, lengths, speakers, strict=True):
        if not num_turns:
            without += speaker is None
            continue
        utterance = store.utterance(id)
        turns = sorted(utterance.turns, key=lambda t: (t.start_s, t.end_s))
        names = tuple(dict.fromkeys(t.speaker for t in turns))
        first, last = grid.active([t.start_s for t in turns], [t.end_s for t in turns])
        order = np.argsort(first, kind="stable")
        speaker = np.array([names.index(t.speaker) for t in turns], dtype=np.int64)
        found.append(
            Session(
                id=id,
                recording=utterance.recording,
                split=utterance.split,
                num_frames=_num_frames(store, config.features, id),
                first=first[order],
                last=last[order],
                speaker=speaker[order],
                names=names,
                turns=tuple(turns),
            )
        )
    if without:
        notes.append(f"{without} utterances with neither speaker nor turns were left out")
    splits = {name: [s for s in found if s.split == name] for name in ("train", "dev", "test")}
    others = len(found) - sum(map(len, splits.values()))
    if others:
        notes.append(f"{others} sessions with a split other than train, dev, test were left out")
    if not splits["train"]:
        there = Counter(s.split or "(no split)" for s in found)
        if not found:
            raise ConfigError(
                f"{store.address}: none of its {len(store.ids)} utterances has turns, which say who speaks when; name an "
                "rttm_filepath in the manifest (then: featstore relabel STORE MANIFEST), or make sessions: featstore simulate"
            )
        told = ", ".join(f"{name} {count}" for name, count in there.items())
        raise ConfigError(
            f"{store.address}: no utterance with turns has split=train; there is nothing to train on. Splits found: {told}. "
            "Give them their split: featstore relabel STORE MANIFEST, with utt_id and split on each line"
        )
    if config.protocol == "sound":
        _check_disjoint(splits)
    if not splits["dev"]:
        splits["train"], splits["dev"] = _hold_out(splits["train"], config)
        notes.append(f"no split=dev: {len(splits['dev'])} training sessions are held out to tune on")
    tuned_on = "dev" if config.protocol == "sound" and splits["test"] else "test"
    if config.train_fraction < 1:
        every = splits["train"]
        splits["train"] = share_of(every, config.train_fraction, config.seed)
        notes.append(f"train_fraction: {len(splits['train'])} of {len(every)} training sessions are used")
    if not splits["test"]:
        splits["test"] = splits["dev"]
        notes.append("no split=test: the figures are on dev, on which decoding was tuned too")
    shared = {n for s in splits["train"] for n in s.names} & {n for s in splits["test"] for n in s.names}
    if shared:
        notes.append(f"{len(shared)} speaker names of test occur in train too")
    return Sessions(splits["train"], splits["dev"], splits["test"], tuned_on, grid, notes)


def _num_frames(store: Store, features: Sequence[str], id: str) -> int:
    counts = [store.num_frames(name, id) for name in features]
    if max(counts) - min(counts) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in zip(features, counts, strict=True))
        raise ConfigError(f"utterance {id!r}: features differ by more than a frame ({told}); extract them again")
    return min(counts)


def _check_disjoint(splits: dict[str, list[Session]]) -> None:
    where: dict[str, set[str]] = {}
    for name, sessions in splits.items():
        for session in sessions:
            where.setdefault(session.recording, set()).add(name)
    leaks = sorted(recording for recording, names in where.items() if len(names) > 1)
    if leaks:
        raise ConfigError(
            f"{len(leaks)} recordings are in more than one split (first: {', '.join(leaks[:3])}): what is measured "
            "would have been trained on. Split by recording in the manifest"
        )


def _hold_out(train: list[Session], config: SessionsConfig) -> tuple[list[Session], list[Session]]:
    recordings = sorted({s.recording for s in train})
    if len(recordings) < 2:
        raise ConfigError("no utterance with turns has split=dev, and train has one recording only: nothing to tune on")
    count = min(max(1, round(config.dev_fraction * len(recordings))), len(recordings) - 1)
    held = set(np.random.default_rng([config.seed, 1]).permutation(recordings)[:count].tolist())
    return [s for s in train if s.recording not in held], [s for s in train if s.recording in held]
