"""The cascade on the fly: counts with what was heard so far, voices as they come, both decided together a little later."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diarizer.heads import sureness
from diarizer.live.memory import Listening, Voices
from diarizer.live.timing import Timing
from diarizer.live.turns import Said
from featstore import FrameGrid
from trainers.cascade.cascade import SINGLE_CHANGE, Cascade, Heard
from trainers.cascade.clusters import Pieces, unit
from trainers.cascade.counting import REACH
from trainers.cascade.decoding import Decoding, Evidence, best_path, prices_of, scores_of, sets_of, smooth_counts
from trainers.cascade.inputs import Read, finer

#: Whoever is new is taken to have this cosine with a frame: known voices have 0.5 to 0.9 with their own frames, and seldom more
#: with others'. The first answer that is a newcomer's costs this more than that of a known voice.
_NEW, _NEW_PRICE = 0.35, 10.0
#: So much of somebody new makes a voice; of less, overlaps that were taken for one speaker would.
_LEAST_S = 1.2
_SMOOTHED = 6  # frames before those that are listened to, that a path through counts begins with


class LiveCascade:
    """See `diarizer.live.engine.LiveHead`."""

    def __init__(self, cascade: Cascade, timing: Timing, slots: int) -> None:
        config, choice = cascade.config, cascade.choice
        self.cascade, self.timing = cascade, timing
        self.features, self.who = config.features, config.who_features
        self.substeps = config.substeps
        self.grid: FrameGrid = finer(cascade.grid, config.substeps)
        self.same = 1 - choice.threshold
        self.kept = REACH + timing.settle + timing.step + _SMOOTHED
        step_s, dim = cascade.grid.step_s, len(cascade.who.mean)
        self.voices = Voices(dim, choice.clustering, choice.threshold, slots, step_s, _LEAST_S)
        sizes = max(1, round(config.piece_s / step_s)), round(config.edge_s / step_s)
        self.listening = Listening(dim, *sizes, self.voices.add)
        self.reset()

    def reset(self) -> None:
        """See `LiveHead.reset`."""
        self.voices.forget()
        self.listening.forget()
        self.settled = self.listened = 0
        self.now: tuple[int, ...] = ()

    @property
    def vectors(self) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """See `LiveHead.vectors`."""
        return self.voices.numbers, self.voices.means

    def step(self, read: Read, heard: int, complete: int, last: bool) -> tuple[Said, dict[int, int]]:
        """See `LiveHead.step`."""
        substeps, numbers = self.substeps, self.voices.numbers
        if not heard:
            return Said(np.zeros((0, 0), np.bool_), np.zeros((0, 0), np.float32), numbers, 0), {}
        begin = min(self.settled, max(0, self.listened - _SMOOTHED))
        first = max(0, begin - REACH)
        counts = self.cascade.counts(read(self.cascade.config.when_features, first, heard))[
            (begin - first) * substeps :
        ]
        who = unit(self.cascade.who(read(self.who, begin, heard)))
        self._listen(counts, who, begin, heard if last else complete, last)
        same, self.voices.same = self.voices.same, {}
        self.now = tuple(same.get(v, v) for v in self.now)

        counts, who = counts[(self.settled - begin) * substeps :], who[self.settled - begin :]
        # Whoever is like no voice will be the next one, and is shown as that before anything is known of them.
        numbers, means = (*self.voices.numbers, self.voices.next), np.pad(self.voices.means, ((0, 1), (0, 0)))
        cosines = who @ means.T
        if known := len(self.voices.numbers):
            late = (heard if last else complete) - self.settled  # what was heard too little of to be new
            cosines[:, -1] = np.where(np.arange(len(who)) < late, _NEW, cosines[:, :known].max(1))
        evidence = Evidence(counts, np.repeat(cosines, substeps, axis=0), means @ means.T)
        active = self._decode(evidence, numbers)
        if known and not active[:, known].any():
            numbers, active = numbers[:known], active[:, :known]
        cosines = evidence.cosines[:, : len(numbers)]
        sure = sureness(Heard(counts, who, Pieces(who[:0], np.zeros(0))), cosines, active)
        settle = heard if last else max(self.settled, heard - self.timing.settle)
        shown = heard if last else max(settle, heard - self.timing.ahead)
        answers, told = (settle - self.settled) * substeps, (shown - self.settled) * substeps
        if answers:
            self.now = tuple(n for n, on in zip(numbers, active[answers - 1], strict=True) if on)
        self.settled = settle
        return Said(active[:told], sure[:told], numbers, answers), same

    def _decode(self, evidence: Evidence, numbers: tuple[int, ...]) -> NDArray[np.bool_]:
        """The best path from who speaks now on."""
        how = self.cascade.choice.decoding
        sets, prices = _ways(len(numbers), self.cascade.config.at_once, how)
        if not len(evidence.counts):
            return np.zeros((0, sets.shape[1]), np.bool_)
        scores = scores_of(evidence, sets, how)
        now = np.isin(numbers, self.now)
        found = np.flatnonzero((sets == now).all(1))
        scores[0] += prices[found[0] if len(found) else 0]
        return sets[best_path(scores, prices)]

    def _listen(self, counts: NDArray[np.float32], who: NDArray[np.float32], begin: int, upto: int, last: bool) -> None:
        """Pieces out of the frames that have all that they wait for."""
        before = max(0, self.listened - _SMOOTHED) - begin
        many = smooth_counts(counts[before * self.substeps :], SINGLE_CHANGE).reshape(-1, self.substeps)
        single = (many == 1).all(1)
        for frame in range(self.listened, upto):
            self.listening.hear(who[frame - begin], bool(single[frame - begin - before]), frame)
        self.listened = max(self.listened, upto)
        if last:
            self.listening.finish(upto)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """See `LiveHead.state`."""
        numbers = {
            "settled": self.settled,
            "listened": self.listened,
            "now": list(self.now),
            "cut": self.listening.cut,
        }
        return numbers, {f"voices/{k}": v for k, v in self.voices.state().items()} | {"stretch": self.listening.stretch}

    def restore(self, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """See `LiveHead.restore`."""
        self.settled, self.listened, self.now = numbers["settled"], numbers["listened"], tuple(numbers["now"])
        self.listening.cut, self.listening.stretch = numbers["cut"], arrays["stretch"]
        self.voices.restore({k.removeprefix("voices/"): v for k, v in arrays.items() if k.startswith("voices/")})


@cache
def _ways(voices: int, at_once: int, how: Decoding) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Sets of voices, of which the last is whoever is new, alone; prices of going from one to another."""
    sets = sets_of(voices, at_once)
    if voices > 1:
        sets = sets[~sets[:, -1] | (sets.sum(1) == 1)]
    new = sets[:, -1] & (voices > 1)
    return sets, prices_of(sets, how) - _NEW_PRICE * (new & ~new[:, None])
