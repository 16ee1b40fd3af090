"""Who spoke when in one recording, as arrays to count with and as pyannote objects to hand to people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featstore.types import Turn

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

#: Turns of one speaker that overlap by less than this are merely adjacent: ``start + duration`` is rarely exact.
TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """The turns of one recording, by start time.

    Attributes
    ----------
    start_s, end_s : (turns,) float64, seconds; end after start.
    speaker : (turns,) int64, position in `speakers`.
    speakers : names, in order of arrival (who speaks first is first).
    """

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    speaker: NDArray[np.int64]
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.start_s)

    def __iter__(self) -> Iterator[Turn]:
        rows = zip(self.start_s.tolist(), self.end_s.tolist(), self.speaker.tolist(), strict=True)
        return (Turn(start, end, self.speakers[speaker]) for start, end, speaker in rows)

    @classmethod
    def from_arrays(cls, start_s: ArrayLike, end_s: ArrayLike, names: Sequence[str]) -> Turns:
        """Sort turns by time and number their speakers by arrival (ties: the order given).

        Raises
        ------
        ValueError : a time is not finite, or a turn ends before it starts. Turns of no length are dropped.
        """
        start, end = np.asarray(start_s, np.float64), np.asarray(end_s, np.float64)
        bad = np.flatnonzero(~(np.isfinite(start) & np.isfinite(end) & (end >= start)))
        if len(bad):
            raise ValueError(
                f"turn of {names[bad[0]]!r}: from {start[bad[0]]} s to {end[bad[0]]} s is no stretch of time"
            )
        order = np.argsort(start, kind="stable")
        order = order[end[order] > start[order]]
        number: dict[str, int] = {}
        speaker = np.fromiter((number.setdefault(names[i], len(number)) for i in order.tolist()), np.int64, len(order))
        return cls(start[order], end[order], speaker, tuple(number))

    @classmethod
    def of(cls, turns: Iterable[Turn] | Turns) -> Turns:
        """The same turns as arrays; Turns are passed through."""
        if isinstance(turns, Turns):
            return turns
        turns = list(turns)
        return cls.from_arrays([t.start_s for t in turns], [t.end_s for t in turns], [t.speaker for t in turns])

    @classmethod
    def from_annotation(cls, annotation: Annotation) -> Turns:
        """The turns of a pyannote Annotation: labels are speakers, names of tracks are not kept."""
        tracks = [(segment, str(label)) for segment, _, label in annotation.itertracks(yield_label=True)]
        return cls.from_arrays([s.start for s, _ in tracks], [s.end for s, _ in tracks], [name for _, name in tracks])

    def to_annotation(self, recording: str | None = None) -> Annotation:
        """The same as a pyannote Annotation, one track a turn; pyannote holds nothing under a microsecond."""
        from pyannote.core import Annotation, Segment

        annotation = Annotation(uri=recording)
        for track, turn in enumerate(self):
            annotation[Segment(turn.start_s, turn.end_s), track] = turn.speaker
        return annotation

    def to_turns(self) -> tuple[Turn, ...]:
        """The same as Turn objects."""
        return tuple(self)

    def renamed(self, names: Mapping[str, str]) -> Turns:
        """With other speaker names; speakers not in `names` keep theirs."""
        return Turns(self.start_s, self.end_s, self.speaker, tuple(names.get(name, name) for name in self.speakers))

    def cropped(self, start_s: float, end_s: float) -> Turns:
        """What lies in ``[start_s, end_s)``, with times counted from `start_s` and arrival taken anew."""
        start, end = self.start_s.clip(start_s, end_s) - start_s, self.end_s.clip(start_s, end_s) - start_s
        return Turns.from_arrays(start, end, [self.speakers[i] for i in self.speaker.tolist()])

    def merged(self) -> Turns:
        """With overlapping turns of one speaker joined (nobody speaks twice at a time); adjacent ones stay."""
        order = np.lexsort((self.start_s, self.speaker))
        start, end, speaker = self.start_s[order], self.end_s[order], self.speaker[order]
        # A shift by speaker keeps the running maximum of one from reaching into the next.
        shift = speaker * (2 * (np.abs(self.end_s).max(initial=0) + np.abs(self.start_s).max(initial=0)) + 1)
        reach = np.maximum.accumulate(end + shift)
        first = np.flatnonzero(np.append(True, (start + shift)[1:] >= reach[:-1] - TOLERANCE_S)[: len(start)])
        if len(first) == len(start):
            return self
        start, end, speaker = start[first], np.maximum.reduceat(end, first), speaker[first]
        order = np.argsort(start, kind="stable")
        return Turns(start[order], end[order], speaker[order], self.speakers)


NO_TURNS = Turns(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), ())


def to_timeline(regions: NDArray[np.float64], recording: str | None = None) -> Timeline:
    """Regions (regions, 2) of a recording, in seconds, as a pyannote Timeline."""
    from pyannote.core import Segment, Timeline

    return Timeline([Segment(start, end) for start, end in regions.tolist()], uri=recording)
