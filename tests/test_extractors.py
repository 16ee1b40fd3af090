"""Mimi and TitaNet against moshi's and NeMo's own numbers, and encoders from other packages."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import tarfile
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featstore import extractors
from featstore.extractors import (
    ExtractorError,
    checked_wave,
    create,
    mimi,
    titanet,
    titanet_dense,
    titanet_nemo,
    titanet_windows,
    weights,
)
from featstore.extractors.device import agreement, choose_device, choose_precision, probe_wave
from featstore.testing import check_extractor, speech_like
from tests.conftest import ROOT
from tests.fakes import FakeExtractor

# ------------------------------------------------------------------------------------------------ lookup

LOGMEL = '''
import numpy as np
from featstore.types import FeatureSpec, FrameGrid


class LogMel:
    """Log energies of 24 triangular bands, every 20 ms."""

    def __init__(self, bands=24, **_):
        centres = np.geomspace(100, 3800, bands + 2)
        hz = np.fft.rfftfreq(512, 1 / 8000)
        self.bank = np.stack([np.interp(hz, centres[i : i + 3], [0, 1, 0]) for i in range(bands)], axis=1)
        self.spec = FeatureSpec(
            name="logmel", dim=bands, dtype="float16", sample_rate_hz=8000, grid=FrameGrid(0.01, 0.02),
            model="log mel bands", weights_sha256="", settings={"bands": bands},
        )

    def extract(self, waves):
        return [self._one(np.asarray(wave)) for wave in waves]

    def _one(self, wave):
        if wave.ndim != 1 or wave.size == 0 or not np.isfinite(wave).all():
            raise ValueError(f"logmel: expected finite samples of shape (samples,), found {wave.shape}")
        padded = np.pad(wave, (0, -wave.size % 160))
        power = np.abs(np.fft.rfft(padded.reshape(-1, 160) * np.hanning(160), 512)) ** 2
        return np.log(power @ self.bank + 1e-6).astype(np.float32)


def Buggy(bands):
    return len(bands)
'''


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of its own on sys.path, as pip would leave it, that adds "logmel" and two broken encoders."""
    (tmp_path / "other_lab_logmel.py").write_text(LOGMEL)
    info = tmp_path / "other_lab_logmel-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-lab-logmel\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""\
        [featstore.extractors]
        logmel = other_lab_logmel:LogMel
        gone = other_lab_gone:Encoder
        hollow = builtins:dict
        buggy = other_lab_logmel:Buggy
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("other_lab_logmel", None)


def test_another_package_adds_an_encoder(other_package: None) -> None:
    assert {"logmel", "mimi", "titanet"} <= set(extractors.names())
    extractor = create("logmel", device="cpu", bands=20)
    assert extractor.spec.dim == 20
    check_extractor(extractor)


def test_broken_encoders_of_other_packages(other_package: None) -> None:
    with pytest.raises(ExtractorError, match=r"'gone'.*cannot be loaded.*other_lab_gone"):
        create("gone")
    with pytest.raises(ExtractorError, match="expected an object with `spec`"):
        create("hollow")
    with pytest.raises(ExtractorError, match="settings: no setting 'hop_frames'; mimi takes: weights, device, precis"):
        create("mimi", hop_frames=2)
    with pytest.raises(ExtractorError, match="'buggy' does not take these settings: missing a required argument: 'ba"):
        create("buggy")
    with pytest.raises(TypeError, match="has no len"):  # its own bug keeps its traceback
        create("buggy", bands=3)


def test_unknown_name_lists_the_known(other_package: None) -> None:
    with pytest.raises(ExtractorError, match=r"no extractor is called 'mimmi'; known: .*logmel, mimi, titanet"):
        create("mimmi")


@pytest.mark.parametrize(("name", "missing"), [("mimi", "moshi"), ("titanet", "nemo")])
def test_missing_extra_says_what_to_install(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [_Blocked(missing), *sys.meta_path])
    with pytest.raises(ExtractorError, match=rf"needs {missing}.*pip install -e '.\[extract\]'"):
        create(name, weights="random:0", device="cpu")


class _Blocked:
    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.split(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def test_the_contract_needs_no_pytest() -> None:
    script = "import sys, featstore.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


class _Spoilt(FakeExtractor):
    """The tests' own encoder with one fault; each is what the contract has been seen to catch."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.calls = fault, 0
        if fault == "path":
            self.spec = replace(self.spec, settings={"weights": "/home/me/weights"})

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        waves = [checked_wave(wave, self.spec) for wave in waves] if self.fault != "lenient" else waves
        if self.fault == "writes" and waves and waves[0].flags.writeable:
            waves[0][:100] = 0
        frames = [self._frames(wave) for wave in waves]
        return {
            "double": lambda: [f.astype(np.float64) for f in frames],
            "narrow": lambda: [f[:, :7] for f in frames],
            "short": lambda: [f[:-3] for f in frames],
            "infinite": lambda: [f / 0 for f in frames],
            "still": lambda: [np.ones_like(f) for f in frames],
            "counts": lambda: [f + self.calls for f in frames],
            "company": lambda: [f + len(waves) for f in frames],
        }.get(self.fault, lambda: frames)()


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("path", "setting 'weights' is a path of this machine"),
        ("double", "expected frames in float32, found float64"),
        ("narrow", r"expected frames of shape \(frames, 8\), found \(7, 7\)"),
        ("short", "expected about 6 frames in 0.5 s, found 4"),
        ("infinite", "a frame is NaN or infinite"),
        ("still", "frames of changing speech are all the same"),
        ("counts", "the same wave gives other frames the second time"),
        ("company", "a wave's frames are others in a batch than alone"),
        ("lenient", "a wave that is empty: expected a ValueError"),
        ("writes", "a plain wave was written to"),
    ],
)
def test_the_contract_names_what_does_not_hold(fault: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_extractor(_Spoilt(fault))
    check_extractor(_Spoilt("none"))


# ------------------------------------------------------------------------------------------------ device, precision


def test_device_and_precision_that_are_none() -> None:
    assert choose_device("cpu").type == "cpu"
    for device in ("gpu", "cuda:x", "cpu:3", "cuda:99"):
        with pytest.raises(ExtractorError, match="device"):
            choose_device(device)
    with pytest.raises(ExtractorError, match="precision 'half': expected auto, float32"):
        choose_precision("half", torch.device("cpu"), lambda precision: np.ones((1, 1)))


def test_agreement_is_the_worst_frame() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert agreement(a, 3 * a) == pytest.approx(1)
    assert agreement(a, np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])) == pytest.approx(0.5**0.5)
    assert agreement(a, np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])) == 0
    assert agreement(a, np.full((3, 2), np.nan)) == -1


def test_auto_takes_half_precision_only_on_cuda_and_only_where_it_agrees() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((20, 8))
    answers = {"float32": exact, "float16": exact + 1e-3}
    cuda = torch.device("cuda")
    assert choose_precision("auto", cuda, answers.__getitem__) == "float16"
    assert choose_precision("auto", torch.device("cpu"), answers.__getitem__) == "float32"
    answers["float16"] = np.where(np.arange(20)[:, None] == 11, exact[::-1], exact)
    assert choose_precision("auto", cuda, answers.__getitem__) == "float32", "one bad frame is enough"
    answers["float16"] = np.where(np.arange(20)[:, None] == 11, np.inf, exact)
    assert choose_precision("auto", cuda, answers.__getitem__) == "float32"


def test_probe_wave_is_fixed_and_speech_like() -> None:
    wave = probe_wave(16000)
    assert wave.tobytes() == probe_wave(16000).tobytes()
    assert 0.02 < np.sqrt(np.mean(wave**2)) < 0.5 and np.abs(wave).max() < 1


# ------------------------------------------------------------------------------------------------ Mimi


@pytest.fixture(scope="module")
def nano_mimi() -> mimi.MimiExtractor:
    return create("mimi", weights="random:0", device="cpu")


def _moshi(model: torch.nn.Module, wave: np.ndarray) -> np.ndarray:
    """moshi's own latents of one wave: (frames, 512)."""
    with torch.inference_mode():
        return model.encode_to_latent(torch.from_numpy(wave)[None, None], quantize=False)[0].T.numpy()


def test_mimi_holds_the_contract(nano_mimi: mimi.MimiExtractor) -> None:
    check_extractor(nano_mimi)
    spec = nano_mimi.spec
    assert (spec.name, spec.dim, spec.sample_rate_hz) == ("mimi", 512, 24000)
    assert spec.settings == {"weights": "random:0", "precision": "float32"}
    assert "UNTRAINED" in spec.warning
    assert nano_mimi.device == "cpu"


def test_mimi_random_weights_are_told_apart(nano_mimi: mimi.MimiExtractor) -> None:
    same, other = (create("mimi", weights=text, device="cpu") for text in ("random:0", "random:1"))
    assert same.spec == nano_mimi.spec
    assert other.spec.weights_sha256 != same.spec.weights_sha256


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 24000 * 3 + 7])
def test_mimi_frames_are_moshis(nano_mimi: mimi.MimiExtractor, samples: int) -> None:
    wave = speech_like(24000, 4.0)[:samples]
    model = mimi.build_mimi(mimi.MIMI_NANO)
    weights.randomise(model, 0)
    (frames,) = nano_mimi.extract([wave])
    assert len(frames) == -(-samples // 1920)
    np.testing.assert_allclose(frames, _moshi(model, wave), atol=1e-5)


def _with_old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Key names of NVIDIA's PersonaPlex and of Kyutai's first release."""
    renamed = {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight"): value
        for name, value in state.items()
    }
    assert any("self_attn.in_proj_weight" in name for name in renamed)
    return renamed


@pytest.mark.parametrize("size", ["nano", pytest.param("full", marks=pytest.mark.slow)])
def test_mimi_checkpoint_with_personaplex_names(tmp_path: Path, size: str) -> None:
    config = mimi.MIMI_NANO if size == "nano" else mimi.MIMI_FULL
    model = mimi.build_mimi(config)
    weights.randomise(model, 3)
    # As if trained: attention that matters (it starts at a hundredth).
    state = {name: value.fill_(0.5) if "layer_scale" in name else value for name, value in model.state_dict().items()}
    metadata = {"config": json.dumps(config)} if size == "nano" else None
    wave = speech_like(24000, 3.0)
    expected = _moshi(model, wave)
    for file, named in (("new.safetensors", state), ("old.safetensors", _with_old_names(state))):
        save_file({name: value.contiguous() for name, value in named.items()}, tmp_path / file, metadata=metadata)
        extractor = create("mimi", weights=str(tmp_path / file), device="cpu")
        np.testing.assert_allclose(extractor.extract([wave])[0], expected, atol=2e-4 if size == "full" else 1e-5)
        assert extractor.spec.settings["weights"] == "file" and extractor.spec.warning is None
        assert extractor.spec.weights_sha256 == weights.file_sha256(tmp_path / file)


def test_mimi_file_without_decoder_in_half_precision(tmp_path: Path, nano_mimi: mimi.MimiExtractor) -> None:
    """How demo weights are packed."""
    model = mimi.build_mimi(mimi.MIMI_NANO)
    weights.randomise(model, 0)
    state = {
        name: value.half()
        for name, value in model.state_dict().items()
        if name.startswith(("encoder.", "encoder_transformer.", "downsample."))
    }
    path = tmp_path / "small.safetensors"
    save_file(state, path, metadata={"config": json.dumps(mimi.MIMI_NANO)})
    wave = speech_like(24000, 1.0)
    found = create("mimi", weights=str(path), device="cpu").extract([wave])[0]
    assert agreement(nano_mimi.extract([wave])[0], found) > 0.9999
    save_file(state, path)
    with pytest.raises(ExtractorError, match=r"does not fit the network.*size mismatch.*'config'"):
        create("mimi", weights=str(path), device="cpu")
    for config, says in (
        ({}, "does not make a Mimi"),
        ({**mimi.MIMI_NANO, "seanet": {**mimi.MIMI_NANO["seanet"], "nonsense": 1}}, "does not make a Mimi"),
        ({**mimi.MIMI_NANO, "sample_rate": 48000}, "expected 24000 Hz"),
        # Would take terabytes: found out before anything is allocated.
        ({**mimi.MIMI_NANO, "seanet": {**mimi.MIMI_NANO["seanet"], "n_filters": 100_000}}, "does not fit"),
    ):
        save_file(state, path, metadata={"config": json.dumps(config)})
        with pytest.raises(ExtractorError, match=says) as caught:
            create("mimi", weights=str(path), device="cpu")
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def attentive_mimi(tmp_path_factory: pytest.TempPathFactory) -> tuple[mimi.MimiExtractor, torch.nn.Module]:
    """A nano Mimi whose attention carries the latents: an untrained one hides errors in its far past."""
    config = {**mimi.MIMI_NANO, "seanet": {**mimi.MIMI_NANO["seanet"], "n_filters": 4}}
    model = mimi.build_mimi(config)
    weights.randomise(model, 0)
    for name, value in model.named_parameters():
        if "layer_scale" in name:
            value.data.fill_(1.0)
    path = tmp_path_factory.mktemp("attentive") / "m.safetensors"
    save_file(model.state_dict(), path, metadata={"config": json.dumps(config)})
    return create("mimi", weights=str(path), device="cpu"), model


@pytest.mark.parametrize("seconds", [24.03, pytest.param(600.0, marks=pytest.mark.slow)])
def test_mimi_in_pieces_equals_the_whole_file(
    attentive_mimi: tuple[mimi.MimiExtractor, torch.nn.Module], seconds: float
) -> None:
    extractor, model = attentive_mimi
    wave = speech_like(24000, seconds)
    assert len(wave) > 2 * mimi.PIECE_FRAMES["cpu"] * mimi.FRAME_SAMPLES
    (frames,) = extractor.extract([wave])
    whole = _moshi(model, wave)
    assert frames.shape == whole.shape
    assert np.abs(frames - whole).max() < 1e-3
    # The state is gone: the next wave starts afresh.
    np.testing.assert_array_equal(extractor.extract([wave])[0][:100], frames[:100])


def test_mimi_batches_on_a_gpu_pad_without_a_trace(
    nano_mimi: mimi.MimiExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path a GPU takes, run on the CPU: waves of all lengths share batches of a fixed shape."""
    waves = [speech_like(24000, seconds, seed) for seed, seconds in enumerate((0.1, 1.9, 2.0, 2.1, 0.5, 5.0, 21.0))]
    expected = nano_mimi.extract(waves)
    monkeypatch.setattr(nano_mimi, "_device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(mimi, "BATCH_FRAMES", 100)
    monkeypatch.setitem(mimi.PIECE_FRAMES, "cuda", 75)
    found = nano_mimi.extract(waves)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    alone = [nano_mimi.extract([wave])[0].tobytes() for wave in waves]
    assert alone == [frames.tobytes() for frames in found]


def test_mimi_in_bfloat16(nano_mimi: mimi.MimiExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision is near float32, and the exact weights stay exact.

    Without oneDNN: its bfloat16 convolutions are plainly wrong for some shapes on CPUs with AMX (torch 2.9.1, oneDNN
    3.7.1: 16 channels, kernel 8, stride 4, which a nano Mimi has and a full one has not: an output unrelated to the
    right one), which is no matter of our code. What users meet there is in the next test.
    """
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    before = nano_mimi._probe("float32")
    cosine = agreement(before, nano_mimi._probe("bfloat16"))
    assert 0.999 < cosine < 1
    np.testing.assert_array_equal(nano_mimi._probe("float32"), before)
    half = create("mimi", weights="random:0", device="cpu", precision="bfloat16")
    assert half.spec.settings["precision"] == "bfloat16" and half.spec.fingerprint != nano_mimi.spec.fingerprint
    assert agreement(before, half.extract([probe_wave(24000)])[0]) == pytest.approx(cosine)


def test_half_precision_is_near_float32_or_refused(nano_mimi: mimi.MimiExtractor) -> None:
    """On whatever machine this runs: nobody gets features that are more than a rounding away from float32's."""
    before = nano_mimi._probe("float32")
    for precision in ("bfloat16", "float16"):
        try:
            half = create("mimi", weights="random:0", device="cpu", precision=precision)
        except ExtractorError as error:
            assert f"precision '{precision}': on this machine (cpu)" in str(error) and "\n" not in str(error)
            assert agreement(before, nano_mimi._probe(precision)) < 0.9
        else:
            assert agreement(before, half.extract([probe_wave(24000)])[0]) >= 0.9


def test_mimi_long_file_in_bounded_memory(
    attentive_mimi: tuple[mimi.MimiExtractor, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held beyond input and output does not grow with the length: at most one piece is in the network."""
    extractor, _ = attentive_mimi
    seen: list[int] = []
    latent = mimi._latent
    monkeypatch.setattr(mimi, "_latent", lambda model, rows: seen.append(rows.size) or latent(model, rows))
    extractor.extract([speech_like(24000, 45.0)])
    assert len(seen) == 5 and max(seen) == mimi.PIECE_FRAMES["cpu"] * mimi.FRAME_SAMPLES


@pytest.mark.parametrize(("name", "mode"), [("mimi", {}), ("titanet", {}), ("titanet", {"mode": "dense"})])
def test_the_number_of_cores_does_not_show(name: str, mode: dict[str, str]) -> None:
    extractor = create(name, weights="random:0", device="cpu", **mode)
    waves = [speech_like(extractor.spec.sample_rate_hz, s, seed) for seed, s in enumerate((0.4, 2.1, 11.0, 3.0, 1.0))]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([frames.tobytes() for frames in extractor.extract(waves)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_demo_weights_load_or_say_that_they_are_absent() -> None:
    for name, module in (("mimi", mimi), ("titanet", titanet)):
        packed = Path(module.__file__).parent / "demo" / f"{name}-nano.safetensors"
        if packed.exists():
            spec = create(name, weights="demo", device="cpu").spec
            assert spec.settings["weights"] == "demo" and "demo weights" in spec.warning
        else:
            with pytest.raises(ExtractorError, match=r"demo weights .*-nano\.safetensors are not in this installation"):
                create(name, weights="demo", device="cpu")


# ------------------------------------------------------------------------------------------------ TitaNet


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


def test_titanet_published_size() -> None:
    model = titanet_nemo.build_titanet()
    assert sum(value.numel() for value in model.parameters()) == 23_505_648


def test_titanet_holds_the_contract(nano_titanet: titanet.TitaNetExtractor) -> None:
    check_extractor(nano_titanet)
    spec = nano_titanet.spec
    assert (spec.name, spec.dim, spec.sample_rate_hz) == ("titanet", 192, 16000)
    assert spec.settings == {"weights": "random:0", "precision": "float32", "window_s": 1.5, "hop_frames": 1}
    assert "UNTRAINED" in spec.warning


def test_both_features_share_one_grid(nano_mimi: mimi.MimiExtractor, nano_titanet: titanet.TitaNetExtractor) -> None:
    assert nano_mimi.spec.grid == nano_titanet.spec.grid
    for seconds in (0.001, 0.08, 0.5, 1.234, 3.0):
        one, two = (e.extract([speech_like(e.spec.sample_rate_hz, seconds)])[0] for e in (nano_mimi, nano_titanet))
        assert abs(len(one) - len(two)) <= 1


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


def nemo_archive(path: Path, model: torch.nn.Module, config: dict) -> Path:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    members = {"./model_config.yaml": json.dumps(config).encode(), "./model_weights.ckpt": buffer.getvalue()}
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


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
    path = nemo_archive(tmp_path / "t.nemo", model, config)
    wave = speech_like(16000, 2.0)
    extractor = create("titanet", weights=str(path), device="cpu")
    np.testing.assert_allclose(extractor.extract([wave])[0][12], _nemo(model, wave, 12), atol=1e-4)
    assert extractor.spec.weights_sha256 == weights.file_sha256(path) and extractor.spec.warning is None


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


def test_titanet_keeps_the_screen_clean(capfd: pytest.CaptureFixture[str]) -> None:
    create("titanet", weights="random:0", device="cpu").extract([speech_like(16000, 0.5)])
    assert capfd.readouterr() == ("", "")


# ---- titanet, dense


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
