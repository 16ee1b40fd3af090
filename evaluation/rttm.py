"""Files of who spoke when: RTTM and UEM read into arrays for scoring, with a note on all that is odd in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.turns import Turns
from featstore.corpora.rttm import lines, one_word, read_columns, seconds
from featstore.corpora.rttm import write_rttm as write_rttm


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


def write_uem(path: str | PathLike[str], recordings: Mapping[str, NDArray[np.float64]]) -> None:
    """Write what is to be scored: recording → (regions, 2) seconds, to the millisecond.

    Raises
    ------
    ValueError : a recording's name that holds white space or is empty (UEM cannot hold it).
    """
    rows = []
    for name, regions in recordings.items():
        one_word(name)
        rows += [f"{name} 1 {start:.3f} {end:.3f}\n" for start, end in regions.tolist()]
    Path(path).write_text("".join(rows), encoding="utf-8")
