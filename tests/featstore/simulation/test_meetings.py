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
import soundfile

from featstore.corpora.manifest import read_manifest
from featstore.corpora.rttm import write_rttm
from featstore.simulation.outcome import finish, scene_path
from featstore.simulation.recipe import Channel, Noise, Recipe, Rooms, read_recipe
from featstore.simulation.session import _absences
from featstore.simulation.simulate import simulate
from featstore.simulation.speech import Piece, crop, seconds_by_voices
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


def test_what_came_out_of_meetings_by_hand(tmp_path: Path) -> None:
    """Three sessions of 20, 30 and 10 s, scenes and turns as written here: each figure is a count or a mean over them."""
    recipe = replace(
        TALK, sessions=3, voices=3, absence_s=(5.0, 6.0), rooms=Rooms(share=0.6), noise=Noise(hum=1.0), level_sd_db=0.0
    )
    talks = {
        # three at once 4-5; a is away 6-11 (just long enough), b never: of three speakers one was to leave
        "one": (20.0, [Turn(0, 6, "a"), Turn(2, 8, "b"), Turn(4, 5, "c"), Turn(11, 12, "a")]),
        # b away 4.9 s: not long enough; of two speakers one was to leave
        "two": (30.0, [Turn(0, 2, "b"), Turn(6.9, 8, "b"), Turn(3, 4, "d")]),
        "three": (10.0, [Turn(0, 4, "a"), Turn(0, 4, "b"), Turn(1, 3, "c"), Turn(2, 3, "d")]),
    }
    scenes = {
        "one": {"room": {"t60_s": 0.3, "asked_t60_s": 0.4}, "noise": {"snr_db": 10.0, "asked_snr_db": 11.0, "hum": {}}},
        "two": {"noise": {"snr_db": 20.0, "asked_snr_db": 18.0}},
        "three": {"room": {"t60_s": 0.6}},
    }
    asked = []
    for name, (seconds, turns) in talks.items():
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(round(seconds * 1000), np.float32), 1000)
        write_rttm(tmp_path / f"{name}.rttm", {name: turns})
        scene_path(tmp_path, name).parent.mkdir(exist_ok=True)
        scene_path(tmp_path, name).write_text(json.dumps(scenes[name]))
        asked.append(("", tmp_path / f"{name}.flac", tmp_path / f"{name}.rttm"))
    found = finish(tmp_path, recipe, asked, 2, 0, [{"id": "x", "error": "y"}])
    # Speech: 9 s (0-8, 11-12), 4.1 s, 4 s; of it two or more: 4 s (2-6), none, 4 s; three or more: 1 s, none, 2 s.
    speech_s = 9.0 + 4.1 + 4.0
    assert found.got_overlap == pytest.approx((4.0 + 4.0) / speech_s)
    assert found.many_voices == pytest.approx((1.0 + 2.0) / speech_s)
    assert found.got_silence == pytest.approx((60.0 - speech_s) / 60.0) and found.hours == pytest.approx(1 / 60)
    assert (found.speakers, found.sessions, found.made_now) == (4, 3, 2)
    assert (found.asked_to_return, found.returned) == (1 + 1 + 2, 1)
    assert (found.asked_room_share, found.in_room, found.with_noise) == (0.6, 2, 2)
    assert (found.asked_t60_s, found.got_t60_s) == pytest.approx((0.4, 0.45))
    assert (found.asked_snr_db, found.got_snr_db) == pytest.approx((14.5, 15.0))
    assert found.failures == [{"id": "x", "error": "y"}]
    dry = finish(tmp_path, replace(recipe, rooms=None, noise=None, voices=2, absence_s=None), asked, 2, 0, [])
    assert [dry.many_voices, dry.returned, dry.in_room, dry.got_t60_s, dry.with_noise, dry.got_snr_db] == [None] * 6
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert rows[0] == {
        **{"audio_filepath": "one.flac", "offset": 0.0, "duration": 20.0, "label": "infer", "text": "-", "split": ""},
        **{"num_speakers": 3, "rttm_filepath": "one.rttm", "session_id": "one", "uniq_id": "one"},
    }


def test_a_cut_of_a_piece_by_hand() -> None:
    """Times from the cut's own start; what is shorter than 50 ms there is no speech; the sound fades in and out."""
    rate = 1000
    wave = np.ones(1100, np.float32)
    piece = Piece(wave, 0.1, np.array([[0.0, 0.3], [0.5, 0.9]]))
    found = crop(piece, 0.2, 0.5, rate)
    assert (found.lead_s, len(found.wave)) == (0.0, 500)
    assert found.segments == pytest.approx(np.array([[0.0, 0.1], [0.3, 0.5]]))
    assert found.wave[60:440].min() == 1 and found.wave[[0, -1]].tolist() == [0, 0]
    assert crop(piece, 0.26, 0.25, rate).segments == pytest.approx(np.zeros((0, 2)))  # 40 ms of one, 10 ms of the other
    assert crop(piece, 0.249, 0.4, rate).segments == pytest.approx(np.array([[0.0, 0.051], [0.251, 0.4]]))
    marked = wave.copy()
    marked[300] = 9.0  # 0.2 s after the first segment begins
    assert crop(Piece(marked, 0.1, piece.segments), 0.1, 0.5, rate).wave.argmax() == 100
    assert len(crop(piece, 0.8, 0.5, rate).wave) == 200 and (marked == 9).sum() == 1  # it ends where the piece ends


def test_how_many_sessions_of_which_split(tmp_path: Path, corpus: list[Utterance]) -> None:
    recipe = replace(TALK, name="counts", duration_s=2, overlap=0.0, speakers=2)
    both = replace(recipe, sessions={"train": 2, "test": 1})
    report = simulate(corpus, both, tmp_path / "both")
    found = [(u.id, u.split) for u in read_manifest(tmp_path / "both" / "manifest.jsonl")]
    assert report.sessions == 3
    assert found == [("counts-train-00000", "train"), ("counts-train-00001", "train"), ("counts-test-00000", "test")]
    assert simulate(corpus, both, tmp_path / "one", split="test").sessions == 1
    assert simulate(corpus, both, tmp_path / "more", split="test", sessions=2).sessions == 2
    plain = [replace(u, split="") for u in corpus]
    simulate(plain, replace(recipe, sessions=1), tmp_path / "none")
    assert [p.name for p in (tmp_path / "none" / "audio").iterdir()] == ["counts-00000.flac"]
    for arguments, words in (
        (
            {"recipe": replace(recipe, sessions={"train": 1}), "split": "test"},
            "gives no number of sessions for split 'test'",
        ),
        ({"recipe": recipe}, r"the manifest has the splits test, train: choose one \(--split\)"),
        ({"recipe": both, "sessions": 2}, "choose one"),
        ({"recipe": recipe, "split": "train", "sessions": 0}, "sessions must be a whole number of 1 or more, found 0"),
        ({"recipe": recipe, "split": "train", "seed": -1}, "seed must be 0 or more"),
        ({"recipe": recipe, "split": "train", "workers": 0}, "workers 1 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            simulate(corpus, **arguments, out_dir=tmp_path / "x")
    (tmp_path / "both" / "simulation.json").write_text("{")
    with pytest.raises(ValueError, match="simulation.json: not JSON; choose an empty folder"):
        simulate(corpus, both, tmp_path / "both")


def test_how_far_a_simulation_is(tmp_path: Path, corpus: list[Utterance]) -> None:
    """Finished sessions and the share of the one under way; seconds made now; what was there before counts at once."""
    recipe = replace(TALK, name="far", duration_s=(3.0, 4.0), sessions=3)
    told: list[tuple[float, int, float]] = []
    simulate(corpus, recipe, tmp_path, split="train", progress=lambda *now: told.append(now))
    assert {of for _, of, _ in told} == {3} and [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert [done for done, _, _ in told if done % 1 == 0][-1] == 3 == told[-1][0] and len(
        {done % 1 for done, _, _ in told}
    ) > 5
    lengths = [u.duration_s for u in read_manifest(tmp_path / "manifest.jsonl")]
    ends = {done: seconds for done, _, seconds in told}
    assert [ends[k] for k in (1, 2, 3)] == pytest.approx(np.cumsum(lengths))
    (tmp_path / "rttm" / "far-train-00001.rttm").unlink()
    told.clear()
    report = simulate(corpus, recipe, tmp_path, split="train", progress=lambda *now: told.append(now))
    assert report.made_now == 1 and told[0][0] >= 2 and told[-1] == (3, 3, pytest.approx(lengths[1]))
