"""A run put to use: whole recordings in, who spoke when out.

>>> from diarizer import load
>>> diarizer = load("runs/cascade")
>>> for turn in diarizer("meeting.wav"):
...     print(turn.start_s, turn.end_s, turn.speaker)
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer


def load(
    run: str | PathLike[str] | None = None, *, weights: Mapping[str, str] | None = None, device: str = "auto"
) -> Diarizer:
    """Put a run to use.

    Parameters
    ----------
    run : a run's folder; without it, the small run on demo weights that comes along.
    weights : where encoders' weights lie now, by feature, if not where the run says.

    Raises
    ------
    RunError : not a run, damaged, or of a kind that does not say who spoke when.
    """
    from diarizer.diarizer import DEMO, Diarizer
    from trainers.runs import Run

    return Diarizer(Run.open(str(run) if run is not None else DEMO), weights or {}, device)
