"""What the set predictor sees: mixtures, the teacher's embeddings of each voice alone, and recordings to follow people in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore import FrameGrid, Store, Turn
from trainers.config import ConfigError
from trainers.fraction import share_of
from trainers.unmix.config import UnmixConfig


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture and who is in it.

    Attributes
    ----------
    frames : (frames, dim) float16, features side by side.
    voices : (voices, size), the teacher's embedding of each voice's own track: from the centre, of length 1.
    speakers, utterances : of each voice.
    parts : (parts, size), the same of what a separation made of it; None where nobody separated it.
    """

    id: str
    frames: NDArray[np.float16]
    voices: NDArray[np.float32]
    speakers: tuple[str, ...]
    utterances: tuple[str, ...]
    parts: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class UnmixData:
    """Mixtures to train on, to choose by, and to measure on; recordings of dev and test, by id. No speaker is in two.

    Attributes
    ----------
    centre : (size,) mean of the training voices. windows_centre : (size,) of the training mixtures' windows, where these are
        another feature than the teacher's; None otherwise.
    """

    train: list[Mixture]
    dev: list[Mixture]
    test: list[Mixture]
    centre: NDArray[np.float32]
    recordings: dict[str, dict[str, tuple[Turn, ...]]]
    notes: list[str] = field(default_factory=list)
    windows_centre: NDArray[np.float32] | None = None


def towards(vectors: NDArray[Any], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Directions from `centre`, of length 1: (…, size)."""
    out = np.asarray(vectors, np.float32) - centre
    unit: NDArray[np.float32] = out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-9)
    return unit


def load_data(config: UnmixConfig, store: Store) -> UnmixData:
    """Read mixtures with their tracks into memory.

    An utterance called as its recording is a mixture where others of that recording have speakers: its voices' tracks, called
    ``MIXTURE/UTTERANCE`` (`featstore simulate`, layout "mix"). Others with turns are recordings. What is called so and has no
    speaker is a part into which a mixture was separated (`trainers separate`).

    Raises
    ------
    ConfigError : a split without mixtures; a speaker in two splits; voices whose teacher was not extracted; windows of another
        size than the teacher's.
    """
    table = store.utterances
    columns = [table[name].to_pylist() for name in ("recording", "speaker", "split", "turns")]
    tracks: dict[str, list[tuple[str, str]]] = {}
    parts: dict[str, list[str]] = {}
    whole: dict[str, tuple[str, bool]] = {}
    for id, recording, speaker, split, turns in zip(store.ids, *columns, strict=True):
        if id == recording and speaker is None:
            whole[id] = split, bool(turns)
        elif id.startswith(f"{recording}/") and speaker is not None:
            tracks.setdefault(recording, []).append((id, speaker))
        elif id.startswith(f"{recording}/") and id in store.index(config.teacher).rows:
            parts.setdefault(recording, []).append(id)
    by_split: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for id in sorted(tracks):
        if id in whole and whole[id][0] in by_split:
            by_split[whole[id][0]].append(id)
    for split, ids in by_split.items():
        if not ids:
            raise ConfigError(
                f"{store.address}: no mixture with its voices' tracks in split {split!r}; make some: "
                "featstore simulate MANIFEST --recipe mix --out DIR, then extract DIR/manifest.jsonl"
            )
    by_split["train"] = share_of(by_split["train"], config.train_fraction, config.seed)
    _check_apart({split: {s for id in ids for _, s in tracks[id]} for split, ids in by_split.items()})
    every = [track for ids in by_split.values() for id in ids for track, _ in tracks[id]]
    _check_held(store, config.teacher, every)
    for feature in dict.fromkeys((*config.inputs, *filter(None, [config.windows_of]))):
        _check_held(store, feature, [id for ids in by_split.values() for id in ids])
    pooled = dict(zip(every, store.pooled(config.teacher, every), strict=True))
    centre = np.mean([pooled[t] for id in by_split["train"] for t, _ in tracks[id]], axis=0).astype(np.float32)

    def mixture(id: str) -> Mixture:
        own = tracks[id]
        voices = towards(np.stack([pooled[track] for track, _ in own]), centre)
        return Mixture(
            id,
            read_all(store, config.inputs, id),
            voices,
            tuple(s for _, s in own),
            tuple(t.removeprefix(f"{id}/") for t, _ in own),
            towards(store.pooled(config.teacher, parts[id]), centre) if id in parts else None,
        )

    made = {split: [mixture(id) for id in ids] for split, ids in by_split.items()}
    recordings: dict[str, dict[str, tuple[Turn, ...]]] = {"dev": {}, "test": {}}
    for id, (split, talks) in whole.items():
        if talks and id not in tracks and split in recordings:
            recordings[split][id] = store.utterance(id).turns
    notes = []
    if missing := [split for split, found in recordings.items() if not found]:
        notes.append(f"no memory was tried: the store has no recordings with turns in {' or '.join(missing)}")
    own = _windows_centre(store, config, by_split["train"]) if config.windows_of else None
    return UnmixData(made["train"], made["dev"], made["test"], centre, recordings, notes, own)


def _windows_centre(store: Store, config: UnmixConfig, ids: Sequence[str]) -> NDArray[np.float32]:
    """The mean of all windows of these mixtures (size,): what all of that length have in common."""
    size, there = (store.features[name].dim for name in (config.teacher, config.windows_of))
    if there != size:
        raise ConfigError(
            f"windows_of must be of the size of the teacher {config.teacher!r}, {size}; {config.windows_of!r} has {there}"
        )
    counts = [store.num_frames(config.windows_of, id) for id in ids]
    return np.average(store.pooled(config.windows_of, ids), axis=0, weights=counts).astype(np.float32)


def read_all(store: Store, features: Sequence[str], id: str) -> NDArray[np.float16]:
    """All frames of an utterance, features side by side on the grid of the first (frames, sum of dims)."""
    grid, count = store.features[features[0]].grid, store.num_frames(features[0], id)
    return np.concatenate([on_grid(store, name, id, grid, count) for name in features], axis=1)


def on_grid(store: Store, feature: str, id: str, grid: FrameGrid, count: int) -> NDArray[np.float16]:
    """A feature's frames (count, dim) at the places of another grid: of its own the nearest."""
    frames, own = store.frames(feature, id), store.features[feature].grid
    at = np.rint((grid.centres_s(0, count) - own.first_centre_s) / own.step_s).astype(np.int64)
    return np.asarray(frames[at.clip(0, len(frames) - 1)], np.float16)


def _check_apart(speakers: dict[str, set[str]]) -> None:
    for split, others in (("dev", ("train",)), ("test", ("train", "dev"))):
        for other in others:
            if both := sorted(speakers[split] & speakers[other]):
                raise ConfigError(
                    f"{len(both)} speakers are in mixtures of {split} and of {other}, the first is {both[0]}; split by "
                    "speaker first"
                )


def _check_held(store: Store, feature: str, ids: Sequence[str]) -> None:
    rows = store.index(feature).rows
    if missing := [id for id in ids if id not in rows]:
        raise ConfigError(
            f"{store.address}: feature {feature!r} lacks {len(missing)} of {len(ids)} mixtures or tracks, the first is "
            f"{missing[0]!r}; extract it of all of the manifest"
        )


def targets_of(mixtures: Sequence[Mixture], numbers: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Voices (batch, most voices, size), 0 where a mixture has fewer, and whose they are (batch, most voices), there -1."""
    most = max(len(m.voices) for m in mixtures)
    voices = np.zeros((len(mixtures), most, mixtures[0].voices.shape[1]), np.float32)
    speakers = np.full(voices.shape[:2], -1, np.int64)
    for row, m in enumerate(mixtures):
        voices[row, : len(m.voices)], speakers[row, : len(m.voices)] = m.voices, [numbers[s] for s in m.speakers]
    return torch.from_numpy(voices), torch.from_numpy(speakers)


def batch_of(mixtures: Sequence[Mixture]) -> tuple[Tensor, Tensor]:
    """Frames (batch, frames, dim), the shorter padded, and which count (batch, frames)."""
    longest = max(len(m.frames) for m in mixtures)
    frames = np.zeros((len(mixtures), longest, mixtures[0].frames.shape[1]), np.float32)
    mask = np.zeros(frames.shape[:2], bool)
    for row, m in enumerate(mixtures):
        frames[row, : len(m.frames)], mask[row, : len(m.frames)] = m.frames, True
    return torch.from_numpy(frames), torch.from_numpy(mask)
