"""What a proxy sees: codes by utterance and speaker, crops of them, and who is kept apart for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.trials import Trials
from featstore import Store
from trainers.config import ConfigError
from trainers.fraction import share_of
from trainers.proxy.config import ProxyConfig
from trainers.trial_list import listed, training_ids

#: Where a store has no dev speakers, every eighth of the training speakers is one.
DEV_EVERY = 8
#: Pieces of an utterance that dev is measured on, at most.
_PIECES = 4


@dataclass(frozen=True)
class Voices:
    """Codes (frames, n_q) by utterance, and whose they are."""

    ids: list[str]
    speakers: NDArray[np.str_]
    codes: list[NDArray[np.int16]]

    @classmethod
    def read(cls, store: Store, feature: str, ids: Sequence[str], speakers: Sequence[str]) -> Voices:
        codes = [np.array(store.frames(feature, id), dtype=np.int16) for id in ids]
        return cls(list(ids), np.asarray(speakers, dtype=np.str_), codes)

    def pieces(self, frames: int) -> Voices:
        """Up to four pieces of `frames` frames of each utterance, one behind the other; a shorter utterance is one."""
        ids, speakers, codes = [], [], []
        for id, speaker, own in zip(self.ids, self.speakers, self.codes, strict=True):
            for k in range(min(_PIECES, max(1, len(own) // frames))):
                ids.append(id)
                speakers.append(speaker)
                codes.append(own[k * frames : (k + 1) * frames])
        return Voices(ids, np.asarray(speakers, dtype=np.str_), codes)


@dataclass(frozen=True)
class ProxyData:
    """Voices to train on, to choose by, and to measure on; no speaker is in two of them."""

    train: Voices
    dev: Voices
    trials: Trials
    test: Voices
    notes: list[str] = field(default_factory=list)


def load_data(config: ProxyConfig, store: Store) -> ProxyData:
    """Read everything into memory: codes are small.

    Raises
    ------
    ConfigError : the feature is not codes; no trial list; a speaker on both sides; too few speakers.
    """
    if not store.features[config.feature].whole:
        raise ConfigError(
            f"feature {config.feature!r} is no codes; extract some: featstore extract … --feature mimi-codes"
        )
    if "teacher" in config.losses and store.features[config.teacher].dim != config.size:
        there = store.features[config.teacher].dim
        raise ConfigError(f"size must be that of the teacher {config.teacher!r}, {there}; found {config.size}")
    trials, ids, speakers = listed(config.trials, store)
    train, train_speakers = training_ids(config.trials, store, ids, speakers)
    table, notes = store.utterances, []
    rows = zip(store.ids, table["speaker"].to_pylist(), table["split"].to_pylist(), strict=True)
    dev = [(id, speaker) for id, speaker, split in rows if split == "dev" and speaker is not None]
    names = sorted(set(train_speakers))
    taken = {speaker for _, speaker in dev}
    if len(taken) < 2:
        taken = set(names[::DEV_EVERY])
        dev = [pair for pair in zip(train, train_speakers, strict=True) if pair[1] in taken]
        notes.append(
            f"no dev speakers in the store: {len(taken)} of {len(names)} training speakers were kept out for it"
        )
    elif taken & set(speakers):
        raise ConfigError(
            f"{len(taken & set(speakers))} speakers of {config.trials} have split=dev too; give them one split"
        )
    kept = [pair for pair in zip(train, train_speakers, strict=True) if pair[1] not in taken]
    kept = share_of(kept, config.train_fraction, config.seed)
    for what, found in (("train on", {s for _, s in kept}), ("choose by (dev)", taken)):
        if len(found) < 2:
            raise ConfigError(f"{store.address}: the proxy needs 2 or more speakers to {what}, found {len(found)}")

    def voices(pairs: Sequence[tuple[str, str]]) -> Voices:
        return Voices.read(store, config.feature, [id for id, _ in pairs], [speaker for _, speaker in pairs])

    return ProxyData(
        voices(kept), voices(dev), trials, voices([(id, str(s)) for id, s in zip(ids, speakers, strict=True)]), notes
    )


class Crops:
    """Two crops of each of some speakers, of different utterances where a speaker has two."""

    def __init__(self, voices: Voices, frames: int, speakers: int) -> None:
        self.voices, self.frames = voices, frames
        self.names = np.unique(voices.speakers)
        self.of = [np.flatnonzero(voices.speakers == name) for name in self.names]
        self.count = min(speakers, len(self.names))

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, NDArray[np.int64]]:
        """Codes (crops, frames, n_q), which frames count (crops, frames), speakers (crops,), utterances (crops,)."""
        chosen = rng.choice(len(self.names), self.count, replace=False)
        codes = np.zeros((2 * self.count, self.frames, self.voices.codes[0].shape[1]), np.int64)
        mask = np.zeros(codes.shape[:2], bool)
        owners = np.zeros(len(codes), np.int64)
        for row, speaker in enumerate(chosen):
            own = self.of[speaker]
            picks = rng.choice(own, 2, replace=False) if len(own) > 1 else own[[0, 0]]
            for side, pick in enumerate(picks):
                full = self.voices.codes[pick]
                # One utterance: a crop of each half, so that they are not the same.
                half = len(full) // 2 if picks[0] == picks[1] and len(full) > self.frames else 0
                low, high = (half, len(full)) if side else (0, half or len(full))
                start = int(rng.integers(low, max(low, high - self.frames) + 1))
                piece = full[start : start + self.frames]
                at = 2 * row + side
                codes[at, : len(piece)], mask[at, : len(piece)], owners[at] = piece, True, pick
        return torch.from_numpy(codes), torch.from_numpy(mask), torch.from_numpy(np.repeat(chosen, 2)), owners
