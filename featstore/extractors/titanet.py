"""TitaNet speaker embeddings on Mimi's frame grid, 192-d, by NeMo's model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.extractors import ExtractorError, checked_frames, checked_wave, nobody, sources
from featstore.extractors import titanet_windows as windows
from featstore.extractors.device import PRECISIONS, SIDE_BY_SIDE_S, choose_device, choose_precision, each, probe_wave
from featstore.extractors.titanet_dense import embed_dense
from featstore.extractors.titanet_nemo import load_titanet
from featstore.extractors.titanet_network import WindowNet
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
        self.told: Callable[[float], None] = nobody
        source = sources.resolve(
            weights, file=WEIGHTS_FILE, demo="titanet-nano.safetensors", suffixes=(".nemo", ".safetensors")
        )
        model, sha256 = load_titanet(source)
        try:
            log_mel, net = windows.LogMel(model), WindowNet(model)
        except (ValueError, AttributeError, TypeError) as error:
            raise sources.WeightsError(f"{source.label}: not a TitaNet: {error}") from None
        if (found := net.embed.out_features) != DIM:
            raise sources.WeightsError(
                f"{source.label}: expected a TitaNet with embeddings of {DIM} dimensions, found {found}"
            )
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

    def extract(self, waves: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """See `featstore.extractors.Extractor.extract`: each ``(samples,)`` → ``(ceil(samples / 1280), 192)``."""
        waves = [checked_wave(wave, self.spec) for wave in waves]
        if self._mode == "dense":
            found = each(lambda wave: self._embed(wave, self._precision), waves, self._device)
        else:  # here a wave's windows are shared among the cores
            found = [self._embed(wave, self._precision) for wave in waves]
        return [checked_frames(frames, self.spec) for frames in found]

    def _embed(self, wave: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
        num_frames = math.ceil(len(wave) / windows.FRAME_SAMPLES)
        computed = range(0, num_frames, self._hop)
        with torch.inference_mode():
            signal, net = torch.tensor(wave, device=self._device), self._net(precision)
            if self._mode == "dense":
                found = embed_dense(signal, computed, self._log_mel, net, self.told)
            else:
                batch = BATCH_WINDOWS[self._device.type]
                found = windows.embed_windows(signal, computed, self._log_mel, net, batch, self.told)
        frames: NDArray[np.float32] = found.cpu().numpy()
        nearest = np.ceil(np.arange(num_frames) / self._hop - 0.5).clip(max=len(frames) - 1)
        return frames[nearest.astype(np.int64)]

    def _net(self, precision: str) -> WindowNet:
        if precision not in self._nets:
            # A copy: going to half precision and back would cost the weights their low bits.
            self._nets[precision] = copy.deepcopy(self._nets["float32"]).to(PRECISIONS[precision])
        return self._nets[precision]

    def _probe(self, precision: str) -> NDArray[np.float32]:
        return self._embed(probe_wave(windows.SAMPLE_RATE_HZ), precision)


def _check_against_nemo(
    model: EncDecSpeakerLabelModel, log_mel: windows.LogMel, net: WindowNet, source: sources.Source
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
