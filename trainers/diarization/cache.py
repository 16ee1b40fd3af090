"""Earlier speech by voice, in bounded memory: what a head is told of a recording before the window that it hears.

A head of its own kind (``cache_s``) hears [cache | window]. The cache holds blocks of earlier frames, each with what was
said of it: how active each channel was. So a channel is a voice throughout: who is in the cache keeps his channel, who is
new takes the first that is free. Training makes caches of labels, which needs no head; inference of the head's own words.

Source: what is kept, Medennikov et al. 2025, “Streaming Sortformer” (arXiv 2507.18446), its arrival-order speaker cache, but
for its silence; that channels are told beside the frames is the speaker-tracing buffer's way (Xue et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.diarization.config import FrozenConfig
from trainers.diarization.data import Batch, Crop, FrameSource, prefetched, rasterise
from trainers.diarization.models import Earlier

_FLOOR = 0.25  # probabilities below count as this
_STRONG, _WEAK = 0.75, 1.5  # of a voice's share of the cache: blocks that are preferred, by 2 ln 2 and by ln 2
_MOST_WRONG = 0.2  # of the blocks of a made-up cache


def pick(told: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """Which blocks to keep, at most `size`, in their own order.

    Those in which one speaks alone for sure, every voice its share: ``log p_k - log(1 - p_k) + Σ log(1 - p_others) -
    log 0.5``, probabilities not below 0.25, of the best channel k; blocks in which nobody speaks are worth nothing.

    Parameters
    ----------
    told : (blocks, channels) 0 to 1.
    """
    silent = np.log((1 - told).clip(_FLOOR))
    scores = np.log(told.clip(_FLOOR)) - 2 * silent + silent.sum(1, keepdims=True) - np.log(0.5)
    scores[told <= 0.5] = -np.inf
    share = size / told.shape[1]
    order = np.argsort(-scores, axis=0, kind="stable")
    for part in (_STRONG, _WEAK):
        best = order[: round(part * share)]
        np.put_along_axis(scores, best, np.take_along_axis(scores, best, 0) + np.log(2.0), 0)
    best_of = scores.max(1, initial=-np.inf)
    kept = np.argsort(-best_of, kind="stable")[:size]
    return np.sort(kept[np.isfinite(best_of[kept])])


@dataclass(frozen=True, eq=False)
class Example:
    """A window and the cache before it, made of labels.

    Attributes
    ----------
    labels : (length, channels) uint8 of the window.
    blocks : (n,) first frame of each block of the cache.
    told : (n, channels) float32, what might have been said of these.
    dropped : frames of speech by speakers who have no channel.
    """

    labels: NDArray[np.uint8]
    blocks: NDArray[np.int64]
    told: NDArray[np.float32]
    dropped: int


def example(crop: Crop, length: int, speakers: int, size: int, block: int) -> Example:
    """The window of a crop and a cache of at most `size` blocks of `block` frames between ``crop.begin`` and it.

    Channels are in order of arrival in all that was heard. A crop that was drawn has a cache as a head might have filled
    it, unsure and now and then wrong; without a ``draw``, it is right.
    """
    begin = crop.start if crop.begin is None else crop.begin
    before = crop.start - begin
    active, _, dropped = rasterise(Crop(crop.session, begin), before + length, speakers, resort=True)
    told = active[: before // block * block].reshape(-1, block, speakers).mean(1, dtype=np.float32)
    rng = None if crop.draw is None else np.random.default_rng(crop.draw)
    if rng is not None:
        told = _as_told(told, rng)
    kept = pick(told, size)
    order = _channels(told[kept], active[before:])
    return Example(active[before:, order], begin + kept * block, told[kept][:, order], dropped)


def _as_told(true: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """What a head might say where `true` (blocks, channels) is right."""
    wrong = rng.random(len(true)) < rng.uniform(0, _MOST_WRONG)
    heard = true[np.where(wrong, rng.permutation(len(true)), np.arange(len(true)))]
    low, high = rng.uniform(0, 0.2, true.shape), rng.uniform(0.6, 1, true.shape)
    return (heard * high + (1 - heard) * low).astype(np.float32)


def _channels(told: NDArray[np.float32], window: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Which speaker each channel is, (channels,): those in the cache, by arrival; then whoever is new, by arrival."""
    known = (told > 0.5).any(0)
    arrival = np.where(window.any(0), window.argmax(0), len(window))
    return np.argsort(np.where(known, -1, arrival), kind="stable")


def blocks_of(config: FrozenConfig, step_s: float) -> int:
    """Blocks of a cache, each of as many frames as a token."""
    return max(1, round(config.cache_s / step_s / config.token_frames))


class CachedSource:
    """Crops, each with a cache of what came before it; of those that have no `begin` it is empty. See `Source`."""

    def __init__(self, frames: FrameSource, config: FrozenConfig, size: int, device: torch.device) -> None:
        self.frames, self.length, self.size, self.device = frames, frames.length, size, device
        self.block, self.speakers = config.token_frames, config.speakers

    @property
    def resident(self) -> bool:
        """Whether the training frames live in device memory."""
        return self.frames.resident

    def batch(self, crops: Sequence[Crop]) -> Batch:
        """Read one batch."""
        examples = [example(crop, self.length, self.speakers, self.size, self.block) for crop in crops]
        frames = torch.zeros(len(crops), self.size, self.frames.dim, device=self.device)
        told = np.zeros((len(crops), self.size, self.speakers), np.float32)
        real = np.zeros((len(crops), self.size), np.bool_)
        for row, (crop, each) in enumerate(zip(crops, examples, strict=True)):
            count = len(each.blocks)
            frames[row, :count] = self.frames.blocks(crop.session.id, each.blocks, self.block)
            told[row, :count], real[row, :count] = each.told, True
        labels = np.stack([each.labels for each in examples])
        batch = self.frames.batch(crops, made=(labels, sum(each.dropped for each in examples)))
        batch.earlier = Earlier(frames, *(torch.from_numpy(made).to(self.device) for made in (told, real)))
        return batch

    def batches(self, crops: Sequence[Crop], size: int) -> Iterator[Batch]:
        """Batches of `size` crops in order; the next is read while the caller computes."""
        yield from prefetched(crops, size, lambda group, _: self.batch(group))
