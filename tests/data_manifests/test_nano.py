"""The demo networks' training code: what it may read, that a stopped training goes on to the same weights."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from data_manifests.nano import data, mimi_targets, train_mimi_nano, train_titanet_nano, training
from tests.conftest import ROOT

WEIGHTS = ROOT / "featstore" / "extractors" / "demo"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A manifest of nine training speakers and one test speaker whose file does not exist."""
    rows = []
    for speaker in range(9):
        rng = np.random.default_rng(speaker)
        soundfile.write(tmp_path / f"{speaker}.flac", rng.normal(0, 0.1, 48_000), 16_000)
        rows.append({"audio_filepath": f"{speaker}.flac", "speaker": str(speaker), "split": "train"})
    rows.append({"audio_filepath": "nothing.flac", "speaker": "9", "split": "test"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_only_training_speakers_are_opened(speech: Path) -> None:
    voices = data.load_voices(speech, 16_000, espeak=False)
    assert {voice.speaker.split("-")[1] for voice in voices} == {str(speaker) for speaker in range(9)}


def test_dev_speakers_are_whole_speakers_and_never_trained_on(speech: Path) -> None:
    voices = data.load_voices(speech, 16_000, espeak=False)
    dev = {voice.speaker for voice in voices if voice.split == "dev"}
    assert dev == {"librispeech-0", "librispeech-8"}
    assert len([voice for voice in voices if voice.split == "train"]) == 7 * len(data.SPEEDS)
    assert not dev & {"-".join(voice.speaker.split("-")[:2]) for voice in voices if voice.split == "train"}


def test_speed_changes_the_length(speech: Path) -> None:
    lengths = {voice.speaker: len(voice.samples) for voice in data.librispeech_voices(speech, 16_000)}
    assert lengths["librispeech-1"] == 48_000
    assert lengths["librispeech-1-x0.9"] == pytest.approx(48_000 / 0.9, abs=2)
    assert lengths["librispeech-1-x1.1"] == pytest.approx(48_000 / 1.1, abs=2)


def test_a_manifest_without_training_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"audio_filepath": "a.flac", "speaker": "1", "split": "test"}\n')
    with pytest.raises(ValueError, match="no utterance with split 'train'"):
        list(data.librispeech_voices(tmp_path, 16_000))


def test_no_training_voice_is_one_of_the_demo_corpus_dev_or_test_voices() -> None:
    source = ROOT / "data_manifests" / "make_demo_corpus.py"
    lists = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("FEMALE", "MALE"):
            lists[node.targets[0].id] = ast.literal_eval(node.value)
    kept_out = {variant for voices in lists.values() for split in ("dev", "test") for variant in voices[split]}
    assert kept_out
    assert not kept_out & set(data.ESPEAK_VARIANTS)


def test_crops_hold_the_recording_and_are_padded_when_it_is_short() -> None:
    samples = np.arange(10, dtype=np.int16)
    rng = np.random.default_rng(0)
    assert np.array_equal(data.crop(samples, 12, rng) * 32768, [*range(10), 0, 0])
    piece = data.crop(samples, 4, rng) * 32768
    assert np.array_equal(piece, piece[0] + np.arange(4))


def test_the_rate_warms_up_and_falls() -> None:
    rates = [training.cosine_rate(step, 200, 1.0) for step in range(200)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[-1] < 0.03
    assert np.all(np.diff(rates[50:]) < 0)


def _toy(out: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))

    def loss_of(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return module(torch.from_numpy(rng.normal(size=(5, 3))).float()).square().mean(), {"step_seen": float(step)}

    training.train(module, loss_of, out, steps=6, seed=3, rate=1e-2, stop_at=stop_at, every=2)
    return module.state_dict()


def test_a_stopped_training_ends_at_the_very_same_weights(tmp_path: Path) -> None:
    whole = _toy(tmp_path / "whole", None)
    _toy(tmp_path / "stopped", 4)
    resumed = _toy(tmp_path / "stopped", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    texts = [(tmp_path / name / "losses.csv").read_text().splitlines() for name in ("whole", "stopped")]
    logs = [list(csv.DictReader(text)) for text in texts]
    for row in logs[0] + logs[1]:
        del row["seconds"]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == ["2", "4", "6"]


def test_mimi_nano_trains_and_goes_on(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moshi", reason="moshi is not installed")
    monkeypatch.setattr(train_mimi_nano, "BATCH", 2)
    common = ["--speech", str(speech), "--espeak", "0", "--steps", "2"]
    train_mimi_nano.main([*common, "--out", str(tmp_path / "whole")])
    train_mimi_nano.main([*common, "--out", str(tmp_path / "stopped"), "--stop-at", "1"])
    train_mimi_nano.main([*common, "--out", str(tmp_path / "stopped")])
    _same_weights(tmp_path / "whole" / "mimi-nano.safetensors", tmp_path / "stopped" / "mimi-nano.safetensors")


def test_mimi_nano_starts_from_given_weights_and_keeps_the_frozen_layers(speech: Path, tmp_path: Path) -> None:
    pytest.importorskip("moshi", reason="moshi is not installed")
    start = WEIGHTS / "mimi-nano.safetensors"
    common = ["--speech", str(speech), "--espeak", "0", "--steps", "1", "--start", str(start), "--frozen", "6"]
    train_mimi_nano.main([*common, "--out", str(tmp_path / "run")])
    with safe_open(start, "pt") as before, safe_open(tmp_path / "run" / "mimi-nano.safetensors", "pt") as after:
        before_keys = set(before.keys())
        same = {key for key in before_keys if torch.equal(before.get_tensor(key), after.get_tensor(key))}
    seanet = {key: int(key.split(".")[2]) for key in before_keys if key.startswith("encoder.model.")}
    assert {key for key, layer in seanet.items() if layer < 6} <= same
    assert not {key for key, layer in seanet.items() if layer >= 6 and key.endswith("weight")} & same


@pytest.mark.slow
def test_titanet_nano_trains_and_goes_on(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit[asr] is not installed")
    monkeypatch.setattr(train_titanet_nano, "BATCH", 4)
    common = ["--speech", str(speech), "--espeak", "0", "--steps", "2"]
    train_titanet_nano.main([*common, "--out", str(tmp_path / "whole")])
    train_titanet_nano.main([*common, "--out", str(tmp_path / "stopped"), "--stop-at", "1"])
    train_titanet_nano.main([*common, "--out", str(tmp_path / "stopped")])
    _same_weights(tmp_path / "whole" / "titanet-nano.safetensors", tmp_path / "stopped" / "titanet-nano.safetensors")


def _same_weights(one: Path, other: Path) -> None:
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        assert a.metadata() == b.metadata()
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())


def test_augmentation_keeps_shape_and_is_finite() -> None:
    rng = np.random.default_rng(0)
    mels = [rng.normal(-8, 3, (80, frames)).astype(np.float16) for frames in (90, 400)]
    for _ in range(40):
        mel = train_titanet_nano.augment(rng.normal(-8, 3, (80, 120)).astype(np.float32), mels, rng)
        assert mel.shape == (80, 120)
        assert np.isfinite(mel).all()


def test_mimi_nano_targets_line_up_with_the_latents() -> None:
    targets = mimi_targets.Targets()
    wave = torch.zeros(1, 5 * mimi_targets.FRAME_SAMPLES)
    wave[:, 2 * mimi_targets.FRAME_SAMPLES : 3 * mimi_targets.FRAME_SAMPLES] = torch.sin(
        2 * torch.pi * 200 / 24_000 * torch.arange(mimi_targets.FRAME_SAMPLES)
    )
    mel, period = targets(wave)
    assert mel.shape == (1, 5, 6 * mimi_targets.MELS)
    assert period.shape == (1, 5, 2 * mimi_targets.LAGS)
    assert int(mel.amax(-1).argmax()) == 2
    # A tone of 200 Hz correlates with itself 5 ms later.
    best = int(targets.lags[period[0, 2, : mimi_targets.LAGS][8:].argmax() + 8])
    assert best == pytest.approx(24_000 * 0.005, rel=0.1)


def test_acoustic_units_do_not_hear_the_channel() -> None:
    units, targets = mimi_targets.Units(), mimi_targets.Targets()
    mel = targets.mel(torch.randn(1, 20 * mimi_targets.FRAME_SAMPLES) * 0.1)
    channel = torch.linspace(-1, 1, mimi_targets.MELS)
    features = []
    for heard in (mel, mel + channel):
        heard = heard - heard.mean(1, keepdim=True)
        features.append(units.features(heard, (heard @ units.cosines.T).std(1)))
    assert torch.allclose(*features, atol=1e-4)
    units.fit(features[0][0].numpy(), seed=0)
    assert len(units(features[0]).unique()) > 50
    assert units(features[0]).shape == (1, 120)


@pytest.mark.parametrize("name", ["mimi-nano", "titanet-nano"])
def test_the_shipped_weights_are_there_with_their_config(name: str) -> None:
    with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        assert all(torch.isfinite(file.get_tensor(key).float()).all() for key in file.keys())
    assert ("transformer" if name == "mimi-nano" else "encoder") in config


def test_the_shipped_weights_are_small_and_have_a_model_card() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 8e6
    card = (ROOT / "data_manifests" / "nano" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for needed in ("CC BY 4.0", "Panayotov", "eSpeak NG", "not Mimi", "not TitaNet"):
        assert needed in card
