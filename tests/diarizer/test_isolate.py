"""One voice out of a recording: whose it is, where it speaks, pieces that join without a seam, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from typer.testing import CliRunner

import featstore
from cli.whowhen import app
from diarizer.isolate import OVERLAP_S, PIECE_S, Isolator, alone, cut, gain, write
from diarizer.sound import Sound
from evaluation.turns import Turns
from featstore import Turn
from tests.fakes import FakeExtractor
from tests.tones import RATE_HZ, sound_of, turns_of, voice
from tests.tones import write as write_tones
from trainers import kinds
from trainers.config import FitConfig
from trainers.runs import Run, RunError
from trainers.tse.network import Extractor

pytestmark = pytest.mark.usefixtures("knows_fakes")
SMALL = ("feature=fake", "channels=8", "blocks=1", "repeats=1", "window=128", "hop=64", "steps=1", "looks=1")
SMALL += ("batch_size=2", "crop_s=1", "rated=0", "dev_voices=2")


def make_run(folder: Path, *settings: str) -> Path:
    """A run of fit tse on tones, of which nothing is expected but that it can be opened."""
    encoder = FakeExtractor()
    with featstore.writer(folder / "store", encoder.spec) as writer:
        for split in ("train", "dev", "test"):
            number = {"train": 0, "dev": 2, "test": 4}[split]
            names = [f"s{number}", f"s{number + 1}"]
            tracks = [sound_of((Turn(0.0, 2.0, name),), 2.0) for name in names]
            for id, wave, who in (
                (split, sum(tracks), None),
                *zip((f"{split}/a", f"{split}/b"), tracks, names, strict=True),
            ):
                file = write_tones(folder / f"{id.replace('/', '-')}.wav", wave)
                utterance = featstore.Utterance(id, str(file), 0.0, 2.0, split, who, split)
                writer.add(utterance, encoder.extract([wave])[0])
    store = featstore.open(folder / "store")
    config = FitConfig.make("tse", settings=(*SMALL, *settings))
    kinds.function_of("tse")(Run.create(folder / "run", config, store), store)
    return folder / "run"


@pytest.fixture(scope="module")
def tse_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tse"))


class Everything(Extractor):
    """Hands the mixture on, half as loud and upside down."""

    def forward(self, mixture: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        return -0.5 * mixture


def make_isolator(tse_run: Path) -> Isolator:
    made = Isolator(Run.open(tse_run), {}, "cpu")
    made.network.__class__ = Everything
    return made


def isolate(*args: object):
    return CliRunner().invoke(app, ["isolate", *map(str, args)])


@pytest.mark.parametrize("seconds", [1.0, PIECE_S, PIECE_S + 0.1, 3 * (PIECE_S - OVERLAP_S), 13.37])
def test_pieces_join_to_what_went_in(tse_run: Path, seconds: float) -> None:
    wave = (0.1 * np.random.default_rng(0).standard_normal(round(seconds * 16000))).astype(np.float32)
    pieces = list(make_isolator(tse_run).pieces(Sound.of_samples(wave, 16000), np.zeros(1, np.float32)))
    out = np.concatenate(pieces)
    assert out.shape == wave.shape
    np.testing.assert_allclose(out, wave, atol=1e-6)  # as loud as the mixture, and no longer upside down
    assert max(map(len, pieces)) <= PIECE_S * 16000  # memory does not grow with the recording


def test_alone_is_where_nobody_else_speaks() -> None:
    turns = Turns.of([Turn(0, 10, "a"), Turn(4, 5, "b"), Turn(9, 12, "b"), Turn(12.2, 12.4, "a"), Turn(20, 60, "a")])
    assert alone(turns, "b") == [(10.0, 12.0)]
    assert alone(turns, "a") == [(20.0, 50.0)]  # the longest, no more than enough
    assert alone(Turns.of([Turn(0, 3, "a"), Turn(0, 3, "b")]), "a") == []


def test_cut_takes_stretches_across_blocks() -> None:
    wave = np.arange(70 * 1000, dtype=np.float32) / 70000
    parts = list(cut(Sound.of_samples(wave, 1000), 1000, [(29.5, 30.5), (1.0, 2.0), (69.0, 99.0)]))
    assert [len(part) for part in parts] == [1000, 1000, 1000]
    np.testing.assert_array_equal(
        np.concatenate(parts), np.concatenate([wave[1000:2000], wave[29500:30500], wave[69000:]])
    )


def test_gain_is_one_inside_and_nothing_beside() -> None:
    whole = gain([(1.0, 2.0), (2.5, 3.0)], 0, 64000)
    assert (whole[16000:32000] == 1).all() and whole[40000 + 100] == 1
    assert not whole[:15600].any() and not whole[32400:39600].any() and not whole[48400:].any()
    parts = np.concatenate([gain([(1.0, 2.0), (2.5, 3.0)], at, 7000) for at in range(0, 63000, 7000)])
    np.testing.assert_array_equal(parts, whole[:63000])


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def failing():
        yield np.zeros(100, np.float32)
        raise ValueError("the disk of the recording fails")

    with pytest.raises(ValueError, match="fails"):
        write(tmp_path / "out.wav", failing(), None)
    assert not list(tmp_path.iterdir())


def test_the_command(tse_run: Path, tone_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = turns_of(7, 30.0)
    write_tones(tmp_path / "meeting.wav", sound_of(turns, 30.0, 7))
    done = isolate("meeting.wav", "--speaker", "1", "--tse", tse_run, "--run", tone_run, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["file"], told["duration_s"]) == ("meeting-1.wav", 30.0)
    wave, rate_hz = sf.read("meeting-1.wav")
    assert rate_hz == 16000 and len(wave) == 30 * 16000
    heard = np.abs(wave.reshape(-1, 1600)).max(1) > 1e-4
    assert abs(heard.sum() * 0.1 - told["speaking_s"]) < 2  # silent where others speak
    # By an enrolment alone, nobody has to say who spoke when.
    write_tones(tmp_path / "ann.wav", voice(3))
    done = isolate(
        "meeting.wav",
        "--speaker",
        "Ann",
        "--enrol",
        "Ann=ann.wav",
        "--everywhere",
        "--tse",
        tse_run,
        "--out",
        "ann-out.wav",
    )
    assert done.exit_code == 0, done.stderr
    assert "ann-out.wav: 30.0 s of Ann\n" in done.stdout


def test_what_is_wrong_is_one_line(
    tse_run: Path, tone_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "meeting.wav", sound_of(turns_of(7, 30.0), 30.0, 7))
    for arguments, text in (
        (
            ("--speaker", "1"),
            "error: --tse: name the folder of a run that takes voices apart; train one with: trainers fit tse",
        ),
        (("--speaker", "1", "--tse", tone_run), "is a run of fit cascade; isolate needs one of fit tse"),
        (
            ("--speaker", "9", "--tse", tse_run, "--run", tone_run),
            "--speaker 9: not heard in this recording; the diarization",
        ),
        (("--speaker", "Ann", "--tse", tse_run, "--run", tone_run), "--speaker Ann: not heard in this recording"),
        (("--speaker", "A", "--tse", tse_run, "--enrol", "A"), "--enrol: expected NAME=AUDIO, found 'A'"),
    ):
        done = isolate("meeting.wav", *arguments)
        assert done.exit_code == 2, done.output
        assert text in done.stderr and done.stderr.strip().count("error:") == 1


def test_a_run_that_separates_blindly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="trained with condition=none, so it cannot be told whom"):
        Isolator(Run.open(make_run(tmp_path, "condition=none")), {}, "cpu")


def test_a_voice_needs_some_sound(tse_run: Path) -> None:
    made = make_isolator(tse_run)
    with pytest.raises(ValueError, match=r"expected 1 s or more of the voice alone, found 0.5 s"):
        made.voice(Sound.of_samples(voice(1), RATE_HZ), [(1.0, 1.5)])
    assert abs(np.linalg.norm(made.voice(Sound.of_samples(voice(1), RATE_HZ))) - 1) < 1e-5
