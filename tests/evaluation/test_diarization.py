"""Diarization scoring: cases drawn by hand, pyannote.metrics as the second opinion, odd files."""

from __future__ import annotations

import json
import math
import warnings
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyannote.core import Segment, Timeline
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate
from typer.testing import CliRunner

from cli.evaluation import app
from evaluation.diarization import DiarizationErrors, score, score_recording
from evaluation.frames import (
    channel_names,
    decode,
    floor,
    frames_to_turns,
    turns_to_frames,
    turns_to_frames_outward,
)
from evaluation.rttm import read_rttm, read_uem, write_rttm, write_uem
from evaluation.turns import NO_TURNS, Turns, to_timeline
from featstore.types import MIMI_GRID, FrameGrid, Turn
from tests.sessions import random_turns


def draw(**speakers: str) -> Turns:
    """Turns from a drawing: ``draw(A="--  ---")``, one character a second."""
    turns = []
    for name, line in speakers.items():
        padded = f" {line} "
        ups = [i for i in range(len(line) + 1) if padded[i] == " " and padded[i + 1] != " "]
        downs = [i for i in range(len(line) + 1) if padded[i] != " " and padded[i + 1] == " "]
        turns += [Turn(a, b, name) for a, b in zip(ups, downs, strict=True)]
    return Turns.of(turns)


def pyannote(reference: Turns, hypothesis: Turns, regions: np.ndarray | None = None, **options: object) -> dict:
    uem = None if regions is None else to_timeline(regions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options["collar"] = 2 * options.pop("collar_s", 0.0)
        der, jer = DiarizationErrorRate(**options), JaccardErrorRate(**options)
        ref, hyp = reference.to_annotation(), hypothesis.to_annotation()
        detail = der(ref, hyp, uem=uem, detailed=True)
        jaccard = jer(ref, hyp, uem=uem, detailed=True)
        scored, answered = jer.uemify(ref, hyp, uem=uem, collar=jer.collar, skip_overlap=jer.skip_overlap)
    return {
        "tied": _tied(scored * answered),
        "total_s": detail["total"],
        "missed_s": detail["missed detection"],
        "false_alarm_s": detail["false alarm"],
        "confusion_s": detail["confusion"],
        "der": detail["diarization error rate"],
        "jaccard_errors": jaccard["speaker error"],
        "num_speakers": jaccard["speaker count"],
    }


def _tied(together: np.ndarray) -> bool:
    """Whether two mappings of speakers are equally good: DER is the same under both, JER need not be."""
    found: dict[frozenset[tuple[int, int]], float] = {}
    size = max(together.shape, default=0)
    square = np.zeros((size, size))
    square[: together.shape[0], : together.shape[1]] = together
    for order in permutations(range(size)):
        pairs = [(i, j) for i, j in enumerate(order) if square[i, j] > 0]
        found[frozenset(pairs)] = sum(square[pair] for pair in pairs)
    best, *others = sorted(found.values(), reverse=True)
    return bool(others) and best - others[0] < 1e-6


def assert_equal(ours: DiarizationErrors, theirs: dict, jer: bool = True) -> None:
    for name in ("total_s", "missed_s", "false_alarm_s", "confusion_s"):
        assert getattr(ours, name) == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name
    if theirs["total_s"] > 1e-3:
        assert ours.der == pytest.approx(theirs["der"], rel=1e-6, abs=1e-9)
    if jer:
        assert ours.num_speakers == theirs["num_speakers"]
        assert ours.jaccard_errors == pytest.approx(theirs["jaccard_errors"], rel=1e-6, abs=1e-6)
        if theirs["num_speakers"]:
            assert ours.jer == pytest.approx(theirs["jaccard_errors"] / theirs["num_speakers"], abs=1e-6)


# ---- worked by hand


def test_each_error_by_hand() -> None:
    reference = draw(
        A="----      ",
        B="   ----   ",
    )
    hypothesis = draw(
        x="---       ",
        y="   -- --  ",
        z="     -    ",
    )
    errors, mapping = score_recording(reference, hypothesis)
    # A 0-4, B 3-7. x = A, y = B; 3-4: A missed; 5-6: z for B is confusion; 7-8: y is false alarm.
    assert (errors.total_s, errors.missed_s, errors.false_alarm_s, errors.confusion_s) == (8, 1, 1, 1)
    assert errors.der == 3 / 8
    assert errors.detection == 2 / 8
    assert mapping == {"x": "A", "y": "B"}
    # Jaccard: A 3/4; B: 3 of 3-7 and 3-5, 6-8 joined = 3/5.
    assert errors.jer == pytest.approx(1 - (3 / 4 + 3 / 5) / 2)
    assert errors.scored_s == 8


def test_fixed_channels_cost_what_a_mapping_forgives() -> None:
    reference = draw(A="----    ", B="    ----")
    swapped = draw(channel1="----    ", channel0="    ----")
    errors, mapping = score_recording(reference, swapped, hypothesis_order=channel_names(4))
    assert (errors.der, errors.fixed_der) == (0, 1)
    assert mapping == {"channel1": "A", "channel0": "B"}
    assert score_recording(reference, swapped)[0].fixed_der == 0  # by arrival the order is the same
    only_second = draw(channel1="    ----")  # a silent channel keeps its place
    errors, _ = score_recording(reference, only_second, hypothesis_order=channel_names(4))
    assert (errors.missed_s, errors.fixed_confusion_s) == (4, 0)


def test_collar_is_on_each_side_and_overlap_can_be_left_out() -> None:
    reference = draw(A="------    ", B="    ------")
    hypothesis = draw(x="----------")
    plain, _ = score_recording(reference, hypothesis)
    assert (plain.total_s, plain.missed_s, plain.confusion_s) == (12, 2, 4)
    skipped, _ = score_recording(reference, hypothesis, skip_overlap=True)
    assert (skipped.total_s, skipped.missed_s, skipped.confusion_s, skipped.scored_s) == (8, 0, 4, 8)
    collared, _ = score_recording(reference, hypothesis, collar_s=0.25)
    # Half a second around 4 and 6, a quarter inside at 0 and 10.
    assert collared.scored_s == pytest.approx(8.5)
    assert_equal(collared, pyannote(reference, hypothesis, collar_s=0.25))


def test_overlapping_turns_of_one_speaker_count_once() -> None:
    twice = Turns.of([Turn(0, 10, "A"), Turn(5, 12, "A"), Turn(6, 7, "A"), Turn(12, 13, "A"), Turn(20, 21, "B")])
    once = Turns.of([Turn(0, 12, "A"), Turn(12, 13, "A"), Turn(20, 21, "B")])
    merged = twice.merged()
    assert merged.to_turns() == once.to_turns()
    for options in ({}, {"collar_s": 0.5}, {"skip_overlap": True}):
        errors, _ = score_recording(twice, once, **options)
        assert errors.der == 0
        assert errors == score_recording(once, once, **options)[0]
        assert score_recording(once, twice, **options)[0].der == 0


def test_nothing_on_either_side() -> None:
    some = draw(A="--  --")
    assert score_recording(NO_TURNS, NO_TURNS) == (DiarizationErrors(), {})
    errors, _ = score_recording(some, NO_TURNS)
    assert (errors.der, errors.jer, errors.missed_s) == (1, 1, 4)
    errors, _ = score_recording(NO_TURNS, some)
    assert (errors.total_s, errors.false_alarm_s) == (0, 4)
    assert math.isnan(errors.der)
    assert errors.to_json()["der"] is None
    errors, _ = score_recording(some, some, regions=np.array([[2.0, 4.0]]))
    assert (errors.scored_s, errors.total_s) == (2, 0)


def test_sums_before_it_divides() -> None:
    reference = {"long": draw(A="-" * 90), "short": draw(A="-" * 10)}
    hypothesis = {"long": draw(x="-" * 90), "short": NO_TURNS}
    result = score(reference, hypothesis)
    assert result.corpus.der == 0.1
    assert result.corpus.jer == 0.5  # each speaker counts the same
    assert result.recordings["short"].der == 1


def test_recordings_that_one_side_lacks() -> None:
    a, b, c = draw(A="--"), draw(A="---"), draw(A="----")
    result = score({"a": a, "b": b}, {"b": b, "c": c})
    assert result.corpus.missed_s == 2
    assert dict(result.unscored) == {"c": "only in the hypothesis, and no UEM says what to score"}
    assert any("only in the reference, missed in full: a" in note for note in result.notes)
    uem = {"b": np.array([[0.0, 3.0]]), "c": np.array([[0.0, 9.0]]), "d": np.array([[0.0, 1.0]])}
    result = score({"a": a, "b": b}, {"b": b, "c": c}, uem=uem)
    assert list(result.recordings) == ["b", "c"]
    assert result.corpus.false_alarm_s == 4
    assert dict(result.unscored) == {"a": "not in the UEM"}
    with pytest.raises(ValueError, match="nothing to score: 1 recordings in the reference .a.*hypothesis .b.*UEM .d"):
        score({"a": a}, {"b": b}, uem={"d": uem["d"]})


@pytest.mark.parametrize("collar", [-0.1, math.nan, math.inf])
def test_collars_that_are_refused(collar: float) -> None:
    with pytest.raises(ValueError, match="collar must be 0 to 10 seconds"):
        score_recording(NO_TURNS, NO_TURNS, collar_s=collar)


# ---- against pyannote.metrics


@st.composite
def side(draw_: st.DrawFn, prefix: str) -> Turns:
    """Turns of up to four speakers in whole milliseconds; those of one speaker do not overlap, but may touch."""
    turns = []
    for speaker in range(draw_(st.integers(0, 4))):
        marks = draw_(st.lists(st.integers(0, 20_000), min_size=0, max_size=8, unique=True).map(sorted))
        skip = draw_(st.booleans())  # every second gap, or none: touching turns
        for i in range(0, len(marks) - 1, 2 if skip else 1):
            turns.append(Turn(marks[i] / 1000, marks[i + 1] / 1000, f"{prefix}{speaker}"))
    return Turns.of(turns)


@settings(max_examples=150, deadline=None)
@given(
    reference=side("r"),
    hypothesis=side("h"),
    collar_ms=st.sampled_from([0, 0, 250, 37]),
    skip_overlap=st.booleans(),
    uem=st.none() | st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 9000)), min_size=1, max_size=3),
)
def test_equals_pyannote_on_random_turns(
    reference: Turns, hypothesis: Turns, collar_ms: int, skip_overlap: bool, uem: list[tuple[int, int]] | None
) -> None:
    assume(len(reference) + len(hypothesis))
    regions = None
    if uem is not None:
        support = Timeline([Segment(a / 1000, (a + b) / 1000) for a, b in uem]).support()
        regions = np.array([[s.start, s.end] for s in support])
    options = {"collar_s": collar_ms / 1000, "skip_overlap": skip_overlap}
    ours, _ = score_recording(reference, hypothesis, regions=regions, **options)
    theirs = pyannote(reference, hypothesis, regions, **options)
    # With whole milliseconds two mappings may tie, and then JER depends on which is taken.
    assert_equal(ours, theirs, jer=not theirs["tied"])


def perturbed(turns: Turns, rng: np.random.Generator) -> Turns:
    """A plausible system output: boundaries moved, turns dropped, speakers mistaken, short false alarms."""
    start = turns.start_s + rng.normal(0, 0.2, len(turns))
    end = np.maximum(turns.end_s + rng.normal(0, 0.2, len(turns)), start + 0.05)
    names = np.array([f"h{i}" for i in range(5)])
    speaker = np.where(rng.random(len(turns)) < 0.15, rng.integers(0, 5, len(turns)), turns.speaker)
    keep = rng.random(len(turns)) > 0.07
    extra = rng.uniform(0, turns.end_s.max(), 20)
    return Turns.from_arrays(
        np.concatenate([start[keep].clip(0), extra]),
        np.concatenate([end[keep].clip(0.01), extra + rng.uniform(0.2, 2, 20)]),
        [*names[speaker[keep]], *names[rng.integers(0, 5, 20)]],
    ).merged()


def meetings(count: int, seconds: float = 150.0) -> dict[str, Turns]:
    """Made-up meetings of four people, with pauses and overlaps; times of no grid, so that no two mappings tie."""
    rng = np.random.default_rng(7)
    return {f"m{i}": Turns.of(random_turns(rng, 4, seconds, 6)) for i in range(count)}


def compare(reference: dict[str, Turns], uem: dict[str, np.ndarray] | None, **options: object) -> None:
    rng = np.random.default_rng(0)
    hypothesis = {name: perturbed(turns, rng) for name, turns in reference.items()}
    result = score(reference, hypothesis, uem=uem, **options)
    assert list(result.recordings) == list(reference)
    for name, turns in reference.items():
        theirs = pyannote(turns, hypothesis[name], None if uem is None else uem[name], **options)
        assert not theirs["tied"]
        assert_equal(result.recordings[name], theirs)
        assert 0.1 < result.recordings[name].der < 0.6
        assert 0.1 < result.recordings[name].jer < 0.8


@pytest.mark.parametrize(
    "options", [{}, {"collar_s": 0.25}, {"skip_overlap": True}, {"skip_overlap": True, "collar_s": 0.25}]
)
def test_equals_pyannote_on_made_up_meetings(options: dict) -> None:
    reference = meetings(3)
    compare(reference, None, **options)
    compare(reference, {name: np.array([[3.3, 60.7], [70.1, 149.9]]) for name in reference}, **options)


@pytest.mark.parametrize("options", [{}, {"collar_s": 0.25}, {"skip_overlap": True, "collar_s": 0.25}])
def test_equals_pyannote_on_ami(speech_dir: Path, options: dict) -> None:
    reference = read_rttm(speech_dir / "ami" / "only_words" / "rttms" / "dev")
    uem = read_uem(speech_dir / "ami" / "uems" / "dev")
    assert len(reference) == 5
    assert sum(map(len, reference.values())) == 1594
    if options:  # pyannote.metrics takes seconds a meeting: the options on the two shortest
        reference = {name: reference[name] for name in ("ES2011a", "IS1008a")}
        uem = {name: uem[name] for name in reference}
    for regions in (uem,) if options else (None, uem):
        compare(reference, regions, **options)


def against_spyder(reference: Turns) -> None:
    spyder = pytest.importorskip("spyder")
    hypothesis = perturbed(reference, np.random.default_rng(1))
    rows = [[(t.speaker, t.start_s, t.end_s) for t in side.to_turns()] for side in (reference, hypothesis)]
    for collar_s in (0.0, 0.25):
        theirs = spyder.DER(*rows, collar=collar_s)
        ours, _ = score_recording(reference, hypothesis, collar_s=collar_s)
        assert ours.der == pytest.approx(theirs.der, abs=1e-4)
        assert ours.missed_s / ours.total_s == pytest.approx(theirs.miss, abs=1e-4)


def test_equals_spyder_on_made_up_meetings() -> None:
    for turns in meetings(3).values():
        against_spyder(turns)


def test_equals_spyder_on_ami(speech_dir: Path) -> None:
    against_spyder(read_rttm(speech_dir / "ami" / "only_words" / "rttms" / "dev" / "TS3004a.rttm")["TS3004a"])


# ---- frames


def test_a_frame_is_active_when_its_centre_lies_in_a_turn() -> None:
    # Centres 0.04, 0.12, 0.20, 0.28 …; a turn includes its start and excludes its end.
    turns = [Turn(0.04, 0.12, "A"), Turn(0.121, 0.199, "B"), Turn(0.13, 0.29, "C")]
    assert turns_to_frames(turns, MIMI_GRID, 0, 4, ["A", "B", "C"]).T.tolist() == [
        [True, False, False, False],
        [False, False, False, False],
        [False, False, True, True],
    ]
    assert turns_to_frames(turns, MIMI_GRID, 1, 4, ["C"]).T.tolist() == [[False, True, True]]
    assert turns_to_frames_outward(turns, MIMI_GRID, 0, 4, ["B"]).T.tolist() == [[False, True, True, False]]
    with pytest.raises(ValueError, match="named twice"):
        turns_to_frames(turns, MIMI_GRID, 0, 4, ["A", "A"])


@pytest.mark.parametrize("grid", [MIMI_GRID, FrameGrid(0.02, 0.04), FrameGrid(0.0, 1 / 3)], ids=str)
def test_a_turn_that_starts_or_ends_on_a_centre(grid: FrameGrid) -> None:
    """Frame 0 to a day of frames: a start on a centre takes the frame in, an end on it leaves it out."""
    frames = np.unique(np.geomspace(1, 86_400 / grid.step_s, 5_000).astype(np.int64))
    centres = grid.centres_s(0, int(frames[-1]) + 1)[frames]
    start_of_file = 3600.1  # RTTM holds starts and durations: their sum is seldom the end that was written
    for times in (centres, start_of_file + (centres - start_of_file), centres + 2e-11, centres - 2e-11):
        first, last = grid.active(times, times)
        np.testing.assert_array_equal(first, frames)
        np.testing.assert_array_equal(last, frames)
    assert [grid.index(float(t)) for t in centres[:50]] == frames[:50].tolist()
    first, last = grid.active(centres + 1e-6, centres + 1e-6)  # beyond the tolerance it is the next frame's
    np.testing.assert_array_equal(first, frames + 1)
    turns = Turns.of([Turn(*grid.centres_s(3, 7)[[0, 3]], "A")])
    assert np.flatnonzero(turns_to_frames(turns, grid, 0, 20, ["A"])).tolist() == [3, 4, 5]


def test_frames_of_times_beyond_any_grid() -> None:
    first, last = MIMI_GRID.active([-5.0, 1e300], [0.04, 1e306])
    assert (first.tolist(), last.tolist()) == ([0, 1 << 62], [0, 1 << 62])
    assert MIMI_GRID.index(-1.0) == 0
    assert [len(numbers) for numbers in MIMI_GRID.active([], [])] == [0, 0]


def test_rasterising_equals_asking_each_centre() -> None:
    rng = np.random.default_rng(0)
    marks = rng.uniform(-1, 30, (40, 2))
    marks.sort(axis=1)
    turns = [Turn(a, b, f"s{rng.integers(3)}") for a, b in marks]
    centres = MIMI_GRID.centres_s(17, 300)
    expected = [
        [any(t.start_s <= c < t.end_s for t in turns if t.speaker == f"s{s}") for s in range(3)] for c in centres
    ]
    assert turns_to_frames(turns, MIMI_GRID, 17, 300, ["s0", "s1", "s2"]).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=60), st.integers(0, 5000))
def test_frames_survive_the_way_through_turns(rows: list[list[bool]], start: int) -> None:
    active = np.array(rows, bool).reshape(-1, 3)
    for grid in (MIMI_GRID, FrameGrid(0.02, 0.04), FrameGrid(0.05, 0.1)):
        turns = frames_to_turns(active, grid, "abc", start)
        back = turns_to_frames(turns, grid, start, start + len(active), "abc")
        np.testing.assert_array_equal(back, active)


def test_a_frame_that_begins_before_the_recording_is_cut_at_its_start() -> None:
    turns = frames_to_turns([[1], [0], [1], [1]], FrameGrid(0.0, 1.0), "a")
    assert [(t.start_s, t.end_s) for t in turns] == [(0.0, 0.5), (1.5, 3.5)]
    turns = frames_to_turns([[1], [0]], FrameGrid(0.0, 1.0), "a", start=2)
    assert [(t.start_s, t.end_s) for t in turns] == [(1.5, 2.5)]


def test_median_filter_equals_scipy() -> None:
    from scipy.ndimage import median_filter

    activity = np.random.default_rng(0).random((200, 4)).astype(np.float32)
    for window in (1, 3, 5, 11):
        smooth = median_filter(activity, size=(window, 1), mode="nearest")
        np.testing.assert_array_equal(decode(activity, 0.4, window), smooth >= 0.4)
    assert decode(np.zeros((0, 4)), 0.5, 5).shape == (0, 4)
    with pytest.raises(ValueError, match="must be odd"):
        decode(activity, 0.5, 4)
    with pytest.raises(ValueError, match="1 NaN"):
        decode(np.array([[np.nan]]), 0.5)


@pytest.mark.parametrize("grid", [MIMI_GRID, FrameGrid(0.02, 0.04)], ids=str)
def test_floor_is_what_rounding_moves(grid: FrameGrid) -> None:
    """Turns with seconds between them: each boundary goes to the nearest edge of a frame, or to the next one outward."""
    rng, step = np.random.default_rng(2), grid.step_s
    start = np.arange(60) * 7.0 + rng.uniform(1, 2, 60)
    end = start + rng.uniform(0.5, 4, 60)
    reference = {"m": Turns.from_arrays(start, end, [f"s{i % 3}" for i in range(60)])}
    nearest = sum(np.abs(np.round(times / step) * step - times).sum() for times in (start, end))
    outward = (start - np.floor(start / step) * step).sum() + (np.ceil(end / step) * step - end).sum()
    for rounding, moved in ((False, nearest), (True, outward)):
        errors = floor(reference, grid, outward=rounding)
        assert errors.wrong_s == pytest.approx(moved)
        assert errors.total_s == pytest.approx((end - start).sum())
        assert floor(reference, grid, outward=rounding, collar_s=step).wrong_s == pytest.approx(0)
    half = {"m": np.array([[0.0, 210.0]])}
    assert floor(reference, grid, uem=half).total_s == pytest.approx((end - start)[:30].sum())


def test_floor_of_ami(speech_dir: Path) -> None:
    reference = read_rttm(speech_dir / "ami" / "only_words" / "rttms" / "dev")
    at_centres = floor(reference, MIMI_GRID).der
    assert 0.005 < at_centres < 0.02
    assert floor(reference, MIMI_GRID, outward=True).der == pytest.approx(2 * at_centres, rel=0.3)
    assert floor(reference, FrameGrid(0.02, 0.04)).der == pytest.approx(at_centres / 2, rel=0.2)


# ---- files


def test_reads_what_is_odd_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.rttm").write_bytes(
        b"\xef\xbb\xbf;; a comment\r\n"
        b"SPKR-INFO m 1 <NA> <NA> <NA> unknown A <NA> <NA>\r\n"
        b"SPEAKER\tm  1\t 1.5   2.0 <NA> <NA> A <NA> <NA>\r\n"
        b"\r\n"
        b"SPEAKER m 1 2.5 2 <NA> <NA> A <NA>\n"
        b"SPEAKER m 2 0 0.000 <NA> <NA> C <NA> <NA>\n"
        b"SPEAKER m 1 -0.01 0.5 <NA> <NA> B <NA> <NA>\n"
    )
    notes: list[str] = []
    turns = read_rttm(tmp_path / "a.rttm", notes.append)["m"]
    assert turns.speakers == ("B", "A")
    assert turns.to_turns() == (Turn(-0.01, 0.49, "B"), Turn(1.5, 3.5, "A"), Turn(2.5, 4.5, "A"))
    text = "\n".join(notes)
    for expected in (
        "1 records of other types passed over (first: line 2)",
        "1 turns of no length left out (first: line 6)",
        "1 turns that start before 0 s (first: line 7)",
        "recording 'm' has 2 channels, scored as one",
        "1 turns overlap another of the same speaker and are joined",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"SPEAKER m 1 nan 2 <NA> <NA> A <NA> <NA>", ":2: expected a start in seconds, found 'nan'"),
        (b"SPEAKER m 1 1 inf <NA> <NA> A <NA> <NA>", ":2: expected a duration in seconds, found 'inf'"),
        (b"SPEAKER m 1 1 x <NA> <NA> A <NA> <NA>", ":2: expected a duration in seconds, found 'x'"),
        (b"SPEAKER m 1 1 -2 <NA> <NA> A <NA> <NA>", ":2: expected a duration of 0 or more seconds, found -2"),
        (b"SPEAKER m 1 1 2", ":2: expected 8 to 10 fields .*found 5"),
        (b"SPEAKER m 1 1 2 <NA> <NA> Ada Lovelace <NA> <NA>", ":2: expected 8 to 10 fields .*found 11"),
        (b"m 1 1 2", ":2: expected a line that starts with SPEAKER, found 'm'"),
        (b"SPEAKER m 1 1 2 <NA> <NA> \xff <NA> <NA>", ":2: not UTF-8"),
    ],
)
def test_rttm_lines_that_are_refused(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.rttm").write_bytes(b"SPEAKER m 1 0 1 <NA> <NA> A <NA> <NA>\n" + line + b"\n")
    with pytest.raises(ValueError, match="a.rttm" + message):
        read_rttm(tmp_path / "a.rttm")


def test_folders_of_rttm(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_rttm(tmp_path / "none")
    with pytest.raises(ValueError, match="no .*rttm file"):
        read_rttm(tmp_path)
    for name in ("a", "b"):
        write_rttm(tmp_path / f"{name}.rttm", {name: draw(A="--", B=" --")})
    assert list(read_rttm(tmp_path)) == ["a", "b"]
    (tmp_path / "below" / "that").mkdir(parents=True)
    write_rttm(tmp_path / "below" / "that" / "d.rttm", {"d": draw(A="--")})
    assert list(read_rttm(tmp_path)) == ["a", "b", "d"]
    write_rttm(tmp_path / "c.rttm", {"a": draw(A="--")})
    with pytest.raises(ValueError, match="recording 'a' is also in"):
        read_rttm(tmp_path)


def test_uem_files(tmp_path: Path) -> None:
    path = tmp_path / "a.uem"
    path.write_text(";; comment\nm 1 5 7\nm 1 0.0 2\nm\t1  1 3\n\n")
    np.testing.assert_array_equal(read_uem(path)["m"], [[0, 3], [5, 7]])
    path.write_text("m 1 0 9\nm 1 2 3\nm 1 9 10\nm 1 12 12\nm 1 12 13\nm 1 11 11\n")  # inside, touching, of no length
    np.testing.assert_array_equal(read_uem(path)["m"], [[0, 10], [12, 13]])
    for text, message in (
        ("m 1 3 2\n", "a.uem:1: the region ends at 2 s, before it starts at 3 s"),
        ("m 1 0\n", "a.uem:1: expected 4 fields"),
        ("m 1 0 nan\n", "a.uem:1: expected a time in seconds, found 'nan'"),
        ("", "no region"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_uem(path)


def test_written_uem_reads_back(tmp_path: Path) -> None:
    regions = {"m": np.array([[0.0, 1.5], [2.25, 90.0]]), "n@4.96": np.array([[4.96, 9.92]])}
    write_uem(tmp_path / "a.uem", regions)
    for name, found in read_uem(tmp_path / "a.uem").items():
        np.testing.assert_array_equal(found, regions[name])
    with pytest.raises(ValueError, match="one word without spaces, found 'a b'"):
        write_uem(tmp_path / "b.uem", {"a b": regions["m"]})
    assert not (tmp_path / "b.uem").exists()


def test_annotations_and_back() -> None:
    turns = [Turn(0.5, 2.0, "ann"), Turn(1.0, 3.0, "bob"), Turn(1.0, 3.0, "cy"), Turn(4.0, 5.0, "ann")]
    annotation = Turns.of(turns).to_annotation("m")
    assert (annotation.uri, annotation.labels()) == ("m", ["ann", "bob", "cy"])
    assert annotation.label_duration("ann") == 2.5
    assert list(Turns.from_annotation(annotation)) == turns
    assert len(Turns.from_annotation(NO_TURNS.to_annotation())) == 0
    timeline = to_timeline(np.array([[0.0, 2.0], [4.0, 6.0]]), "m")
    assert (timeline.uri, timeline.duration()) == ("m", 4.0)
    assert annotation.crop(timeline).get_timeline().extent() == Segment(0.5, 5.0)


def test_written_rttm_of_made_up_meetings_reads_back(tmp_path: Path) -> None:
    """To the millisecond, the order of turns and of arrival kept; what a crop cuts off is gone from both."""
    turns = meetings(2)
    write_rttm(tmp_path / "x.rttm", turns)
    back = read_rttm(tmp_path / "x.rttm")
    assert list(back) == list(turns)
    for name, found in back.items():
        assert found.speakers == turns[name].speakers
        np.testing.assert_array_equal(found.speaker, turns[name].speaker)
        np.testing.assert_allclose(found.start_s, turns[name].start_s, atol=5.1e-4)
        np.testing.assert_allclose(found.end_s, turns[name].end_s, atol=1.1e-3)
        piece = found.cropped(50, 120)
        inside = (found.start_s < 120) & (found.end_s > 50)
        np.testing.assert_allclose(piece.start_s, found.start_s[inside].clip(50) - 50)
        np.testing.assert_allclose(piece.end_s, found.end_s[inside].clip(max=120) - 50)


def test_written_rttm_reads_back(tmp_path: Path, speech_dir: Path) -> None:
    turns = read_rttm(speech_dir / "ami" / "only_words" / "rttms" / "dev" / "ES2011a.rttm")
    write_rttm(tmp_path / "x.rttm", turns)
    assert score(turns, read_rttm(tmp_path / "x.rttm")).corpus.der < 1e-9
    pieces = turns["ES2011a"].cropped(100, 190)
    assert pieces.start_s.min() >= 0
    assert pieces.end_s.max() <= 90


# ---- the command


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_der_command(tmp_path: Path) -> None:
    write_rttm(tmp_path / "ref.rttm", {"m": draw(A="----", B="   ---"), "n": draw(A="--")})
    write_rttm(tmp_path / "hyp.rttm", {"m": draw(x="---", y="   ---"), "n": draw(x="--")})
    code, out, err = run("der", "--ref", tmp_path / "ref.rttm", "--hyp", tmp_path / "hyp.rttm", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert data["corpus"]["der"] == pytest.approx(1 / 9)
    assert data["recordings"]["n"]["der"] == 0
    assert data["recordings"]["m"]["mapping"] == {"x": "A", "y": "B"} and data["notes"] == []
    assert data["collar_s"] == 0
    code, out, _ = run(
        "der", "--ref", tmp_path / "ref.rttm", "--hyp", tmp_path / "hyp.rttm", "--collar", 0.25, "--skip-overlap"
    )
    assert code == 0
    # Of A 0-4, B 3-6 in m: A 0.25-2.75, B 4.25-5.75; of A 0-2 in n: 0.25-1.75. What was missed lay in the overlap.
    assert [line.split()[1:] for line in out.splitlines() if line.startswith(("  m ", "  n "))] == [
        ["0.00"] * 7 + ["4.00"],
        ["0.00"] * 7 + ["1.50"],
    ]


def test_der_command_says_what_it_could_not_score(tmp_path: Path) -> None:
    write_rttm(tmp_path / "ref.rttm", {"m": draw(A="----")})
    write_rttm(tmp_path / "hyp.rttm", {"m": draw(x="----"), "n": draw(x="--")})
    code, out, err = run("der", "--ref", tmp_path / "ref.rttm", "--hyp", tmp_path / "hyp.rttm", "--json")
    assert code == 1
    assert json.loads(out)["unscored"] == {"n": "only in the hypothesis, and no UEM says what to score"}
    assert "1 recordings NOT scored" in err
    (tmp_path / "hyp.rttm").write_text("SPEAKER m 1 0 nan <NA> <NA> x <NA> <NA>\n")
    code, out, err = run("der", "--ref", tmp_path / "ref.rttm", "--hyp", tmp_path / "hyp.rttm", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "hyp.rttm:1" in err
