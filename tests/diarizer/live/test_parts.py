"""The parts of the live engine by hand: turns, voices, pieces, sound at any rate, encoders that hear again, latency."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from diarizer.live import Live
from diarizer.live.hearing import Hearing
from diarizer.live.memory import Listening, Voices
from diarizer.live.sounds import Resampler, mono
from diarizer.live.streams import Again, reach_of
from diarizer.live.timing import Timing
from diarizer.live.turns import LiveTurn, Open, Said, Turning, Update
from diarizer.voices import Voice
from featstore import FeatureSpec, FrameGrid

STEP_S, RATE_HZ = 0.1, 8000
STEP = 800  # samples of a frame
GRID = FrameGrid(STEP_S / 2, STEP_S)


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
    turning.open |= {4: Open(1, 3, 2.0), 6: Open(2, 7, 0.5)}
    turning.joined({1: 0, 3: 2, 5: 0, 4: 6})
    assert told(list(turning.open.items())) == [(0, 2, 9, 5.0), (6, 1, 7, 2.0), (2, 7, 9, 1.0)]


def test_a_turn_is_told_in_seconds_and_ends_with_the_sound() -> None:
    turning = Turning(FrameGrid(STEP_S / 2, STEP_S))
    turn = turning.told(Open(3, 7, 3.0), "Ann", 0.65)
    assert (turn.start_s, turn.end_s, turn.speaker, turn.sure) == (0.3, 0.65, "Ann", 0.75)
    assert turning.told(Open(3, 7, 3.0), "Ann", 5.0).end_s == 0.7
    assert Turning(FrameGrid(0.0, STEP_S)).told(Open(0, 2, 1.0), "", 5.0).start_s == 0  # its first frame is cut off


def test_updates_as_json() -> None:
    turns = LiveTurn(0.12349, 1.98751, "Ann", 0.98765), LiveTurn(2.0, 2.5, "Bob", 0.5)
    first = {"start_s": 0.123, "end_s": 1.988, "speaker": "Ann", "sure": 0.988}
    second = {"start_s": 2.0, "end_s": 2.5, "speaker": "Bob", "sure": 0.5}
    told = {"type": "turns", "seq": 7, "time_s": 2.568, "final": [first], "partial": [second]}
    assert Update(7, 2.5678, turns[:1], turns[1:]).json() == told


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


def test_how_much_speech_makes_a_voice() -> None:
    """Frames of 0.1 s: two hundredths of all speech, but at least 6 frames and at most 25; the heaviest is always one."""
    voices, vectors = Voices(4, "average", 0.3, 9, 0.1), np.eye(4, dtype=np.float32)
    for who, frames, numbers in (
        (0, 5, (0,)),
        (0, 5, (0,)),
        (1, 5, (0,)),  # half a second is nobody yet
        (1, 1, (0, 1)),
        (0, 500, (0,)),  # 6 of 516
        (1, 5, (0, 1)),  # 11 of 521
        (0, 5000, (0,)),
        (1, 13, (0,)),
        (1, 1, (0, 1)),  # 25
        (2, 24, (0, 1)),
        (2, 1, (0, 1, 2)),
    ):
        voices.add(vectors[who], float(frames), frames)
        assert voices.numbers == numbers, (who, frames)
    np.testing.assert_allclose(voices.means, vectors[:3])


def test_two_voices_that_a_third_piece_joins_are_one() -> None:
    """70° apart they are two; between them lies what is near to both, and takes the one along to the other, of whom more was heard, in
    fewer pieces."""
    voices = Voices(2, "average", 0.5, 9, 1.0)
    for degrees, weight, numbers in ((0, 20, (0,)), (70, 7, (0, 1)), (70, 7, (0, 1)), (35, 10, (0,))):
        at = np.radians(degrees)
        voices.add(np.float32([np.cos(at), np.sin(at)]), weight, 0)
        assert voices.numbers == numbers
    assert voices.same == {1: 0} and voices.next == 2
    voices.forget()
    assert (voices.numbers, voices.same, voices.next, len(voices.sums)) == ((), {}, 0, 0)


def test_pieces_move_to_the_nearest_voice_twice() -> None:
    """Degrees, of which the piece at 70° is nearer to the other voice only once the one at 50° has gone there."""
    voices = Voices(2, "average", 0.5, 9, 1.0)
    for degrees, weight in ((15, 5), (70, 10), (100, 25), (85, 5), (50, 20), (155, 5), (120, 25)):
        at = np.radians(degrees)
        voices.add(np.float32([np.cos(at), np.sin(at)]), weight, 0)
    assert voices.of.tolist() == [1, 1, 0, 0, 1, 2, 0]


def test_who_left_is_forgotten_where_too_many_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diarizer.live.memory._MOST_GONE", 2)
    voices, vectors = Voices(5, "average", 0.3, 1, 1.0), np.eye(5, dtype=np.float32)
    for at, who in enumerate((0, 1, 2, 3)):
        voices.add(vectors[who], 10.0, at)
    assert voices.gone_numbers.tolist() == [1, 2] and voices.gone.tolist() == vectors[1:3].tolist()
    voices.add(vectors[0], 10.0, 5)
    assert voices.numbers == (4,)  # nobody knows the first any more


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
    dense = Around(3, 2)
    dense.spec.settings["mode"] = "dense"  # is known of windows alone
    assert reach_of("titanet", dense) == (3, 2)
    # Who hears further than 12.5 s gets what recordings' pieces have: 20 s before, 4 s after.
    assert reach_of("around", Around(1000, 2)) == (200, 2) and reach_of("around", Around(3, 1000)) == (3, 40)


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


def test_a_feature_that_comes_late_is_read_as_its_last_frame_until_the_end() -> None:
    """Of "late" each frame waits for two more: what is not heard for sure is not read, whatever there is of it."""
    specs = {name: FeatureSpec(name, 1, "float32", RATE_HZ, GRID, name, "0" * 64, {}) for name in ("now", "late")}
    hearing = Hearing(specs, {"now": 0, "late": 2}, {}, 2, 4)
    frames = np.arange(9, dtype=np.float32)[:, None]
    hearing.push_frames({"now": frames[:2], "late": frames[:2] + 10})
    assert list(hearing.steps()) == [2] and hearing.limits(False) == {"now": 2, "late": 0}
    assert hearing.read(["now", "late"], 0, 2, hearing.limits(False)).tolist() == [[0, 0], [1, 0]]
    hearing.push_frames({"now": frames[2:], "late": frames[2:] + 10})
    assert list(hearing.steps()) == [4, 6, 8] and hearing.limits(False) == {"now": 8, "late": 6}
    assert hearing.read(["late", "now"], 4, 8, hearing.limits(False)).tolist() == [[14, 4], [15, 5], [15, 6], [15, 7]]
    hearing.finish()
    assert (
        hearing.heard == 9 and hearing.limits(True) == {"now": 9, "late": 9} and hearing.seconds == pytest.approx(0.9)
    )
    assert hearing.read(["late", "now"], 7, 9, hearing.limits(True)).tolist() == [[17, 7], [18, 8]]
    for wrong, says in (
        ({"now": frames}, "expected as many frames of each of late, now, found now: 9"),
        ({"now": frames, "late": frames[1:]}, "found late: 8, now: 9"),
        ({"now": frames, "late": np.ones((9, 2))}, r"late: expected finite frames \(frames, 1\), found \(9, 2\)"),
        ({"now": np.where(frames, frames, np.inf), "late": frames}, "now: expected finite frames"),
    ):
        with pytest.raises(ValueError, match=says):
            hearing.push_frames(wrong)
    assert hearing.count("now") == 9


def test_frames_are_heard_as_a_store_would_have_them() -> None:
    spec = FeatureSpec("f", 1, "float16", RATE_HZ, GRID, "f", "0" * 64, {})
    hearing = Hearing({"f": spec}, {"f": 0}, {}, 1, 4)
    hearing.push_frames({"f": np.float32([[0.1]])})
    assert hearing.frames["f"].tolist() == [[float(np.float16(0.1))]] and hearing.frames["f"].dtype == np.float32


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


@pytest.mark.parametrize(
    ("latency_s", "frames"),
    [(0.16, (1, 1, 50)), (0.32, (2, 2, 50)), (0.48, (3, 3, 50)), (1.04, (6, 7, 50)), (4.0, (6, 44, 50)), (10.0, (12, 113, 113))],
)  # fmt: skip
def test_latency_by_hand(latency_s: float, frames: tuple[int, int, int]) -> None:
    """Step, ahead, settle: half of it up to six frames, an eighth up to twelve; the rest; four seconds, or the rest."""
    assert Timing.of(latency_s, 0.08, 0) == Timing(*frames)


def test_latency_in_frames() -> None:
    for latency_s in (0.16, 0.5, 1.04, 4.0, 10.0):
        timing = Timing.of(latency_s, 0.08, 30)
        assert timing.step >= 1 and timing.step + timing.ahead == int(latency_s / 0.08 + 1e-6)
        assert timing.settle >= max(30, timing.ahead) and timing.settle * 0.08 >= 1.99
    assert Timing.of(0.5, 0.08, 90).settle == 90  # no answer is settled before all of it was heard


# ---- the engine, with a head that says what it is told to


class Scripted:
    """Says the next (settled, voices, a row a voice, voices that are others, their vectors) of a script at each step."""

    grid, kept, same = GRID, 4, 0.5

    def __init__(self) -> None:
        self.script: list[tuple] = []
        self.asked: list[tuple] = []
        self.vectors: tuple = ((), np.zeros((0, 3), np.float32))

    def step(self, read, heard: int, complete: int, last: bool) -> tuple[Said, dict[int, int]]:
        self.asked.append((heard, complete, last))
        settled, voices, rows, same, known = self.script.pop(0)
        self.vectors = tuple(known), np.stack([known[n] for n in known]) if known else np.zeros((0, 3), np.float32)
        return said(settled, voices, *rows), same

    def reset(self) -> None:
        self.asked.append(("reset",))

    def state(self) -> tuple[dict, dict]:
        return {"asked": len(self.asked)}, {"a": np.arange(3)}

    def restore(self, numbers: dict, arrays: dict) -> None:
        self.asked.append((numbers, {name: value.tolist() for name, value in arrays.items()}))


ANN, BOB = np.eye(3, dtype=np.float32)[:2]


def scripted(*script: tuple, latency_s: float = 0.2, voices: dict | None = None) -> tuple[Live, Scripted]:
    """An engine with steps of a frame, and answers that wait for one more."""
    head = Scripted()
    head.script += script
    specs = {"f": FeatureSpec("f", 1, "float32", RATE_HZ, GRID, "f", "0" * 64, {})}
    live = Live(specs, dict, None, lambda timing: head, None, latency_s=latency_s, given={"f": 0}, voices=voices or {})
    return live, head


def push(live: Live, frames: int = 1) -> list[Update]:
    return live.push_frames({"f": np.zeros((frames, 1), np.float32)})


def names(updates: list[Update]) -> list[tuple[list[str], list[str]]]:
    return [([t.speaker for t in u.final], [t.speaker for t in u.partial]) for u in updates]


def spans(updates: list[Update]) -> list[tuple]:
    return [
        (u.seq, u.time_s, *([(t.start_s, t.end_s) for t in turns] for turns in (u.final, u.partial))) for u in updates
    ]


def test_an_update_is_told_where_something_is_new() -> None:
    live, head = scripted(
        (0, (0,), ("",), {}, {}),
        (1, (0,), ("xx",), {}, {}),
        (1, (0,), ("xx",), {}, {0: ANN}),
        (0, (0,), ("x",), {}, {0: ANN}),  # as it was
        (2, (0,), (".x",), {}, {0: ANN}),
        (1, (0,), ("x",), {}, {0: ANN}),
    )
    assert (live.algorithmic_latency_s, live.settled_latency_s) == pytest.approx((0.2, 4.1))
    expected = [(0, 0.2, [], [(0.0, 0.2)]), (1, 0.3, [], [(0.0, 0.3)]), (2, 0.5, [(0.0, 0.2)], [(0.3, 0.4)])]
    assert spans(push(live, 5)) == expected
    assert spans(live.finalize()) == [(3, 0.5, [(0.3, 0.5)], [])]
    assert head.asked == [*((n, n, False) for n in (1, 2, 3, 4, 5)), (5, 5, True)]
    with pytest.raises(ValueError, match="was finalized; reset"):
        live.finalize()
    live.reset()
    head.script.append((1, (0,), ("x",), {}, {}))
    assert head.asked[-1] == ("reset",) and spans(push(live)) == [(0, 0.1, [], [(0.0, 0.1)])]


def test_names_are_typed_or_enrolled_or_by_arrival_and_stay_with_their_voices() -> None:
    live, _ = scripted(
        (1, (0, 1), ("x", "x"), {}, {0: ANN}),
        (1, (0, 1), ("x", "x"), {}, {0: ANN, 1: BOB}),
        (1, (0, 2), ("x", "x"), {1: 2}, {0: ANN, 2: BOB}),  # the second is the third, and so is its turn
        (1, (0,), ("x",), {}, {0: ANN}),
        (1, (0, 3), ("x", "x"), {}, {0: ANN}),
        (1, (0,), ("x",), {}, {0: ANN}),
        (0, (0,), ("",), {}, {0: ANN}),
        (1, (0,), ("x",), {}, {0: ANN}),
        voices={"Ann": Voice(ANN, 9.0)},
    )
    assert names(push(live)) == [([], ["Ann", "speaker2"])]
    live.rename("speaker2", "Bob")
    for speaker, name in (("Bob", "Ann"), ("Eve", "Eva"), ("speaker2", "Eva")):
        with pytest.raises(ValueError, match=f"'{speaker}' cannot be called '{name}': there are Ann, Bob, and"):
            live.rename(speaker, name)
    assert names(push(live, 2)) == [([], ["Ann", "Bob"])] * 2
    (update,) = push(live)
    assert [(t.start_s, t.end_s, t.speaker) for t in update.final] == [(0.0, pytest.approx(0.3), "Bob")]
    assert names(push(live, 2)) == [([], ["Ann", "speaker4"]), (["speaker4"], ["Ann"])]
    with pytest.raises(ValueError, match="no two have one name"):
        live.rename("Ann", "speaker4")
    assert push(live) == []
    live.rename("Ann", "speaker4")  # whose turn was told, and who is no voice any more, leaves the name
    assert names(push(live)) == [([], ["speaker4"])]


def test_a_saved_session_knows_names_and_turns_and_that_it_is_over() -> None:
    first = (1, (0, 1), ("xx", "xx"), {}, {0: ANN}), (0, (0, 1), ("x", "x"), {}, {0: ANN})
    rest = (
        (0, (0, 1), ("x", "x"), {}, {0: ANN}),  # as it was
        (1, (0, 2), ("x", "x"), {1: 2}, {0: ANN, 2: BOB}),
        (1, (0, 2), ("x", "."), {}, {0: ANN, 2: BOB}),
    )
    live, _ = scripted(*first, *rest, voices={"Ann": Voice(ANN, 9.0)})
    other, head = scripted(*rest)
    assert names(push(live)) == [([], ["Ann", "speaker2"])]
    live.rename("speaker2", "Bob")
    assert names(push(live)) == [([], ["Ann", "Bob"])]
    other.restore(live.save())
    assert head.asked == [("reset",), ({"asked": 2}, {"a": [0, 1, 2]})]
    assert other._enrolled["Ann"].speech_s == 9.0
    found, expected = push(other, 3), push(live, 3)
    assert found == expected and [u.seq for u in found] == [2, 3] and names(found)[-1][0] == ["Bob"]
    with pytest.raises(ValueError, match="'Bob' cannot be called 'Ann'"):
        other.rename("Bob", "Ann")
    over, _ = scripted()
    live._head.script.append((0, (0,), ("",), {}, {}))
    live.finalize()
    over.restore(live.save())
    with pytest.raises(ValueError, match="was finalized"):
        push(over)


def test_what_cannot_be_followed_live_is_refused() -> None:
    def made(given: dict, **grids: FrameGrid) -> Live:
        specs = {n: FeatureSpec(n, 1, "float32", RATE_HZ, grid, n, "0" * 64, {}) for n, grid in grids.items()}
        return Live(specs, dict, None, lambda timing: Scripted(), None, latency_s=0.2, given=given, voices={})

    odd, other = FrameGrid(1 / 60, 1 / 30), FrameGrid(0.0, STEP_S)
    for grids in ({"a": odd}, {"a": GRID, "b": other}):
        with pytest.raises(ValueError, match=f"feature '{max(grids)}' cannot be followed live: .* not on one clock"):
            made(dict.fromkeys(grids, 0), **grids)
    with pytest.raises(ValueError, match="no feature 'c': the run hears a, b"):
        made({"a": 0, "b": 0, "c": 0}, a=GRID, b=GRID)
