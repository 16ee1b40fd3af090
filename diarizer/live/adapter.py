"""Adapter and fusion on the fly: the window that ends now, its channels tied to those of the window before and to voices.

The weights are those of whole recordings, and so is the way from channels to voices (`trainers.diarization.stitch`), but
that a window knows nothing of what comes: a channel that hears the shared seconds as one of the step before is its voice,
another is that which it sounds most like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from diarizer.live.memory import Listening, Voices
from diarizer.live.timing import Timing
from diarizer.live.turns import Said
from evaluation.frames import decode
from trainers.cascade.clusters import unit
from trainers.cascade.inputs import Read
from trainers.diarization.stitch import sound_of
from trainers.diarization.whole import EDGE_S, PIECE_S, Stitching, WholeHead, activities

_TIED = 10.0  # what being heard alike weighs, against cosines times the log of frames alone
_ALIKE = 0.7  # as of overlapping windows


class LiveAdapter:
    """See `diarizer.live.engine.LiveHead`."""

    def __init__(self, head: WholeHead, how: Stitching, timing: Timing, slots: int) -> None:
        self.head, self.how, self.timing = head, how, timing
        self.grid, self.same = head.grid, 1 - how.apart
        self.kept = head.length + timing.step
        step_s, self._columns = head.grid.step_s, head.columns(how.who)
        dim = self._columns.stop - self._columns.start
        self.voices = Voices(dim, "average", how.apart, slots, step_s)
        self.listening = Listening(dim, round(PIECE_S / step_s), round(EDGE_S / step_s), self.voices.add)
        self.reset()

    def reset(self) -> None:
        """See `LiveHead.reset`."""
        self.voices.forget()
        self.listening.forget()
        self.settled = self.listened = self.first = 0
        self.before: NDArray[np.float32] = np.zeros((0, 0), np.float32)  # (frames from `first`, voices)
        self.numbers: tuple[int, ...] = ()

    @property
    def vectors(self) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """See `LiveHead.vectors`."""
        return self.voices.numbers, self.voices.means

    def step(self, read: Read, heard: int, complete: int, last: bool) -> tuple[Said, dict[int, int]]:
        """See `LiveHead.step`."""
        length = self.head.length
        first = max(0, heard - length)
        real = heard - first
        if not real:
            return Said(np.zeros((0, 0), np.bool_), np.zeros((0, 0), np.float32), (), 0), {}
        frames = np.zeros((1, length, sum(self.head.dims.values())), np.float32)
        frames[0, :real] = read(self.head.config.features, first, heard)
        channels = activities(self.head.model, frames, real, self.head.device)[0, :real]
        who = unit(self.head.scaled(frames)[0, :real, self._columns])
        self._listen(channels, who, first, heard if last else complete, last)
        same, self.voices.same = self.voices.same, {}
        activity = self._by_voice(channels, who, first, same)
        self.before, self.first = activity, first

        begin = max(self.settled, first)
        skipped = begin - self.settled  # a window shorter than what is not settled on
        before = np.zeros((skipped, activity.shape[1]), np.float32)
        active = decode(activity, self.how.threshold, self.how.median)[begin - first :]
        active = np.concatenate([before > 0, active])
        sure = np.concatenate([before, activity[begin - first :]])
        settle = heard if last else max(self.settled, heard - self.timing.settle)
        shown = heard if last else max(settle, heard - self.timing.ahead)
        told, answers = shown - self.settled, settle - self.settled
        self.settled = settle
        return Said(active[:told], sure[:told], self.numbers, answers), same

    def _listen(
        self, channels: NDArray[np.float32], who: NDArray[np.float32], first: int, upto: int, last: bool
    ) -> None:
        single = (channels >= 0.5).sum(1) == 1
        for frame in range(max(self.listened, first), upto):
            self.listening.hear(who[frame - first], bool(single[frame - first]), frame)
        self.listened = max(self.listened, upto)
        if last:
            self.listening.finish(upto)

    def _by_voice(
        self, channels: NDArray[np.float32], who: NDArray[np.float32], first: int, same: Mapping[int, int]
    ) -> NDArray[np.float32]:
        """Activity by voice, (frames, voices), of that by channel."""
        alike = self._alike(channels, first, same)
        numbers, means = self.voices.numbers, self.voices.means
        if not numbers:  # whoever speaks first will be the first voice
            numbers, means = (self.voices.next,), np.zeros((1, who.shape[1]), np.float32)
        vectors, alone = sound_of(channels, who)
        scores = np.log1p(alone)[:, None] * (vectors @ means.T)
        for column, number in enumerate(numbers):
            if number in alike:
                scores[:, column] += _TIED * np.where(alike[number] >= _ALIKE, alike[number], 0)
        says = (channels >= 0.5).sum(0) >= 2
        rows, columns = linear_sum_assignment(np.where(says[:, None], scores, -1e3), maximize=True)
        self.numbers = numbers
        activity = np.zeros((len(channels), len(numbers)), np.float32)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if says[row]:
                activity[:, column] = channels[:, row]
        return activity

    def _alike(
        self, channels: NDArray[np.float32], first: int, same: Mapping[int, int]
    ) -> dict[int, NDArray[np.float32]]:
        """By voice of the step before: how much alike each channel is in the seconds that both heard, 0 to 1."""
        before = self.before[first - self.first :]
        here = channels[: len(before)]
        shared = np.minimum(here[:, :, None], before[:, None]).sum(0)
        either = np.maximum(here[:, :, None], before[:, None]).sum(0)
        found = np.where(shared > 2, shared / either.clip(1e-9), 0)
        return {same.get(number, number): found[:, k] for k, number in enumerate(self.numbers)}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """See `LiveHead.state`."""
        numbers = {
            "settled": self.settled,
            "listened": self.listened,
            "first": self.first,
            "numbers": list(self.numbers),
            "cut": self.listening.cut,
        }
        arrays = {f"voices/{k}": v for k, v in self.voices.state().items()}
        return numbers, arrays | {"stretch": self.listening.stretch, "before": self.before}

    def restore(self, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """See `LiveHead.restore`."""
        self.settled, self.listened, self.first = (numbers[key] for key in ("settled", "listened", "first"))
        self.numbers, self.before = tuple(numbers["numbers"]), arrays["before"]
        self.listening.cut, self.listening.stretch = numbers["cut"], arrays["stretch"]
        self.voices.restore({k.removeprefix("voices/"): v for k, v in arrays.items() if k.startswith("voices/")})
