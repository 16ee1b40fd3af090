"""Heads with a cache on the fly: the same weights as of whole recordings, the same answers, a little later or sooner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diarizer.heads import FollowedHead
from diarizer.live.adapter import LiveAdapter
from diarizer.live.follower import LiveFollower
from diarizer.live.heads import live_head
from diarizer.live.timing import Timing
from evaluation.frames import decode
from featstore import MIMI_GRID
from tests.trainers.diarization.test_cache import DIM, Knows, config, spoken
from tests.trainers.diarization.test_causal import config as chunks
from tests.trainers.diarization.test_causal import head as chunked
from tests.trainers.diarization.test_causal import recording
from trainers.cascade.clusters import ANY, Limits, unit
from trainers.diarization.follow import Following
from trainers.diarization.whole import WholeHead
from trainers.scale import OneScale

TURNS = [(0, 30, 5), (30, 60, 1), (60, 300, 2), (300, 330, 1), (330, 360, 5), (360, 400, 3)]


class Scaled(Knows):
    def __init__(self) -> None:
        super().__init__()
        self.scale = OneScale(DIM)


class Held:
    """Frames of a recording."""

    def __init__(self, frames):
        self.frames, self.num_frames = frames, len(frames)

    def read(self, names, start, stop):
        return self.frames[start:stop]


def head() -> FollowedHead:
    whole = WholeHead(Scaled(), config("token_frames=4"), MIMI_GRID, {"mimi": DIM}, torch.device("cpu"))
    return FollowedHead(whole, Following("mimi", 0.4, 0.5, 1))


def told(live: LiveFollower, frames: np.ndarray, late: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(frames, channels) as settled on, and as first shown."""
    settled, shown = np.zeros((2, len(frames), 4), bool)
    done = seen = 0
    steps = range(live.timing.step, len(frames) + 1, live.timing.step)
    for heard, last in [*((heard, False) for heard in steps), (len(frames), True)]:
        complete = heard if last else max(0, heard - late)
        there = np.arange(heard).clip(max=max(0, complete - 1))  # the last frame in place of those that lack
        said, same = live.step(lambda names, a, b, there=there: frames[there[a:b]], heard, complete, last)
        assert same == {} and said.voices == (0, 1, 2, 3)
        settled[done : done + said.settled] = said.active[: said.settled]
        shown[max(done, seen) : done + len(said.active)] = said.active[max(0, seen - done) :]
        seen, done = done + len(said.active), done + said.settled
    assert done == seen == len(frames)
    return settled, shown


@pytest.mark.parametrize("latency_s", [0.16, 1.04, 10.0])
def test_live_and_whole_recordings_are_told_alike(latency_s):
    frames = spoken(*TURNS)
    whole = head().tell(Held(frames), ANY)
    live = live_head(head(), Timing.of(latency_s, 0.08, 0), 8)
    assert isinstance(live, LiveFollower)
    settled, shown = told(live, frames)
    np.testing.assert_array_equal(settled, whole.active)
    assert (shown != whole.active).mean() < 0.01  # of two who take turns inside a block, one may seem the other
    numbers, vectors = live.vectors
    assert numbers == (0, 1, 2, 3)
    np.testing.assert_allclose(vectors, whole.voices, atol=1e-5)
    np.testing.assert_allclose(vectors, unit(np.eye(DIM)[[5, 1, 2, 3]]), atol=1e-6)


def test_it_goes_on_elsewhere():
    frames = spoken(*TURNS)
    read = Held(frames).read
    made = [live_head(head(), Timing.of(0.5, 0.08, 0), 8) for _ in range(2)]
    for heard in range(3, 210, 3):
        made[0].step(read, heard, heard, False)
    made[1].restore(*made[0].state())
    for heard in range(210, 390, 3):
        (a, _), (b, _) = (live.step(read, heard, heard, False) for live in made)
        np.testing.assert_array_equal(a.active, b.active)
        np.testing.assert_array_equal(a.sure, b.sure)
    made[1].reset()
    np.testing.assert_array_equal(told(made[1], frames)[0], head().tell(Held(frames), ANY).active)


def test_other_numbers_than_it_follows_are_a_matter_of_stitching():
    """Channels are as many as they are: who asks for what they say gets it, else voices are clustered, and it is told."""
    frames = Held(spoken(*TURNS))
    followed = head().tell(frames, ANY)
    assert followed.active.shape[1] == 4 and followed.notes == ()
    for limits in (Limits(4, 4), Limits(2, None), Limits(1, 9)):
        same = head().tell(frames, limits)
        np.testing.assert_array_equal(same.active, followed.active)
        np.testing.assert_array_equal(same.sure, followed.sure)
        assert same.notes == ()
    for limits in (Limits(2, 2), Limits(5, 5), Limits(1, 3)):
        (note,) = head().tell(frames, limits).notes
        assert note.startswith(
            "this run follows 4 speakers at most and heard 4: for as many as were asked for, windows"
        )
    assert head().tell(frames, Limits(2, 2)).active.shape[1] == 2
    silent = head().tell(Held(np.zeros((60, DIM), np.float32)), ANY)
    assert silent.active.shape[1] == 0 and silent.notes == ()


def test_more_voices_than_it_follows_are_stitched_and_it_is_told():
    """Six in turn: a head with four channels merges two pairs, windows one after the other need no more than two at once."""
    turns = [*TURNS, (400, 460, 4), (460, 520, 0)]
    told = head().tell(Held(spoken(*turns)), ANY)
    assert told.active.shape[1] == 6
    (note,) = told.notes
    assert note.startswith(
        "this run follows 4 speakers at most and 6 voices are heard: windows were put together by how"
    )


def test_a_voice_alone_can_be_enrolled():
    vectors, shares, seconds = head().voices(Held(spoken((0, 40, 3))))
    np.testing.assert_allclose(vectors, np.eye(DIM)[[3]], atol=1e-6)
    assert shares.tolist() == [1.0] and seconds == pytest.approx(3.2)
    vectors, shares, seconds = head().voices(Held(np.zeros((30, DIM), np.float32)))
    assert not len(vectors) and not len(shares) and seconds == 0


def test_a_window_shorter_than_a_step_is_refused():
    whole = head().head
    with pytest.raises(ValueError, match="hears 4 s at a time, too short"):
        LiveFollower(whole, Following("mimi"), Timing(50, 50, 50))


@pytest.mark.parametrize("late", [0, 10])
def test_a_head_of_chunks_settles_live_on_what_one_pass_says_at_any_latency(late):
    """The same weights, told of whole chunks in which no feature lacks."""
    frames = recording(305)((), 0, 305)
    whole = WholeHead(chunked(), chunks(), MIMI_GRID, {"mimi": DIM}, torch.device("cpu"))
    how = Following("mimi", 0.4, 0.5, 5)
    follower = whole.follower(how)
    said = [follower.hear(lambda names, a, b: frames[a:b], heard) for heard in (40, 80, 120, 160, 200, 240, 280, 305)]
    expected = decode(np.concatenate([*said, follower.activity]), how.threshold, how.median)
    assert expected.any() and not expected.all()
    for timing in (*(Timing.of(latency_s, 0.08, late) for latency_s in (0.16, 1.04, 3.0)), Timing(3, 4, late + 5)):
        live = live_head(FollowedHead(whole, how), timing, 8)
        settled, shown = told(live, frames, late)
        np.testing.assert_array_equal(settled, expected)
        assert (shown == expected).mean() > 0.6
    with pytest.raises(ValueError, match="too short for steps of this latency"):
        LiveFollower(whole, how, Timing(44, 44, 44))


def test_without_a_cache_windows_are_tied():
    stitched = head().stitched
    assert isinstance(live_head(stitched, Timing.of(0.5, 0.08, 0), 8), LiveAdapter)
