"""Whole recordings out of windows: a head hears overlapping windows, and its channels become voices that last.

Voices are found as the cascade finds them: where one speaker is heard, frames of the feature that says who are cut into
pieces and clustered. Each window's channels then go to different voices, by how they sound while nobody else speaks; a
channel that hears the seconds it shares with the next window as one of that window does goes with it.

Source: Kinoshita et al. 2021, “Advances in integration of end-to-end neural and clustering-based diarization” (no two
channels of a window are one voice); the ties between overlapping windows and the pieces are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from trainers.cascade.clusters import ANY, Limits, Pieces, unit, voices_within

#: Channels that hear the shared part of two windows so much alike are one voice: shared activity over either's.
_ALIKE = 0.7
_ROUNDS = 3  # of giving channels to the nearest voices


@dataclass(frozen=True, eq=False)
class Heard:
    """What a head heard in a recording, window by window.

    Attributes
    ----------
    starts : (windows,) first frame of each.
    activity : (windows, length, channels) 0 to 1.
    vectors : (windows, channels, dim): the mean of the frames in which the channel is active alone, of length 1.
    alone : (windows, channels) how many these are.
    num_frames : of the recording.
    pieces : where one speaker is heard.
    """

    starts: NDArray[np.int64]
    activity: NDArray[np.float32]
    vectors: NDArray[np.float32]
    alone: NDArray[np.int64]
    num_frames: int
    pieces: Pieces


def starts_of(num_frames: int, length: int, hop: int) -> NDArray[np.int64]:
    """Windows every `hop` frames; the last ends with the recording."""
    last = max(0, num_frames - length)
    return np.unique(np.append(np.arange(0, last, hop), last)).astype(np.int64)


def sound_of(
    activity: NDArray[np.float32], frames: NDArray[np.float32], threshold: float = 0.5
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors (channels, dim) and frames alone (channels,) of a window.

    Parameters
    ----------
    activity : (frames, channels).
    frames : (frames, dim) of the feature that says who, on one scale, of length 1.
    """
    active = activity >= threshold
    alone = active & (active.sum(1, keepdims=True) == 1)
    weights = np.where(alone.any(0), alone, activity**4)  # never alone: where it is heard best
    return unit(weights.T.astype(np.float32) @ frames), alone.sum(0)


def stitch(heard: Heard, threshold: float, min_share: float = 0.0, limits: Limits = ANY) -> NDArray[np.int64]:
    """Which voice each channel of each window is, (windows, channels) from 0; -1 for those that are nobody.

    Parameters
    ----------
    threshold : cosine distance at which clusters are two voices.
    min_share : of the frames alone; a smaller cluster is no voice.
    """
    means = voices_within(heard.pieces, "average", threshold, min_share, limits)
    voices = np.full(heard.alone.shape, -1, np.int64)
    if not len(means):
        return voices
    tracks = _tracks(heard)
    for _ in range(_ROUNDS):
        voices = _assigned(heard, tracks, means)
        means = _means(heard, voices, means)
    return voices


def single_of(starts: NDArray[np.int64], activity: NDArray[np.float32], num_frames: int) -> NDArray[np.bool_]:
    """Where windows agree that one speaks, (frames,)."""
    length = activity.shape[1]
    total, count = np.zeros((2, max(num_frames, length)))
    for start, window in zip(starts.tolist(), activity, strict=True):
        total[start : start + length] += (window >= 0.5).sum(1)
        count[start : start + length] += 1
    return np.abs(total / count.clip(1) - 1)[:num_frames] < 0.25


def overlap_weights(length: int) -> NDArray[np.float32]:
    """What each frame of a window counts where windows overlap, (length,): most in its middle."""
    return np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)


def join(heard: Heard, voices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Activity of the whole recording, (frames, voices): the mean over windows, which weigh most in their middle."""
    count = int(voices.max(initial=-1)) + 1
    length = heard.activity.shape[1]
    weight = overlap_weights(length)
    total = np.zeros((max(heard.num_frames, length), count), np.float32)
    weights = np.zeros((len(total), 1), np.float32)
    for start, activity, labels in zip(heard.starts.tolist(), heard.activity, voices, strict=True):
        here = slice(start, start + length)
        weights[here, 0] += weight
        for channel in np.flatnonzero(labels >= 0):
            total[here, labels[channel]] += weight * activity[:, channel]
    found: NDArray[np.float32] = (total / weights.clip(1e-9))[: heard.num_frames]
    return found


def voices_in(heard: Heard, voices: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each voice sounds like, (voices, dim) of length 1."""
    return _means(heard, voices, np.zeros((int(voices.max(initial=-1)) + 1, heard.vectors.shape[2]), np.float32))


# ---- its parts


def _tracks(heard: Heard) -> NDArray[np.int64]:
    """Channels tied to those of the window before: (windows, channels) numbers; -1 where a channel says nothing."""
    windows, length, channels = heard.activity.shape
    says = (heard.activity >= 0.5).sum(1) >= 2
    tracks = np.full((windows, channels), -1, np.int64)
    count = 0
    for w in range(windows):
        shift = int(heard.starts[w] - heard.starts[w - 1]) if w else length
        taken: dict[int, int] = {}
        if shift < length:
            before, here = heard.activity[w - 1, shift:], heard.activity[w, : length - shift]
            shared = np.minimum(before[:, :, None], here[:, None]).sum(0)
            either = np.maximum(before[:, :, None], here[:, None]).sum(0)
            alike = np.where(shared > 2, shared / either.clip(1e-9), 0)
            for i, j in zip(*linear_sum_assignment(alike, maximize=True), strict=True):
                if alike[i, j] >= _ALIKE and tracks[w - 1, i] >= 0:
                    taken[int(j)] = int(tracks[w - 1, i])
        for j in np.flatnonzero(says[w]).tolist():
            if j not in taken:
                taken[j], count = count, count + 1
            tracks[w, j] = taken[j]
    return tracks


def _assigned(heard: Heard, tracks: NDArray[np.int64], means: NDArray[np.float32]) -> NDArray[np.int64]:
    """Each window's channels to different voices, by cosines that count by how long a channel is alone.

    A channel counts with all the windows that its track runs through.
    """
    voices = np.full(tracks.shape, -1, np.int64)
    weighted = np.log1p(heard.alone)[:, :, None] * (heard.vectors @ means.T)  # (windows, channels, voices)
    sums = np.zeros((int(tracks.max(initial=-1)) + 1, len(means)))
    np.add.at(sums, tracks[tracks >= 0], weighted[tracks >= 0])
    for w in range(len(tracks)):
        here = np.flatnonzero(tracks[w] >= 0)
        if len(here):
            rows, columns = linear_sum_assignment(sums[tracks[w, here]], maximize=True)
            voices[w, here[rows]] = columns
    return voices


def _means(heard: Heard, voices: NDArray[np.int64], means: NDArray[np.float32]) -> NDArray[np.float32]:
    sums = np.zeros(means.shape)
    there = voices >= 0
    np.add.at(sums, voices[there], heard.alone[there][:, None] * heard.vectors[there])
    found = unit(sums).astype(np.float32)
    return np.where(np.abs(sums).sum(1, keepdims=True) > 0, found, means)
