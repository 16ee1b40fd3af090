"""A head with a cache goes through a recording: window by window, told of what it said of those before.

Whole recordings and live streams are gone through alike; only the steps differ, and how long an answer may wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import nn

from evaluation.runs import RESULT
from featstore import FrameGrid
from trainers.cascade.clusters import Pieces, groupings, unit
from trainers.cascade.inputs import Read
from trainers.diarization.cache import blocks_of, pick
from trainers.diarization.causal import Kept
from trainers.diarization.config import FrozenConfig
from trainers.diarization.models import Adapter, Earlier
from trainers.diarization.stitch import overlap_weights
from trainers.runs import Run, RunError

#: What was said of a frame so long ago goes into the cache; windows may still change what comes after.
_DELAY_S = 4.0
_LEAST = 2  # blocks of a new voice
#: Windows of a whole recording begin so many times in the length of one, and the cache takes as much at once, however short
#: the steps are: a newcomer's first blocks alone would be taken for whoever sounds most like them.
_OVERLAPS = 4
_WHERE = ("first", "heard", "learned", "whole")


@dataclass(frozen=True)
class Following:
    """What dev decides for a head with a cache.

    Attributes
    ----------
    who : feature whose frames say which blocks are one voice.
    apart : cosine distance at which groups of blocks are two voices.
    said : what the channels that blocks are on count there, beside 1 for how they sound.
    threshold, median : of activities, as in `evaluation.frames.decode`.
    """

    who: str
    apart: float = 0.5
    threshold: float = 0.5
    median: int = 5
    said: float = 0.0  # of runs that were made before there was such a thing


class Follower:
    """Where a head with a cache stands in a recording; memory and time of a step do not depend on its length.

    Each step hears the window that ends there. What is said of a frame is the mean over the windows that heard it, which
    weigh most in their middle. Blocks in which one is heard go into the cache some seconds later. There they are told by
    how they sound: groups of one voice on one channel, that which most of them had; so an error of the head does not stay.

    A head of chunks hears each frame once: a chunk goes on from what is `kept` of those before, what is said of it stays, and
    goes into the cache at once. What is not a whole chunk yet is heard for now, and again with the rest of its chunk.

    Parameters
    ----------
    sound : what frames (n, dim) as a store has them sound like, (n, m) of length 1.
    apart, said : see `Following`.

    Attributes
    ----------
    first, heard : the window is frames ``first : heard``.
    whole : frames that a head of chunks has heard for good.
    frames : (blocks, dim) the cache, means over the frames of a block.
    told : (blocks, channels) what was said of these.
    """

    def __init__(
        self,
        model: nn.Module,
        config: FrozenConfig,
        grid: FrameGrid,
        device: torch.device,
        sound: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        apart: float,
        said: float,
    ) -> None:
        self.model, self.config, self.device, self.sound = model, config, device, sound
        self.apart, self.said = apart, said
        self.length = max(1, round(config.crop_s / grid.step_s))
        self.size, self.block = blocks_of(config, grid.step_s), config.token_frames
        self.delay = min(round(_DELAY_S / grid.step_s), self.length // 2)
        whole = config.chunk_frames or 1
        self.step = max(1, self.length // _OVERLAPS // whole) * whole
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.first = self.heard = self.learned = self.whole = 0
        self.learns = True
        self.kept: Kept | None = None
        self.total: NDArray[np.float32] = np.zeros((0, self.config.speakers), np.float32)
        self.weight: NDArray[np.float32] = np.zeros((0, 1), np.float32)
        self.frames: NDArray[np.float32] | None = None
        self.told: NDArray[np.float32] = np.zeros((0, self.config.speakers), np.float32)

    @property
    def activity(self) -> NDArray[np.float32]:
        """(heard - first, channels) 0 to 1, as far as is known now."""
        return self.total / self.weight.clip(1e-9)

    def hear(self, read: Read, heard: int, complete: int | None = None) -> NDArray[np.float32]:
        """Hear on up to frame `heard`; what is said at last of the frames that leave the window, (frames, channels).

        Parameters
        ----------
        complete : frames of which no feature lacks, as chunks need them; None: all.
        """
        chunk = self.config.chunk_frames
        whole = max(self.whole, (heard if complete is None else complete) // chunk * chunk) if chunk else heard
        first = max(self.first, -(-(whole - self.length) // self.block) * self.block)
        gone, left = first - self.first, self.activity[: first - self.first]
        self.total, self.weight, self.first = self.total[gone:], self.weight[gone:], first
        if chunk:
            self._hear_chunks(read, whole, heard)
        else:
            self._hear_window(read, heard)
        self.heard = heard
        if self.learns and not chunk and heard - self.delay - self.learned >= self.step:
            self._learn(read, heard - self.delay)
        return left

    def _hear_window(self, read: Read, heard: int) -> None:
        found, _ = self._ask(read(self.config.features, self.first, heard))
        new = heard - self.heard
        self.total = np.concatenate([self.total, np.zeros((new, found.shape[1]), np.float32)])
        self.weight = np.concatenate([self.weight, np.zeros((new, 1), np.float32)])
        weight = overlap_weights(len(found))[:, None]
        self.total += weight * found
        self.weight += weight

    def _hear_chunks(self, read: Read, whole: int, heard: int) -> None:
        self.total = self.total[: self.whole - self.first]
        while self.whole < whole:
            # With what is learned of each chunk the next is heard, however many come at once.
            stop = self.whole + self.config.chunk_frames if self.learns else whole
            found, self.kept = self._ask(read(self.config.features, self.whole, stop))
            self.total, self.whole = np.concatenate([self.total, found]), stop
            self.weight = np.ones((len(self.total), 1), np.float32)
            if self.learns:
                self._learn(read, stop)
        if heard > whole:
            self.total = np.concatenate([self.total, self._ask(read(self.config.features, whole, heard))[0]])
        self.weight = np.ones((len(self.total), 1), np.float32)

    def again(self, read: Read) -> None:
        """To the start of the recording, with the cache of its end, which stays as it is."""
        self._learn(read, self.heard)
        frames, told = self.frames, self.told
        self.reset()
        self.frames, self.told, self.learns = frames, told, False

    @torch.inference_mode()
    def _ask(self, window: NDArray[np.float32]) -> tuple[NDArray[np.float32], Kept | None]:
        if self.model.training:  # to ask it of all its parts takes a tenth of a short step
            self.model.eval()
        frames = torch.from_numpy(window).to(self.device)[None]
        before = np.zeros((0, window.shape[1]), np.float32) if self.frames is None else self.frames
        earlier = Earlier(
            torch.from_numpy(before).to(self.device)[None],
            torch.from_numpy(self.told).to(self.device)[None],
            torch.ones(1, len(self.told), dtype=torch.bool, device=self.device),
        )
        if self.config.chunk_frames:
            logits, kept = cast(Adapter, self.model).go_on(frames, None, earlier, self.kept)
        else:
            logits, kept = self.model(frames, None, earlier), None
        found: NDArray[np.float32] = logits[0].float().sigmoid().cpu().numpy()
        return found, kept

    def _learn(self, read: Read, upto: int) -> None:
        """Blocks up to frame `upto` go into the cache, where one is heard."""
        self.learned = max(self.learned, self.first)
        blocks = (upto - self.learned) // self.block
        if blocks < 1:
            return
        stop = self.learned + blocks * self.block
        said = self.activity[self.learned - self.first : stop - self.first]
        told = said.reshape(blocks, self.block, -1).mean(1)
        frames = read(self.config.features, self.learned, stop).reshape(blocks, self.block, -1).mean(1)
        alone = (told > 0.5).sum(1) == 1
        self.learned = stop
        if alone.any():
            frames = np.concatenate([frames[:0] if self.frames is None else self.frames, frames[alone]])
            told = self._regrouped(frames, np.concatenate([self.told, told[alone]]))
            kept = pick(told, self.size)
            self.frames, self.told = frames[kept], told[kept]

    def _regrouped(self, frames: NDArray[np.float32], told: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is told of blocks (blocks, channels): those that sound alike are one voice, which has one channel."""
        vectors, channels = self.sound(frames), told.shape[1]
        said = np.sqrt(self.said) * np.eye(channels)[told.argmax(1)]
        both = unit(np.concatenate([vectors, said], 1)).astype(np.float32)
        (labels,) = groupings(Pieces(both, np.ones(len(vectors))), "average", (self.apart,)).values()
        groups = int(labels.max()) + 1
        shared = np.zeros((groups, channels))
        np.add.at(shared, (labels, told.argmax(1)), told.max(1))
        of = np.full(groups, -1)
        for group, channel in zip(*linear_sum_assignment(shared, maximize=True), strict=True):
            of[group] = channel if shared[group, channel] > 0 else -1
        sizes = np.bincount(labels, minlength=groups)
        for group in np.argsort(-sizes, kind="stable").tolist():
            free = np.setdiff1d(np.arange(channels), of)
            if of[group] < 0 and len(free) and sizes[group] >= _LEAST:
                of[group] = free[0]
        means = unit(np.stack([vectors[labels == group].mean(0) for group in range(groups)]))
        there = np.flatnonzero(of >= 0)
        # Who has no channel shares that of who sounds most like it.
        near = of[there[(means @ means[there].T).argmax(1)]]
        found = np.zeros_like(told)
        found[np.arange(len(told)), np.where(of >= 0, of, near)[labels]] = told.max(1)
        return found

    def state(self) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
        """What `restore` takes: for JSON, and arrays."""
        arrays = {name: getattr(self, name) for name in ("total", "weight", "told")}
        if self.frames is not None:
            arrays["frames"] = self.frames
        if self.kept is not None:
            arrays |= {f"kept/{name}": each.cpu().numpy() for name, each in self.kept._asdict().items()}
        return {name: getattr(self, name) for name in _WHERE}, arrays

    def restore(self, numbers: Mapping[str, int], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""
        for name in _WHERE:
            setattr(self, name, numbers[name])
        self.total, self.weight, self.told = arrays["total"], arrays["weight"], arrays["told"]
        self.frames = arrays.get("frames")
        kept = [
            torch.from_numpy(arrays[f"kept/{name}"]).to(self.device)
            for name in Kept._fields
            if f"kept/{name}" in arrays
        ]
        self.kept = Kept(*kept) if kept else None


def follow(follower: Follower, read: Read, num_frames: int) -> NDArray[np.float32]:
    """What a head says of a whole recording, (frames, channels): what it says the second time, see `passes`."""
    return passes(follower, read, num_frames)[1]


def passes(follower: Follower, read: Read, num_frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a head says when it goes through a recording for its voices, and then again, for who speaks when, with the cache
    of its end; both (frames, channels)."""
    follower.reset()
    first = follower.step if follower.config.chunk_frames else follower.length
    ends = [*range(min(first, num_frames), num_frames, follower.step), num_frames]
    once = [*(follower.hear(read, end) for end in ends), follower.activity]
    follower.again(read)
    twice = [*(follower.hear(read, end) for end in ends), follower.activity]
    return np.concatenate(once), np.concatenate(twice)


def alone_sums(active: NDArray[np.bool_], frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums (voices, dim) of the frames (frames, dim) in which each voice of (frames, voices) is active alone."""
    alone = active & (active.sum(1, keepdims=True) == 1)
    return alone.T.astype(np.float32) @ frames


def following_of(run: Run[Any]) -> Following:
    """What dev decided for a run with a cache.

    Raises
    ------
    RunError : it has not finished.
    """
    try:
        chosen = run.read_json(RESULT)["following"]
        found = Following(*(chosen[name] for name in ("who", "apart", "threshold", "median")))
        return replace(found, said=chosen.get("said", found.said))
    except (OSError, KeyError, ValueError):
        raise RunError(f"{run.path}: its {RESULT} does not say how voices are told apart; finish it first") from None
