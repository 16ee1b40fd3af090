"""What meetings ask for beyond a talk: voices at once, absences, tables in a recipe, and the recipes that come along."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from featstore.corpora.manifest import read_manifest
from featstore.simulation.recipe import Channel, Noise, Recipe, Rooms, read_recipe
from featstore.simulation.session import _absences
from featstore.simulation.simulate import simulate
from featstore.simulation.speech import seconds_by_voices
from featstore.types import Turn, Utterance
from tests.featstore.simulation.conftest import RATE, contents

TALK = Recipe("talk", 12, speakers=4, duration_s=40, overlap=0.4, silence=0.05, sample_rate_hz=RATE, max_turn_s=5)
GOOD = "sessions = 2\nspeakers = 2\noverlap = 0.1\nduration_s = 10\n"


def test_seconds_by_voices_by_hand() -> None:
    # a 0-10, b 2-6, c 5-7: one 0-2 and 7-10, two 2-5 and 6-7, three 5-6.
    turns = [Turn(0, 10, "a"), Turn(2, 6, "b"), Turn(5, 7, "c")]
    assert seconds_by_voices(turns).tolist() == [5.0, 4.0, 1.0]
    assert seconds_by_voices([]).tolist() == []


@pytest.mark.parametrize("voices", [1, 2, 3])
def test_never_more_voices_than_asked(tmp_path: Path, corpus: list[Utterance], voices: int) -> None:
    report = simulate(corpus, replace(TALK, voices=voices), tmp_path, split="train")
    talks = [seconds_by_voices(session.turns) for session in read_manifest(tmp_path / "manifest.jsonl")]
    # An RTTM's times are whole milliseconds: a turn may begin one before the last has ended.
    assert max(np.flatnonzero(seconds > 0.02).max() + 1 for seconds in talks) == voices
    assert (report.many_voices is None) == (voices < 3) == ("three or more at once" not in str(report))
    if report.many_voices is not None:
        assert 0 < report.many_voices < report.got_overlap


def test_who_leaves_comes_back(tmp_path: Path, corpus: list[Utterance]) -> None:
    recipe = replace(TALK, name="leave", speakers=(2, 5), duration_s=100, overlap=0.1, absence_s=(30, 50))
    report = simulate(corpus, recipe, tmp_path, split="train")
    returned = asked = 0
    for session in read_manifest(tmp_path / "manifest.jsonl"):
        speakers = sorted({turn.speaker for turn in session.turns})
        asked += len(speakers) // 2
        for speaker in speakers:
            ends = [(t.start_s, t.end_s) for t in session.turns if t.speaker == speaker]
            gaps = [after[0] - before[1] for before, after in pairwise(ends)]
            returned += max(gaps, default=0.0) >= 29.999
    assert (report.asked_to_return, report.returned) == (asked, returned)
    assert returned >= asked  # and who just had nothing to say for so long
    assert report.got_silence == pytest.approx(0.05, abs=0.06)  # meanwhile the others talk
    assert f"{returned} speakers back after a long absence (asked {asked})" in str(report)
    stay = simulate(corpus, replace(recipe, absence_s=None), tmp_path / "stay", split="train")
    assert stay.returned is None and stay.got_overlap == pytest.approx(report.got_overlap, abs=0.05)


def test_half_of_the_speakers_leave_for_as_long_as_is_drawn() -> None:
    recipe = replace(TALK, absence_s=(3.0, 20.0))
    drawn = [_absences(list("abcde"), recipe, np.random.default_rng(seed), 40.0) for seed in range(60)]
    assert {len(leaving) for leaving in drawn} == {2} and {name for leaving in drawn for name in leaving} == set(
        "abcde"
    )
    away = [away_s for leaving in drawn for _, away_s in leaving.values()]
    assert 3.0 <= min(away) < 4.0 and 19.0 < max(away) <= 20.0
    for leaving in drawn:
        assert all(0.1 * (40 - away_s) <= from_s <= 0.68 * (40 - away_s) for from_s, away_s in leaving.values())
    assert _absences(list("abc"), replace(recipe, absence_s=None), np.random.default_rng(0), 40.0) == {}


def test_each_session_draws_how_long_its_turns_may_be(tmp_path: Path, corpus: list[Utterance]) -> None:
    """The corpus has utterances of up to 4 s with a pause; 1 s cuts them there, 9 s does not."""
    recipe = replace(TALK, name="cut", overlap=0.0, silence=0.3, pause_s=0.2, turn_prob=1.0)
    longest = {}
    for name, asked in (("short", 0.1), ("long", 9.0), ("drawn", [0.1, 9.0])):
        simulate(corpus, replace(recipe, max_turn_s=asked), tmp_path / name, split="train")
        longest[name] = [
            sum(a.speaker == b.speaker for a, b in pairwise(s.turns)) / len(s.turns)
            for s in read_manifest(tmp_path / name / "manifest.jsonl")
        ]
    assert max(longest["short"]) < min(longest["long"])
    assert min(longest["drawn"]) <= max(longest["short"]) < min(longest["long"]) <= max(longest["drawn"])


# --- all of it together ----------------------------------------------------------------------------------------------

ALL = replace(
    TALK,
    name="all",
    sessions=2,
    speakers=(2, 3),
    duration_s=6,
    rooms=Rooms(t60_s=(0.2, 0.3)),
    noise=Noise(coloured=0.8, hum=0.3, babble=0.5),
    channel=Channel(bands_hz=((0, 4000), (300, 3400)), codecs=("none", "gsm", "mp3")),
    level_db=(-40, -20),
    voices=3,
)


def test_the_same_bytes_from_any_number_of_processes_and_after_a_stop(tmp_path: Path, corpus: list[Utterance]) -> None:
    pytest.importorskip("pyroomacoustics")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    report = simulate(corpus, ALL, whole, seed=5, split="train")
    assert not report.failures and report.got_t60_s == pytest.approx(report.asked_t60_s, rel=0.3)
    simulate(corpus, ALL, tmp_path / "two", seed=5, split="train", workers=2)
    assert contents(whole) == contents(tmp_path / "two")
    shutil.copytree(whole, stopped)
    for name in ("rttm/all-train-00001.rttm", "manifest.jsonl", "scenes/all-train-00000.json"):
        (stopped / name).unlink()
    assert simulate(corpus, ALL, stopped, seed=5, split="train").made_now == 2
    assert contents(whole) == contents(stopped)
    scene = json.loads((whole / "scenes" / "all-train-00001.json").read_text())
    assert set(scene) <= {"room", "noise", "channel", "level_db"} and "level_db" in scene
    # What was there is measured again, also when nothing is made.
    assert replace(simulate(corpus, ALL, whole, seed=5, split="train"), made_now=2) == report


def test_sessions_of_an_earlier_version_go_on(tmp_path: Path, corpus: list[Utterance]) -> None:
    """Its simulation.json has not the keys that recipes have got since, and one number where there are ranges now."""
    simulate(corpus, TALK, tmp_path, split="train", sessions=1)
    path = tmp_path / "simulation.json"
    held = json.loads(path.read_text())
    for key in ("voices", "absence_s", "level_db", "rooms", "noise", "channel"):
        del held["recipe"][key]
    held["recipe"]["max_turn_s"] = 5
    path.write_text(json.dumps(held))
    assert simulate(corpus, TALK, tmp_path, split="train", sessions=2).made_now == 1
    with pytest.raises(ValueError, match="another recipe"):
        simulate(corpus, replace(TALK, voices=3), tmp_path, split="train", sessions=2)
    for text in ("[]", '{"recipe": 3}', '{"recipe": {"sessions": "x"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="another recipe"):
            simulate(corpus, TALK, tmp_path, split="train", sessions=2)


def test_a_session_in_which_nobody_gets_to_speak_is_silent(tmp_path: Path, corpus: list[Utterance]) -> None:
    """So much silence is asked for, and the session so short, that the first sentence begins after its end."""
    recipe = replace(ALL, rooms=None, duration_s=1.0, silence=0.9, noise=Noise(coloured=1.0), channel=None)
    report = simulate(corpus, recipe, tmp_path, seed=1, split="train")
    assert report.sessions == 2 and not report.failures and report.got_silence == 1.0
    assert (report.with_noise, report.got_snr_db) == (0, None)


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rooms = 3", "rooms must be a table of its own, as [rooms] is, found 3"),
        ("[rooms]\nt60 = 3", "bad.toml: [rooms]: no setting is called 't60'; did you mean t60_s?"),
        ("[rooms]\nt60_s = [0.3, 0.2]", "[rooms]: t60_s must be a number or [low, high], the lower first"),
        ("[rooms]\nshare = 2", "[rooms]: share must be 0 to 1, found 2"),
        ('[rooms]\nfolder = "x"\nt60_s = 0.3', "[rooms]: folder: measured rooms have the size and reverberation"),
        ("[noise]", "[noise] asks for nothing"),
        ("[noise]\nrecorded = 0.5", "[noise]: recorded and manifest go together"),
        ("noise_snr_db = 3\n[noise]\nhum = 0.1", "noise_snr_db must be left out where there is [noise]"),
        ("[channel]\nbands_hz = [0, 8000]", "[channel]: bands_hz must be a list of [low, high] in Hz, the lower first"),
        ('[channel]\nbands_hz = [[0, "a"]]', "[channel]: bands_hz must be a list of"),
        ("[channel]\nbands_hz = [[8000, 9000]]", "[channel] bands_hz must begin below 8000 Hz, half of sample_rate_hz"),
        ('[channel]\ncodecs = ["g711"]', "[channel]: codecs must be a list of some of none, ulaw"),
        ("voices = 0", "voices must be 1 or more"),
        ("absence_s = 7", "absence_s must be 6 s or less: 0.6 of the session"),
        ("max_turn_s = [5, 2]", "max_turn_s must be a number or"),
    ],
)
def test_a_bad_recipe_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(GOOD + text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_recipe(tmp_path / "bad.toml")
    assert "\n" not in str(caught.value)


def test_paths_in_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    text = GOOD + '[rooms]\nfolder = "rooms"\n[noise]\nrecorded = 1\nmanifest = "../noise.jsonl"\n'
    (tmp_path / "own.toml").write_text(text)
    recipe = read_recipe(tmp_path / "own.toml")
    assert recipe.rooms == Rooms(folder=str(tmp_path / "rooms"))
    assert recipe.noise is not None and recipe.noise.manifest == str(tmp_path / "../noise.jsonl")


@pytest.mark.parametrize(
    ("name", "speakers", "duration_s", "absence_s"),
    [
        ("meeting", (2, 4), (300, 600), None),
        ("meeting_small", (2, 4), (60, 60), None),
        ("meeting_10min", (2, 8), (600, 600), (60, 240)),
        ("meeting_60min", (2, 8), (3600, 3600), (300, 1500)),
    ],
)
def test_the_recipes_that_come_along(name: str, speakers: tuple, duration_s: tuple, absence_s: tuple | None) -> None:
    recipe = read_recipe(name)
    assert (recipe.speakers, recipe.duration_s, recipe.absence_s) == (speakers, duration_s, absence_s)
    small = read_recipe("meeting_small")
    assert (recipe.rooms, recipe.noise, recipe.channel) == (small.rooms, small.noise, small.channel)
    assert (recipe.overlap, recipe.silence) == ((0.02, 0.25), (0.1, 0.5))
    assert recipe.rooms == Rooms(share=0.8) and recipe.noise == Noise(coloured=0.8, hum=0.2, babble=0.3)
    assert not recipe.is_dry and not np.isnan(recipe.overlap).any()
