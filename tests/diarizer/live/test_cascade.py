"""The cascade on the fly says what it says of a whole recording, as far as it can know; its path goes on from step to step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from diarizer import load
from diarizer.frames import HeardFrames, hear
from diarizer.heads import CascadeHead, Told
from diarizer.live.cascade import LiveCascade
from diarizer.live.timing import Timing
from diarizer.live.turns import Said
from diarizer.sound import Sound
from tests.tones import RATE_HZ
from trainers.cascade.clusters import Limits
from trainers.cascade.decoding import Decoding, Evidence

pytestmark = pytest.mark.usefixtures("knows_fakes")
TIMING = Timing.of(1.04, 0.08, 0)


@pytest.fixture
def told(tone_run, wave):
    """A head, frames, and what it says of them as a whole."""
    made = load(tone_run)
    with hear(Sound.of_samples(wave, RATE_HZ), made.encoders) as frames:
        yield made.head, frames, made.head.tell(frames, Limits())


def step(live: LiveCascade, frames: HeardFrames, heard: int, complete: int | None = None) -> Said:
    last = heard == frames.num_frames
    said, _ = live.step(lambda *which: frames.read(*which), heard, heard if complete is None else complete, last)
    return said


def test_heard_at_once_it_is_the_whole_recordings(told: tuple[CascadeHead, HeardFrames, Told]) -> None:
    head, frames, whole = told
    live = LiveCascade(head.cascade, TIMING, slots=8)
    said = step(live, frames, frames.num_frames)
    numbers, vectors = live.vectors
    same = (vectors @ whole.voices.T).argmax(1)
    assert sorted(same.tolist()) == [0, 1, 2] and numbers == said.voices == (0, 1, 2)
    assert (vectors * whole.voices[same]).sum(1).min() > 0.999
    np.testing.assert_array_equal(said.active, whole.active[:, same])
    np.testing.assert_allclose(said.sure[said.active], whole.sure[:, same][said.active], atol=0.02)
    assert said.settled == len(whole.active) and (live.grid, live.same) == (whole.grid, head.same)


def test_step_by_step_it_differs_where_a_voice_was_new(told: tuple[CascadeHead, HeardFrames, Told]) -> None:
    """Voices are known once they were heard alone for a moment: of 24 s, one second at most is somebody else's.

    What is settled lies four seconds back, what is told nine frames; no step reads more than `kept` frames again.
    """
    head, frames, whole = told
    live, found, done = LiveCascade(head.cascade, TIMING, slots=8), np.zeros((1200, 3), bool), 0
    read_from: list[int] = []

    def read(names: tuple[str, ...], start: int, stop: int) -> np.ndarray:
        read_from.append(start)
        return frames.read(names, start, stop)

    for heard in range(4, 300, 4):
        said, same = live.step(read, heard, heard, False)
        assert same == {}
        assert said.settled == max(0, 4 * heard - 4 * TIMING.settle) - done
        assert len(said.active) == len(said.sure) == max(0, 4 * heard - 4 * TIMING.ahead) - done
        assert heard - min(read_from) <= live.kept
        read_from.clear()
        found[done : done + said.settled, list(said.voices)] = said.active[: said.settled]
        done += said.settled
    said = step(live, frames, 300)
    found[done:, list(said.voices)] = said.active
    order = [int((found[:, [k]] & whole.active).sum(0).argmax()) for k in range(3)]
    assert sorted(order) == [0, 1, 2]
    assert (found != whole.active[:, order]).sum() <= 2 * 80


def test_nothing_is_learnt_of_frames_that_lack_a_feature(told: tuple[CascadeHead, HeardFrames, Told]) -> None:
    head, frames, _ = told
    live = LiveCascade(head.cascade, TIMING, slots=8)
    for heard in range(4, 120, 4):
        step(live, frames, heard, complete=max(0, heard - 40))
    assert live.listened == 116 - 40 and all(last < 76 for last in live.voices.last.tolist())
    assert len(live.vectors[0]) >= 1


def test_a_state_goes_on_elsewhere(told: tuple[CascadeHead, HeardFrames, Told]) -> None:
    head, frames, _ = told
    whole, half, other = (LiveCascade(head.cascade, TIMING, slots=8) for _ in range(3))
    for heard in range(4, 160, 4):
        step(whole, frames, heard)
        step(half, frames, heard)
    other.restore(*half.state())
    assert other.now == half.now and other.now != ()
    for heard in [*range(160, 300, 4), 300]:
        a, b = step(whole, frames, heard), step(other, frames, heard)
        assert (a.voices, a.settled) == (b.voices, b.settled)
        np.testing.assert_array_equal(a.active, b.active)
        np.testing.assert_array_equal(a.sure, b.sure)


@pytest.mark.parametrize(("now", "speaks"), [((), [False, False]), ((0,), [True, False]), ((1,), [False, True])])
def test_who_speaks_now_speaks_on_unless_it_pays_to_change(now: tuple[int, ...], speaks: list[bool]) -> None:
    """Nothing in four answers says who, if anybody: to begin or to end costs 3, to take turns 6."""
    config, choice = SimpleNamespace(at_once=2), SimpleNamespace(decoding=Decoding(0.0, 0.0, 3.0))
    live = object.__new__(LiveCascade)
    live.cascade, live.now = SimpleNamespace(config=config, choice=choice), now
    counts = np.log(np.full((4, 3), 1 / 3, np.float32))
    speaks = [*speaks, False]
    among = np.diag(np.float32([1, 1, 0]))  # the third is whoever is new
    nobody = Evidence(counts, np.float32([[0.0, 0.0, -1.0]] * 4), among)
    assert live._decode(nobody, (0, 1, 2)).tolist() == [speaks] * 4
    # One more speaks, and it is the second: worth 4 in all, which is more than 3 and less than 6.
    counts = counts + np.float32([0, 1, 0])
    second = Evidence(counts, np.float32([[0.0, 1.0, -1.0]] * 4), among)
    live.cascade.choice.decoding = Decoding(0.01, 0.0, 3.0)
    expected = [True, False, False] if now == (0,) else [False, True, False]
    assert live._decode(second, (0, 1, 2)).tolist() == [expected] * 4


def test_whoever_is_new_is_shown_as_the_next_voice_before_it_is_one(
    told: tuple[CascadeHead, HeardFrames, Told],
) -> None:
    """A newcomer's answers are shown under the number that the voice has later, while only the others are known."""
    head, frames, whole = told
    live, first = LiveCascade(head.cascade, TIMING, slots=8), np.zeros((1200, 5), bool)
    before, done = np.zeros(1200, bool), 0  # where somebody was shown who was no voice
    for heard in [*range(4, 300, 4), 300]:
        settled, told_before = 4 * live.settled, done
        said = step(live, frames, heard)
        done = settled + len(said.active)
        first[told_before:done, list(said.voices)] = said.active[told_before - settled :]
        unknown = [k for k, voice in enumerate(said.voices) if voice not in live.vectors[0]]
        before[told_before:done] = said.active[told_before - settled :, unknown].any(1)
    assert not first[:, 3:].any()
    order = [int((first[:, [k]] & whole.active).sum(0).argmax()) for k in range(3)]
    assert sorted(order) == [0, 1, 2]
    assert before.sum() > 50 and (first != np.pad(whole.active[:, order], ((0, 0), (0, 2)))).sum() <= 2 * 80
