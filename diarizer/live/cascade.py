"""The cascade on the fly: counts with what was heard so far, voices as they come, both decided together a little later."""

from __future__ import annotations

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
from trainers.cascade.decoding import Evidence, best_paths, prices_of, scores_of, sets_of, smooth_counts
from trainers.cascade.inputs import Read, finer

_ENOUGH_S = 1.0  # of speech, from which a group of pieces is a voice
_SMOOTHED = 25  # frames before those that are listened to, that a path through counts begins with


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
        self.voices = Voices(dim, choice.clustering, choice.threshold, slots, _ENOUGH_S / step_s)
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
        self.now = tuple(sorted({same.get(v, v) for v in self.now} & set(self.voices.numbers)))

        counts, who = counts[(self.settled - begin) * substeps :], who[self.settled - begin :]
        numbers, means = self.voices.numbers, self.voices.means
        evidence = Evidence(counts, np.repeat(who @ means.T, substeps, axis=0), means @ means.T)
        active = self._decode(evidence)
        sure = sureness(Heard(counts, who, Pieces(who[:0], np.zeros(0))), evidence.cosines, active)
        settle = heard if last else max(self.settled, heard - self.timing.settle)
        shown = heard if last else max(settle, heard - self.timing.ahead)
        answers, told = (settle - self.settled) * substeps, (shown - self.settled) * substeps
        if answers:
            self.now = tuple(n for n, on in zip(numbers, active[answers - 1], strict=True) if on)
        self.settled = settle
        return Said(active[:told], sure[:told], numbers, answers), same

    def _decode(self, evidence: Evidence) -> NDArray[np.bool_]:
        """The best path from who speaks now on."""
        how, at_once = self.cascade.choice.decoding, self.cascade.config.at_once
        sets = sets_of(evidence.cosines.shape[1], at_once)
        if not len(evidence.counts):
            return np.zeros((0, sets.shape[1]), np.bool_)
        prices = prices_of(sets, how)
        scores = scores_of(evidence, sets, how)
        now = np.isin(self.voices.numbers, self.now)
        scores[0] += prices[np.flatnonzero((sets == now).all(1))[0]]
        (path,) = best_paths([scores], [prices])
        return sets[path]

    def _listen(self, counts: NDArray[np.float32], who: NDArray[np.float32], begin: int, upto: int, last: bool) -> None:
        """Pieces out of the frames that have all that they wait for."""
        many = smooth_counts(counts, SINGLE_CHANGE).reshape(-1, self.substeps)
        single = (many == 1).all(1)
        for frame in range(self.listened, upto):
            self.listening.hear(who[frame - begin], bool(single[frame - begin]), frame)
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

    def restore(self, numbers: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """See `LiveHead.restore`."""
        self.settled, self.listened, self.now = numbers["settled"], numbers["listened"], tuple(numbers["now"])
        self.listening.cut, self.listening.stretch = numbers["cut"], arrays["stretch"]
        self.voices.restore({k.removeprefix("voices/"): v for k, v in arrays.items() if k.startswith("voices/")})
