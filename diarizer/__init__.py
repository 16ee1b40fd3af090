"""A run put to use: whole recordings in, who spoke when out.

>>> from diarizer import load
>>> diarizer = load("runs/cascade")
>>> for turn in diarizer("meeting.wav"):
...     print(turn.start_s, turn.end_s, turn.speaker)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer
    from diarizer.live import Update
    from diarizer.serve.tap import Tap


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


def attach(mimi: Any, told: Callable[[Update], None], made: Diarizer, *, latency_s: float | None = None) -> Tap:
    """Hear a Mimi that a program of yours runs anyway, frame by frame; what it computes stays as it is, bit for bit.

    What is used of it: ``downsample.register_forward_hook``, ``reset_streaming`` (a reset begins anew, its clock at 0) and,
    where the run hears more than Mimi's frames, ``encode``; so Moshi's and PersonaPlex's will do. The head works in a
    thread of its own, and nothing is raised into yours.

    Parameters
    ----------
    mimi : in streaming mode, its CUDA graphs captured (attach after a warm-up), one sound (the first of a batch is heard).
    told : gets each update, in the head's thread.
    made : of `load`; its run hears ``mimi``, with the weights that this one has.

    Returns
    -------
    Tap : ``detach()`` closes open turns and leaves the Mimi as it was.

    Raises
    ------
    ValueError : the run does not hear Mimi's frames, or cannot be used live; not a Mimi, or another kind.
    """
    from diarizer.serve.tap import attach

    def each(updates: list[Update], heard_s: float, new: bool) -> None:
        for update in updates:
            told(update)

    return attach(mimi, made, each, latency_s=latency_s)
