"""The parts of the live engine by hand: turns, voices, pieces, sound at any rate, encoders that hear again, latency."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from diarizer.live.hearing import Hearing
from diarizer.live.memory import Listening, Voices
from diarizer.live.sounds import Resampler, mono
from diarizer.live.streams import Again, reach_of
from diarizer.live.timing import Timing
from diarizer.live.turns import Open, Said, Turning
from featstore import FeatureSpec, FrameGrid

STEP_S, RATE_HZ = 0.1, 8000
STEP = 800  # samples of a frame


# ---- turns


def said(settled: int, voices: tuple[int, ...], *rows: str) -> Said:
    """A row a voice: ``x`` where it speaks, each time as sure as its number's half plus a half."""
    active = np.array([[mark == "x" for mark in row] for row in rows]).T.reshape(-1, len(voices))
    sure = np.tile(np.array([0.5 + v / 2 for v in voices], np.float32), (len(active), 1))
    return Said(active, sure, voices, settled)


def told(rows: list[tuple[int, Open]]) -> list[tuple[int, int, int, float]]:
    return [(voice, turn.first, turn.last, turn.sure) for voice, turn in rows]


def test_turns_go_on_from_step_to_step() -> None:
    turning = Turning(FrameGrid(STEP_S / 2, STEP_S))
    over, open_ = turning.take(said(3, (0, 1), "xxx..", "..xxx"), last=False)
    assert told(over) == [] and told(open_) == [(0, 0, 3, 1.5), (1, 2, 5, 3.0)]
    # What was not settled is said anew: the second voice ends two answers sooner, the first comes back.
    over, open_ = turning.take(said(2, (0, 1), "...x", "x..."), last=False)
    assert told(over) == [(0, 0, 3, 1.5), (1, 2, 4, 2.0)] and told(open_) == [(0, 6, 7, 0.5)]
    # Of a voice that nobody speaks of any more, the turn is over.
    turning.take(said(1, (0,), "x"), last=False)
    over, open_ = turning.take(said(1, (1,), "."), last=False)
    assert told(over) == [(0, 5, 6, 0.5)] and open_ == [] and turning.answered == 7
    over, open_ = turning.take(said(2, (1,), ".x"), last=True)
    assert told(over) == [(1, 8, 9, 1.0)] and open_ == [] and turning.open == {}


def test_two_voices_that_are_one_have_one_turn() -> None:
    turning = Turning(FrameGrid(STEP_S / 2, STEP_S))
    turning.open = {1: Open(4, 9, 2.0), 0: Open(2, 8, 5.0), 3: Open(7, 9, 1.0)}
    turning.joined({1: 0, 3: 2, 5: 0})
    assert told(list(turning.open.items())) == [(0, 2, 9, 5.0), (2, 7, 9, 1.0)]


def test_a_turn_is_told_in_seconds_and_ends_with_the_sound() -> None:
    turning = Turning(FrameGrid(STEP_S / 2, STEP_S))
    turn = turning.told(Open(3, 7, 3.0), "Ann", 0.65)
    assert (turn.start_s, turn.end_s, turn.speaker, turn.sure) == (0.3, 0.65, "Ann", 0.75)
    assert turning.told(Open(3, 7, 3.0), "Ann", 5.0).end_s == 0.7
    assert Turning(FrameGrid(0.0, STEP_S)).told(Open(0, 2, 1.0), "", 5.0).start_s == 0  # its first frame is cut off


# ---- who


def test_pieces_of_stretches_as_they_come() -> None:
    """Pieces of four frames, one left out at both ends of a stretch; of a short stretch the middle."""
    heard: list[tuple[list[float], float, int]] = []
    listening = Listening(2, 4, 1, lambda vector, weight, at: heard.append((vector.tolist(), weight, at)))
    frame = {"a": np.array([1, 0], np.float32), "b": np.array([0, 1], np.float32)}
    for at, who in enumerate("baaaabbbbba.aaa.ab"):
        listening.hear(frame.get(who, frame["a"]), who != ".", at)
    # b | aaaa | bbbb | b a: a rest of one is no piece. Then aaa, of which the middle is; then two, cut at the end.
    assert heard == [([1, 0], 4, 5), ([0, 1], 4, 9), ([1, 0], 1, 15)]
    listening.finish(18)
    assert heard[3][1:] == (2, 18) and heard[3][0] == pytest.approx([0.5**0.5] * 2)
    assert len(listening.stretch) == 0 and not listening.cut


def test_the_voice_that_was_silent_longest_leaves_its_slot_and_is_known_again() -> None:
    voices, vectors = Voices(4, "average", 0.3, 2, 1.0), np.eye(4, dtype=np.float32)
    for at, who in enumerate((0, 1, 0, 2)):
        voices.add(vectors[who], 10.0, at)
    assert voices.numbers == (0, 2) and voices.gone_numbers.tolist() == [1]
    np.testing.assert_allclose(voices.means, vectors[[0, 2]])
    voices.add(vectors[1], 10.0, 4)  # back: the number of before, and now the first has been silent longest
    assert voices.numbers == (1, 2) and voices.gone_numbers.tolist() == [0] and voices.next == 3
    voices.add(np.array([0.8, 0, 0, 0.6], np.float32), 10.0, 5)  # nearer than 0.3 to the first, who is back
    assert voices.numbers == (0, 1) and voices.gone_numbers.tolist() == [2]
    voices.add(np.array([0, 0, 0.6, -0.8], np.float32), 10.0, 6)  # 0.4 from the third: somebody new
    assert voices.numbers == (0, 3) and voices.gone_numbers.tolist() == [2, 1]


def test_pieces_are_kept_in_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces that are most alike become one, of the weight of both, heard when the later one was."""
    monkeypatch.setattr("diarizer.live.memory._MOST_PIECES", 3)
    voices = Voices(3, "average", 0.5, 9, 1.0)
    vectors = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0.9, 0.1, 0]], np.float32)
    for at, vector in enumerate(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)):
        voices.add(vector, 10.0 + at, at)
    assert sorted(voices.weights.tolist()) == [11.0, 13.0, 22.0] and voices.numbers == (0, 1)
    assert sorted(zip(voices.weights.tolist(), voices.last.tolist(), strict=True)) == [(11, 1), (13, 3), (22, 2)]
    other = Voices(3, "average", 0.5, 9, 1.0)
    other.restore(voices.state())
    assert other.numbers == voices.numbers and other.next == 2
    np.testing.assert_array_equal(other.means, voices.means)


# ---- sound


@pytest.mark.parametrize(
    ("kind", "full"), [("int16", 32767), ("int32", 2**31 - 1), ("uint8", 255), ("float32", 1), ("float64", 1)]
)
def test_full_scale_is_that_of_the_type(kind: str, full: int) -> None:
    wave = mono(np.array([[full, 0], [full, full]], kind))
    assert wave.dtype == np.float32 and wave.tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros((2, 800)), r"found \(2, 800\): turn them round"),
        (np.zeros((3, 2, 1)), r"numbers of shape .*found float64 of \(3, 2, 1\)"),
        (np.array(["a"]), "numbers of shape"),
        (np.array([0.0, np.inf]), "NaN or infinity, first at 1"),
    ],
)
def test_what_is_no_sound_is_refused(samples: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mono(samples)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (8000, 24_000), (16_000, 8000)])
def test_blocks_are_resampled_as_the_whole_is(from_hz: int, to_hz: int) -> None:
    wave = (0.3 * np.sin(np.arange(from_hz) * 2 * np.pi * 700 / from_hz)).astype(np.float32)
    resampler, out, at = Resampler(from_hz, to_hz), [], 0
    for size in (1, 500, 20_000, 3, len(wave)):
        if size == 3:  # another goes on
            resampler, before = Resampler(from_hz, to_hz), resampler
            resampler.restore(before.state())
        out.append(resampler.push(wave[at : at + size]))
        at += size
    found, expected = np.concatenate([*out, resampler.finish()]), soxr.resample(wave, from_hz, to_hz, "HQ")
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert resampler.push(wave[:10]).size == 0 and resampler.ahead_s > 0.02
    assert Resampler(8000, 8000).ahead_s == 0


class Around:
    """A frame is the mean of the samples of itself, of `before` frames before it and `ahead` behind it."""

    def __init__(self, before: int, ahead: int, hop: int = 1) -> None:
        self.before, self.ahead, self.begins = before, ahead, []
        settings = {"hop_frames": hop} if hop > 1 else {}
        grid = FrameGrid(STEP_S / 2, STEP_S)
        self.spec = FeatureSpec("around", 1, "float32", RATE_HZ, grid, "around", "0" * 64, settings)

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        self.begins += [round(float(wave[0])) if len(wave) else 0 for wave in waves]
        means = [np.array([wave[at : at + STEP].mean() for at in range(0, len(wave), STEP)]) for wave in waves]
        return [
            np.array([m[max(0, k - self.before) : k + self.ahead + 1].mean() for k in range(len(m))], np.float32)[
                :, None
            ]
            for m in means
        ]


def test_how_far_an_encoder_hears_is_tried_out() -> None:
    assert reach_of("around", Around(3, 2)) == (3, 2) and reach_of("around", Around(0, 0)) == (0, 0)
    assert reach_of("titanet", Around(3, 2)) == (10, 10) and reach_of("mimi", Around(3, 2)) == (0, 0)


@pytest.mark.parametrize("hop", [1, 4])
def test_an_encoder_that_hears_again_gives_what_it_gives_of_the_whole(hop: int) -> None:
    encoder = Around(3, 2, hop)
    stream, wave = Again(encoder, 3, 2), np.repeat(np.arange(25, dtype=np.float32), STEP)[:-100]
    out, at = [], 0
    for frames in (1, 1, 5, 2, 7, 3):
        out.append(stream.feed(wave[at * STEP : (at + frames) * STEP]))
        at += frames
        assert sum(map(len, out)) == max(0, at - 2)
        if frames == 2:
            stream, kept = Again(encoder, 3, 2), stream.state()
            stream.restore(kept)
    out.append(stream.feed(wave[at * STEP :], last=True))
    np.testing.assert_allclose(np.concatenate(out), Around(3, 2).extract([wave])[0], rtol=1e-6)
    # Pieces begin where frames are computed, and what is behind them is forgotten.
    assert all(begin % hop == 0 for begin in encoder.begins) and encoder.begins[-1] >= 8


def test_the_clock_goes_on_when_the_rate_changes() -> None:
    spec = Around(0, 0).spec
    hearing = Hearing({"around": spec}, {"around": 0}, {"around": Again(Around(0, 0), 0, 0)}, 2, 4)
    wave = np.full(16_000, 0.25, np.float32)
    assert hearing.seconds == 0
    hearing.push(wave[:4000], 8000)
    assert list(hearing.steps()) == [2, 4] and hearing.seconds == 0.5
    hearing.push(wave[:8000], 16_000)
    hearing.push(wave[:1600], 8000)
    assert hearing.seconds == pytest.approx(1.2)
    hearing.drain()
    assert list(hearing.steps()) == [6, 8, 10, 12] and hearing.heard == hearing.count("around") == 12
    assert hearing.first["around"] == 8  # four frames are read again


def test_latency_in_frames() -> None:
    for latency_s in (0.16, 0.5, 1.04, 4.0, 10.0):
        timing = Timing.of(latency_s, 0.08, 30)
        assert timing.step >= 1 and timing.step + timing.ahead == int(latency_s / 0.08 + 1e-6)
        assert timing.settle >= max(30, timing.ahead) and timing.settle * 0.08 >= 1.99
    assert Timing.of(0.5, 0.08, 90).settle == 90  # no answer is settled before all of it was heard
