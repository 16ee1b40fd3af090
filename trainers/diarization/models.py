"""Adapter: the head that says who speaks when."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainers.scale import OneScale


class Adapter(nn.Module):
    """The diarization head: features → per-frame logits of who is active.

    One scale (the sound protocol's; as made it changes nothing), Linear(dim → width) + sinusoidal positions → Transformer encoder → Linear(width → speakers). With the published
    sizes and 512-d features it has 7,296,388 parameters. Fusion is the same class on concatenated features.
    """

    def __init__(
        self,
        dim: int,
        *,
        speakers: int = 4,
        width: int = 384,
        layers: int = 4,
        heads: int = 6,
        ffn: int = 1536,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.scale = OneScale(dim)
        self.project = nn.Linear(dim, width)
        layer = nn.TransformerEncoderLayer(width, heads, ffn, dropout, activation="gelu", batch_first=True)
        # Nested tensors would take another path in eval than in training, and drop padded frames from the output.
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, speakers)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (batch, frames, speakers) of features (batch, frames, dim).

        `mask` (batch, frames) is True on real frames: padding is not attended to. None attends to all.
        """
        x = self.project(self.scale(features).to(self.project.weight.dtype))
        x = x + sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        return self.head(self.encoder(x, src_key_padding_mask=None if mask is None else ~mask))


def sinusoids(frames: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Position encoding (frames, width) float32: sines in even columns, cosines in odd ones.

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(frames, dtype=torch.float32, device=device).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32, device=device) * (-math.log(10000.0) / width))
    table = torch.empty(frames, width, device=device)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, trainable or not."""
    return sum(p.numel() for p in module.parameters())
