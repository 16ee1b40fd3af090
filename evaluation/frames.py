"""Frames and turns: rasterise a reference, decode a model's activities, find the floor of a grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.diarization import DiarizationErrors, score
from evaluation.turns import Turns
from featstore.types import FRAME_TOLERANCE, FrameGrid, Turn


def turns_to_frames(
    turns: Iterable[Turn] | Turns, grid: FrameGrid, start: int, stop: int, speakers: Sequence[str]
) -> NDArray[np.bool_]:
    """Who is active in each frame: a frame is active when its centre lies in a turn, ``[start_s, end_s)``.

    Parameters
    ----------
    start, stop : frame numbers on `grid` (stop exclusive).
    speakers : the columns, in order. Turns of anyone else are left out.

    Returns
    -------
    (stop - start, len(speakers)) bool.

    Raises
    ------
    ValueError : stop before start, or a speaker named twice.
    """
    turns = Turns.of(turns)
    first, last = grid.active(turns.start_s, turns.end_s)
    return _paint(turns, first, last, start, stop, speakers)


def turns_to_frames_outward(
    turns: Iterable[Turn] | Turns, grid: FrameGrid, start: int, stop: int, speakers: Sequence[str]
) -> NDArray[np.bool_]:
    """The reference study's rule: every frame that a turn touches is active, ``floor(start) … ceil(end)``.

    It widens each end of a turn by half a frame on average. For comparison only; parameters as `turns_to_frames`.
    """
    turns = Turns.of(turns)
    origin_s = grid.first_centre_s - grid.step_s / 2
    first = np.floor((turns.start_s - origin_s) / grid.step_s + FRAME_TOLERANCE)
    last = np.ceil((turns.end_s - origin_s) / grid.step_s - FRAME_TOLERANCE)
    return _paint(turns, first, last, start, stop, speakers)


def _paint(
    turns: Turns, first: NDArray[Any], last: NDArray[Any], start: int, stop: int, speakers: Sequence[str]
) -> NDArray[np.bool_]:
    if stop < start:
        raise ValueError(f"frames {start} to {stop}: stop lies before start")
    column = {name: i for i, name in enumerate(speakers)}
    if len(column) != len(speakers):
        raise ValueError(f"a speaker is named twice: {', '.join(speakers)}")
    columns = np.array([column.get(name, -1) for name in turns.speakers], np.int64)[turns.speaker]
    keep = columns >= 0
    columns = columns[keep]
    rows, width = stop - start, len(speakers)
    first = (first[keep] - start).clip(0, rows).astype(np.int64)
    last = (last[keep] - start).clip(0, rows).astype(np.int64)
    size = (rows + 1) * width
    steps = np.bincount(first * width + columns, minlength=size) - np.bincount(last * width + columns, minlength=size)
    return np.cumsum(steps.reshape(rows + 1, width), axis=0)[:rows] > 0


def frames_to_turns(active: ArrayLike, grid: FrameGrid, speakers: Sequence[str], start: int = 0) -> Turns:
    """Turns from frames, the inverse of `turns_to_frames`: a run of active frames spans half a step around its ends.

    Parameters
    ----------
    active : (frames, len(speakers)) bool.
    start : number of the first frame on `grid`.

    Raises
    ------
    ValueError : the number of columns is not that of speakers.
    """
    active = np.asarray(active, np.bool_)
    if active.ndim != 2 or active.shape[1] != len(speakers):
        raise ValueError(f"activity must be (frames, {len(speakers)} speakers), found shape {active.shape}")
    padded = np.zeros((len(active) + 2, active.shape[1]), np.int8)
    padded[1:-1] = active
    change = np.diff(padded, axis=0).T
    speaker, first = np.nonzero(change == 1)
    _, last = np.nonzero(change == -1)
    origin_s = grid.first_centre_s + (start - 0.5) * grid.step_s
    return Turns.from_arrays(
        (origin_s + first * grid.step_s).clip(0), origin_s + last * grid.step_s, [speakers[i] for i in speaker.tolist()]
    )


def decode(activity: ArrayLike, threshold: float, median_frames: int = 1) -> NDArray[np.bool_]:
    """Decisions from activities: above or at the threshold, then a median filter over time.

    For an odd window this equals the median filter of the activities followed by the threshold. The first and last
    frame are repeated beyond the ends.

    Parameters
    ----------
    activity : (frames, speakers) probabilities.
    median_frames : odd length of the window; 1 is no filter.

    Returns
    -------
    (frames, speakers) bool.

    Raises
    ------
    ValueError : NaN in the activity, an even window, or an activity that is not two-dimensional.
    """
    activity = np.asarray(activity)
    if activity.ndim != 2:
        raise ValueError(f"activity must be (frames, speakers), found shape {activity.shape}")
    if median_frames < 1 or median_frames % 2 == 0:
        raise ValueError(f"median_frames must be odd and 1 or more, found {median_frames}")
    if np.isnan(activity).any():
        raise ValueError(f"activity holds {int(np.isnan(activity).sum())} NaN")
    active = activity >= threshold
    if median_frames == 1 or not len(active):
        return active
    half = median_frames // 2
    padded = np.pad(active, ((half + 1, half), (0, 0)), mode="edge").astype(np.int32)
    padded[0] = 0
    total = np.cumsum(padded, axis=0)
    return total[median_frames:] - total[:-median_frames] > half


def channel_names(count: int) -> tuple[str, ...]:
    """Names of a model's output channels in turns and RTTM: ``channel0``, ``channel1``, …"""
    return tuple(f"channel{i}" for i in range(count))


def floor(
    reference: Mapping[str, Turns],
    grid: FrameGrid,
    *,
    outward: bool = False,
    uem: Mapping[str, NDArray[np.float64]] | None = None,
    collar_s: float = 0.0,
) -> DiarizationErrors:
    """What the reference scores after a round trip through frames: no frame-level system can do better.

    Parameters
    ----------
    outward : rasterise by the reference study's rule instead of frame centres.
    """
    rasterise = turns_to_frames_outward if outward else turns_to_frames
    hypothesis = {}
    for name, turns in reference.items():
        stop = int(np.ceil((turns.end_s.max(initial=0) - grid.first_centre_s) / grid.step_s)) + 2
        frames = rasterise(turns, grid, 0, max(stop, 0), turns.speakers)
        hypothesis[name] = frames_to_turns(frames, grid, turns.speakers)
    return score(reference, hypothesis, uem=uem, collar_s=collar_s).corpus
