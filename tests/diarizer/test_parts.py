"""The parts of a diarizer by hand: frames of several encoders, how sure it is, windows, arrays, names, what is redone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diarizer.frames
import featstore
from diarizer import jobs, load
from diarizer.diarizer import limits_of
from diarizer.frames import StoredFrames, hear
from diarizer.heads import StitchedHead, sureness
from diarizer.inputs import Recording, recordings_of, stored
from diarizer.jobs import Outcome, diarize_all
from diarizer.page import _bars, _clock, render
from diarizer.sound import Sound
from diarizer.voices import Voice, enrolled
from featstore import MIMI_GRID, FeatureSpec, FrameGrid, Utterance
from tests.diarizer.test_page import answer
from tests.fakes import FakeExtractor
from tests.sessions import spec
from tests.tones import RATE_HZ, sound_of, turns_of, voice, write
from tests.trainers.diarization.test_whole import DIM, SETTINGS, Arrivals
from trainers.cascade.clusters import Limits
from trainers.config import FitConfig
from trainers.diarization.whole import Stitching, WholeHead
from trainers.runs import RunError

pytestmark = pytest.mark.usefixtures("knows_fakes")
SECONDS = 20.0


class Levels:
    """Of each step of a wave its mean, once a dimension; `fewer` frames than there are."""

    def __init__(self, name: str, dim: int, dtype: str, step_s: float = 0.08, fewer: int = 0) -> None:
        self.spec = FeatureSpec(name, dim, dtype, RATE_HZ, FrameGrid(step_s / 2, step_s), name, "0" * 64, {})
        self.fewer, self.heard = fewer, []

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        self.heard += [len(wave) for wave in waves]
        step = int(self.spec.grid.step_s * RATE_HZ)
        of = [np.pad(wave, (0, -len(wave) % step)).reshape(-1, step).mean(1) for wave in waves]
        return [np.repeat(m[: len(m) - self.fewer, None], self.spec.dim, 1).astype(np.float32) for m in of]


# ---- frames


def test_encoders_are_made_as_the_run_says_where_it_is_asked(
    tone_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the run was made with, weights that moved, the device asked for, and whatever precision suits it."""
    asked: list[dict] = []

    class Asked(FakeExtractor):
        def __init__(self, weights: str, device: str, precision: str, batch: int = 1) -> None:
            super().__init__()
            asked.append({"weights": weights, "device": device, "precision": precision})
            self.spec = replace(self.spec, settings={"weights": weights, "precision": "half"})

    monkeypatch.setattr("tests.fakes.FakeExtractor", Asked)
    run = tmp_path / "run"
    shutil.copytree(tone_run, run)
    facts = json.loads((run / "config.json").read_text())
    facts["features"]["fake"]["spec"]["settings"] = {"weights": "file", "precision": "float32"}
    (run / "config.json").write_text(json.dumps(facts))
    assert load(run, weights={"fake": "moved"}, device="cpu").encoders["fake"].spec.name == "fake"
    assert asked == [{"weights": "moved", "device": "cpu", "precision": "auto"}]


def test_a_failed_encoder_ends_the_others_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diarizer.frames, "PIECE_S", 0.8)
    monkeypatch.setattr(diarizer.frames, "BEFORE_S", 0.8)
    monkeypatch.setattr(diarizer.frames, "AFTER_S", 0.8)
    failed, files = threading.Event(), []

    class Failing(Levels):
        def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            failed.set()
            raise ValueError("this one cannot")

    class Going(Levels):
        def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            failed.wait(20)
            time.sleep(0.05)
            return super().extract(waves)

    made = tempfile.TemporaryFile
    monkeypatch.setattr(diarizer.frames.tempfile, "TemporaryFile", lambda: files.append(made()) or files[-1])
    going = Going("a", 1, "float32")
    with pytest.raises(ValueError, match="this one cannot"):
        hear(Sound.of_samples(voice(1, 60.0), RATE_HZ), {"b": Failing("b", 1, "float32"), "a": going})
    assert len(going.heard) < 70 and len(files) == 2 and all(file.closed for file in files)


def test_encoders_side_by_side() -> None:
    """Each has its own size and type; they are read in the order asked for, up to the frames that all have."""
    wave = np.repeat(np.float32([0.5, -0.25, 0.125, 0.75]), 640)
    encoders, told = {"a": Levels("a", 2, "float16"), "b": Levels("b", 3, "float32", fewer=1)}, []
    with hear(Sound.of_samples(wave, RATE_HZ), encoders, told.append) as heard:
        assert heard.num_frames == 3
        assert heard.read(["b", "a"], 1, 3).tolist() == [[-0.25] * 5, [0.125] * 5]
        assert heard.read(["a"], 0, 1).tolist() == [[0.5] * 2]
        assert heard.energy.tolist() == [0.5, 0.25, 0.125]
        files = list(heard._files.values())
    assert sorted(told) == pytest.approx([0.0, 0.32])  # done is what both have done
    assert all(file.closed for file in files)
    with pytest.raises(ValueError, match=r"differ by more than a frame \(a: 4, b: 2\); extract them again"):
        hear(Sound.of_samples(wave, RATE_HZ), {"a": encoders["a"], "b": Levels("b", 3, "float32", fewer=2)})


def test_frames_that_begin_between_samples_are_heard_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diarizer.frames, "PIECE_S", 0.5)
    encoder = Levels("odd", 1, "float32", step_s=1 / 30)
    with hear(Sound.of_samples(voice(1, 2.0), RATE_HZ), {"odd": encoder}):
        assert encoder.heard == [2 * RATE_HZ]


def test_a_piece_is_five_minutes_between_what_encoders_hear_around_a_frame() -> None:
    """Mimi's attention reaches ten seconds back in each of its layers."""
    assert (diarizer.frames.PIECE_S, diarizer.frames.BEFORE_S, diarizer.frames.AFTER_S) == (300.0, 20.0, 4.0)


def test_stored_features_are_read_side_by_side(tmp_path: Path) -> None:
    for name, dim, frames in (("a", 1, 6), ("b", 2, 5)):
        with featstore.writer(tmp_path / "s", spec(name, dim)) as out:
            out.add(Utterance("u", "u.wav", 0.0, 0.48, "u"), np.arange(frames)[:, None] + 10 * np.ones(dim) * dim)
    found = StoredFrames(featstore.open(tmp_path / "s"), ("b", "a"), "u")
    assert found.num_frames == 5 and found.energy is None
    assert found.read(["b", "a"], 3, 5).tolist() == [[23, 23, 13], [24, 24, 14]]


# ---- what a head says


def test_how_sure_by_hand() -> None:
    """So many speak, times how much nearer the frame is to its voice than to the likeliest that is silent."""
    counts = np.log(np.float32([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]))
    cosines = np.float32([[0.5, 0.45, 0.1], [0.5, 0.4, 0.3], [0.1, 0.2, 0.1]])
    active = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    found = sureness(SimpleNamespace(counts=counts), cosines, active)
    near = 1 / (1 + np.exp(-20 * np.array([0.05, 0.2, 0.1])))
    assert found[0, 0] == pytest.approx(0.8 * near[0], rel=1e-5)
    assert found[1, :2].tolist() == pytest.approx((0.6 * near[1:]).tolist(), rel=1e-5)
    assert found[2].max() <= 0.9
    alone = sureness(SimpleNamespace(counts=counts), cosines[:, :1], active[:, :1])
    assert alone[:, 0].tolist() == pytest.approx([0.8, 0.2, 0.9])


@pytest.fixture
def stitched() -> tuple[StitchedHead, SimpleNamespace]:
    """A head that tells speakers apart, and 24 s of two of them: 12.8 s, 6.4 s, then 1.6 s of both and silence."""
    config = FitConfig.make("adapter", settings=SETTINGS)
    who = np.zeros((300, DIM), np.float32)
    who[:160, 0] = who[160:240, 1] = who[240:260, :2] = 1
    who += 0.01 * np.random.default_rng(0).standard_normal(who.shape).astype(np.float32)
    frames = SimpleNamespace(num_frames=300, read=lambda names, start, stop: who[start:stop])
    head = WholeHead(Arrivals(), config, MIMI_GRID, {"mimi": DIM}, torch.device("cpu"))
    return StitchedHead(head, Stitching("mimi", 0.5, 0.0, 0.5, 1)), frames


def test_a_stitched_head_says_who_speaks_when(stitched: tuple[StitchedHead, SimpleNamespace]) -> None:
    head, frames = stitched
    told = head.tell(frames, Limits())
    first, second = (int(told.active[at].argmax()) for at in (50, 200))
    expected = np.zeros((300, 2), bool)
    expected[:160, first] = expected[160:240, second] = expected[240:260] = True
    np.testing.assert_array_equal(told.active, expected)
    assert (told.sure[expected].min() > 0.9, told.sure[~expected].max() < 0.1, told.grid) == (True, True, MIMI_GRID)
    assert told.voices.shape == (2, DIM) and told.voices[[first, second], [0, 1]].min() > 0.99
    assert head.tell(frames, Limits(1, 1)).voices.shape == (1, DIM)


def test_a_stitched_head_says_which_voices_are_heard_alone(stitched: tuple[StitchedHead, SimpleNamespace]) -> None:
    head, frames = stitched
    voices, shares, seconds = head.voices(frames)
    assert sorted(shares.tolist()) == pytest.approx([1 / 3, 2 / 3]) and seconds == pytest.approx(240 * 0.08)
    assert voices[int(shares.argmax()), 0] > 0.99
    nobody = SimpleNamespace(num_frames=300, read=lambda names, start, stop: np.zeros((stop - start, DIM), np.float32))
    assert head.voices(nobody)[0].shape == (0, DIM) and head.voices(nobody)[2] == 0


@pytest.mark.parametrize(
    ("shares", "speech_s", "says"),
    [
        ([0.1, 0.9], 3.0, None),
        ([0.2, 0.8], 9.0, None),
        ([0.79, 0.21], 9.0, r"x: two people speak in it \(79% and 21% of the time\)"),
        ([1.0], 2.9, "x: too short: 2.9 s of speech, expected 3 s or more"),
    ],
)
def test_an_enrolled_voice_is_the_one_heard_most(shares: list[float], speech_s: float, says: str | None) -> None:
    voices = np.eye(3, dtype=np.float32)[: len(shares)]
    head = SimpleNamespace(voices=lambda frames: (voices, np.array(shares), speech_s))
    if says is None:
        found = enrolled(head, None, "x")
        assert found.vector.tolist() == voices[int(np.argmax(shares))].tolist() and found.speech_s == speech_s
    else:
        with pytest.raises(ValueError, match=says):
            enrolled(head, None, "x")


# ---- what is asked


def test_limits_by_hand() -> None:
    assert limits_of(3, None, None) == Limits(3, 3) and limits_of(None, 2, 4) == Limits(2, 4)
    assert limits_of(None, None, 4) == Limits(1, 4) and limits_of(None, 2, None) == Limits(2, None)
    assert limits_of(None, None, None) == Limits() and limits_of(100, None, None) == Limits(100, 100)
    for given, name in (((101, None, None), "speakers"), ((None, 0, 3), "min-speakers"), ((None, None, 101), "max-speakers")):  # fmt: skip
        with pytest.raises(ValueError, match=f"--{name}: expected 1 to 100"):
            limits_of(*given)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "says"),
    [
        (np.ones((2, 100)), 8000, r"found \(2, 100\): turn them round"),
        (np.ones((2, 3, 100)), 8000, "must be numbers of shape"),
        (np.array(["a"]), 8000, "must be numbers of shape"),
        (np.zeros(0), 8000, "must be numbers of shape"),
        (np.ones(100), 999, "their rate in Hz, 1000 or more, found 999"),
        (np.ones(100), 0, "their rate in Hz"),
        (np.where(np.arange(100) == 7, np.nan, 1.0), 8000, "NaN or infinity, first at 7"),
        (np.zeros(8000), 8000, "samples are silent"),
    ],
)
def test_arrays_that_are_no_sound(samples: np.ndarray, rate_hz: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sound.of_samples(samples, rate_hz)


def test_an_array_at_another_rate_and_with_channels() -> None:
    time_s = np.arange(RATE_HZ) / RATE_HZ
    sides = np.stack([np.sin(2 * np.pi * 440 * time_s), np.zeros(RATE_HZ)], axis=1)
    sound = Sound.of_samples((sides * 32767).astype(np.int16), RATE_HZ)
    assert np.abs(sound.source).max() == pytest.approx(0.5, abs=1e-3) and sound.duration_s == 1.0
    pieces = list(sound.pieces(16000, 5000))
    assert [len(piece) for piece in pieces] == [5000, 5000, 5000, 1000]
    assert np.abs(np.fft.rfft(np.concatenate(pieces))).argmax() == 440


def test_what_a_diarizer_says_of_its_answer(tone_run: Path, tone_store: featstore.Store, tmp_path: Path) -> None:
    made, wave = load(tone_run), sound_of(turns_of(7, SECONDS), SECONDS)
    found = made.diarize(wave, RATE_HZ)
    assert found.recording == "recording" and found.warnings == made.warnings
    assert found.facts["run"] == str(tone_run)
    assert found.facts["speed"] == pytest.approx(SECONDS / found.facts["seconds"], rel=0.1)
    expected = np.sqrt(np.mean(wave.reshape(-1, 640) ** 2, axis=1))
    np.testing.assert_allclose(found.energy, expected, rtol=1e-4)
    assert len(set(made(wave, RATE_HZ, max_speakers=1).speakers)) == 1 < len(found.turns.speakers)
    assert len(made(wave, RATE_HZ, speakers=1).speakers) == 1
    path = write(tmp_path / "x.wav", wave)
    part = made.diarize(Utterance("part", str(path), 2.0, 5.0, "x"))
    assert (part.recording, part.duration_s) == ("part", 5.0)
    assert made.diarize(path, recording="called").recording == "called"
    stored_one = made.diarize_stored(tone_store, "test/0", max_speakers=1)
    assert len(stored_one.turns.speakers) == 1 and stored_one.recording == "test/0" and stored_one.energy is None
    assert made.diarize_stored(tone_store, "test/0", recording="r").recording == "r"


def test_a_store_s_utterance_is_as_long_as_it_says_or_as_its_frames(tone_run: Path, tmp_path: Path) -> None:
    encoder = FakeExtractor()
    frames = encoder.extract([sound_of(turns_of(7, SECONDS), SECONDS)])[0]
    with featstore.writer(tmp_path / "s", encoder.spec) as out:
        out.add(Utterance("known", "x.wav", 0.0, 19.95, "x"), frames)
        out.add(Utterance("unknown", "x.wav", 0.0, float("nan"), "x"), frames)
    made, store = load(tone_run), featstore.open(tmp_path / "s")
    assert made.diarize_stored(store, "known").duration_s == 19.95
    assert made.diarize_stored(store, "unknown").duration_s == pytest.approx(SECONDS)
    with featstore.writer(tmp_path / "t", replace(encoder.spec, weights_sha256="0" * 64)) as out:
        out.add(Utterance("u", "x.wav", 0.0, 20.0, "x"), frames)
    with pytest.raises(RunError, match="was trained on feature 'fake' with fingerprint"):
        made.diarize_stored(featstore.open(tmp_path / "t"), "u")
    with pytest.raises(RunError):  # which is so of all recordings, and not a fault of the first
        diarize_all(made, [Recording("u", "u")], tmp_path / "out", store=featstore.open(tmp_path / "t"))


def test_the_run_that_comes_along_says_that_it_is_one(tone_run: Path) -> None:
    assert load().warnings[0].startswith("demo weights: the run that comes along")
    assert not any("comes along" in warning for warning in load(tone_run).warnings)


def test_an_encoder_that_brings_its_weights_takes_no_others(tone_run: Path) -> None:
    with pytest.raises(RunError, match="--weights fake=x: this encoder brings its own weights; leave it out"):
        load(tone_run, weights={"fake": "x"}).encoders  # noqa: B018


# ---- many recordings


def test_what_decides_an_answer_decides_whether_it_is_redone(tmp_path: Path) -> None:
    def how(weights: bytes = b"w", limits: dict | None = None, **voices: float) -> str:
        (tmp_path / "model.safetensors").write_bytes(weights)
        known = {name: Voice(np.float32([value]), 9.0) for name, value in voices.items()}
        return jobs._how(SimpleNamespace(run=SimpleNamespace(path=tmp_path), voices=known), limits or {})

    kinds = [how(), how(b"v"), how(limits={"speakers": 2}), how(ann=1.0), how(bob=1.0), how(ann=2.0)]
    assert len(set(kinds)) == 6 and how() == kinds[0]

    path = tmp_path / "a.wav"
    path.write_bytes(b"1234")

    def what(source: str | Utterance) -> str:
        return jobs._what(Recording("a", source), None)

    before = [what(str(path))] + [what(Utterance("a", str(path), *part, "a")) for part in ((0.0, 2.0), (1.0, 2.0), (0.0, 3.0))]  # fmt: skip
    os.utime(path, ns=(1, 1))
    later = what(str(path))
    path.write_bytes(b"12345")
    os.utime(path, ns=(1, 1))
    assert len({*before, later, what(str(path))}) == 6
    stores = [SimpleNamespace(address=address) for address in ("s", "t")]
    assert len({jobs._what(Recording("a", id), store) for store in stores for id in ("u", "v")}) == 4


def test_what_lies_there_is_this_answer_or_nothing(tmp_path: Path) -> None:
    for suffix in (".rttm", ".html", ".json"):
        assert jobs._there(tmp_path, "a", "k") is None
        (tmp_path / f"a{suffix}").write_text('{"key": "k", "turns": []}')
    assert jobs._there(tmp_path, "a", "k") == {"key": "k", "turns": []}
    assert jobs._there(tmp_path, "a", "other") is None
    for text in ("{", "[]", "{}", "\xff"):  # cut off, or somebody else's
        (tmp_path / "a.json").write_text(text, encoding="latin-1")
        assert jobs._there(tmp_path, "a", "k") is None
    assert jobs._why(KeyError("nobody\n there")) == "nobody there" and jobs._why(ValueError()) == "ValueError"


def test_progress_is_over_all_recordings(tone_run: Path, tmp_path: Path) -> None:
    for name, seconds in (("a", 10.0), ("b", 5.0)):
        write(tmp_path / f"{name}.wav", sound_of(turns_of(7, seconds), seconds))
    seen: list[tuple[float, float, str]] = []
    recordings = [Recording(name, str(tmp_path / f"{name}.wav")) for name in "ab"]
    done = diarize_all(load(tone_run), recordings, tmp_path / "out", shown=lambda *told: seen.append(told))
    assert [(done_s, of, note.partition(",")[0]) for done_s, of, note in seen] == [(10.0, 15.0, "a"), (15.0, 15.0, "b")]
    assert (done.audio_s, done.there) == (15.0, []) and done.speed == pytest.approx(15 / done.seconds)
    first, second = (float(note.split()[1]) for *_, note in seen)
    assert all(note.endswith(" × real time") for *_, note in seen) and first >= 10 / done.seconds - 0.1
    assert second >= 15 / done.seconds - 0.1
    assert Outcome(audio_s=30.0, seconds=2.0).speed == 15.0
    again = diarize_all(load(tone_run), recordings, tmp_path / "out")
    assert (again.audio_s, again.there) == (0.0, ["a", "b"])


def test_words_that_name_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.WAV", "in/deep/b.Flac", "in/c.txt", "d.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert [r.name for r in recordings_of(["in"], tmp_path)] == ["a", "deep-b"]
    assert [r.name for r in recordings_of(["**/*.[Ff]lac", "d.wav"], tmp_path)] == ["b", "d"]
    with featstore.writer("s", spec()) as out:
        for id in ("x/1", "x/[1]", "y"):
            out.add(Utterance(id, "x.wav", 0.0, 0.8, "x"), np.zeros((10, 8)))
    store = featstore.open("s")
    assert [(r.name, r.source) for r in stored(store, ["x/[1]", "y", "*y"])] == [("x-[1]", "x/[1]"), ("y", "y")]
    assert [r.source for r in stored(store, [])] == ["x/1", "x/[1]", "y"]
    with pytest.raises(ValueError, match=r"s: no utterance 'z'; .* \(x/1, x/\[1\], y\)"):
        stored(store, ["z"])


# ---- the page


def test_times_and_loudness_by_hand() -> None:
    assert [_clock(s) for s in (0, 59.4, 59.6, 61, 3725)] == ["0:00", "0:59", "1:00", "1:01", "1:02:05"]
    assert _bars(np.float32([1.0, 0.1, 0.01, 0.001])) == [255, 128, 0, 0] and _bars(None) == []
    many = np.zeros(50_000, np.float32)
    many[10] = 1.0
    assert len(_bars(many)) == 20_000 and max(_bars(many)) == 255


def test_the_figures_of_the_page() -> None:
    """Of 10 s somebody speaks in 7.5, two in 1 of them; a for 6.5 s in turns of up to 3 s."""
    page = " ".join(render(answer(duration_s=10.0), None).split())
    for text in ("0:10 · 2 speakers", "speech 75 % of the time", "two or more at once 13.3 % of the speech", "3.0 s", "85 %"):  # fmt: skip
        assert text in page, text
