"""Adapter and fusion with a cache on the fly: as whole recordings are gone through, in short steps.

A channel is a voice, so nothing has to be matched. Who is more than there are channels shares one with somebody else.
A head of chunks hears what is new only, and settles on what it says of whole chunks, which is what it would say at any
latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diarizer.live.timing import Timing
from diarizer.live.turns import Said
from evaluation.frames import decode
from trainers.cascade.clusters import unit
from trainers.cascade.inputs import Read
from trainers.diarization.follow import Following, alone_sums
from trainers.diarization.whole import WholeHead


class LiveFollower:
    """See `diarizer.live.engine.LiveHead`."""

    def __init__(self, head: WholeHead, how: Following, timing: Timing) -> None:
        self.head, self.how, self.timing, self.grid = head, how, timing, head.grid
        self.same = 1 - how.apart
        self.follower = head.follower(how)
        self.chunk = self.follower.config.chunk_frames
        self.kept = head.length + timing.step + self.follower.block
        if self.chunk:  # a window ends with a whole chunk, which waits for the last of its features
            self.kept += self.chunk + timing.settle
        self.columns = head.columns(how.who)
        # What leaves the window with a step is settled on before, however long that was to wait.
        self.most = head.length - max(self.follower.block, self.chunk) - timing.step + 1
        if self.most < 0:
            raise ValueError(
                f"live: this run hears {head.config.crop_s:g} s at a time, too short for steps of this latency"
            )
        self.reset()

    def reset(self) -> None:
        """See `LiveHead.reset`."""
        self.follower.reset()
        self.settled = 0
        width = self.columns.stop - self.columns.start
        self.sounds: NDArray[np.float32] = np.zeros((self.head.config.speakers, width), np.float32)

    @property
    def vectors(self) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """See `LiveHead.vectors`."""
        there = np.flatnonzero(self.sounds.any(1))
        return tuple(there.tolist()), unit(self.sounds[there])

    def step(self, read: Read, heard: int, complete: int, last: bool) -> tuple[Said, dict[int, int]]:
        """See `LiveHead.step`."""
        voices = tuple(range(self.head.config.speakers))
        if not heard:
            return Said(np.zeros((0, len(voices)), np.bool_), np.zeros((0, len(voices)), np.float32), voices, 0), {}
        if heard > self.follower.heard or (self.chunk and last):  # in the end no feature is late
            self.follower.hear(read, heard, complete)
        first, activity = self.follower.first, self.follower.activity
        active = decode(activity, self.how.threshold, self.how.median)
        begin = self.settled - first
        settle = heard if last else max(self.settled, heard - min(self.timing.settle, self.most))
        if self.chunk and not last:
            settle = max(self.settled, min(settle, self.follower.whole - self.how.median // 2))
        shown = heard if last else max(settle, heard - min(self.timing.ahead, self.most))
        if settle > self.settled:
            frames = self.follower.sound(read(self.head.config.features, self.settled, settle))
            self.sounds += alone_sums(active[begin : settle - first], frames)
        told = slice(begin, shown - first)
        answers, self.settled = settle - self.settled, settle
        return Said(active[told], activity[told], voices, answers), {}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """See `LiveHead.state`."""
        numbers, arrays = self.follower.state()
        return numbers | {"settled": self.settled}, arrays | {"sounds": self.sounds}

    def restore(self, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """See `LiveHead.restore`."""
        self.follower.restore(numbers, arrays)
        self.settled, self.sounds = numbers["settled"], arrays["sounds"]
