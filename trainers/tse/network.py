"""The networks: a mixture's spectrum and an embedding in, a complex mask out.

Both take the spectrum's log magnitude, and both are told whom to listen for by FiLM (Perez et al., arXiv 1709.07871): the
embedding gives each channel a factor and an offset, before each repeat.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.runs import MODEL
from trainers.runs import Run
from trainers.tse.config import TseConfig

RATE_HZ = 16000
#: No mask may make a bin louder than this times the mixture: a network that has learnt nothing stays harmless.
_LOUDEST = 2.0


class Extractor(nn.Module):
    """A mixture and an embedding → the voice; without embeddings, all voices at once.

    Parameters
    ----------
    size : of the embedding; 0: none, and `voices` come out.

    Attributes
    ----------
    centre : (size,), embeddings are directions from there.
    """

    centre: Tensor
    hann: Tensor

    def __init__(
        self,
        *,
        size: int,
        architecture: str = "tcn",
        channels: int = 128,
        blocks: int = 8,
        repeats: int = 2,
        window: int = 512,
        hop: int = 128,
        voices: int = 1,
    ) -> None:
        super().__init__()
        self.size, self.window, self.hop = size, window, hop
        self.voices = 1 if size else voices
        bins = window // 2 + 1
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.enter = nn.Conv1d(bins, channels, 1)
        make = {"tcn": lambda: _Convolutions(channels, blocks), "gru": lambda: _Recurrent(channels)}[architecture]
        self.parts = nn.ModuleList(make() for _ in range(repeats))
        self.told = nn.ModuleList(nn.Linear(size, 2 * channels) for _ in range(repeats if size else 0))
        last: Any = nn.Conv1d(channels, 2 * bins * self.voices, 1)
        with torch.no_grad():  # to begin with, half of the mixture comes out: there is nothing to find out about phases
            last.bias.zero_().view(self.voices, 2, bins)[:, 0] = 0.5
        self.leave = nn.Sequential(nn.PReLU(), last)

    @classmethod
    def of(cls, config: TseConfig, size: int) -> Extractor:
        """The network that a configuration asks for; `size` is the embedding's."""
        names = ("architecture", "channels", "blocks", "repeats", "window", "hop", "voices")
        made = {name: value for name, value in asdict(config).items() if name in names}
        return cls(size=size if config.condition == "embedding" else 0, **made)

    @classmethod
    def load(cls, run: Run[Any], device: torch.device) -> Extractor:
        """The best network of a run.

        Raises
        ------
        RunError : there is none, or it is damaged.
        """
        tensors, facts = run.read_tensors(MODEL)
        made = cls.of(run.config, int(facts["size"]))
        made.load_state_dict(tensors)
        return made.to(device).eval()

    def forward(self, mixture: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(batch, samples) and (batch, size) of length 1 → (batch, samples); without embeddings (batch, voices, samples)."""
        batch, samples = mixture.shape
        # As loud as any other: how loud a voice is says nothing about whose it is.
        loudness = mixture.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        spectrum = torch.stft(mixture / loudness, self.window, self.hop, window=self.hann, return_complex=True)
        x = (spectrum.abs() + 1e-3).log()
        x = self.enter((x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-3))
        for number, part in enumerate(self.parts):
            if embedding is not None:
                # Of length 1 in many dimensions each number is next to nothing: as large as the channels they are to move.
                factor, offset = self.told[number](embedding * self.size**0.5)[..., None].chunk(2, 1)
                x = x * (1 + factor) + offset
            x = part(x)
        mask = self.leave(x).reshape(batch, self.voices, 2, *spectrum.shape[1:])
        mask = _LOUDEST * torch.tanh(mask / _LOUDEST)
        voice = torch.complex(mask[:, :, 0], mask[:, :, 1]) * spectrum[:, None]
        waves = torch.istft(voice.flatten(0, 1), self.window, self.hop, window=self.hann, length=samples)
        waves = waves.reshape(batch, self.voices, samples) * loudness[:, None]
        return waves[:, 0] if self.size else waves


class _Convolutions(nn.Sequential):
    """One repeat of a TCN: residual blocks of depthwise convolutions, each dilated twice as far as the one before.

    Source: Luo and Mesgarani, Conv-TasNet, arXiv 1809.07454, without its skip connections.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__(*(_Block(channels, 2 * channels, 2**n) for n in range(blocks)))


class _Block(nn.Module):
    def __init__(self, channels: int, inside: int, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(channels, inside, 1),
            nn.PReLU(),
            nn.GroupNorm(1, inside, eps=1e-8),
            nn.Conv1d(inside, inside, 3, dilation=dilation, padding=dilation, groups=inside),
            nn.PReLU(),
            nn.GroupNorm(1, inside, eps=1e-8),
            nn.Conv1d(inside, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class _Recurrent(nn.Module):
    """A layer of a GRU in both directions, as a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.net = nn.GRU(channels, channels, batch_first=True, bidirectional=True)
        self.back = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.net(self.norm(x.transpose(1, 2)))[0]).transpose(1, 2)


def loss(estimate: Tensor, reference: Tensor, ceiling_db: float = 30.0) -> Tensor:
    """Minus SI-SDR in dB (Le Roux et al., arXiv 1811.02508), (…, samples) → (…,), up to a ceiling.

    Beyond `ceiling_db` nothing is gained (Wisdom et al., arXiv 2006.12701): voices that are nearly alone would otherwise
    outweigh all others.
    """
    estimate = estimate - estimate.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    power = reference.square().sum(-1, keepdim=True) + 1e-8
    target = (estimate * reference).sum(-1, keepdim=True) / power * reference
    signal, noise = target.square().sum(-1), (estimate - target).square().sum(-1)
    return 10 * torch.log10((noise + 10 ** (-ceiling_db / 10) * signal + 1e-8) / (signal + 1e-8))


def best_assignment(estimates: Tensor, references: Tensor, counts: Tensor) -> Tensor:
    """Permutation-invariant loss (Yu et al., arXiv 1607.00325): (batch, voices, samples) against as many references.

    Parameters
    ----------
    counts : (batch,) how many of the references there are; the others are zeros and cost nothing.

    Returns
    -------
    (batch,) mean loss over the true voices under the assignment that makes it least.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = loss(estimates[:, :, None], references[:, None])  # (batch, estimates, references)
    each = []
    for table, count in zip(pairs, counts.tolist(), strict=True):
        rows, columns = linear_sum_assignment(table[:, :count].detach().cpu().numpy())
        each.append(table[:, :count][rows, columns].mean())
    return torch.stack(each)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (…, size) at length 1."""
    return functional.normalize(vectors, dim=-1)
