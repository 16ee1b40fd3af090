"""Mimi's latents before quantisation, 512-d at 12.5 Hz, by moshi's own model. Only this file and mimi_codes.py import moshi."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.extractors import checked_frames, checked_wave, nobody, sources
from featstore.extractors import weights as weights_of
from featstore.extractors.device import (
    PRECISIONS,
    SIDE_BY_SIDE_S,
    choose_device,
    choose_precision,
    each,
    probe_wave,
)
from featstore.types import MIMI_GRID, FeatureSpec

if TYPE_CHECKING:
    from moshi.models import MimiModel

DEFAULT_WEIGHTS = "hf:kyutai/moshiko-pytorch-bf16"
#: The same file in Kyutai's repositories and in nvidia/personaplex-7b-v1.
WEIGHTS_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"

SAMPLE_RATE_HZ = 24000
FRAME_SAMPLES = 1920
DIM = 512

# Waves longer than a piece go through the streaming state piece by piece; memory does not grow with their length.
PIECE_FRAMES = {"cpu": 125, "mps": 250, "cuda": 250}
# On a GPU short waves share a batch of this many frames in all.
BATCH_FRAMES = 4000

#: Kyutai's published architecture (moshi 0.2.13, ``moshi/models/loaders.py``): 79.3 M parameters.
MIMI_FULL: dict[str, Any] = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 512,
        "causal": True,
        "n_filters": 64,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048, "input_dimension": 512, "output_dimension": 512},
    "transformer": {
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 8,
        "causal": True,
        "layer_scale": 0.01,
        "context": 250,
        "conv_layout": True,
        "max_period": 10000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 2048,
        "input_dimension": 512,
        "output_dimensions": [512],
    },
}

#: The same architecture made small (encoder side 3.1 M parameters); latents are still 512-d at 12.5 Hz.
MIMI_NANO: dict[str, Any] = {
    **MIMI_FULL,
    "seanet": {**MIMI_FULL["seanet"], "n_filters": 16},
    "quantizer": {"dimension": 32, "n_q": 8, "bins": 64, "input_dimension": 512, "output_dimension": 512},
    "transformer": {
        **MIMI_FULL["transformer"],
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 4,
        "dim_feedforward": 512,
    },
}


def build_mimi(config: Mapping[str, Any] | None = None, device: str = "cpu") -> MimiModel:
    """moshi's MimiModel in eval mode with its default initialisation.

    Parameters
    ----------
    config : what `MIMI_FULL` and `MIMI_NANO` are examples of; None means `MIMI_FULL`.
    """
    from moshi.models import loaders

    config = MIMI_FULL if config is None else config
    # moshi puts half of its modules on the default device first; `meta` allocates nothing at all.
    with torch.device(device):
        return loaders.get_mimi(None, dict(config), device=device, num_codebooks=config["quantizer"]["n_q"])


def uncompiled() -> AbstractContextManager[None]:
    """moshi's modules as plain PyTorch: shapes differ from call to call, which compiled kernels do not like."""
    from moshi.utils.compile import no_compile

    return no_compile()


def load_mimi(source: sources.Source) -> tuple[MimiModel, str]:
    """The encoder side of Mimi with the weights of `source`, and their SHA-256. Decoder and quantiser are dropped.

    Raises
    ------
    WeightsError : the file is damaged or of another architecture.
    """
    if source.path is None:
        model = build_mimi(MIMI_FULL if source.full else MIMI_NANO)
        weights_of.randomise(model, source.seed)
        _drop_decoder(model)
        return model, weights_of.state_sha256(model.state_dict())

    state, config = weights_of.read_safetensors(source.path)
    try:
        model = build_mimi(config, device="meta")
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise sources.WeightsError(f"{source.path.name}: its configuration does not make a Mimi: {error}") from None
    if (model.sample_rate, model.frame_rate, model.dimension) != (SAMPLE_RATE_HZ, 12.5, DIM):
        raise sources.WeightsError(
            f"{source.path.name}: expected {SAMPLE_RATE_HZ} Hz, 12.5 frames/s, {DIM} dimensions; found "
            f"{model.sample_rate} Hz, {model.frame_rate} frames/s, {model.dimension} dimensions"
        )
    _drop_decoder(model)
    weights_of.load(model, state, source)
    return model, sources.file_sha256(source.path)


def _drop_decoder(model: MimiModel) -> None:
    for part in ("decoder", "decoder_transformer", "upsample", "quantizer"):
        setattr(model, part, None)


class MimiExtractor:
    """Mimi's 12.5 Hz latents after its learnt downsampling, before quantisation.

    A frame is 1920 samples at 24 kHz; the last one is filled up with zeros. Mimi is causal: a frame depends on
    its own samples and on what came before, so waves can be padded at the end and long ones fed in pieces.

    Parameters
    ----------
    weights : see `featstore.extractors.sources.resolve`; safetensors with Kyutai's or PersonaPlex's key names.
    device, precision : see `featstore.extractors.device`.

    Raises
    ------
    ExtractorError : weights, device or precision cannot be had.
    """

    def __init__(self, weights: str = DEFAULT_WEIGHTS, device: str = "auto", precision: str = "auto") -> None:
        self._device = choose_device(device)
        self.device = str(self._device)
        self.batch_s = SIDE_BY_SIDE_S if self._device.type == "cpu" else None
        self.told: Callable[[float], None] = nobody
        source = sources.resolve(weights, file=WEIGHTS_FILE, demo="mimi-nano.safetensors", suffixes=(".safetensors",))
        model, sha256 = load_mimi(source)
        self._model = model.eval().to(self._device)
        self._spare: list[MimiModel] = []
        chosen = choose_precision(precision, self._device, self._probe)
        self._model.to(PRECISIONS[chosen])
        self.spec = FeatureSpec(
            name="mimi",
            dim=DIM,
            dtype="float16",
            sample_rate_hz=SAMPLE_RATE_HZ,
            grid=MIMI_GRID,
            model="Mimi (moshi)",
            weights_sha256=sha256,
            settings={"weights": source.label, "precision": chosen},
        )

    def extract(self, waves: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """See `featstore.extractors.Extractor.extract`: each ``(samples,)`` → ``(ceil(samples / 1920), 512)``."""
        waves = [checked_wave(wave, self.spec) for wave in waves]
        return [checked_frames(frames, self.spec) for frames in self._encode(waves)]

    def _probe(self, precision: str) -> NDArray[np.float32]:
        # On a copy: going to half precision and back would cost the weights their low bits.
        exact, self._model = self._model, copy.deepcopy(self._model).to(PRECISIONS[precision])
        try:
            return self._encode([probe_wave(SAMPLE_RATE_HZ)])[0]
        finally:
            self._model = exact
            self._spare.clear()

    def _encode(self, waves: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        from moshi.utils.compile import no_cuda_graph

        with torch.inference_mode(), uncompiled(), no_cuda_graph():
            if self._device.type != "cuda":
                return each(self._alone, waves, self._device)
            frames: list[NDArray[np.float32] | None] = [None] * len(waves)
            for length, batch in _buckets([len(wave) for wave in waves], PIECE_FRAMES["cuda"] * FRAME_SAMPLES):
                # Always the same shape for a length: a wave's frames do not depend on the waves beside it.
                rows = np.zeros((BATCH_FRAMES * FRAME_SAMPLES // length, length), dtype=np.float32)
                for row, index in zip(rows, batch, strict=False):
                    row[: len(waves[index])] = waves[index]
                found = _latent(self._model, rows)
                for row, index in zip(found, batch, strict=False):
                    frames[index] = row[: _num_frames(waves[index])].copy()
            return [self._alone(wave) if got is None else got for wave, got in zip(waves, frames, strict=True)]

    def _alone(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """One wave through a model of this thread's own: moshi keeps the streaming state in its modules."""
        try:
            model = self._spare.pop()
        except IndexError:
            shared = {id(tensor): tensor for tensor in (*self._model.parameters(), *self._model.buffers())}
            model = copy.deepcopy(self._model, shared)
        try:
            return _stream(model, wave, PIECE_FRAMES[self._device.type], self.told)
        finally:
            self._spare.append(model)


def _latent(model: MimiModel, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(batch, samples)`` → ``(batch, frames, 512)`` float32, samples a multiple of a frame."""
    param = next(model.parameters())
    x = torch.from_numpy(rows)[:, None].to(param.device, param.dtype)
    latent: torch.Tensor = model.encode_to_latent(x, quantize=False)
    return latent.transpose(1, 2).float().cpu().numpy()


def _stream(
    model: MimiModel, wave: NDArray[np.float32], piece_frames: int, told: Callable[[float], None]
) -> NDArray[np.float32]:
    """``(samples,)`` → ``(frames, 512)``, in pieces through the streaming state where it is longer than one."""
    num_frames, step = _num_frames(wave), piece_frames * FRAME_SAMPLES
    if num_frames <= piece_frames:
        return _latent(model, _filled(wave)[None]).squeeze(0)
    frames = np.empty((num_frames, DIM), dtype=np.float32)
    with model.streaming(1):
        _widen_caches(model, piece_frames)
        for at in range(0, num_frames, piece_frames):
            piece = _filled(wave[at * FRAME_SAMPLES : at * FRAME_SAMPLES + step])
            frames[at : at + piece_frames] = _latent(model, piece[None])[0]
            told(len(piece) / SAMPLE_RATE_HZ)
    return frames


def _num_frames(wave: NDArray[np.float32]) -> int:
    return math.ceil(len(wave) / FRAME_SAMPLES)


def _filled(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """`wave` with zeros up to a whole number of frames."""
    return np.pad(wave, (0, -len(wave) % FRAME_SAMPLES))


def _buckets(lengths: list[int], longest: int) -> Iterator[tuple[int, list[int]]]:
    """Indices of waves up to `longest` samples in batches of one padded length, a whole number of 25 frames."""
    unit = 25 * FRAME_SAMPLES
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length <= longest:
            by_length.setdefault(math.ceil(length / unit) * unit, []).append(index)
    for length, indices in sorted(by_length.items()):
        size = BATCH_FRAMES * FRAME_SAMPLES // length
        yield from ((length, indices[at : at + size]) for at in range(0, len(indices), size))


def _widen_caches(model: MimiModel, piece_frames: int) -> None:
    """Let the attention of a streaming `model` see its whole context from every frame of a piece.

    moshi's ring of keys and values holds as many frames as the attention's context. A piece of n frames
    overwrites the n oldest before its first frame is computed, which then sees n - 1 frames too few: right for
    one frame at a time, off by more the longer the piece. A ring of context + n - 1 makes pieces exact.
    """
    from moshi.modules.transformer import RingKVCache, StreamingMultiheadAttention

    steps = piece_frames * round(model.encoder_frame_rate / model.frame_rate)
    assert model.encoder_transformer is not None  # Mimi has one
    for module in model.encoder_transformer.modules():
        if isinstance(module, StreamingMultiheadAttention):
            state = module._streaming_state
            assert state is not None and state.kv_cache is not None  # it streams, and attends to itself
            ring = state.kv_cache.cache
            _, batch, heads, capacity, dim = ring.shape
            state.kv_cache = RingKVCache(batch, heads, dim, capacity + steps - 1, device=ring.device, dtype=ring.dtype)
