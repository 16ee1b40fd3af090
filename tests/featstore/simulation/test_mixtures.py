"""Mixtures: voices over one another, each with its own track, which is an utterance of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from featstore.corpora.manifest import read_manifest
from featstore.simulation.recipe import Recipe, Rooms, read_recipe, recipe_of
from featstore.simulation.simulate import simulate
from featstore.types import Utterance
from tests.featstore.simulation.conftest import RATE, TONE_HZ, contents

MIX = Recipe("mix", 12, speakers=(1, 3), duration_s=(1.2, 1.6), overlap=(0.5, 1.0), layout="mix", sample_rate_hz=RATE)
STEP = 2.0**-15  # of 16 bits


def samples(path: str | Path) -> NDArray[np.float64]:
    return soundfile.read(path)[0]


def mixtures(folder: Path) -> dict[str, tuple[Utterance, list[Utterance]]]:
    """Mixture and tracks by recording, as anybody finds them who reads the manifest."""
    found = read_manifest(folder / "manifest.jsonl")
    return {u.id: (u, [t for t in found if t.recording == u.id and t is not u]) for u in found if u.id == u.recording}


def test_each_voice_is_an_utterance_of_the_mixtures_recording(tmp_path: Path, corpus: list[Utterance]) -> None:
    tones = {u.id: TONE_HZ[u.speaker or ""] for u in corpus}
    both = {
        "s0": "a",
        "s1": "a",
        "s2": "b",
        "s3": "b",
        "s4": "c",
    }  # voices of two tones: which utterance it is can be heard
    report = simulate([replace(u, speaker=both.get(u.speaker or "")) for u in corpus], MIX, tmp_path, split="train")
    found = mixtures(tmp_path)
    assert report.sessions == len(found) == 12 and {len(tracks) for _, tracks in found.values()} == {1, 2, 3}
    whose = {u.id: both.get(u.speaker or "") for u in corpus}
    for id, (mixture, tracks) in found.items():
        assert mixture.speaker is None and mixture.split == "train"
        assert {turn.speaker for turn in mixture.turns} == {track.speaker for track in tracks} <= {"a", "b", "c"}
        for track in tracks:
            recording, _, utterance = track.id.partition("/")
            assert recording == id and whose[utterance] == track.speaker and track.split == "train"
            assert track.duration_s == mixture.duration_s and not track.turns
            wave = samples(track.audio)
            loudest = np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)
            assert loudest == pytest.approx(tones[utterance], abs=5)


@pytest.mark.parametrize("level_db", [None, (-60.0, -50.0), (0.0, 0.0)])  # as it is, quieter, and down from the peak
def test_tracks_add_up_to_the_mixture(
    tmp_path: Path, corpus: list[Utterance], level_db: tuple[float, float] | None
) -> None:
    simulate(corpus, replace(MIX, level_db=level_db, level_sd_db=6.0), tmp_path, split="train")
    for mixture, tracks in mixtures(tmp_path).values():
        together = sum(samples(track.audio) for track in tracks)
        assert np.abs(samples(mixture.audio) - together).max() <= (len(tracks) + 1) / 2 * STEP + 1e-9


def test_tracks_are_without_the_noise_and_with_the_room(tmp_path: Path, corpus: list[Utterance]) -> None:
    clicks = tmp_path / "rooms" / "one"
    clicks.mkdir(parents=True)
    for place in range(3):
        soundfile.write(clicks / f"{place}.wav", np.r_[1.0, np.zeros(400), 0.5], RATE)
    recipe = replace(MIX, overlap=1.0, rooms=Rooms(folder=str(tmp_path / "rooms")), noise_snr_db=20.0)
    dry = replace(MIX, overlap=1.0)
    simulate(corpus, recipe, tmp_path / "heard", split="train")
    simulate(corpus, dry, tmp_path / "dry", split="train")
    for (mixture, tracks), (_, plain) in zip(
        mixtures(tmp_path / "heard").values(), mixtures(tmp_path / "dry").values(), strict=True
    ):
        left = samples(mixture.audio) - sum(samples(track.audio) for track in tracks)
        assert 10 * np.log10(np.mean(left**2)) == pytest.approx(-46, abs=0.5)
        for track, own in zip(tracks, plain, strict=True):
            wave = samples(own.audio)
            echo = np.r_[np.zeros(401), wave[:-401]]
            assert samples(track.audio) == pytest.approx((wave + 0.5 * echo) / np.sqrt(1.25), abs=2 * STEP)


def test_any_two_voices_share_what_was_asked(tmp_path: Path, corpus: list[Utterance]) -> None:
    recipe = replace(MIX, speakers=4, duration_s=1.4, overlap=0.6)  # cuts of 1 s, of which the outer two share 0.6 s
    report = simulate(corpus, recipe, tmp_path, split="train")
    edges = []
    for mixture, tracks in mixtures(tmp_path).values():
        spans = []
        for track in tracks:
            loud = np.flatnonzero(np.abs(samples(track.audio)) > 10 * STEP) / RATE
            spans.append((loud[0], loud[-1]))
        assert min(a for a, _ in spans) < 0.05 and max(b for _, b in spans) <= mixture.duration_s
        edges.append(max(b for _, b in spans))
        for (a, b), (c, d) in combinations(spans, 2):
            assert (min(b, d) - max(a, c)) / min(b - a, d - c) >= 0.45  # a cut may begin in a pause
    assert np.mean(edges) == pytest.approx(1.4, abs=0.06)
    assert report.asked_overlap == 0.6 and report.got_overlap == pytest.approx(0.6, abs=0.06)
    assert report.asked_silence is None


def test_a_stopped_run_goes_on(tmp_path: Path, corpus: list[Utterance]) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    simulate(corpus, MIX, whole, split="train")
    shutil.copytree(whole, stopped)
    for name in ("manifest.jsonl", "rttm/mix-train-00003.rttm", "tracks/mix-train-00003/0.flac"):
        (stopped / name).unlink()
    assert simulate(corpus, MIX, stopped, split="train").made_now == 1
    assert contents(whole) == contents(stopped)
    scene = json.loads((whole / "scenes/mix-train-00003.json").read_text())
    assert [set(voice) for voice in scene["voices"]] == [{"speaker", "utterance"}] * len(scene["voices"])


def test_what_a_mixture_needs() -> None:
    with pytest.raises(ValueError, match='duration_s must be given where layout is "mix"'):
        replace(MIX, duration_s=None)
    with pytest.raises(ValueError, match='absence_s must be left out where layout is "mix"'):
        replace(MIX, absence_s=(1.0, 2.0))
    assert read_recipe("mix").layout == "mix"


def test_a_voice_at_another_speed_is_somebody_else_and_for_training_alone(
    tmp_path: Path, corpus: list[Utterance]
) -> None:
    recipe = replace(MIX, speakers=(2, 3), speeds=(0.8, 1.0, 1.25))
    for split in ("train", "test"):
        simulate(corpus, recipe, tmp_path / split, split=split)
    seen = set()
    for id, (mixture, tracks) in mixtures(tmp_path / "train").items():
        people = [(track.speaker or "").partition("x") for track in tracks]
        assert len({name for name, _, _ in people}) == len(people)  # nobody speaks with himself
        assert {turn.speaker for turn in mixture.turns} == {track.speaker for track in tracks}
        for track, (name, _, speed) in zip(tracks, people, strict=True):
            assert track.id.startswith(f"{id}/{name}-")  # the words are the same at any speed
            wave = samples(track.audio)
            loudest = np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)
            assert loudest == pytest.approx(TONE_HZ[name] * float(speed or 1), abs=8)
            seen.add(speed)
    assert seen == {"", "0.8", "1.25"}
    assert all(t.speaker in TONE_HZ for _, tracks in mixtures(tmp_path / "test").values() for t in tracks)
    assert (tmp_path / "test" / "manifest.jsonl").read_text().count("test-") > 12
    with pytest.raises(ValueError, match=r"speeds must be a list of speeds from 0.5 to 2"):
        recipe_of("r.toml", {"name": "r", "sessions": 1, "speakers": 2, "overlap": 0.1, "duration_s": 9, "speeds": [0]})


def test_speeds_leave_test_as_it_is(tmp_path: Path, corpus: list[Utterance]) -> None:
    for name, speeds in (("as", (1.0,)), ("other", (0.9, 1.1))):
        simulate(corpus, replace(MIX, sessions=3, speeds=speeds), tmp_path / name, split="test")
    one, other = (contents(tmp_path / name) for name in ("as", "other"))
    assert {k: v for k, v in one.items() if k != "simulation.json"} == {
        k: v for k, v in other.items() if k != "simulation.json"
    }
