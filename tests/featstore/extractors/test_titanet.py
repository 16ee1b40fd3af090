"""TitaNet against NeMo's own numbers, exact and dense."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featstore.extractors import (
    ExtractorError,
    create,
    sources,
    titanet,
    titanet_dense,
    titanet_nemo,
    titanet_windows,
    weights,
)
from featstore.extractors.device import agreement
from featstore.testing import check_extractor, speech_like
from tests.featstore.extractors.test_nemo_archive import nemo_file


@pytest.fixture(scope="module")
def nano_titanet() -> titanet.TitaNetExtractor:
    return create("titanet", weights="random:0", device="cpu")


def _nemo_model(config: dict, seed: int = 0) -> torch.nn.Module:
    model = titanet_nemo.build_titanet(config)
    weights.randomise(model, seed)
    # As if trained: batch norms that are not the identity.
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bn.bias")):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=generator)
    return model


def _nemo(model: torch.nn.Module, wave: np.ndarray, frame: int) -> np.ndarray:
    """NeMo's own embedding of the window centred on a frame: (192,)."""
    centre = round((0.04 + 0.08 * frame) * 16000)
    window = wave[max(0, centre - 12000) : centre + 12000]
    window = np.pad(window, (0, max(0, 1600 - len(window))))
    with torch.inference_mode():
        signal = torch.from_numpy(window)[None]
        return model(input_signal=signal, input_signal_length=torch.tensor([len(window)]))[1][0].numpy()


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO])
def test_logs_are_kept_quiet_and_then_as_they_were(level: int) -> None:
    before = logging.root.manager.disable
    try:
        logging.disable(level)
        with pytest.raises(KeyError), titanet_nemo._quiet():
            assert logging.root.manager.disable == logging.ERROR
            raise KeyError
        assert logging.root.manager.disable == level
    finally:
        logging.disable(before)


def test_titanet_published_size() -> None:
    model = titanet_nemo.build_titanet()
    assert sum(value.numel() for value in model.parameters()) == 23_505_648


def test_the_published_titanet_is_nvidias() -> None:
    """As in NeMo's titanet-large.yaml; a row a block: filters, kernel, repeat, dropout, residual."""
    full, nano = titanet_nemo.TITANET_FULL, titanet_nemo.TITANET_NANO
    for config, filters, repeat, last, attention, classes in (
        (full, 1024, 3, 3072, 128, 7205),
        (nano, 128, 2, 384, 64, 2),
    ):
        rows = [
            (b["filters"], b["kernel"], b["repeat"], b["dropout"], b["residual"]) for b in config["encoder"]["jasper"]
        ]
        assert rows == [
            (filters, [3], 1, 0.0, False),
            *((filters, [kernel], repeat, 0.1, True) for kernel in (7, 11, 15)),
            (last, [1], 1, 0.0, False),
        ]
        same = {
            (*b["stride"], *b["dilation"], b["separable"], b["se"], b["se_context_size"])
            for b in config["encoder"]["jasper"]
        }
        assert same == {(1, 1, True, True, -1)}
        encoder, decoder, mel = config["encoder"], config["decoder"], config["preprocessor"]
        assert (encoder["feat_in"], encoder["activation"], encoder["conv_mask"]) == (80, "relu", True)
        assert (decoder["feat_in"], decoder["attention_channels"], decoder["num_classes"]) == (last, attention, classes)
        assert (decoder["emb_sizes"], decoder["pool_mode"], decoder["angular"]) == (192, "attention", True)
        assert (mel["features"], mel["n_fft"], mel["window_size"], mel["window_stride"]) == (80, 512, 0.025, 0.01)
        assert (mel["normalize"], mel["window"], mel["sample_rate"], mel["frame_splicing"]) == (
            "per_feature",
            "hann",
            16000,
            1,
        )
        assert mel["dither"] == 1e-5 and config["sample_rate"] == 16000
    assert titanet.DEFAULT_WEIGHTS == "hf:nvidia/speakerverification_en_titanet_large"
    assert titanet.WEIGHTS_FILE == "speakerverification_en_titanet_large.nemo"


def test_what_is_taken_of_a_strangers_configuration() -> None:
    """The three parts of a TitaNet, of whatever package they say they are; a head is angular where its loss was."""
    full = titanet_nemo.TITANET_FULL
    parts = {**full, "labels": ["a"], "train_ds": {}, "encoder": {**full["encoder"], "_target_": "x.y.ConvASREncoder"}}
    for loss, angular in (
        (None, False),
        ({"_target_": "nemo.collections.asr.losses.AngularSoftmaxLoss"}, True),
        ({"_target_": "nemo.core.CrossEntropyLoss"}, False),
        ("angular", False),
    ):
        found = titanet_nemo._safe_config(
            {**parts, "loss": loss, "decoder": {**full["decoder"], "angular": False}}, "name"
        )
        assert set(found) == {"sample_rate", "preprocessor", "encoder", "decoder"}
        assert found["encoder"]["_target_"] == "nemo.collections.asr.modules.ConvASREncoder"
        assert found["decoder"]["angular"] is angular and full["encoder"]["_target_"].startswith("nemo.")
    for section, value, says in (
        ("decoder", None, "name: decoder: expected a TitaNet's SpeakerDecoder, found nothing"),
        ("encoder", {"_target_": "os.system"}, "name: encoder: expected a TitaNet's ConvASREncoder, found system"),
    ):
        with pytest.raises(sources.WeightsError, match=says):
            titanet_nemo._safe_config({**full, section: value}, "name")


def test_titanet_holds_the_contract(nano_titanet: titanet.TitaNetExtractor) -> None:
    check_extractor(nano_titanet)
    spec = nano_titanet.spec
    assert (spec.name, spec.dim, spec.sample_rate_hz) == ("titanet", 192, 16000)
    assert spec.settings == {"weights": "random:0", "precision": "float32", "window_s": 1.5, "hop_frames": 1}
    assert "UNTRAINED" in spec.warning


@pytest.mark.parametrize("size", ["nano", pytest.param("full", marks=pytest.mark.slow)])
def test_titanet_frames_are_nemos(tmp_path: Path, size: str) -> None:
    config = titanet_nemo.TITANET_NANO if size == "nano" else titanet_nemo.TITANET_FULL
    model = _nemo_model(config)
    path = tmp_path / "t.safetensors"
    save_file(model.state_dict(), path, metadata={"config": json.dumps(config)})
    extractor = create("titanet", weights=str(path), device="cpu")
    for seconds in (0.02, 0.7, 1.0, 1.5, 1.5001, 3.777) if size == "nano" else (2.5,):
        wave = speech_like(16000, seconds)
        (frames,) = extractor.extract([wave])
        assert len(frames) == -(-len(wave) // 1280)
        some = range(len(frames)) if size == "nano" else (0, 9, 15, len(frames) - 1)
        for frame in some:
            np.testing.assert_allclose(frames[frame], _nemo(model, wave, frame), atol=1e-4)


def test_titanet_every_nth_frame(nano_titanet: titanet.TitaNetExtractor) -> None:
    wave = speech_like(16000, 4.0)
    (every,) = nano_titanet.extract([wave])
    third = create("titanet", weights="random:0", device="cpu", hop_frames=3)
    (frames,) = third.extract([wave])
    # Frames 0 and 1 take 0's, 2 to 4 take 3's, …; 50 frames, the last computed one is 48.
    nearest = [3 * round(frame / 3) for frame in range(50)]
    np.testing.assert_allclose(frames, every[nearest], atol=1e-5)
    assert third.spec.settings["hop_frames"] == 3 and third.spec.fingerprint != nano_titanet.spec.fingerprint
    for hop in (0, -1, 1.5, "2"):
        with pytest.raises(ExtractorError, match="hop_frames must be a whole number"):
            create("titanet", weights="random:0", hop_frames=hop)


def test_titanet_batches_do_not_matter(nano_titanet: titanet.TitaNetExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = speech_like(16000, 3.0)
    (expected,) = nano_titanet.extract([wave])
    for batch in (1, 5, 1000):
        monkeypatch.setitem(titanet.BATCH_WINDOWS, "cpu", batch)
        monkeypatch.setattr(titanet_windows, "_MEL_CHUNK", 7 * batch)
        np.testing.assert_allclose(nano_titanet.extract([wave])[0], expected, atol=1e-5)


def test_titanet_in_half_precision(nano_titanet: titanet.TitaNetExtractor) -> None:
    exact = nano_titanet._probe("float32")
    for precision in ("bfloat16", "float16"):
        assert agreement(exact, nano_titanet._probe(precision)) > 0.999
    np.testing.assert_array_equal(nano_titanet._probe("float32"), exact)


def test_titanet_from_a_nemo_file(tmp_path: Path) -> None:
    """With what a trained model's configuration has besides: data sets, optimiser, augmentation, an angular loss."""
    model = _nemo_model(titanet_nemo.TITANET_NANO)
    decoder = {key: value for key, value in titanet_nemo.TITANET_NANO["decoder"].items() if key != "angular"}
    config = {
        **titanet_nemo.TITANET_NANO,
        "decoder": decoder,
        "target": "nemo.collections.asr.models.label_models.EncDecSpeakerLabelModel",
        "nemo_version": "1.9.0",
        "train_ds": {"manifest_filepath": "/data/train.json", "labels": ["a"] * 7205},
        "validation_ds": {"manifest_filepath": "/data/dev.json"},
        "loss": {"_target_": "nemo.collections.asr.losses.angularloss.AngularSoftmaxLoss", "scale": 30, "margin": 0.2},
        "spec_augment": {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation", "freq_masks": 3},
        "optim": {"name": "sgd", "lr": 0.08},
    }
    path = nemo_file(tmp_path / "t.nemo", config, model.state_dict())
    wave = speech_like(16000, 2.0)
    extractor = create("titanet", weights=str(path), device="cpu")
    np.testing.assert_allclose(extractor.extract([wave])[0][12], _nemo(model, wave, 12), atol=1e-4)
    assert extractor.spec.weights_sha256 == sources.file_sha256(path) and extractor.spec.warning is None


def test_titanet_refuses_other_networks(tmp_path: Path) -> None:
    nano = titanet_nemo.TITANET_NANO
    model = _nemo_model(nano)
    wide = {**nano["encoder"], "jasper": [{**block, "filters": 100_000} for block in nano["encoder"]["jasper"]]}
    cases = (
        (
            {**nano, "encoder": {**nano["encoder"], "_target_": "nemo.collections.asr.modules.LSTMDecoder"}},
            "ConvASREnc",
        ),
        ({key: value for key, value in nano.items() if key != "decoder"}, "decoder: expected.*nothing"),
        ({**nano, "preprocessor": {**nano["preprocessor"], "nonsense": 1}}, "does not make a TitaNet"),
        ({**nano, "preprocessor": {**nano["preprocessor"], "window_stride": 0.02}}, "hop_length: expected 160"),
        ({**nano, "encoder": wide}, "does not fit"),
        (None, "does not fit"),
    )
    path = tmp_path / "t.safetensors"
    for config, says in cases:
        save_file(model.state_dict(), path, metadata=config and {"config": json.dumps(config)})
        with pytest.raises(ExtractorError, match=says) as caught:
            create("titanet", weights=str(path), device="cpu")
        assert "\n" not in str(caught.value)


def test_titanet_refuses_another_spectrogram(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _nemo_model(titanet_nemo.TITANET_NANO)
    others = {"sample_rate": 8000, "hop_length": 320, "win_length": 320, "n_fft": 1024, "normalize": "all_features"}
    others |= {"frame_splicing": 2, "exact_pad": True, "mag_power": 1.0, "log": False, "log_zero_guard_type": "clamp"}
    titanet_windows.LogMel(model)
    for name, value in others.items():
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"preprocessor {name}: expected .* found"):
            patch.setattr(model.preprocessor.featurizer, name, value)
            titanet_windows.LogMel(model)


def test_titanet_keeps_the_screen_clean(capfd: pytest.CaptureFixture[str]) -> None:
    create("titanet", weights="random:0", device="cpu").extract([speech_like(16000, 0.5)])
    assert capfd.readouterr() == ("", "")


def test_titanet_dense_is_near_exact(nano_titanet: titanet.TitaNetExtractor) -> None:
    dense = create("titanet", weights="random:0", device="cpu", mode="dense")
    for seconds in (0.05, 0.7, 1.5, 5.03):
        wave = speech_like(16000, seconds)
        (expected,), (found,) = nano_titanet.extract([wave]), dense.extract([wave])
        assert found.shape == expected.shape
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.mean() > 0.9 and cosine.min() > 0.7, (seconds, cosine)
    assert dense.spec.settings["mode"] == "dense" and dense.spec.fingerprint != nano_titanet.spec.fingerprint
    assert "mode" not in nano_titanet.spec.settings
    with pytest.raises(ExtractorError, match="mode must be exact or dense, found 'fast'"):
        create("titanet", weights="random:0", mode="fast")


def test_titanet_dense_holds_the_contract() -> None:
    check_extractor(create("titanet", weights="random:0", device="cpu", mode="dense"))


def test_titanet_dense_does_not_show_its_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = create("titanet", weights="random:0", device="cpu", mode="dense", hop_frames=2)
    wave = speech_like(16000, 24.0)
    (whole,) = dense.extract([wave])
    monkeypatch.setattr(titanet_dense, "STRETCH", 500)
    (pieces,) = dense.extract([wave])
    np.testing.assert_allclose(pieces, whole, atol=2e-4)


def test_running_sums_are_moments_of_windows() -> None:
    seeded = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 3, generator=seeded) + 100, torch.rand(50, 3, generator=seeded)
    low, high = torch.tensor([0, 10, 49]), torch.tensor([7, 50, 50])
    mean, deviation = titanet_dense._moments(x, weight, low, high, eps=1e-10)
    for row, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        share = (weight[a:b] / weight[a:b].sum(0)).double()
        expected = (x[a:b] * share).sum(0)
        np.testing.assert_allclose(mean[row], expected, rtol=1e-6)
        spread = ((x[a:b] - expected).square() * share).sum(0).clamp(min=1e-10).sqrt()
        np.testing.assert_allclose(deviation[row], spread, atol=1e-4)


def test_a_network_that_nemo_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against NeMo's own embeddings of cut and of full windows, each by a thousandth of its length."""
    model, _ = titanet_nemo.load_titanet(sources.Source("random:0"))
    log_mel, net = titanet_windows.LogMel(model), titanet.WindowNet(model)
    source = sources.Source("random:0")
    titanet._check_against_nemo(model, log_mel, net, source)
    kept = net.embed.weight.data.clone()
    for share, refused in ((1.0009, False), (1.0011, True)):
        net.embed.weight.data = kept * share
        net.embed.bias.data *= share if share == 1.0009 else 1.0011 / 1.0009
        if refused:
            with pytest.raises(
                sources.WeightsError, match=r"^random:0: the embedding of a probe window differs from NeMo's"
            ):
                titanet._check_against_nemo(model, log_mel, net, source)
        else:
            titanet._check_against_nemo(model, log_mel, net, source)
    monkeypatch.setattr(
        titanet, "_check_against_nemo", lambda *_: (_ for _ in ()).throw(sources.WeightsError("another"))
    )
    with pytest.raises(sources.WeightsError, match="^another$"):  # which every encoder that is made goes through
        create("titanet", weights="random:0", device="cpu")
