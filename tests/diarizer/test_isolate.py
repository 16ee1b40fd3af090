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
    told: list[float] = []
    pieces = list(make_isolator(tse_run).pieces(Sound.of_samples(wave, 16000), np.zeros(1, np.float32), told.append))
    steps = np.arange(1, len(pieces)) * (PIECE_S - OVERLAP_S)
    assert told == pytest.approx([*steps, seconds], abs=1e-4)
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


def test_options_of_the_command_reach_what_they_are_for(
    tse_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of the run's own feature go to the isolator, others to the diarizer, which knows enrolled voices too."""
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "meeting.wav", voice(1, 4.0))
    turns, asked = Turns.of([Turn(0.5, 2.0, "Ann"), Turn(2.5, 3.25, "Ann"), Turn(2.0, 2.5, "speaker1")]), []

    class Fake:
        warnings = ("fake: toys",)

        def __init__(self, run: Run, weights: dict[str, str], device: str) -> None:
            asked.append((run.path, weights, device))

        def whose(self, sound: Sound, speaker: str, turns: Turns | None, enrolment: Sound | None) -> tuple:
            asked.append((sound.source, speaker, turns, enrolment and enrolment.source))
            mine = None if turns is None else [(t.start_s, t.end_s) for t in turns if t.speaker == "Ann"]
            return np.ones(1, np.float32), mine

        def pieces(self, sound: Sound, voice: np.ndarray, told: object) -> list[np.ndarray]:
            return [np.full(32000, 0.5, np.float32)] * 2

    def opened(*options: object) -> object:
        asked.append(options)
        return lambda audio: asked.append(audio) or turns

    monkeypatch.setattr("diarizer.isolate.Isolator", Fake)
    monkeypatch.setattr("cli.whowhen.isolate.opened", opened)
    words = ("meeting.wav", "--speaker", "Ann", "--tse", tse_run, "--enrol", "Ann=a.wav", "--json")
    moved = ("--weights", "fake=a", "--weights", "mimi=b", "--device", "cuda:1")
    done = isolate(*words, *moved, "--run", "r", "--out", "o.wav")
    assert done.exit_code == 0 and done.stderr == "warning: fake: toys\n"
    assert asked == [
        (tse_run, {"fake": "a"}, "cuda:1"),
        (Path("r"), ["mimi=b"], "cuda:1", ["Ann=a.wav"]),
        Path("meeting.wav"),
        ("meeting.wav", "Ann", turns, "a.wav"),
    ]
    facts = {"speaker": "Ann", "duration_s": 4.0, "run": str(tse_run), "warnings": ["fake: toys"]}
    assert json.loads(done.stdout) == {"file": "o.wav", "speaking_s": 2.25, **facts}
    heard = sf.read("o.wav")[0]
    assert heard[16000] == pytest.approx(0.5, abs=1e-3) and not heard[36000:39000].any()
    # Everywhere: somebody who is enrolled needs no diarization, somebody else does.
    asked.clear()
    done = isolate(*words, "--everywhere")
    assert asked == [(tse_run, {}, "auto"), ("meeting.wav", "Ann", None, "a.wav")]
    assert json.loads(done.stdout) == {"file": "meeting-Ann.wav", "speaking_s": None, **facts}
    asked.clear()
    done = isolate("meeting.wav", "--speaker", "1", "--tse", tse_run, "--everywhere")
    assert asked[1:] == [(None, [], None, None), Path("meeting.wav"), ("meeting.wav", "1", turns, None)]
    assert done.stdout == "meeting-1.wav: 4.0 s of 1\n" and (sf.read("meeting-1.wav")[0] > 0.49).all()
    done = isolate("meeting.wav", "--speaker", "1", "--tse", tse_run)
    assert done.stdout == "meeting-1.wav: 4.0 s of 1, silent where that voice does not speak\n"


def test_whose_voice_it_is(tse_run: Path) -> None:
    """By an enrolment, or by where somebody speaks alone; a number is who speaks first, second, …"""
    made = make_isolator(tse_run)
    waves = {"a": voice(1, 6.0), "b": voice(3, 6.0)}
    sound = Sound.of_samples(np.concatenate([waves["a"], waves["b"]]), RATE_HZ)
    turns = Turns.of([Turn(0.5, 5.5, "speaker1"), Turn(6.5, 11.5, "speaker2"), Turn(6.5, 7.5, "Ann")])

    def direction(wave: np.ndarray) -> np.ndarray:
        out = FakeExtractor().extract([wave])[0].mean(0) - made.network.centre.numpy()
        return out / np.linalg.norm(out)

    first, second = waves["a"][RATE_HZ // 2 : 11 * RATE_HZ // 2], waves["b"][3 * RATE_HZ // 2 : 11 * RATE_HZ // 2]
    for speaker, wave, spans in (("1", first, [(0.5, 5.5)]), ("speaker2", second, [(6.5, 11.5)])):
        found, where = made.whose(sound, speaker, turns, None)
        np.testing.assert_allclose(found, direction(wave), atol=1e-5)
        assert where == spans
    other = Sound.of_samples(waves["b"], RATE_HZ)
    for speaker, given, spans in (("1", turns, [(0.5, 5.5)]), ("Ann", None, None)):
        found, where = made.whose(sound, speaker, given, other)
        np.testing.assert_allclose(found, direction(waves["b"]), atol=1e-5)
        assert where == spans
    with pytest.raises(ValueError, match="--speaker Ann: expected 1 s .* found 0.0 s; give a recording of that person"):
        made.whose(sound, "Ann", turns, None)
    # Of a long enrolment half a minute is enough.
    long = np.concatenate([voice(1, 30.0), voice(3, 30.0)])
    np.testing.assert_allclose(made.voice(Sound.of_samples(long, RATE_HZ)), direction(long[: 30 * RATE_HZ]), atol=1e-5)


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
        (
            ("--speaker", "1", "--tse", tse_run, "--out", "meeting.wav"),
            "meeting.wav: is the recording itself; choose another",
        ),
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
