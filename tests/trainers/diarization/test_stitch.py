"""Windows become recordings: one voice throughout, whatever channel it has in a window."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.cascade.clusters import Limits, pieces_of
from trainers.diarization.stitch import (
    Heard,
    _assigned,
    _means,
    _tracks,
    join,
    single_of,
    sound_of,
    starts_of,
    stitch,
    voices_in,
)

LENGTH, HOP, CHANNELS, VOICES, DIM = 60, 15, 4, 6, 16


def recording(seed: int, frames: int = 600, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """(frames, voices) who speaks, and (frames, dim) what that sounds like."""
    rng = np.random.default_rng(seed)
    who = np.zeros((frames, VOICES), bool)
    at = 0
    while at < frames:
        length = int(rng.integers(10, 25))
        who[at : at + length, rng.integers(VOICES)] = True
        at += length - int(rng.integers(-4, 4))
    sounds = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0][:VOICES]
    vectors = who @ sounds + noise * rng.standard_normal((frames, DIM))
    return who, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def heard(who: np.ndarray, vectors: np.ndarray, seed: int = 0) -> Heard:
    """As a head would hear it: the channels of each window are drawn anew."""
    rng = np.random.default_rng(seed)
    starts = starts_of(len(who), LENGTH, HOP)
    activity = np.zeros((len(starts), LENGTH, CHANNELS), np.float32)
    rows, alone = [], []
    for w, start in enumerate(starts):
        part = who[start : start + LENGTH]
        talk = np.argsort(-part.sum(0), kind="stable")[:CHANNELS]
        activity[w] = 0.02 + 0.96 * part[:, rng.permutation(talk)]
        row, frames = sound_of(activity[w], vectors[start : start + LENGTH])
        rows.append(row)
        alone.append(frames)
    pieces = pieces_of(vectors, single_of(starts, activity, len(who)), 8, 2)
    return Heard(starts, activity, np.stack(rows), np.stack(alone), len(who), pieces)


def wrong(who: np.ndarray, found: np.ndarray) -> float:
    from scipy.optimize import linear_sum_assignment

    shared = (who.T.astype(int) @ found.astype(int)).astype(float)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return 1 - shared[rows, columns].sum() / who.sum()


def test_windows_cover_a_recording_and_end_with_it():
    assert starts_of(100, 60, 15).tolist() == [0, 15, 30, 40]
    assert starts_of(60, 60, 15).tolist() == [0]
    assert starts_of(10, 60, 15).tolist() == [0]


@pytest.mark.parametrize("seed", range(4))
def test_one_voice_throughout_and_more_than_a_window_has_channels(seed):
    who, vectors = recording(seed)
    made = heard(who, vectors)
    voices = stitch(made, 0.5)
    assert voices.max() + 1 == VOICES  # a window has four channels
    assert wrong(who, join(made, voices) >= 0.5) < 0.08
    for row in voices:  # two channels of a window are never one voice
        there = row[row >= 0]
        assert len(set(there)) == len(there)


def test_who_comes_back_after_long_absence_is_known_again():
    who, vectors = recording(3)
    who[200:500, 0] = False
    vectors = np.where(who.any(1, keepdims=True), vectors, np.roll(vectors, 7, axis=1))
    made = heard(who, vectors)
    assert wrong(who, join(made, stitch(made, 0.5)) >= 0.5) < 0.1


def test_ties_between_windows_hold_where_a_window_alone_cannot_tell():
    """A channel that is never alone in a window is who it is in the windows around."""
    who, vectors = recording(2)
    made = heard(who, vectors)
    for w in range(2, len(made.starts), 3):  # here nobody is heard alone
        made.alone[w] = 0
        made.vectors[w] = np.random.default_rng(w).standard_normal((CHANNELS, DIM))
    assert wrong(who, join(made, stitch(made, 0.5)) >= 0.5) < 0.1


def test_where_windows_differ_nobody_is_single():
    starts = np.array([0, 2])
    activity = np.zeros((2, 4, 2), np.float32)
    activity[0, :, 0] = activity[1, :, 1] = 1
    activity[1, :2, 0] = 1  # frames 2 and 3: one says the first window, two the second
    assert single_of(starts, activity, 6).tolist() == [True, True, False, False, True, True]


def test_windows_weigh_most_in_their_middle():
    activity = np.zeros((2, 4, 1), np.float32)
    activity[0] = 1  # frames 0 to 3; the second window, of frames 2 to 5, hears nobody
    nothing = np.zeros((2, 1, DIM), np.float32), np.zeros((2, 1), int)
    made = Heard(np.array([0, 2]), activity, *nothing, 6, None)
    np.testing.assert_allclose(join(made, np.zeros((2, 1), int))[:, 0], [1, 1, 2 / 3, 1 / 3, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(("until", "tied"), [(10, True), (8, True), (6, False)])
def test_channels_are_tied_where_they_hear_nearly_the_same(until, tied):
    """Ten frames that two windows share: one hears a voice in all of them, the other in the first `until`."""
    activity = np.zeros((2, 20, 2), np.float32)
    activity[0, 10:, 1], activity[1, :until, 0] = 1, 1
    nothing = np.zeros((2, 2, DIM), np.float32), np.zeros((2, 2), int)
    before, here = _tracks(Heard(np.array([0, 10]), activity, *nothing, 30, None)).tolist()
    assert before == [-1, 0] and here == [0 if tied else 1, -1]


@pytest.mark.parametrize(("frames", "before", "here"), [(1, -1, -1), (2, 0, 1), (3, 0, 0)])
def test_a_channel_says_something_in_two_frames_and_is_tied_by_three(frames, before, here):
    activity = np.zeros((2, 20, 1), np.float32)
    activity[0, 10 : 10 + frames, 0] = activity[1, :frames, 0] = 1  # the same frames of the recording
    nothing = np.zeros((2, 1, DIM), np.float32), np.zeros((2, 1), int)
    assert _tracks(Heard(np.array([0, 10]), activity, *nothing, 30, None)).tolist() == [[before], [here]]


def test_a_channel_that_is_never_alone_sounds_as_where_it_is_heard_best():
    activity = np.array([[0.9, 0.8], [0.6, 0.8], [0.1, 0.1]], np.float32)
    vectors, alone = sound_of(activity, np.eye(3, dtype=np.float32))
    assert alone.tolist() == [0, 0]
    weights = activity.T.astype(float) ** 4
    np.testing.assert_allclose(vectors, weights / np.linalg.norm(weights, axis=1, keepdims=True), rtol=1e-5)
    vectors, alone = sound_of(np.array([[0.9, 0.1], [0.9, 0.6]], np.float32), np.eye(2, dtype=np.float32))
    assert alone.tolist() == [1, 0] and vectors[0].tolist() == [1, 0]


def test_many_short_hearings_outweigh_a_long_one():
    """Of one track: 100 frames that sound a little more like the first voice, three times 3 clearly like the second."""
    vectors = np.array([[[0.6, 0.5]], *[[[0.2, 0.8]]] * 3], np.float32)
    alone = np.array([[100], [3], [3], [3]])
    made = Heard(np.arange(4), np.zeros((4, 1, 1), np.float32), vectors, alone, 4, None)
    assert _assigned(made, np.zeros((4, 1), int), np.eye(2, dtype=np.float32)).tolist() == [[1]] * 4
    assert _assigned(made, np.arange(4)[:, None], np.eye(2, dtype=np.float32)).tolist() == [[0], [1], [1], [1]]


def test_a_voice_is_the_mean_of_the_frames_in_which_it_is_alone():
    vectors = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 0]]], np.float32)
    made = Heard(np.arange(2), np.zeros((2, 1, 2), np.float32), vectors, np.array([[3, 9], [4, 0]]), 2, None)
    found = _means(made, np.array([[0, -1], [0, 1]]), np.full((2, 3), 7.0, np.float32))
    np.testing.assert_allclose(found, [[0.6, 0, 0.8], [7, 7, 7]], rtol=1e-6)  # nobody heard the second: as before


def test_as_many_voices_as_asked_for():
    who, vectors = recording(0)
    made = heard(who, vectors)
    assert stitch(made, 0.5, limits=Limits(4, 4)).max() + 1 == 4
    assert stitch(made, 0.001, limits=Limits(1, 5)).max() + 1 == 5
    assert voices_in(made, stitch(made, 0.5)).shape == (VOICES, DIM)


def test_silence_has_no_voices():
    silent = np.zeros((2, LENGTH, CHANNELS), np.float32)
    pieces = pieces_of(np.ones((75, DIM), np.float32), single_of(np.array([0, 15]), silent, 75), 8, 2)
    nothing = np.zeros((2, CHANNELS, DIM), np.float32), np.zeros((2, CHANNELS), int)
    made = Heard(np.array([0, 15]), silent, *nothing, 75, pieces)
    voices = stitch(made, 0.5)
    assert voices.max() == -1
    assert join(made, voices).shape == (75, 0)
    assert voices_in(made, voices).shape == (0, DIM)
