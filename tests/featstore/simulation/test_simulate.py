"""featstore simulate: recipes, speech detection, placing, determinism, restart, errors."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from featstore.corpora.manifest import read_manifest
from featstore.corpora.rttm import write_rttm
from featstore.settings import make
from featstore.simulation.audio_out import _ogg_crc, write_audio
from featstore.simulation.mix import mix
from featstore.simulation.outcome import finish
from featstore.simulation.recipe import Recipe, read_recipe
from featstore.simulation.session import _conversation, _Source
from featstore.simulation.simulate import simulate
from featstore.simulation.speech import Piece, cut, speech_and_overlap_s, speech_segments_s
from featstore.types import Turn, Utterance
from tests.conftest import ROOT
from tests.featstore.simulation.conftest import RATE, TONE_HZ, contents, tone


@pytest.fixture
def recipe() -> Recipe:
    return replace(read_recipe("tiny"), sessions=3)


# --- where speech is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_speech_is_found_where_the_tone_is(noise: float) -> None:
    wave = tone(440, [(0.5, 1.5), (1.7, 2.2), (3.0, 3.6)], 4.0)
    wave += noise * np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    found = speech_segments_s(wave, RATE, pause_s=0.3)  # the pause of 0.2 s is filled, that of 0.8 s is not
    assert found == pytest.approx(np.array([[0.5, 2.2], [3.0, 3.6]]), abs=0.035)


def test_a_click_is_not_speech_and_silence_has_none() -> None:
    assert speech_segments_s(tone(440, [(0.5, 1.5), (3.0, 3.01)], 4.0), RATE, 0.3) == pytest.approx(
        np.array([[0.5, 1.5]]), abs=0.035
    )
    assert speech_segments_s(np.zeros(RATE, np.float32), RATE, 0.3).shape == (0, 2)
    assert speech_segments_s(np.zeros(0, np.float32), RATE, 0.3).shape == (0, 2)


def test_overlap_by_hand() -> None:
    # a: 0-4 and 3-5 (one stretch); b: 4.5-6; c: 10-11. Speech 0-6 and 10-11, overlap 4.5-5.
    turns = [Turn(0, 4, "a"), Turn(3, 5, "a"), Turn(4.5, 6, "b"), Turn(10, 11, "c")]
    assert speech_and_overlap_s(turns) == pytest.approx((7.0, 0.5))
    assert speech_and_overlap_s([]) == (0.0, 0.0)


def test_overlap_equals_pyannote() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        starts, lengths = rng.uniform(0, 60, 30), rng.uniform(0.1, 6, 30)
        turns = [Turn(s, s + n, f"s{rng.integers(4)}") for s, n in zip(starts, lengths, strict=True)]
        annotation = Annotation()
        for track, turn in enumerate(turns):
            annotation[Segment(turn.start_s, turn.end_s), track] = turn.speaker
        expected = (
            annotation.get_timeline().support().duration(),
            annotation.support().get_overlap().duration(),
        )
        assert speech_and_overlap_s(turns) == pytest.approx(expected)


def test_the_edges_of_what_counts_as_speech() -> None:
    """Windows of 10 ms smoothed over three: a burst of n windows is seen in n + 2, so 20 ms are dropped, 30 ms kept.

    20 ms are added at both ends, but none before the file or after it; a pause is what lies between the margins.
    """
    for windows, kept in ((2, False), (3, True)):
        found = speech_segments_s(tone(400, [(1.0, 2.0), (3.0, 3.0 + windows / 100)], 4.0), RATE, 0.3)
        assert found == pytest.approx(np.array([[0.97, 2.03], [2.97, 3.0 + windows / 100 + 0.03]])[: 1 + kept])
    found = speech_segments_s(tone(400, [(0.0, 1.0), (3.0, 4.0)], 4.0), RATE, 0.3)
    assert found == pytest.approx(np.array([[0.0, 1.03], [2.97, 4.0]]))
    wave = tone(400, [(0.5, 1.0), (1.5, 2.0)], 3.0)  # 0.44 s between the margins
    assert len(speech_segments_s(wave, RATE, 0.43)) == 2 and len(speech_segments_s(wave, RATE, 0.45)) == 1
    # 40 dB below the loud parts is not heard where the floor is lower still.
    steps = np.concatenate([tone(400, [(0, 1)], 1.0, level=level) for level in (0.5, 0.001, 0.5, 0.02)])
    assert speech_segments_s(steps, RATE, 0.3) == pytest.approx(np.array([[0.0, 1.03], [1.97, 4.0]]), abs=0.011)


def test_pieces_by_hand() -> None:
    """Cut where a piece would pass `max_turn_s`; 50 ms of sound on both sides, faded; speech at -26 dB."""
    wave = tone(400, [(0.5, 1.5), (2.5, 3.5), (4.5, 5.0), (5.6, 5.9)], 6.0, level=0.02)
    base = Recipe("cut", 1, speakers=2, duration_s=9, overlap=0.1, sample_rate_hz=RATE)
    for longest, groups in ((3.2, [2, 2]), (3.0, [1, 2, 1]), (15.0, [4]), (0.1, [1, 1, 1, 1])):
        pieces = cut(wave, replace(base, max_turn_s=longest))
        assert [len(piece.segments) for piece in pieces] == groups
    assert [len(p.segments) for p in cut(wave, replace(base, layout="pair", max_turn_s=0.1))] == [4]
    one, _ = cut(wave, replace(base, max_turn_s=3.2))
    assert one.segments == pytest.approx(np.array([[0.0, 1.06], [2.0, 3.06]]), abs=1e-6)
    assert (one.lead_s, one.length_s, one.speech_s) == pytest.approx((0.05, 3.06, 2.12), abs=1e-6)
    assert len(one.wave) == round(3.16 * RATE)
    inside = one.wave[round(0.2 * RATE) : round(0.9 * RATE)]
    # Of all that is taken for speech, margins and all: 2.8 s sound in 3.04 s.
    assert 20 * np.log10(np.sqrt(np.mean(inside**2))) == pytest.approx(-26 + 10 * np.log10(3.04 / 2.8), abs=0.1)
    loud = cut(np.ones(RATE, np.float32) * np.linspace(0.9, 1, RATE, dtype=np.float32), base)[0].wave
    fade = loud[: round(0.05 * RATE)] / loud[round(0.05 * RATE)]
    np.testing.assert_allclose(fade, np.linspace(0, 1, len(fade)), atol=0.01)
    np.testing.assert_allclose(loud[: -len(fade) - 1 : -1] / loud[-len(fade) - 1], fade, atol=0.02)
    with pytest.raises(ValueError, match="no speech found"):
        cut(np.zeros(RATE, np.float32), base)


def test_mixing_by_hand() -> None:
    """At 1 kHz: sound begins `lead_s` before its turn; what sticks out at either end is cut; short pauses are joined."""
    recipe = Recipe("mix", 1, speakers=2, duration_s=1, overlap=0.1, sample_rate_hz=1000, level_sd_db=0.0, pause_s=0.1)
    piece = Piece(np.full(100, 0.25, np.float32), 0.02, np.array([[0.0, 0.03], [0.05, 0.06]]))
    placed = [(0.01, "b", piece), (0.30, "a", piece), (0.34, "b", piece), (0.98, "a", piece), (1.2, "b", piece)]
    session, turns, _ = mix(placed, recipe, np.random.default_rng(0), 1000, [], [])
    expected = np.zeros(1000, np.float32)
    for first, last in ((0, 90), (280, 380), (320, 420), (960, 1000)):
        expected[first:last] += 0.25
    np.testing.assert_array_equal(session, expected)
    assert [(t.start_s, t.end_s, t.speaker) for t in turns] == [
        *((pytest.approx(0.01), pytest.approx(0.07), "b"), (pytest.approx(0.30), pytest.approx(0.36), "a")),
        *((pytest.approx(0.34), pytest.approx(0.40), "b"), (pytest.approx(0.98), pytest.approx(1.0), "a")),
    ]
    # Too loud together: all of it is turned down to 0.99.
    loud = Piece(np.full(100, 0.9, np.float32), 0.0, piece.segments)
    session, *_ = mix([(0.3, "a", loud), (0.35, "b", loud)], recipe, np.random.default_rng(0), 1000, [], [])
    assert session.max() == pytest.approx(0.99) and session[310] == pytest.approx(0.495)
    # A level of each speaker's own, the same in all of a session.
    levels = []
    for seed in range(300):
        session, *_ = mix(
            [(0.0, "a", piece), (0.2, "b", piece), (0.5, "a", piece)],
            replace(recipe, level_sd_db=2.0),
            np.random.default_rng(seed),
            1000,
            [],
            [],
        )
        assert session[20] == session[520] != session[220]
        levels += [20 * np.log10(session[at] / 0.25) for at in (20, 220)]
    assert (np.mean(levels), np.std(levels)) == pytest.approx((0.0, 2.0), abs=0.2)
    # Noise, 20 dB below speech at -26 dB.
    session, *_ = mix([], replace(recipe, noise_snr_db=(20, 20)), np.random.default_rng(0), 100_000, [], [])
    assert 20 * np.log10(session.std()) == pytest.approx(-46, abs=0.01)
    assert np.corrcoef(session[1:], session[:-1])[0, 1] == pytest.approx(0.9, abs=0.01)


@pytest.fixture
def pinned(tmp_path: Path) -> list[Utterance]:
    """Three tone speakers of three utterances each, the second with a pause."""
    found = []
    for k, hz in enumerate((300.0, 550.0, 800.0)):
        for n in range(3):
            end = 1.0 + 0.5 * n
            spans = [(0.2, end), (end + 0.5, end + 1.0)] if n == 1 else [(0.2, end)]
            wave = tone(hz, spans, end + 1.2)
            path = str(tmp_path / f"s{k}-{n}.wav")
            soundfile.write(path, wave, RATE, subtype="FLOAT")
            found.append(Utterance(f"s{k}-{n}", path, 0.0, len(wave) / RATE, f"s{k}-{n}", f"s{k}", "train"))
    return found


def test_a_recipe_and_a_seed_mean_the_same_session_for_ever(tmp_path: Path, pinned: list[Utterance]) -> None:
    """Who has a published recipe, its corpus and its seed has the published sessions."""
    recipe = Recipe(
        "pinned", 1, speakers=3, duration_s=12, overlap=0.2, silence=0.1, sample_rate_hz=RATE, noise_snr_db=(20, 20)
    )
    simulate(pinned, recipe, tmp_path / "talk", seed=3)
    assert rttm(tmp_path / "talk/rttm/pinned-train-00000.rttm") == [
        *((0.531, 1.360, "s1"), (2.331, 0.560, "s1"), (2.411, 1.860, "s2"), (4.011, 1.360, "s0")),
        *((5.811, 0.560, "s0"), (5.843, 1.860, "s1"), (7.367, 1.860, "s0"), (9.099, 0.860, "s1")),
        *((9.818, 0.860, "s0"), (10.551, 1.360, "s1")),
    ]
    wave, _ = soundfile.read(tmp_path / "talk/audio/pinned-train-00000.flac")
    levels = [float(20 * np.log10(np.sqrt(np.mean(second**2)))) for second in wave.reshape(12, -1)]
    assert levels == pytest.approx(
        [-30.9, -28.07, -24.95, -23.85, -22.91, -26.24, -24.95, -24.35, -23.84, -25.35, -24.47, -28.02], abs=0.02
    )
    pair = replace(recipe, name="pairs", layout="pair", speakers=(2, 2), overlap=(0.1, 0.5), noise_snr_db=None)
    simulate(pinned, pair, tmp_path / "pair", seed=3)
    assert rttm(tmp_path / "pair/rttm/pairs-train-00000.rttm") == [(0.050, 0.860, "s1"), (0.740, 0.860, "s2")]
    asked = replace(recipe, name="asked", overlap=(0.3, 0.3), silence=(0.2, 0.2), turn_prob=0.6, dominance_sd=0.5)
    asked = replace(asked, pause_s=0.45, max_turn_s=1.5, level_sd_db=6.0, noise_snr_db=None)  # nothing left as it is
    simulate(pinned, asked, tmp_path / "asked", seed=3)
    assert rttm(tmp_path / "asked/rttm/asked-train-00000.rttm") == [
        *((1.164, 1.860, "s1"), (1.839, 2.360, "s2"), (3.709, 2.360, "s1"), (6.318, 0.860, "s0")),
        *((7.393, 1.860, "s1"), (8.361, 1.860, "s2"), (10.719, 1.281, "s1")),
    ]
    wave, _ = soundfile.read(tmp_path / "asked/audio/asked-train-00000.flac")
    levels = [float(20 * np.log10(np.sqrt(np.mean(second**2)))) for second in wave.reshape(12, -1)[1:]]
    assert levels == pytest.approx(
        [-28.33, -23.72, -27.22, -26.57, -30.7, -31.29, -30.18, -26.0, -25.83, -31.1, -28.72], abs=0.02
    )
    # Each session, recipe's name and seed draws for itself.
    simulate(pinned, replace(recipe, sessions=3), tmp_path / "more", seed=3)
    simulate(pinned, replace(recipe, name="other"), tmp_path / "other", seed=3)
    simulate(pinned, recipe, tmp_path / "seed", seed=4)
    files = [
        *sorted((tmp_path / "more/rttm").iterdir()),
        *(tmp_path / "other/rttm").iterdir(),
        *(tmp_path / "seed/rttm").iterdir(),
    ]
    assert rttm(files[0]) == rttm(tmp_path / "talk/rttm/pinned-train-00000.rttm")
    assert len({tuple(rttm(path)) for path in files}) == 5


def rttm(path: Path) -> list[tuple[float, float, str]]:
    fields = [line.split() for line in path.read_text().splitlines()]
    return [(float(f[3]), float(f[4]), f[7]) for f in fields]


def test_what_came_out_by_hand(tmp_path: Path) -> None:
    """Sums over sessions, then one division; of pairs the mean of each pair's share of the shorter."""
    recipe = Recipe("sums", 2, speakers=2, duration_s=10, overlap=(0.1, 0.3), silence=(0.2, 0.4))
    talks = {
        "one": (10.0, [Turn(0, 4, "a"), Turn(3, 6, "b")]),  # 6 s of speech, 1 s of it two
        "two": (30.0, [Turn(1, 3, "b"), Turn(10, 12, "c")]),  # 4 s, none
        "gone": (5.0, None),
    }
    asked = []
    for name, (seconds, turns) in talks.items():
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(round(seconds * 1000), np.float32), 1000)
        if turns is not None:
            write_rttm(tmp_path / f"{name}.rttm", {name: turns})
        asked.append(("dev", tmp_path / f"{name}.flac", tmp_path / f"{name}.rttm"))
    report = finish(tmp_path, recipe, asked, 1, 7, [])
    assert (report.sessions, report.made_now, report.speakers, report.left_out) == (2, 1, 3, 7)
    assert (report.asked_overlap, report.asked_silence) == pytest.approx((0.2, 0.3))
    assert (report.got_overlap, report.got_silence, report.hours) == pytest.approx((1 / 10, 30 / 40, 40 / 3600))
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(r["session_id"], r["num_speakers"], r["duration"], r["split"]) for r in rows] == [
        *(("one", 2, 10.0, "dev"), ("two", 2, 30.0, "dev")),
    ]
    pairs = replace(recipe, layout="pair", overlap=(0.1, 0.5))
    write_rttm(tmp_path / "two.rttm", {"two": [Turn(0, 2, "b"), Turn(3, 8, "b"), Turn(6, 10, "c")]})
    report = finish(tmp_path, pairs, asked, 0, 0, [])
    assert report.got_overlap == pytest.approx((1 / 3 + 2 / 4) / 2) and report.asked_silence is None
    assert "overlap 0.417 (asked 0.300)" in str(report) and "left out" not in str(report)


def test_speech_that_rttm_rounds_past_the_end_is_no_silence(tmp_path: Path) -> None:
    for name, samples in (("full", 1999), ("half", 2000)):
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(samples, np.float32), 1000)
    write_rttm(tmp_path / "full.rttm", {"full": [Turn(0, 2.002, "a")]})
    write_rttm(tmp_path / "half.rttm", {"half": [Turn(0, 1, "a")]})
    asked = [("dev", tmp_path / f"{name}.flac", tmp_path / f"{name}.rttm") for name in ("full", "half")]
    report = finish(tmp_path, Recipe("ends", 2, speakers=1, duration_s=2, overlap=0), asked, 2, 0, [])
    assert report.got_silence == pytest.approx(1 / 3.999)  # the other's 3 ms are not taken off


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sessions", "speakers", "duration_s", "overlap"),
    [("2spk", 3000, 2, 300, 0.12), ("4spk", 2000, 4, 300, 0.25), ("3spk_long", 1000, 3, 600, 0.18)],
)
def test_published_recipes(name: str, sessions: int, speakers: int, duration_s: float, overlap: float) -> None:
    recipe = read_recipe(name)
    assert (recipe.sessions, recipe.speakers, recipe.duration_s, recipe.overlap) == (
        sessions,
        (speakers, speakers),
        (duration_s, duration_s),
        (overlap, overlap),
    )


MEETINGS = ("meeting", "meeting_small", "meeting_10min", "meeting_60min")


def test_every_recipe_reads() -> None:
    folder = ROOT / "data_manifests" / "recipes"
    names = {path.stem: read_recipe(path).name for path in folder.glob("*.toml")}
    assert set(names) == {"pairs", "2spk", "4spk", "3spk_long", "tiny", "demo", "mix", *MEETINGS}
    assert all(stem == name for stem, name in names.items())
    assert read_recipe("pairs").overlap == (0.1, 0.5)


def test_a_recipe_is_called_as_it_says_or_as_its_file(tmp_path: Path) -> None:
    """Sessions are drawn from the name: a file that is renamed must not give others where it says its own."""
    (tmp_path / "file.toml").write_text(GOOD)
    assert read_recipe(tmp_path / "file.toml").name == "file"
    (tmp_path / "file.toml").write_text(GOOD + 'name = "own"\n')
    assert read_recipe(tmp_path / "file.toml").name == "own"


def test_each_default_of_a_recipe_is_the_one_that_was_published() -> None:
    recipe = Recipe("r", 1, speakers=2, duration_s=10, overlap=0.1)
    assert asdict(recipe) == {
        **{"name": "r", "sessions": 1, "speakers": (2, 2), "overlap": (0.1, 0.1), "duration_s": (10, 10)},
        **{"silence": (0.15, 0.15), "layout": "conversation", "turn_prob": 0.875, "dominance_sd": 0.11},
        **{"voices": 2, "absence_s": None, "level_db": None, "rooms": None, "noise": None, "channel": None},
        **{"max_turn_s": (15.0, 15.0), "pause_s": 0.3, "level_sd_db": 2.0, "noise_snr_db": None, "min_utterances": 1},
        **{"sample_rate_hz": 16_000, "audio_format": "flac", "speeds": (1.0,)},
    }


@pytest.mark.parametrize(
    ("fits", "not_quite"),
    [
        ({"overlap": 0.5}, {"overlap": 0.51}),
        ({"overlap": 0}, {"overlap": -0.01}),
        ({"overlap": 1.0, "layout": "pair"}, {"overlap": 1.01, "layout": "pair"}),
        ({"silence": 0.9}, {"silence": 0.91}),
        ({"turn_prob": 1.0}, {"turn_prob": 1.01}),
        ({"speakers": [1, 2]}, {"speakers": [0, 2]}),
        ({"speakers": [2, 2]}, {"speakers": [3, 2]}),
        ({"noise_snr_db": -5.0}, {"noise_snr_db": [5.0, -5.0]}),
        ({"sessions": {"train": 1}}, {"sessions": {"train": 0}}),
        ({"name": "x" * 64}, {"name": "x" * 65}),
        ({"audio_format": "opus", "sample_rate_hz": 12_000}, {"audio_format": "opus", "sample_rate_hz": 11_025}),
    ],
)
def test_the_edges_of_what_a_recipe_may_ask_for(fits: dict, not_quite: dict) -> None:
    base = {"name": "r", "sessions": 1, "speakers": 2, "duration_s": 10, "overlap": 0.1}
    make(Recipe, ("", {**base, **fits}))
    with pytest.raises(ValueError, match=f"^{next(iter(not_quite)) if len(not_quite) == 1 else ''}"):
        make(Recipe, ("", {**base, **not_quite}))


GOOD = "sessions = 2\nspeakers = 2\noverlap = 0.1\nduration_s = 10\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "overlapp = 0.2", "no setting is called 'overlapp'; did you mean overlap"),
        ("sessions = 2\nspeakers = 2", "missing key 'overlap'"),
        ("sessions = 2\nspeakers = 2\noverlap = 0.1", "duration_s must be"),
        ("sessions = ", "bad.toml: not a TOML file"),
        (GOOD.replace("0.1", "0.7"), "overlap must be 0 to 0.5"),
        (GOOD.replace("0.1", "[0.3, 0.1]"), "overlap must be a number or"),
        (GOOD.replace("0.1", "nan"), "overlap must be a number or"),
        (GOOD.replace("speakers = 2", "speakers = 2.5"), "speakers must be a whole number or [low, high], found 2.5"),
        (GOOD.replace("speakers = 2", "speakers = true"), "speakers must be"),
        (GOOD.replace("sessions = 2", "sessions = 0"), "sessions must be"),
        (GOOD.replace("sessions = 2", "sessions = true"), "sessions must be a whole number of 1 or more"),
        (GOOD + 'audio_format = "mp3"', "audio_format must be"),
        (GOOD + 'audio_format = "opus"\nsample_rate_hz = 44100', "sample_rate_hz must be one of"),
        (GOOD + 'name = "../x"', "name must be"),
        (GOOD + "pause_s = 0", "pause_s must be"),
        (GOOD + "level_sd_db = -1", "level_sd_db must be"),
        (GOOD.replace("speakers = 2", "speakers = 3") + 'layout = "pair"', "speakers must be 2"),
        (GOOD + 'layout = "party"', "layout must be"),
    ],
)
def test_a_bad_recipe_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_recipe(tmp_path / "bad.toml")
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recipe '5spk'.*2spk, 3spk_long, 4spk"):
        read_recipe("5spk")
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipe(tmp_path / "absent.toml")


# --- what comes out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.12, 0.25])
def test_overlap_and_silence_come_out_as_asked(tmp_path: Path, corpus: list[Utterance], overlap: float) -> None:
    recipe = Recipe(
        "asked", 60, speakers=(2, 4), duration_s=30, overlap=overlap, silence=0.2, sample_rate_hz=RATE, max_turn_s=5
    )
    report = simulate(corpus, recipe, tmp_path, seed=1, split="train")
    assert report.sessions == report.made_now == 60
    assert (report.asked_overlap, report.asked_silence) == (overlap, 0.2)
    assert report.got_overlap == pytest.approx(overlap, abs=0.01)
    assert report.got_silence == pytest.approx(0.2, abs=0.02)
    assert report.hours == pytest.approx(60 * 30 / 3600)

    # The same figures from the manifest, by pyannote, and what a conversation is: everyone is heard, nobody talks over
    # their own words, never three at once.
    speech = overlapped = 0.0
    talking: list[int] = []
    for session in read_manifest(tmp_path / "manifest.jsonl"):
        row = Annotation()
        for turn in session.turns:
            row[Segment(turn.start_s, turn.end_s), len(row)] = turn.speaker
            assert 0 <= turn.start_s < turn.end_s <= 30.0005
        speech += row.get_timeline().support().duration()
        overlapped += row.get_overlap().duration()
        talking.append(len(row.labels()))
        points = np.array([t.start_s for t in session.turns]) + 1e-3
        assert max(sum(t.start_s <= p < t.end_s for t in session.turns) for p in points) <= 2
        for speaker in row.labels():
            own = row.label_timeline(speaker)
            gaps = [after.start - before.end for before, after in itertools.pairwise(sorted(own))]
            assert min(gaps, default=1) > recipe.pause_s - 0.002
    assert report.got_overlap == pytest.approx(overlapped / speech, abs=1e-3)
    assert set(talking) == {2, 3, 4}


def test_everybody_speaks_and_nobody_over_their_own_words(corpus: list[Utterance]) -> None:
    speakers = {f"s{k}": [u for u in corpus if u.speaker == f"s{k}"] for k in range(4)}
    settings = {"duration_s": 30, "overlap": 0.4, "silence": 0.1, "sample_rate_hz": RATE, "dominance_sd": 1.0}
    for count in (2, 4):
        recipe = Recipe("dense", 1, speakers=count, **settings)
        for seed in range(15):
            rng = np.random.default_rng(seed)
            sources = {n: _Source(n, speakers[n], recipe, rng, [], 1.0) for n in list(speakers)[:count]}
            placed = _conversation(sources, recipe, rng, 30.0)
            assert {name for start_s, name, _ in placed if start_s < 30} == set(sources)
            for name in sources:
                spans = [(start_s, start_s + piece.length_s) for start_s, own, piece in placed if own == name]
                assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(sorted(spans)))


def test_turns_are_where_the_speakers_sound(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    simulate(corpus, recipe, tmp_path, seed=2, split="train")
    size = 200  # 25 ms
    early: list[float] = []
    for session in read_manifest(tmp_path / "manifest.jsonl"):
        wave, rate = soundfile.read(session.audio)
        blocks = wave[: len(wave) // size * size].reshape(-1, size) * np.hanning(size)
        centres = (np.arange(len(blocks)) + 0.5) * size / rate
        for speaker in {turn.speaker for turn in session.turns}:
            turns = [t for t in session.turns if t.speaker == speaker]
            carrier = np.exp(-2j * np.pi * TONE_HZ[speaker] * np.arange(size) / rate)
            heard = np.abs(blocks @ carrier) / size > 0.01
            inside = np.array([any(t.start_s <= c < t.end_s for t in turns) for c in centres])
            well_inside = np.array([any(t.start_s + 0.05 <= c < t.end_s - 0.05 for t in turns) for c in centres])
            assert heard[well_inside].all() and (heard & ~inside).sum() <= len(turns)
            early += [centres[heard & (centres > t.start_s - 0.2)].min() - t.start_s for t in turns]
    # Labels begin 20 ms before speech, and a block's centre lies 12 ms inside it.
    assert np.median(early) == pytest.approx(0.03, abs=0.015)


def test_the_manifest_reads_as_sessions(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    simulate(corpus, recipe, tmp_path, split="test")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["session_id"] for row in rows] == [f"tiny-test-{k:05d}" for k in range(3)]
    for row, session in zip(rows, read_manifest(tmp_path / "manifest.jsonl"), strict=True):
        assert row["label"] == "infer" and not Path(row["audio_filepath"]).is_absolute()
        assert (session.id, session.recording) == (row["session_id"], row["session_id"])
        assert session.split == "test" and session.speaker is None
        assert {turn.speaker for turn in session.turns} <= {"s5", "s6", "s7"}
        assert row["num_speakers"] == len({turn.speaker for turn in session.turns})
        assert row["duration"] == soundfile.info(session.audio).duration == 20


def test_pairs(tmp_path: Path, corpus: list[Utterance]) -> None:
    recipe = replace(read_recipe("pairs"), sessions=60, sample_rate_hz=RATE)
    report = simulate(corpus, recipe, tmp_path, split="train")
    assert report.asked_overlap == 0.3 and report.asked_silence is None
    assert report.got_overlap == pytest.approx(0.3, abs=0.05)  # of 60 draws from 0.1 to 0.5
    for session in read_manifest(tmp_path / "manifest.jsonl"):
        spans = {}
        for turn in session.turns:
            start, end = spans.get(turn.speaker, (turn.start_s, turn.end_s))
            spans[turn.speaker] = min(start, turn.start_s), max(end, turn.end_s)
        (a, b), (c, d) = spans.values()
        assert 0.098 <= (b - c) / min(b - a, d - c) <= 0.502


def test_levels_and_noise(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    simulate(corpus, replace(recipe, level_sd_db=0.0, noise_snr_db=20.0), tmp_path, split="train")
    for session in read_manifest(tmp_path / "manifest.jsonl"):
        wave, rate = soundfile.read(session.audio)
        speaking = np.zeros(len(wave), bool)
        for turn in session.turns:
            speaking[
                round((turn.start_s - 0.1) * rate) if turn.start_s > 0.1 else 0 : round((turn.end_s + 0.1) * rate)
            ] = True
        assert 10 * np.log10(np.mean(wave[~speaking] ** 2)) == pytest.approx(-46, abs=1.5)
        assert np.abs(wave).max() < 1


# --- determinism and restart -------------------------------------------------------------------------------------


def test_the_seed_decides_and_the_number_of_workers_does_not(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe
) -> None:
    before = np.random.get_state()[1].copy()
    simulate(corpus, recipe, tmp_path / "one", seed=5, workers=1, split="train")
    assert np.array_equal(before, np.random.get_state()[1])
    calls: list[tuple[float, int, float]] = []
    simulate(corpus, recipe, tmp_path / "two", seed=5, workers=2, split="train", progress=lambda *a: calls.append(a))
    simulate(list(reversed(corpus[:20])) + corpus[20:], recipe, tmp_path / "other", seed=6, split="train")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert calls[-1] == (3, 3, pytest.approx(60)) and {of for _, of, _ in calls} == {3}
    done = [call[0] for call in calls]
    assert done == sorted(done) and {1, 2} < set(done)
    assert (
        contents(tmp_path / "one")["rttm/tiny-train-00000.rttm"]
        != (contents(tmp_path / "other")["rttm/tiny-train-00000.rttm"])
    )


def test_each_session_is_drawn_from_seed_recipe_split_and_number(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def note(speakers: object, recipe: Recipe, rng: np.random.Generator, *_: object) -> None:
        drawn.append(int(rng.integers(1 << 62)))
        raise ValueError("nothing is made")

    monkeypatch.setattr("featstore.simulation.simulate.make_session", note)
    both = replace(recipe, sessions={"train": 2, "test": 2})
    for name, chosen, seed in (("a", both, 5), ("b", both, 6), ("c", replace(both, name="other"), 5), ("d", both, 5)):
        simulate(corpus, chosen, tmp_path / name, seed=seed)
    assert len(drawn) == 16 and drawn[:4] == drawn[12:]
    assert len(set(drawn[:12])) == 12


def test_a_stopped_run_goes_on(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    simulate(corpus, recipe, whole, seed=5, split="train")
    shutil.copytree(whole, stopped)
    # What a kill leaves: no manifest, one session without RTTM, one not begun.
    for name in ("manifest.jsonl", "rttm/tiny-train-00001.rttm", "rttm/tiny-train-00002.rttm"):
        (stopped / name).unlink()
    (stopped / "audio/tiny-train-00002.flac").unlink()
    (stopped / "audio/tiny-train-00001.flac").write_bytes(b"half")
    kept = (stopped / "audio/tiny-train-00000.flac").stat().st_mtime_ns
    report = simulate(corpus, recipe, stopped, seed=5, split="train")
    assert (report.made_now, report.sessions) == (2, 3)
    assert contents(stopped) == contents(whole)
    assert (stopped / "audio/tiny-train-00000.flac").stat().st_mtime_ns == kept
    assert simulate(corpus, recipe, stopped, seed=5, split="train").made_now == 0


def test_more_sessions_later(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    simulate(corpus, recipe, tmp_path, split="train", sessions=1)
    first = contents(tmp_path)["audio/tiny-train-00000.flac"]
    report = simulate(corpus, recipe, tmp_path, split="train", sessions=2)
    assert (report.made_now, report.sessions) == (1, 2)
    assert contents(tmp_path)["audio/tiny-train-00000.flac"] == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "another seed"),
        ({"recipe": {"overlap": 0.2}}, "another recipe"),
        ({"split": "test"}, "another manifest or split"),
    ],
)
def test_another_simulation_does_not_mix_in(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe, change: dict, message: str
) -> None:
    simulate(corpus, recipe, tmp_path, seed=5, split="train", sessions=1)
    before = contents(tmp_path)
    other = replace(recipe, **change.pop("recipe", {}))
    with pytest.raises(ValueError, match=message):
        simulate(corpus, other, tmp_path, **{"seed": 5, "split": "train", "sessions": 1, **change})
    assert contents(tmp_path) == before
    cut = [replace(u, duration_s=0.5) for u in corpus]  # the same ids, other stretches of audio
    with pytest.raises(ValueError, match="another manifest or split"):
        simulate(cut, recipe, tmp_path, seed=5, split="train", sessions=1)


@pytest.mark.parametrize("audio_format", ["flac", "opus"])
def test_audio_files_are_the_same_bytes_and_length(tmp_path: Path, audio_format: str) -> None:
    wave = tone(440, [(0.1, 3.0)], 3.1234)
    for name in ("a", "b"):
        write_audio(tmp_path / name, wave, RATE, audio_format)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read, rate = soundfile.read(tmp_path / "a", dtype="float32")
    assert (rate, len(read)) == (RATE, len(wave))
    assert np.corrcoef(read, wave)[0, 1] > 0.95
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]  # no temporary file stays
    with pytest.raises(ValueError, match="audio_format"):
        write_audio(tmp_path / "c", wave, RATE, "mp3")


def test_the_checksum_of_an_ogg_page_is_libsndfiles() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(440, [(0.1, 9.0)], 9.0), RATE, format="OGG", subtype="OPUS")
    for page in buffer.getvalue().split(b"OggS")[1:]:
        page = b"OggS" + page
        assert _ogg_crc(page[:22] + bytes(4) + page[26:]) == page[22:26]


# --- splits, bad input -------------------------------------------------------------------------------------------


def test_splits_are_not_mixed(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    simulate(corpus, replace(recipe, sessions={"train": 2, "test": 1}), tmp_path)
    sessions = read_manifest(tmp_path / "manifest.jsonl")
    assert [s.split for s in sessions] == ["train", "train", "test"]
    for session in sessions:
        speakers = {turn.speaker for turn in session.turns}
        assert all((speaker < "s5") == (session.split == "train") for speaker in speakers)


def _one_speaker(corpus: list[Utterance]) -> list[Utterance]:
    return [u for u in corpus if u.speaker == "s0"]


@pytest.mark.parametrize(
    ("utterances", "settings", "message"),
    [
        (_one_speaker, {}, "needs 3 speakers .* split 'train' of the manifest has 1"),
        (lambda c: c, {}, "the manifest has the splits test, train: choose one"),
        (lambda c: c, {"split": "dev"}, "no utterance is of split"),
        (lambda c: [replace(u, speaker=None) for u in c], {"split": "train"}, "none of the 20 utterances"),
        (lambda c: [replace(u, speaker="a b") for u in c], {}, "RTTM cannot hold names with spaces"),
        (lambda c: [replace(u, split="../x") for u in c], {}, "split '../x'"),
        (lambda c: c, {"split": "train", "sessions": 0}, "sessions must be a whole number"),
        (lambda c: c, {"split": "train", "seed": -1}, "seed must be 0 or more"),
        (lambda c: c, {"split": "train", "workers": 0}, "workers 1 or more"),
    ],
)
def test_wrong_input_is_one_clear_line(
    tmp_path: Path,
    corpus: list[Utterance],
    recipe: Recipe,
    utterances: Callable[[list[Utterance]], list[Utterance]],
    settings: dict,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(utterances(corpus), recipe, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_speaker_in_two_splits_is_a_leak(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    leaking = [replace(u, split="test") if u.id == "s0-1" else u for u in corpus]
    with pytest.raises(ValueError, match="1 speaker.* in more than one split, the first is 's0'"):
        simulate(leaking, replace(recipe, sessions={"train": 1, "test": 1}), tmp_path)


def test_speakers_with_too_few_utterances_are_left_out(tmp_path: Path, corpus: list[Utterance], recipe: Recipe) -> None:
    few = [u for u in corpus if u.split == "train" and u.id not in ("s0-1", "s0-2")]
    report = simulate(few, replace(recipe, min_utterances=3), tmp_path)
    assert report.left_out == 2 and "2 utterances left out" in str(report)
    assert "s0" not in {t.speaker for s in read_manifest(tmp_path / "manifest.jsonl") for t in s.turns}


def test_audio_that_cannot_be_used_is_listed_and_the_rest_is_made(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe
) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF not audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    spoilt = {"s0-0": "noise.wav", "s1-1": "silent.wav", "s2-2": "absent.wav"}
    mixed = [replace(u, audio=str(tmp_path / spoilt[u.id])) if u.id in spoilt else u for u in corpus]
    settings = {"split": "train", "sessions": 6}
    report = simulate(mixed, recipe, tmp_path / "out", **settings)
    assert report.sessions == 6
    listed = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert listed == report.failures and {f["id"] for f in listed} == set(spoilt)
    assert all("\n" not in f["error"] for f in listed)
    assert simulate(mixed, recipe, tmp_path / "out", **settings).failures == listed  # also when nothing is left to do


def test_a_session_whose_speaker_has_nothing_to_say_fails_alone(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe
) -> None:
    mixed = [replace(u, audio=str(tmp_path / "absent.wav")) if u.speaker == "s0" else u for u in corpus]
    report = simulate(mixed, replace(recipe, speakers=2), tmp_path / "out", split="train", sessions=10)
    failed = [f for f in report.failures if f["id"].startswith("tiny-")]
    assert failed and all(f["error"] == "speaker 's0' has no utterance that can be used" for f in failed)
    assert report.sessions == report.made_now == 10 - len(failed)
    assert len(read_manifest(tmp_path / "out" / "manifest.jsonl")) == report.sessions


def test_a_published_recipe_on_made_up_speech(tmp_path: Path) -> None:
    """Noise in bursts as long as syllables, with pauses as long as breaths: what an energy detector has to cope with."""
    rng = np.random.default_rng(0)
    utterances = []
    for k in range(24):
        wave = 0.1 * np.convolve(rng.standard_normal(16_000 * 6), np.ones(3 + k % 5) / 4, "same")
        loud = np.repeat(rng.uniform(0.3, 1.0, 60), 1600)
        for at in rng.uniform(0.5, 5.0, 2):
            loud[int(at * 16_000) : int((at + rng.uniform(0.05, 0.6)) * 16_000)] = 0.003
        path = tmp_path / f"{k}.wav"
        soundfile.write(path, (wave * loud).astype(np.float32), 16_000, subtype="FLOAT")
        utterances.append(Utterance(f"u{k}", str(path), 0.0, 6.0, f"u{k}", f"s{k % 6}", "train"))
    report = simulate(utterances, read_recipe("4spk"), tmp_path / "out", sessions=2)
    assert not report.failures
    assert report.got_overlap == pytest.approx(0.25, abs=0.03)
    assert report.got_silence == pytest.approx(0.15, abs=0.03)
    sessions = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert all(len({t.speaker for t in s.turns}) == 4 and s.duration_s == 300 for s in sessions)


def test_real_speech(tmp_path: Path, speech_dir: Path) -> None:
    utterances = read_manifest(speech_dir / "manifest.jsonl")
    report = simulate(utterances, read_recipe("4spk"), tmp_path, split="train", sessions=2)
    assert not report.failures
    assert report.got_overlap == pytest.approx(0.25, abs=0.03)
    assert report.got_silence == pytest.approx(0.15, abs=0.03)
    assert all(len({t.speaker for t in s.turns}) == 4 for s in read_manifest(tmp_path / "manifest.jsonl"))


def test_opus_files_take_twelve_kilobits_a_second(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    speech = np.concatenate([rng.normal(0, 0.05 * (k % 3), 1600) for k in range(100)]).astype(np.float32)
    write_audio(tmp_path / "a.opus", speech, 16_000, "opus")
    assert (tmp_path / "a.opus").stat().st_size * 8 / 10 == pytest.approx(12_000, rel=0.3)
    info = soundfile.info(tmp_path / "a.opus")
    assert (info.format, info.subtype, info.channels, info.frames) == ("OGG", "OPUS", 1, 160_000)


def test_what_failed_is_listed_once_however_often_it_is_tried(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe
) -> None:
    """One speaker's files are gone: sessions that draw that speaker fail, again and again, and count as none made."""
    gone = corpus[0].speaker
    spoilt = [replace(u, audio=str(tmp_path / f"{u.id}.wav")) if u.speaker == gone else u for u in corpus]
    recipe = replace(recipe, sessions=8, speakers=(2, 3))
    first = simulate(spoilt, recipe, tmp_path / "out", seed=1, split="train")
    lines = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    failed = {json.loads(line)["id"] for line in lines}
    sessions = {id for id in failed if id.startswith(recipe.name)}
    assert 0 < len(sessions) < 8 and first.sessions == first.made_now == 8 - len(sessions)
    assert failed - sessions == {u.id for u in corpus if u.speaker == gone}
    assert len(lines) == len(set(lines)) == len(failed) and first.failures == [json.loads(line) for line in lines]
    again = simulate(spoilt, recipe, tmp_path / "out", seed=1, split="train")
    assert (again.made_now, again.sessions) == (0, first.sessions)
    assert (tmp_path / "out" / "failures.jsonl").read_text().splitlines() == lines
