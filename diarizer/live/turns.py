"""Turns as they happen: those that are open, and those that are over and never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore import FrameGrid


@dataclass(frozen=True)
class LiveTurn:
    """A turn; `sure` is 0 to 1, the head's own estimate."""

    start_s: float
    end_s: float
    speaker: str
    sure: float

    def json(self) -> dict[str, Any]:
        """A dict that `json` can write, times to the millisecond."""
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "speaker": self.speaker,
            "sure": round(self.sure, 3),
        }


@dataclass(frozen=True)
class Update:
    """What is new after a step.

    Attributes
    ----------
    seq : 0, 1, 2, … without a gap until `Live.reset`.
    time_s : audio heard up to here.
    final : turns that are over: each is given once and never changes.
    partial : all turns that are open now, in place of those of the update before.
    """

    seq: int
    time_s: float
    final: tuple[LiveTurn, ...]
    partial: tuple[LiveTurn, ...]

    def json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return {
            "type": "turns",
            "seq": self.seq,
            "time_s": round(self.time_s, 3),
            "final": [turn.json() for turn in self.final],
            "partial": [turn.json() for turn in self.partial],
        }


@dataclass(frozen=True)
class Said:
    """What a head says after a step, from the first answer that is not settled on.

    Attributes
    ----------
    active, sure : (answers, voices) who speaks, and how sure that is.
    voices : number of each column's voice, which lasts.
    settled : so many of the answers are settled now; the others may change.
    """

    active: NDArray[np.bool_]
    sure: NDArray[np.float32]
    voices: tuple[int, ...]
    settled: int


@dataclass
class Open:
    """A turn that is not over: its first answer, and how sure its answers were, summed."""

    first: int
    last: int
    sure: float


class Turning:
    """Answers in, turns out. An answer is `grid.step_s` of one voice that speaks or does not."""

    def __init__(self, grid: FrameGrid) -> None:
        self.grid = grid
        self.answered = 0
        self.open: dict[int, Open] = {}

    def take(self, said: Said, last: bool) -> tuple[list[tuple[int, Open]], list[tuple[int, Open]]]:
        """Turns that are over now, and those that are open: (voice, turn) each, by start; after the `last`, all are over."""
        over = _run(self.open, said, range(said.settled), self.answered)
        self.answered += said.settled
        ahead = {voice: Open(turn.first, turn.last, turn.sure) for voice, turn in self.open.items()}
        rest = range(said.settled, len(said.active))
        partial = _run(ahead, said, rest, self.answered - said.settled) + list(ahead.items())
        if last:
            over, partial = over + partial, []
            self.open.clear()
        return sorted(over, key=_order), sorted(partial, key=_order)

    def joined(self, same: Mapping[int, int]) -> None:
        """Voices that turned out to be others."""
        for old, new in same.items():
            if (turn := self.open.pop(old, None)) is not None:
                other = self.open.get(new, turn)
                self.open[new] = Open(
                    min(turn.first, other.first), max(turn.last, other.last), max(turn.sure, other.sure)
                )

    def told(self, turn: Open, name: str, end_s: float) -> LiveTurn:
        """As it is told, cut off at `end_s`."""
        origin = self.grid.first_centre_s - self.grid.step_s / 2
        start, end = (round(max(0.0, origin + n * self.grid.step_s), 6) for n in (turn.first, turn.last))
        return LiveTurn(start, min(end, end_s), name, round(turn.sure / (turn.last - turn.first), 4))

    def state(self) -> dict[str, Any]:
        """What `restore` takes, for JSON."""
        return {
            "answered": self.answered,
            "open": [[voice, turn.first, turn.last, turn.sure] for voice, turn in self.open.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.answered = state["answered"]
        self.open = {voice: Open(*rest) for voice, *rest in state["open"]}


def _order(row: tuple[int, Open]) -> tuple[int, int, int]:
    return row[1].first, row[1].last, row[0]


def _run(open_: dict[int, Open], said: Said, rows: Sequence[int], origin: int) -> list[tuple[int, Open]]:
    """Go on with open turns over some answers; those that ended."""
    over: list[tuple[int, Open]] = []
    if not len(rows):
        return over
    for voice in [v for v in open_ if v not in said.voices]:
        over.append((voice, open_.pop(voice)))
    for column, voice in enumerate(said.voices):
        active, sure = said.active[rows[0] : rows[-1] + 1, column], said.sure[rows[0] : rows[-1] + 1, column]
        for k in range(len(active)):
            at = origin + rows[0] + k
            if active[k]:
                turn = open_.setdefault(voice, Open(at, at, 0.0))
                turn.last, turn.sure = at + 1, turn.sure + float(sure[k])
            elif voice in open_:
                over.append((voice, open_.pop(voice)))
    return over
