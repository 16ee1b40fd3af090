"""RTTM files (who speaks when) in and out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from featstore.types import Turn

# The other record types of NIST's RT-09 plan: valid in a file, of no use here.
_OTHER_TYPES = frozenset(
    "SEGMENT NOSCORE NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P SPKR-INFO".split()
)


def read_rttm(path: str | PathLike[str]) -> dict[str, tuple[Turn, ...]]:
    """Read the SPEAKER lines of an RTTM file.

    Comment lines (``;``), blank lines, a byte-order mark, tabs and runs of spaces are accepted; the record types of
    the RTTM standard that say nothing of speakers are passed over; turns of no length are dropped, since they hold
    no speech.

    Returns
    -------
    dict : recording → its turns by start time, in seconds.

    Raises
    ------
    ValueError : naming file and line, for anything else: an unknown type, too few fields, a start or duration that
        is no finite number, a negative duration or start, bytes that are not UTF-8.

    Source: NIST, “The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan”, appendix A.
    """
    turns: dict[str, list[Turn]] = {}
    for number, raw in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8; convert the file (iconv -t UTF-8) and try again") from None
        if not line or line.startswith(";"):
            continue
        fields = line.split()
        if fields[0] in _OTHER_TYPES:
            continue
        if fields[0] != "SPEAKER":
            raise ValueError(f"{where}: expected a line that starts with SPEAKER, found {fields[0][:40]!r}")
        if len(fields) < 8:
            raise ValueError(
                f"{where}: expected at least 8 fields (SPEAKER file channel start duration <NA> <NA> speaker), "
                f"found {len(fields)}; names must not hold spaces"
            )
        start_s, duration_s = (_seconds(field, where) for field in fields[3:5])
        of_recording = turns.setdefault(fields[1], [])
        if duration_s > 0:
            of_recording.append(Turn(start_s, start_s + duration_s, fields[7]))
    return {name: tuple(sorted(found, key=lambda t: (t.start_s, t.end_s))) for name, found in turns.items()}


def _seconds(field: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{where}: expected a time in seconds, 0 or more, found {field!r}")
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
                if not name or name.split() != [name]:
                    raise ValueError(f"RTTM names must be one word without spaces, found {name!r}")
            start_s, end_s = round(turn.start_s, 3), round(turn.end_s, 3)
            lines.append(
                f"SPEAKER {recording} 1 {start_s:.3f} {end_s - start_s:.3f} <NA> <NA> {turn.speaker} <NA> <NA>\n"
            )
    Path(path).write_text("".join(lines), encoding="utf-8")
