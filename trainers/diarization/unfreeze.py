"""Mimi with its top transformer layers trainable, fed with audio, under the same adapter and the same loop.

Everything below the trainable layers runs without gradients: no activations of the 24 kHz encoder are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore import Store
from featstore.corpora import audio
from trainers.config import ConfigError
from trainers.diarization.config import UnfreezeConfig
from trainers.diarization.data import Batch, Crop, label_batch, prefetched, real_frames
from trainers.diarization.models import Adapter

_READERS = 4


class UnfrozenMimi(nn.Module):
    """Audio → Mimi's 12.5 Hz latents → Adapter; the top `top_layers` of Mimi's encoder transformer train along.

    Parameters
    ----------
    mimi : moshi's MimiModel (its encoder side is enough).
    adapter : on 512-d latents.
    top_layers : how many layers train, with the transformer's output projections where it has any; 0: none.
    frames : of a crop; what the waves hold before their last `frames` is left context, which Mimi hears and the
        adapter does not see.

    Raises
    ------
    ConfigError : Mimi has fewer layers.
    """

    def __init__(self, mimi: Any, adapter: Adapter, top_layers: int, frames: int) -> None:
        super().__init__()
        layers = mimi.encoder_transformer.transformer.layers
        if top_layers > len(layers):
            raise ConfigError(f"mimi_top_layers: this Mimi has {len(layers)} transformer layers, found {top_layers}")
        self.mimi, self.adapter = mimi, adapter
        self.top_layers, self.frames = top_layers, frames
        self.frame_samples = round(mimi.sample_rate / mimi.frame_rate)
        mimi.requires_grad_(False)
        if top_layers:
            for module in (*layers[-top_layers:], mimi.encoder_transformer.output_projs):
                module.requires_grad_(True)

    @classmethod
    def make(cls, store: Store, config: UnfreezeConfig, sizes: dict[str, Any], frames: int) -> UnfrozenMimi:
        """Mimi with the weights that the store's features were extracted with, and a new adapter.

        Raises
        ------
        ConfigError : the weights cannot be found again, or are others than the store's.
        ExtractorError : moshi is not installed, the weights are damaged or cannot be fetched.
        """
        from featstore.extractors import sources
        from featstore.extractors.mimi import WEIGHTS_FILE, load_mimi

        spec = store.features[config.feature]
        weights = config.mimi_weights or str(spec.settings.get("weights", ""))
        if not config.mimi_weights and not weights.startswith(("hf:", "random:", "demo")):
            raise ConfigError(
                f"{store.address}: the store does not say where Mimi's weights are (it says {weights!r}); "
                "add: --set mimi_weights=PATH"
            )
        source = sources.resolve(weights, file=WEIGHTS_FILE, demo="mimi-nano.safetensors", suffixes=(".safetensors",))
        mimi, sha256 = load_mimi(source)
        if sha256 != spec.weights_sha256:
            raise ConfigError(
                f"{store.address}: feature {config.feature!r} was made with weights {spec.weights_sha256[:8]}…, "
                f"{weights} has {sha256[:8]}…; the two runs could not be compared. Give the store's own weights"
            )
        return cls(mimi, Adapter(spec.dim, **sizes), config.mimi_top_layers, frames)

    def train(self, mode: bool = True) -> UnfrozenMimi:
        """Only the adapter has dropout to switch; Mimi always runs as it was extracted with."""
        super().train(mode)
        self.mimi.eval()
        return self

    def latents(self, waves: Tensor) -> Tensor:
        """(batch, samples) at 24 kHz, whole frames → (batch, frames, 512), as `encode_to_latent(quantize=False)`."""
        from featstore.extractors.mimi import uncompiled

        projected = self.mimi.encoder_transformer
        layers = projected.transformer.layers
        frozen = len(layers) - self.top_layers
        with uncompiled():
            with torch.no_grad():
                x = self.mimi.encoder(waves.unsqueeze(1)).transpose(1, 2)
                if projected.input_proj is not None:
                    x = projected.input_proj(x)
                for layer in layers[:frozen]:
                    x = layer(x)
            for layer in layers[frozen:]:
                x = layer(x)
            x = projected.output_projs[0](x)
            return self.mimi._to_framerate(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, waves: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (batch, frames, speakers) of waves (batch, context + crop samples); the mask is the adapter's."""
        return self.adapter(self.latents(waves)[:, -self.frames :], mask)


class AudioSource:
    """Crops of audio, decoded while the model computes; the counterpart of `FrameSource`.

    Mimi hears up to `mimi_context_s` before each crop, because cached frames were computed with all that came before.
    """

    resident = False

    def __init__(self, store: Store, config: UnfreezeConfig, length: int, device: torch.device) -> None:
        spec = store.features[config.feature]
        self._store, self._device = store, device
        self.length, self.speakers = length, config.speakers
        self.resort = config.protocol == "sound"
        self._rate = spec.sample_rate_hz
        self._step_s = spec.grid.step_s
        self._step = round(spec.grid.step_s * spec.sample_rate_hz)
        self._context = round(config.mimi_context_s / spec.grid.step_s)
        self._readers = ThreadPoolExecutor(_READERS)

    def read(self, crop: Crop, context: int) -> NDArray[np.float32]:
        """`context` frames of audio before the crop and the crop itself, ((context + length) · frame samples,).

        Where the session begins inside the context, or ends inside the crop, there are zeros.
        """
        utterance = self._store.utterance(crop.session.id)
        first = max(0, crop.start - context)
        stop = min(crop.start + self.length, crop.session.num_frames)
        start_s = first * self._step_s
        duration_s = stop * self._step_s - start_s
        if utterance.duration_s == utterance.duration_s:  # the last frame is filled up: the file may end in it
            duration_s = min(duration_s, utterance.duration_s - start_s)
        part = replace(utterance, start_s=utterance.start_s + start_s, duration_s=duration_s)
        wave = audio.load(part, self._rate, silence_ok=True)
        out = np.zeros((context + self.length) * self._step, np.float32)
        at = (context - (crop.start - first)) * self._step
        out[at : at + len(wave)] = wave[: len(out) - at]
        return out

    def batch(self, crops: Sequence[Crop]) -> Batch:
        """Read one batch of waves; a crop at the very start of its session has no context, so neither has a batch
        of such crops."""
        context = min(self._context, max(crop.start for crop in crops))
        waves = np.stack(list(self._readers.map(lambda crop: self.read(crop, context), crops)))
        labels, dropped = label_batch(crops, self.length, self.speakers, resort=self.resort)
        real = real_frames(crops, self.length)
        return Batch(
            torch.from_numpy(waves).to(self._device),
            torch.from_numpy(labels).to(self._device),
            torch.from_numpy(real).to(self._device),
            not real.all(),
            dropped,
        )

    def batches(self, crops: Sequence[Crop], size: int) -> Iterator[Batch]:
        """Batches of `size` crops in order; the next is decoded while the caller computes."""
        return prefetched(crops, size, lambda group, _: self.batch(group))
