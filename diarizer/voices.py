"""Names for voices: what a known voice sounds like, and which of a recording's voices it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from diarizer.frames import Frames
from diarizer.heads import Head

#: A voice needs so many seconds of speech to be known again.
MIN_SPEECH_S = 3.0
#: A second voice with this share of an enrolment is not an accident.
MOST_OF_OTHERS = 0.2


@dataclass(frozen=True, eq=False)
class Voice:
    """What somebody sounds like: (dim,) of length 1, from `speech_s` seconds of speech."""

    vector: NDArray[np.float32]
    speech_s: float


def enrolled(head: Head, frames: Frames, where: str) -> Voice:
    """The one voice of a recording.

    Raises
    ------
    ValueError : beginning with `where`: no speech, too little of it, or two people's.
    """
    voices, shares, speech_s = head.voices(frames)
    if not len(voices):
        raise ValueError(f"{where}: nobody is heard alone in it; record one person who speaks, for 10 s or more")
    if speech_s < MIN_SPEECH_S:
        raise ValueError(
            f"{where}: too short: {speech_s:.1f} s of speech, expected {MIN_SPEECH_S:g} s or more; 10 s are better"
        )
    order = np.argsort(-shares)
    if len(order) > 1 and shares[order[1]] > MOST_OF_OTHERS:
        raise ValueError(
            f"{where}: two people speak in it ({shares[order[0]]:.0%} and {shares[order[1]]:.0%} of the time); "
            "cut out where only one does"
        )
    return Voice(voices[order[0]], speech_s)


def named(voices: NDArray[np.float32], known: Mapping[str, Voice], same: float) -> dict[int, str]:
    """Which voice is whose: the pairing of the largest cosines in all, of those above `same`; the others stay unknown."""
    if not known or not len(voices):
        return {}
    cosines = voices @ np.stack([voice.vector for voice in known.values()]).T
    rows, columns = linear_sum_assignment(np.where(cosines > same, cosines, 0), maximize=True)
    names = list(known)
    return {int(k): names[n] for k, n in zip(rows.tolist(), columns.tolist(), strict=True) if cosines[k, n] > same}
