"""What mimi-nano's latents must tell: log-mel, autocorrelation, and acoustic units without the voice in them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

SAMPLE_RATE_HZ = 24000
FRAME_SAMPLES = 1920
HOP_SAMPLES = 320  # six mel frames a latent
MELS = 64
LAGS = 64
CEPSTRA = 13
UNITS = 100


class Targets(nn.Module):
    """What the latents must tell: (batch, samples at 24 kHz) → log-mel and autocorrelation, a row a latent.

    The first, ``(batch, frames, 6 * MELS)``, is the spectral envelope six times a latent; the second,
    ``(batch, frames, 2 * LAGS)``, the autocorrelation twice a latent at lags from 2.4 to 17 ms, which holds the pitch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(1024), persistent=False)
        self.register_buffer("long_window", torch.hann_window(2048), persistent=False)
        self.register_buffer("filters", _mel_filters(), persistent=False)
        lags = torch.logspace(math.log10(0.0024), math.log10(0.017), LAGS, dtype=torch.float64) * SAMPLE_RATE_HZ
        self.register_buffer("lags", lags.round().long(), persistent=False)

    def mel(self, wave: torch.Tensor) -> torch.Tensor:
        """(batch, samples) → (batch, six frames a latent, MELS), about zero mean and unit spread."""
        # Frames are centred inside their latent's own 1920 samples, so a causal encoder can know nearly all of them.
        power = self._power(wave, 1024, HOP_SAMPLES, self.window)
        return (torch.log(self.filters @ power + 1e-4).transpose(1, 2) + 4) / 3

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mel = self.mel(wave)
        correlation = torch.fft.irfft(self._power(wave, 2048, FRAME_SAMPLES // 2, self.long_window), dim=1)
        period = correlation[:, self.lags] / (correlation[:, :1] + 1e-2)
        return mel.reshape(len(wave), -1, 6 * MELS), 3 * period.transpose(1, 2).reshape(len(wave), -1, 2 * LAGS)

    @staticmethod
    def _power(wave: torch.Tensor, size: int, hop: int, window: torch.Tensor) -> torch.Tensor:
        wave = functional.pad(wave, ((size - hop) // 2, (size - hop) // 2))
        return torch.stft(wave, size, hop, window=window, center=False, return_complex=True).abs() ** 2


class Units(nn.Module):
    """Acoustic units: clusters of cepstra with mean and spread of the recording taken out, as HuBERT starts from.

    Source: Hsu et al. 2021, arXiv 2106.07447, section II-A. Whose voice it is and over which channel is mostly in what
    is taken out.
    """

    def __init__(self) -> None:
        super().__init__()
        bands = (torch.arange(MELS) + 0.5) * math.pi / MELS
        self.register_buffer("cosines", torch.cos(torch.arange(CEPSTRA)[:, None] * bands) * math.sqrt(2 / MELS))
        self.register_buffer("centres", torch.zeros(UNITS, 3 * CEPSTRA))

    def features(self, mel: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Mel frames less their recording's mean, (batch, frames, MELS) → (batch, frames, 3 * CEPSTRA)."""
        cepstra = mel @ self.cosines.T / spread[:, None]
        slope = _slope(cepstra)
        return torch.cat([cepstra, 2 * slope, 4 * _slope(slope)], dim=2)

    def fit(self, features: NDArray[np.float32], seed: int) -> None:
        from sklearn.cluster import MiniBatchKMeans

        means = MiniBatchKMeans(UNITS, random_state=seed, n_init=1, batch_size=4096, max_iter=20).fit(features)
        self.centres.copy_(torch.from_numpy(means.cluster_centers_))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, frames, 3 * CEPSTRA) → (batch, frames) the nearest centre's number."""
        return torch.cdist(features, self.centres.expand(len(features), -1, -1)).argmin(-1)


def _slope(x: torch.Tensor) -> torch.Tensor:
    """Difference over four frames, (batch, frames, dim)."""
    padded = functional.pad(x.transpose(1, 2), (2, 2), mode="replicate").transpose(1, 2)
    return (padded[:, 4:] - padded[:, :-4]) / 2


def _mel_filters() -> torch.Tensor:
    """(MELS, 513) triangles on O'Shaughnessy's mel scale, 0 to 12 kHz, in float32."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, 513, dtype=torch.float64)
    rise = (hz - edges[:-2, None]) / (edges[1:-1, None] - edges[:-2, None])
    fall = (edges[2:, None] - hz) / (edges[2:, None] - edges[1:-1, None])
    return torch.minimum(rise, fall).clamp_min(0).float()
