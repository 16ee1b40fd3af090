"""The turns of an utterance out of the RTTM file that its manifest names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath

from featstore.corpora.audio import duration_s as audio_duration_s
from featstore.corpora.rttm import read_rttm
from featstore.types import Turn

#: How far turns may pass the end of their audio: people mark to the second.
_PASS_S = 1.0


def read_turns(
    where: str, path: Path, names: set[str], offset_s: float, duration_s: float, audio: Path
) -> tuple[Turn, ...]:
    """The turns of one stretch of a recording, in seconds from its start, cut to it.

    Parameters
    ----------
    where : for messages.
    path : the RTTM file.
    names : what the recording may be called there.
    offset_s, duration_s : the stretch; a duration of ``nan`` means “to the end”.
    audio : the file that it is a stretch of, which is asked for its length where it is there.

    Raises
    ------
    ValueError : no such file, no such recording in it, or turns beyond the end of the audio.
    """
    if not path.is_file():
        raise ValueError(f"{where}: rttm_filepath {path}: no such file")
    recordings = _read_rttm(str(path), path.stat().st_mtime_ns)
    if not recordings:
        raise ValueError(f"{where}: {path} holds no turn; leave rttm_filepath out where nobody knows who speaks")
    found = [name for name in recordings if name in names] or [name for name in recordings if _same(name, names)]
    if not found and len(recordings) == 1 and _same(path.stem, names):
        found = list(recordings)  # a file of one recording is called as the audio: that is enough
    if not found:
        there = ", ".join(map(repr, list(recordings)[:3])) + (", …" if len(recordings) > 3 else "")
        near = difflib.get_close_matches(min(names), recordings, n=1) if len(recordings) > 3 else []
        raise ValueError(
            f"{where}: {path} has no recording named {' or '.join(sorted(names))}, but {there}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + "; if it is the right one, give its name as session_id"
        )
    turns = [turn for name in found for turn in recordings[name]]
    end_s = _end_s(where, path, turns, audio)
    end_s = min(end_s, math.inf if math.isnan(duration_s) else offset_s + duration_s)
    return tuple(
        Turn(max(t.start_s, offset_s) - offset_s, min(t.end_s, end_s) - offset_s, t.speaker)
        for t in turns
        if t.end_s > offset_s and t.start_s < end_s
    )


def _same(recording: str, names: Iterable[str]) -> bool:
    """Whether a recording is called as the audio but for what stands behind a dot or the like: ES2004a.Mix-Headset."""
    for name in names:
        short, long = sorted((recording.lower(), PurePosixPath(name).name.lower()), key=len)
        if short and long.startswith(short) and not long[len(short) : len(short) + 1].isalnum():
            return True
    return False


def _end_s(where: str, path: Path, turns: Iterable[Turn], audio: Path) -> float:
    """Where the audio ends, infinite where it cannot be asked; turns beyond it are of another recording."""
    try:
        end_s = audio_duration_s(str(audio))
    except (ValueError, OSError):
        return math.inf  # the extraction says what is wrong with it
    beyond = [t for t in turns if t.end_s > end_s + _PASS_S]
    if beyond:
        raise ValueError(
            f"{where}: {path}: {len(beyond)} turn(s) lie beyond the end of {audio}, which has {end_s:.1f} s, the first from "
            f"{beyond[0].start_s:.1f} to {beyond[0].end_s:.1f} s: is it the RTTM of another recording?"
        )
    return end_s


# One RTTM often serves every utterance cut from its recording.
@lru_cache(maxsize=256)
def _read_rttm(path: str, _modified: int) -> dict[str, tuple[Turn, ...]]:
    return read_rttm(path)
