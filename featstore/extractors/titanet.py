"""TitaNet speaker embeddings on Mimi's frame grid, 192-d, by NeMo's model. The only file that imports nemo."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.extractors import ExtractorError, checked_frames, checked_wave, sources
from featstore.extractors import titanet_windows as windows
from featstore.extractors import weights as weights_of
from featstore.extractors.device import PRECISIONS, SIDE_BY_SIDE_S, choose_device, choose_precision, each, probe_wave
from featstore.extractors.titanet_dense import embed_dense
from featstore.types import MIMI_GRID, FeatureSpec

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

DEFAULT_WEIGHTS = "hf:nvidia/speakerverification_en_titanet_large"
WEIGHTS_FILE = "speakerverification_en_titanet_large.nemo"

DIM = 192
# Windows at once: few on a CPU, where a batch should stay in the cache.
BATCH_WINDOWS = {"cpu": 16, "mps": 64, "cuda": 256}
# Largest difference to NeMo's own embedding of the same window, as a share of its length.
_TOLERANCE = 1e-3


def _config(filters: int, repeat: int, out_filters: int, attention_channels: int, num_classes: int) -> dict[str, Any]:
    """NeMo's ``titanet-large.yaml`` (examples/speaker_tasks/recognition/conf) with its sizes as arguments."""

    def block(filters: int, kernel: int, repeat: int, residual: bool) -> dict[str, Any]:
        return {
            "filters": filters,
            "repeat": repeat,
            "kernel": [kernel],
            "stride": [1],
            "dilation": [1],
            "dropout": 0.1 if residual else 0.0,
            "residual": residual,
            "separable": True,
            "se": True,
            "se_context_size": -1,
        }

    return {
        "sample_rate": 16000,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "normalize": "per_feature",
            "window_size": 0.025,
            "sample_rate": 16000,
            "window_stride": 0.01,
            "window": "hann",
            "features": 80,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 0.00001,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": 80,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [
                block(filters, 3, 1, residual=False),
                *(block(filters, kernel, repeat, residual=True) for kernel in (7, 11, 15)),
                block(out_filters, 1, 1, residual=False),
            ],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.SpeakerDecoder",
            "feat_in": out_filters,
            "num_classes": num_classes,
            "pool_mode": "attention",
            "emb_sizes": 192,
            "attention_channels": attention_channels,
            "angular": True,
        },
    }


#: The published TitaNet-Large: 23.5 M parameters with its head for 7205 training speakers.
TITANET_FULL = _config(filters=1024, repeat=3, out_filters=3072, attention_channels=128, num_classes=7205)

#: The same architecture made small; embeddings are still 192-d.
TITANET_NANO = _config(filters=128, repeat=2, out_filters=384, attention_channels=64, num_classes=2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NeMo's banners, logs and warnings off the user's screen while it is imported or builds a model."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def build_titanet(config: Mapping[str, Any] | None = None) -> EncDecSpeakerLabelModel:
    """NeMo's EncDecSpeakerLabelModel in eval mode with its default initialisation (importing NeMo takes ~20 s).

    Parameters
    ----------
    config : what `TITANET_FULL` and `TITANET_NANO` are examples of; None means `TITANET_FULL`. A ``loss``
        may be added for training.
    """
    with _quiet():
        from nemo.collections.asr.models import EncDecSpeakerLabelModel
        from omegaconf import OmegaConf

        model = EncDecSpeakerLabelModel(OmegaConf.create(copy.deepcopy(dict(config or TITANET_FULL))))
    return model.eval()


def load_titanet(source: sources.Source) -> tuple[EncDecSpeakerLabelModel, str]:
    """NeMo's model with the weights of `source`, and their SHA-256.

    Raises
    ------
    WeightsError : the file is damaged, unsafe, or of another architecture.
    """
    if source.path is None:
        model = build_titanet(TITANET_FULL if source.full else TITANET_NANO)
        weights_of.randomise(model, source.seed)
        return model, weights_of.state_sha256(model.state_dict())

    if source.path.suffix == ".nemo":
        from featstore.extractors.nemo_archive import read_nemo

        state, config = read_nemo(source.path)
    else:
        state, config = weights_of.read_safetensors(source.path)
    config = _safe_config(config or TITANET_FULL, source.path.name)
    try:
        with torch.device("meta"):
            outline = build_titanet(config)
        # The outline takes no memory: a file that does not fit its own configuration is found out here.
        weights_of.load(outline, state, source, optional=("preprocessor.", "decoder.final."))
        model = build_titanet(config)
    except sources.WeightsError:
        raise
    except Exception as error:  # Hydra and NeMo wrap whatever a wrong configuration leads to.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise sources.WeightsError(f"{source.path.name}: its configuration does not make a TitaNet: {first}") from None
    model.load_state_dict({k: v for k, v in outline.state_dict().items() if not v.is_meta}, strict=False)
    return model, weights_of.file_sha256(source.path)


def _safe_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Only the parts that make the network, and only the three classes a TitaNet is made of."""
    kinds = {
        "preprocessor": "AudioToMelSpectrogramPreprocessor",
        "encoder": "ConvASREncoder",
        "decoder": "SpeakerDecoder",
    }
    safe: dict[str, Any] = {"sample_rate": windows.SAMPLE_RATE_HZ}
    for section, kind in kinds.items():
        values = config.get(section)
        found = str(values.get("_target_", "")).rpartition(".")[2] if isinstance(values, Mapping) else None
        if found != kind:
            raise sources.WeightsError(f"{name}: {section}: expected a TitaNet's {kind}, found {found or 'nothing'}")
        safe[section] = {**values, "_target_": f"nemo.collections.asr.modules.{kind}"}
    # The loss itself is not needed, but an angular one leaves the head without bias.
    loss = config.get("loss")
    if isinstance(loss, Mapping) and "angular" in str(loss.get("_target_", "")).lower():
        safe["decoder"]["angular"] = True
    return safe


class TitaNetExtractor:
    """TitaNet embeddings of 1.5 s windows centred on Mimi's frames.

    Frame i is centred at 0.04 + 0.08 i seconds, as Mimi's. At the ends of a wave windows are cut off, not filled
    up; only waves shorter than 0.1 s are filled with zeros to 0.1 s. Silence gives finite embeddings.

    Parameters
    ----------
    weights : see `featstore.extractors.sources.resolve`; a ``.nemo`` file or safetensors.
    device, precision : see `featstore.extractors.device`.
    hop_frames : embed every n-th frame only; each other frame takes the nearest one's embedding (the earlier of two).
    mode : "exact", NeMo's own number for each window, or "dense": the network once over long stretches, many times
        faster and only nearly the same (see `titanet_dense`; benchmarks/RESULTS.md has cosines).

    Raises
    ------
    ExtractorError : weights, device or precision cannot be had, or the weights are not a TitaNet's.
    """

    def __init__(
        self,
        weights: str = DEFAULT_WEIGHTS,
        device: str = "auto",
        precision: str = "auto",
        hop_frames: int = 1,
        mode: str = "exact",
    ) -> None:
        if mode not in ("exact", "dense"):
            raise ExtractorError(f"titanet: mode must be exact or dense, found {mode!r}")
        self._mode = mode
        if not isinstance(hop_frames, int) or not 1 <= hop_frames <= 1000:
            raise ExtractorError(f"titanet: hop_frames must be a whole number from 1 to 1000, found {hop_frames!r}")
        self._hop = hop_frames
        self._device = choose_device(device)
        self.device = str(self._device)
        self.batch_s = SIDE_BY_SIDE_S if self._device.type == "cpu" and mode == "dense" else None
        source = sources.resolve(
            weights, file=WEIGHTS_FILE, demo="titanet-nano.safetensors", suffixes=(".nemo", ".safetensors")
        )
        model, sha256 = load_titanet(source)
        try:
            log_mel, net = windows.LogMel(model), windows.WindowNet(model)
        except (ValueError, AttributeError, TypeError) as error:
            raise sources.WeightsError(f"{source.label}: not a TitaNet: {error}") from None
        _check_against_nemo(model, log_mel, net, source)
        self._log_mel = log_mel.to(self._device)
        self._nets = {"float32": net.to(self._device)}
        chosen = choose_precision(precision, self._device, self._probe)
        self._nets = {chosen: self._net(chosen)}
        self._precision = chosen
        self.spec = FeatureSpec(
            name="titanet",
            dim=DIM,
            dtype="float16",
            sample_rate_hz=windows.SAMPLE_RATE_HZ,
            grid=MIMI_GRID,
            model="TitaNet (NeMo)",
            weights_sha256=sha256,
            # Only what differs from the default is added: stores made before there was a choice keep their fingerprint.
            settings={"weights": source.label, "precision": chosen, "window_s": 1.5, "hop_frames": hop_frames}
            | ({"mode": mode} if mode != "exact" else {}),
        )

    def extract(self, waves: Sequence[NDArray]) -> list[NDArray]:
        """See `featstore.extractors.Extractor.extract`: each ``(samples,)`` → ``(ceil(samples / 1280), 192)``."""
        waves = [checked_wave(wave, self.spec) for wave in waves]
        if self._mode == "dense":
            found = each(lambda wave: self._embed(wave, self._precision), waves, self._device)
        else:  # here a wave's windows are shared among the cores
            found = [self._embed(wave, self._precision) for wave in waves]
        return [checked_frames(frames, self.spec) for frames in found]

    def _embed(self, wave: NDArray, precision: str) -> NDArray:
        num_frames = math.ceil(len(wave) / windows.FRAME_SAMPLES)
        computed = range(0, num_frames, self._hop)
        with torch.inference_mode():
            signal, net = torch.tensor(wave, device=self._device), self._net(precision)
            if self._mode == "dense":
                found = embed_dense(signal, computed, self._log_mel, net)
            else:
                batch = BATCH_WINDOWS[self._device.type]
                found = windows.embed_windows(signal, computed, self._log_mel, net, batch)
        found = found.cpu().numpy()
        nearest = np.ceil(np.arange(num_frames) / self._hop - 0.5).astype(np.int64)
        return found[np.minimum(nearest, len(found) - 1)]

    def _net(self, precision: str) -> windows.WindowNet:
        if precision not in self._nets:
            # A copy: going to half precision and back would cost the weights their low bits.
            self._nets[precision] = copy.deepcopy(self._nets["float32"]).to(PRECISIONS[precision])
        return self._nets[precision]

    def _probe(self, precision: str) -> NDArray:
        return self._embed(probe_wave(windows.SAMPLE_RATE_HZ), precision)


def _check_against_nemo(
    model: EncDecSpeakerLabelModel, log_mel: windows.LogMel, net: windows.WindowNet, source: sources.Source
) -> None:
    """Refuse a network whose windows do not come out as NeMo computes them, on a probe signal.

    Raises
    ------
    WeightsError : they differ by more than `_TOLERANCE` of their length.
    """
    wave = torch.from_numpy(probe_wave(windows.SAMPLE_RATE_HZ, seconds=3.0))
    # A window cut off at the start, a full one, one cut off at the end.
    frames = range(0, 37, 18)
    with torch.inference_mode():
        found = windows.embed_windows(wave, frames, log_mel, net, batch=len(frames))
        for frame, ours in zip(frames, found, strict=True):
            begin, end = windows.bounds(frame, len(wave))
            signal = wave[None, begin:end]
            theirs = model(input_signal=signal, input_signal_length=torch.tensor([end - begin]))[1][0]
            difference = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
            if not difference <= _TOLERANCE:
                raise sources.WeightsError(
                    f"{source.label}: the embedding of a probe window differs from NeMo's own by {difference:.2g} of "
                    f"its length, expected at most {_TOLERANCE}: this network is not the TitaNet we know"
                )
