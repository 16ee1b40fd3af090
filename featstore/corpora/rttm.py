"""RTTM files (who speaks when) in and out."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

from featstore.types import Turn

# The other record types of the standard: valid in a file, of no use here.
_OTHER_TYPES = frozenset(
    "SEGMENT NOSCORE NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P SPKR-INFO".split()
)


def read_rttm(path: str | PathLike[str]) -> dict[str, tuple[Turn, ...]]:
    """Read an RTTM file: recording → its turns by start time, in seconds. What is accepted: see `read_columns`.

    Raises
    ------
    OSError, ValueError : as `read_columns`.
    """
    return {
        name: tuple(sorted(map(Turn, *columns), key=lambda t: (t.start_s, t.end_s)))
        for name, columns in read_columns(path).items()
    }


def read_columns(
    path: str | PathLike[str], note: Callable[[str], None] = lambda text: None
) -> dict[str, tuple[list[float], list[float], list[str]]]:
    """Read the SPEAKER records of an RTTM file as columns: recording → (starts, ends, speakers), in seconds.

    Accepted as they are: comment lines (``;``), blank lines, tabs and runs of spaces, a byte-order mark. Accepted, and
    told to `note` with a count: other record types of the standard, turns of no length (left out), turns that start
    before 0, several channels of a recording (read as one).

    Raises
    ------
    OSError : no such file.
    ValueError : naming file and line: not UTF-8, an unknown record type, a field too few or too many, a time that is no
        finite number, a negative duration.

    Source: NIST, “The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan”, appendix A.
    """
    odd: dict[str, list[int]] = {}
    table: dict[str, tuple[list[float], list[float], list[str]]] = {}
    channels: dict[str, set[str]] = {}
    recording: str | None = None
    starts: list[float] = []
    ends: list[float] = []
    names: list[str] = []
    for number, line in enumerate(lines(path), 1):
        fields = line.split()
        if not fields or fields[0].startswith(";"):
            continue
        if fields[0] != "SPEAKER":
            if fields[0] not in _OTHER_TYPES:
                raise ValueError(f"{path}:{number}: expected a line that starts with SPEAKER, found {fields[0][:40]!r}")
            odd.setdefault("records of other types passed over", []).append(number)
            continue
        if not 8 <= len(fields) <= 10:
            raise ValueError(
                f"{path}:{number}: expected 8 to 10 fields (SPEAKER recording channel start duration <NA> <NA> speaker "
                f"<NA> <NA>), found {len(fields)}; names cannot hold spaces"
            )
        channels.setdefault(fields[1], set()).add(fields[2])
        try:
            start, duration = float(fields[3]), float(fields[4])
            usual = 0 <= start < math.inf and 0 < duration < math.inf
        except ValueError:
            usual = False
        if not usual:
            start = seconds(fields[3], f"{path}:{number}", "start")
            duration = seconds(fields[4], f"{path}:{number}", "duration")
            if duration < 0:
                raise ValueError(f"{path}:{number}: expected a duration of 0 or more seconds, found {fields[4]}")
            if start < 0:
                odd.setdefault("turns that start before 0 s", []).append(number)
            if duration == 0:
                odd.setdefault("turns of no length left out", []).append(number)
                table.setdefault(fields[1], ([], [], []))  # the recording is known, even if nobody speaks
                continue
        if fields[1] != recording:
            recording = fields[1]
            starts, ends, names = table.setdefault(recording, ([], [], []))
        starts.append(start)
        ends.append(start + duration)
        names.append(fields[7])
    for what, numbers in odd.items():
        note(f"{path}: {len(numbers)} {what} (first: line {numbers[0]})")
    for name, used in channels.items():
        if len(used) > 1:
            note(f"{path}: recording {name!r} has {len(used)} channels, scored as one")
    return table


def lines(path: str | PathLike[str], raw: bytes | None = None) -> list[str]:
    """Lines of a UTF-8 text file, a byte-order mark dropped; a ValueError names the first line that is not UTF-8.

    `raw` is what the file holds, where that had to be unpacked.
    """
    raw = (Path(path).read_bytes() if raw is None else raw).removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode().split("\n")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{number}: not UTF-8 text; convert the file (iconv -t UTF-8) and try again") from None


def seconds(text: str, where: str, what: str) -> float:
    """A time from a file; a ValueError says where it is no finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a {what} in seconds, found {text[:40]!r}")
    return value


def write_rttm(path: str | PathLike[str], turns: Mapping[str, Iterable[Turn]]) -> None:
    """Write turns of recordings as RTTM, times to the millisecond.

    Raises
    ------
    ValueError : a recording or speaker name that holds white space or is empty (RTTM cannot hold it).
    """
    lines = []
    for recording, of_recording in turns.items():
        for turn in of_recording:
            for name in (recording, turn.speaker):
                one_word(name)
            start_s, end_s = round(turn.start_s, 3), round(turn.end_s, 3)
            lines.append(
                f"SPEAKER {recording} 1 {start_s:.3f} {end_s - start_s:.3f} <NA> <NA> {turn.speaker} <NA> <NA>\n"
            )
    Path(path).write_text("".join(lines), encoding="utf-8")


def one_word(name: str) -> None:
    """A ValueError where a name of a recording or speaker holds white space or is empty: no RTTM or UEM can hold it."""
    if name.split() != [name]:
        raise ValueError(f"RTTM names must be one word without spaces, found {name!r}")
