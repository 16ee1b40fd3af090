"""Encoders by name, from other packages too; the contract; device and precision; what Mimi and TitaNet share."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from featstore import extractors
from featstore.extractors import ExtractorError, checked_frames, checked_wave, create, mimi, titanet
from featstore.extractors.device import agreement, choose_device, choose_precision, each, pick_device, probe_wave
from featstore.testing import check_extractor, speech_like
from featstore.types import FrameGrid
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
    with pytest.raises(
        ExtractorError,
        match=r"no extractor is called 'mimmi'; did you mean mimi\?; known: .*logmel, mimi, mimi-codes, titanet",
    ):
        create("mimmi")


@pytest.mark.parametrize(("name", "missing"), [("mimi", "moshi"), ("mimi-codes", "moshi"), ("titanet", "nemo")])
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
            self.spec = replace(self.spec, settings={"weights": "/data/weights"})
        if fault == "dict":
            self.spec = self.spec.to_json()
        if fault == "later":
            self.spec = replace(self.spec, grid=FrameGrid(0.3, 0.08))

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        given = waves
        if self.fault == "mono" and any(np.ndim(w) != 1 for w in waves):
            waves = [np.asarray(w).reshape(-1) for w in waves]
        if self.fault == "paragraphs" and any(np.size(w) == 0 for w in waves):
            raise ValueError("one line\nand another")
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
            "order": lambda: frames[::-1],
            "lists": lambda: [f.tolist() for f in frames],
            "flat": lambda: [f.reshape(-1) for f in frames],
            "large": lambda: [f + 1e5 for f in frames],
            "long": lambda: [np.concatenate([f, f[:1], f[:1], f[:1]]) for f in frames],
            "nobody": lambda: frames or [np.zeros((1, 8), np.float32)],
            "nothing": lambda: [f if len(w) > 1 else f[:0] for f, w in zip(frames, waves, strict=True)],
            "silence": lambda: [f / max(float(np.abs(w).max() > 0), 0) for f, w in zip(frames, waves, strict=True)],
            "strides": lambda: [f + (1e-3 if w.strides != (4,) else 0) for f, w in zip(frames, given, strict=True)],
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
        ("dict", "expected a FeatureSpec as `spec`, found dict"),
        ("later", "the last frame is centred at 0.78 s of 0.5 s"),
        ("order", "a wave's frames are others in a batch than alone"),
        ("lists", "expected frames as an array, found list"),
        ("flat", r"expected frames of shape \(frames, 8\), found \(56,\)"),
        ("large", "a frame does not fit into float16"),
        ("long", "expected about 6 frames in 0.5 s, found 10"),
        ("nobody", "expected no frames of no waves"),
        ("nothing", "a single sample: expected one finite frame or more"),
        ("silence", "silence: expected one finite frame or more"),
        ("strides", "a strided wave gives other frames"),
        ("mono", "a wave that is two channels: expected a ValueError, found frames"),
        ("paragraphs", r"a wave that is empty: expected one line, found 'one line\\nand another'"),
    ],
)
def test_the_contract_names_what_does_not_hold(fault: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_extractor(_Spoilt(fault))


def test_the_contract_holds_where_nothing_is_spoilt() -> None:
    check_extractor(_Spoilt("none"))
    with pytest.raises(AssertionError, match="expected `spec` and `extract`, found 3"):
        check_extractor(3)


# ------------------------------------------------------------------------------------------------ device, precision


def test_device_and_precision_that_are_none() -> None:
    assert choose_device("cpu").type == "cpu"
    for device in ("gpu", "cuda:x", "cpu:3", "cuda:99"):
        with pytest.raises(ExtractorError, match="device"):
            choose_device(device)
    with pytest.raises(ExtractorError, match="precision 'half': expected auto, float32"):
        choose_precision("half", torch.device("cpu"), lambda precision: np.ones((1, 1)))


def test_devices_are_counted_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, there, not_there in ((0, (), ("cuda", "cuda:0")), (2, ("cuda", "cuda:1"), ("cuda:2",))):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert [str(pick_device(name)) for name in (*there, "cpu", "cpu:0")] == [*there, "cpu", "cpu:0"]
        for name in (*not_there, "cpu:1"):
            with pytest.raises(
                ExtractorError, match=rf"device '{name}' is not on this machine \(\d of that kind found\)"
            ):
                pick_device(name)


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


# ------------------------------------------------------------------------------------------------ both


def test_both_features_share_one_grid() -> None:
    both = [create(name, weights="random:0", device="cpu") for name in ("mimi", "titanet")]
    assert both[0].spec.grid == both[1].spec.grid
    for seconds in (0.001, 0.08, 0.5, 1.234, 3.0):
        one, two = (e.extract([speech_like(e.spec.sample_rate_hz, seconds)])[0] for e in both)
        assert abs(len(one) - len(two)) <= 1


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


# ------------------------------------------------------------------------------------------------ by hand


def test_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's current device, else Apple's, else the CPU; products in TF32 on CUDA, and nowhere else."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
        for mps, found in ((False, "cpu"), (True, "mps")):
            monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
            assert str(choose_device("auto")) == found and not any(switch.allow_tf32 for switch in switches)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert str(pick_device("auto")) == "cuda:2" and not any(switch.allow_tf32 for switch in switches)
        assert str(choose_device("auto")) == "cuda:2" and all(switch.allow_tf32 for switch in switches)
        assert str(choose_device("cuda")) == "cuda"
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def test_half_precision_that_is_asked_for_may_cost_more_but_not_all() -> None:
    """Of what is asked for, a cosine of 0.9; of what is taken by itself, 0.999. float32 is not even tried."""
    asked: list[str] = []

    def turned(cosine: float) -> Callable[[str], np.ndarray]:
        def encode(precision: str) -> np.ndarray:
            asked.append(precision)
            other = [cosine, (1 - cosine**2) ** 0.5]
            return np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0] if precision == "float32" else other])

        return encode

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_precision("float32", cuda, turned(0.0)) == choose_precision("auto", cpu, turned(0.0)) == "float32"
    assert asked == []
    assert choose_precision("bfloat16", cpu, turned(0.91)) == "bfloat16" and asked == ["float32", "bfloat16"]
    with pytest.raises(
        ExtractorError, match=r"precision 'float16': on this machine \(cuda\) a frame's cosine to float32 is 0.890, e"
    ):
        choose_precision("float16", cuda, turned(0.89))
    for cosine, taken_ in ((0.9991, "float16"), (0.9989, "float32")):
        assert choose_precision("auto", cuda, turned(cosine)) == taken_


def test_items_side_by_side_keep_their_order_and_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    seen: list[tuple[bool, int]] = []

    def double(item: int) -> int:
        seen.append((torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return 2 * item

    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            seen.clear()
            assert each(double, range(20), torch.device("cpu")) == list(range(0, 40, 2))
            assert set(seen) == {(True, 1)} and torch.get_num_threads() == count
        assert each(double, [5], torch.device("meta")) == [10] and seen[-1] == (
            True,
            3,
        )  # only a CPU's cores are shared out
        for error in (KeyboardInterrupt, ValueError):
            with pytest.raises(error):
                each(lambda item, error=error: (_ for _ in ()).throw(error()), range(3), torch.device("cpu"))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_which_settings_an_encoder_takes_again(other_package: None) -> None:
    settings = {"weights": "random:0", "precision": "float32", "hop_frames": 3, "window_s": 1.5, "bands": 4}
    assert extractors.taken("titanet", settings) == {
        key: settings[key] for key in ("weights", "precision", "hop_frames")
    }
    assert extractors.taken("mimi", settings) == {key: settings[key] for key in ("weights", "precision")}
    assert extractors.taken("logmel", settings) == {"bands": 4}


def test_what_is_not_given_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a command line can hand over everything; an error of another package's encoder names it."""

    def factory(weights: str = "own", device: str = "own", bad: Exception | None = None) -> FakeExtractor:
        if bad is not None:
            raise bad
        made = FakeExtractor()
        made.given = (weights, device)
        return made

    point = SimpleNamespace(name="lab", value="lab:factory", load=lambda: factory)
    monkeypatch.setattr(extractors, "_third_party", lambda: {"lab": point})
    assert create("lab").given == create("lab", weights=None, device=None).given == ("own", "own")
    assert create("lab", device="cpu").given == ("own", "cpu") and create("lab", weights="").given == ("", "own")
    assert extractors.names() == ["lab", "mimi", "mimi-codes", "titanet"]
    for error in (ValueError("no such hop"), KeyError("no such hop"), OSError("no such hop")):
        with pytest.raises(ExtractorError, match=r"^extractor 'lab' \(lab:factory\): .*no such hop") as found:
            create("lab", bad=error)
        assert found.value.__cause__ is error
    with pytest.raises(RuntimeError, match="a bug") as bug:
        create("lab", bad=RuntimeError("a bug"))
    assert bug.value.__notes__ == ["in extractor 'lab' (lab:factory)"]
    missing = ModuleNotFoundError("No module named 'moshi'", name="moshi")
    with pytest.raises(ModuleNotFoundError):  # that its author forgot to name is none of our extras
        create("lab", bad=missing)


def test_waves_and_frames_that_are_none() -> None:
    spec = FakeExtractor().spec
    assert checked_wave([1, 2, 3], spec).dtype == np.float32 and checked_wave(np.ones(3), spec).flags.c_contiguous
    wants = r"^feature 'fake': expected a wave of shape \(samples,\), finite, at 8000 Hz; found "
    for wave, found in (
        (np.ones((2, 3)), r"float64 of shape \(2, 3\)"),
        (np.array(["a"]), r"<U1 of shape \(1,\)"),
        (np.ones(3, complex), "complex128"),
        ([], "no samples"),
        (np.where(np.arange(8000) == 4000, np.nan, 0.5), r"nan at sample 4000 \(0.500 s\)"),
        (np.array([0.5, -np.inf, np.nan]), r"-inf at sample 1 \(0.000 s\)"),
    ):
        with pytest.raises(ExtractorError, match=wants + found):
            checked_wave(wave, spec)
    frames = np.ones((3, 8), np.float32)
    assert checked_frames(frames, spec) is frames
    half = replace(spec, settings={"precision": "float16"})
    for bad in (np.nan, np.inf):
        frames[1, 2] = bad
        with pytest.raises(
            ExtractorError, match="output is not finite in float32; the audio's level is beyond all bounds"
        ):
            checked_frames(frames, spec)
        with pytest.raises(ExtractorError, match="output is not finite in float16; use --precision float32"):
            checked_frames(frames, half)


@pytest.mark.parametrize(
    ("name", "mode", "seconds", "told"),
    [
        ("mimi", {}, 25.0, 25.04),  # in pieces of 10 s, the last filled up to a frame
        ("mimi", {}, 9.0, 0.0),  # in one: the batch's end says enough
        ("titanet", {}, 4.0, 32 * 0.08),  # of its 50 windows 32 are full: centred from 0.76 to 3.24 s
        ("titanet", {"hop_frames": 2}, 4.0, 16 * 0.16),
        ("titanet", {"mode": "dense"}, 4.0, 4.0),
    ],
)
def test_what_an_encoder_tells_adds_up(name: str, mode: dict, seconds: float, told: float) -> None:
    extractor, heard = create(name, weights="random:0", device="cpu", **mode), []
    extractor.told = heard.append
    extractor.extract([speech_like(extractor.spec.sample_rate_hz, seconds)])
    assert sum(heard) == pytest.approx(told, abs=0.081 if mode.get("mode") else 1e-6)
    if name == "mimi":
        codes = create("mimi-codes", weights="random:0", device="cpu")
        codes.told = (also := []).append
        codes.extract([speech_like(24000, seconds)])
        assert also == heard and (codes.device, codes.batch_s) == ("cpu", 180.0) == (
            extractor.device,
            extractor.batch_s,
        )
    else:
        assert extractor.batch_s == (180.0 if mode.get("mode") else None)


def test_no_other_package_takes_the_place_of_a_built_in_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or frames of somebody else's network would lie under Mimi's name."""
    stranger = SimpleNamespace(value="lab:make", load=lambda: print)
    monkeypatch.setattr(extractors, "_third_party", lambda: {"mimi": stranger, "lab": stranger})
    assert extractors._factory("lab") is print and extractors._factory("mimi") is mimi.MimiExtractor
    assert extractors.names().count("mimi") == 1
