"""featstore simulate: recipes, speech detection, placing, determinism, restart, errors."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from featstore.corpora.manifest import read_manifest
from featstore.simulation.audio_out import _ogg_crc, write_audio
from featstore.simulation.recipe import Recipe, read_recipe
from featstore.simulation.session import _conversation, _Source, speech_and_overlap_s, speech_segments_s
from featstore.simulation.simulate import simulate
from featstore.types import Turn, Utterance
from tests.conftest import ROOT

RATE = 8_000
TONE_HZ = {f"s{k}": 300.0 + 250 * k for k in range(8)}  # a speaker is a tone: audible in a mixture by its frequency


def tone(hz: float, spans: list[tuple[float, float]], length_s: float, level: float = 0.2) -> np.ndarray:
    time = np.arange(round(length_s * RATE)) / RATE
    wave = np.zeros_like(time)
    for start, end in spans:
        inside = (time >= start) & (time < end)
        wave[inside] = level * np.sin(2 * np.pi * hz * time[inside])
    return wave.astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Eight tone speakers, four utterances each of 1.5 to 4 s, silence at both ends, a pause inside some."""
    folder, rng, rows = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), []
    for speaker, hz in TONE_HZ.items():
        for n in range(4):
            end = float(rng.uniform(1.2, 3.6))
            spans = [(0.2, end)] if n % 2 else [(0.2, 0.2 + end / 3), (0.7 + end / 3, 0.7 + end)]
            wave = tone(hz, spans, spans[-1][1] + 0.3, level=float(rng.uniform(0.05, 0.4)))
            soundfile.write(folder / f"{speaker}-{n}.wav", wave, RATE)
            row = {"audio_filepath": f"{speaker}-{n}.wav", "speaker": speaker, "utt_id": f"{speaker}-{n}"}
            rows.append({**row, "duration": len(wave) / RATE, "split": "train" if speaker < "s5" else "test"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(folder / "manifest.jsonl")


@pytest.fixture
def recipe() -> Recipe:
    return replace(read_recipe("tiny"), sessions=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def test_every_recipe_reads() -> None:
    folder = ROOT / "data_manifests" / "recipes"
    names = {path.stem: read_recipe(path).name for path in folder.glob("*.toml")}
    assert set(names) == {"pairs", "2spk", "4spk", "3spk_long", "tiny", "demo"}
    assert all(stem == name for stem, name in names.items())
    assert read_recipe("pairs").overlap == (0.1, 0.5)


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
            sources = {n: _Source(n, speakers[n], recipe, rng, []) for n in list(speakers)[:count]}
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
    calls: list[tuple[int, int, float]] = []
    simulate(corpus, recipe, tmp_path / "two", seed=5, workers=2, split="train", progress=lambda *a: calls.append(a))
    simulate(list(reversed(corpus[:20])) + corpus[20:], recipe, tmp_path / "other", seed=6, split="train")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)] and calls[-1][2] == pytest.approx(60)
    assert (
        contents(tmp_path / "one")["rttm/tiny-train-00000.rttm"]
        != (contents(tmp_path / "other")["rttm/tiny-train-00000.rttm"])
    )


def test_each_session_is_drawn_from_seed_recipe_split_and_number(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def note(speakers: object, recipe: Recipe, rng: np.random.Generator, failures: object) -> None:
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


def test_the_published_recipe_of_four_speakers(tmp_path: Path, corpus: list[Utterance]) -> None:
    report = simulate(corpus, replace(read_recipe("4spk"), sample_rate_hz=RATE), tmp_path, split="train", sessions=1)
    assert not report.failures
    assert report.got_overlap == pytest.approx(0.25, abs=0.03)
    assert report.got_silence == pytest.approx(0.15, abs=0.03)
    (session,) = read_manifest(tmp_path / "manifest.jsonl")
    assert len({turn.speaker for turn in session.turns}) == report.speakers == 4
    assert (report.hours, session.duration_s) == (pytest.approx(300 / 3600), 300)


def test_real_speech(tmp_path: Path, speech_dir: Path) -> None:
    utterances = read_manifest(speech_dir / "manifest.jsonl")
    report = simulate(utterances, read_recipe("4spk"), tmp_path, split="train", sessions=2)
    assert not report.failures
    assert report.got_overlap == pytest.approx(0.25, abs=0.03)
    assert report.got_silence == pytest.approx(0.15, abs=0.03)
    assert all(len({t.speaker for t in s.turns}) == 4 for s in read_manifest(tmp_path / "manifest.jsonl"))
