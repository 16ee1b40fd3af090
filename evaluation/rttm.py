"""Who spoke when, as files: RTTM and UEM read into arrays for scoring, with a note on all that is odd in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.corpora.rttm import lines, read_columns, seconds
from featstore.corpora.rttm import write_rttm as _write_turns
from featstore.types import Turn

if TYPE_CHECKING:
    from pyannote.core import Annotation

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

    @classmethod
    def from_arrays(cls, start_s: Sequence[float], end_s: Sequence[float], names: Sequence[str]) -> Turns:
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

    def to_turns(self) -> tuple[Turn, ...]:
        """The same as Turn objects."""
        rows = zip(self.start_s.tolist(), self.end_s.tolist(), self.speaker.tolist(), strict=True)
        return tuple(Turn(start, end, self.speakers[speaker]) for start, end, speaker in rows)

    def to_annotation(self, recording: str | None = None) -> Annotation:
        """The same as a pyannote Annotation (one track a turn)."""
        from pyannote.core import Annotation, Segment

        annotation = Annotation(uri=recording)
        for track, turn in enumerate(self.to_turns()):
            annotation[Segment(turn.start_s, turn.end_s), track] = turn.speaker
        return annotation

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


def files_in(path: str | PathLike[str], suffix: str) -> list[Path]:
    """The file itself, or every ``*suffix`` file in a folder and below.

    Raises
    ------
    OSError : neither exists.
    ValueError : the folder holds no such file.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
        return [path]
    files = sorted(path.rglob(f"*{suffix}"))
    if not files:
        raise ValueError(f"{path}: no *{suffix} file in this folder")
    return files


def read_rttm(path: str | PathLike[str], note: Callable[[str], None] | None = None) -> dict[str, Turns]:
    """Read the SPEAKER records of an RTTM file, or of all ``*.rttm`` files of a folder.

    Accepted as they are: comment lines (``;``), blank lines, tabs and runs of spaces, a byte-order mark, other record
    types of the standard, several channels of a recording (read as one). Turns of no length are left out. Overlapping
    turns of one speaker and starts before 0 are kept here; scoring joins the former. All of these but the first four
    are counted and told to `note`.

    Parameters
    ----------
    note : is called with a line for each kind of oddity in each file.

    Returns
    -------
    dict : recording → Turns. Times are not limited to the recording's length.

    Raises
    ------
    OSError : no such file.
    ValueError : naming file and line: not UTF-8, an unknown record type, a field too few or too many, a time that is no
        finite number, a negative duration; one recording in two files.
    """
    found: dict[str, Turns] = {}
    origin: dict[str, Path] = {}
    for file in files_in(path, ".rttm"):
        for recording, turns in _read_rttm_file(file, note or (lambda _: None)).items():
            if recording in found:
                raise ValueError(f"{file}: recording {recording!r} is also in {origin[recording]}; keep one of the two")
            found[recording], origin[recording] = turns, file
    return found


def _read_rttm_file(path: Path, note: Callable[[str], None]) -> dict[str, Turns]:
    found = {name: Turns.from_arrays(*columns) for name, columns in read_columns(path, note).items()}
    for name, turns in found.items():
        if joined := len(turns) - len(turns.merged()):
            note(f"{path}: recording {name!r}: {joined} turns overlap another of the same speaker and are joined to it")
    return found


def read_uem(path: str | PathLike[str], note: Callable[[str], None] | None = None) -> dict[str, NDArray[np.float64]]:
    """Read what is to be scored: lines ``recording channel start end``, of a file or all ``*.uem`` of a folder.

    Returns
    -------
    dict : recording → (regions, 2) float64 in seconds, sorted, overlapping ones joined.

    Raises
    ------
    OSError : no such file.
    ValueError : naming file and line: not UTF-8, not four fields, a time that is no finite number, an end before its
        start; no region at all.
    """
    table: dict[str, list[tuple[float, float]]] = {}
    for file in files_in(path, ".uem"):
        for number, line in enumerate(lines(file), 1):
            fields = line.split()
            if not fields or fields[0].startswith(";"):
                continue
            if len(fields) != 4:
                raise ValueError(
                    f"{file}:{number}: expected 4 fields (recording channel start end), found {len(fields)}"
                )
            start, end = (seconds(field, f"{file}:{number}", "time") for field in fields[2:])
            if end < start:
                raise ValueError(f"{file}:{number}: the region ends at {end:g} s, before it starts at {start:g} s")
            if end == start and note:
                note(f"{file}:{number}: region of no length")
            table.setdefault(fields[0], []).append((start, end))
    if not table:
        raise ValueError(f"{path}: no region in this UEM")
    return {recording: joined_regions(regions) for recording, regions in table.items()}


def joined_regions(regions: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """Sorted and joined where they touch or overlap; shape (regions, 2)."""
    joined: list[list[float]] = []
    for start, end in sorted(regions):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        elif end > start:
            joined.append([start, end])
    return np.array(joined, np.float64).reshape(-1, 2)


def write_rttm(path: str | PathLike[str], recordings: Mapping[str, Turns | Iterable[Turn]]) -> None:
    """Write RTTM with times to the millisecond; see `featstore.rttm.write_rttm`."""
    _write_turns(path, {name: Turns.of(turns).to_turns() for name, turns in recordings.items()})
