"""The three losses a proxy can learn by. Embeddings are of length 1 throughout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def contrastive(embeddings: Tensor, speakers: Tensor, weight: float = 5.0, margin: float = 0.0) -> Tensor:
    """Mean of ``(1 - cos)²`` over pairs of one speaker, and `weight` times that of ``max(0, cos - margin)²`` over others.

    As published for the proxy on Qwen3-TTS tokens; the publication says neither margin nor how pairs are drawn (here: all
    of the batch).

    Parameters
    ----------
    embeddings : (crops, size). speakers : (crops,) whole numbers.
    """
    cosine = embeddings @ embeddings.T
    same = speakers[:, None] == speakers[None]
    pairs = torch.ones_like(same).triu(1)
    near = (1 - cosine[same & pairs]).square()
    far = (cosine[~same & pairs] - margin).clamp(min=0).square()
    return near.sum() / max(1, len(near)) + weight * far.sum() / max(1, len(far))


class AngularMargin(nn.Module):
    """Additive angular margin (Deng et al., arXiv 1801.07698): cross-entropy over the training speakers' directions,
    which are learnt and thrown away; a crop's angle to its own counts as `angle` larger than it is."""

    def __init__(self, size: int, speakers: int, angle: float = 0.2, scale: float = 30.0) -> None:
        super().__init__()
        self.angle, self.scale = angle, scale
        self.directions = nn.Parameter(functional.normalize(torch.randn(speakers, size), dim=1))

    def forward(self, embeddings: Tensor, speakers: Tensor) -> Tensor:
        cosine = embeddings @ functional.normalize(self.directions, dim=1).T
        own = cosine.gather(1, speakers[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        # cos(θ + angle) where that is still falling, a straight line beyond.
        moved = own * math.cos(self.angle) - (1 - own.square()).sqrt() * math.sin(self.angle)
        moved = torch.where(own > -math.cos(self.angle), moved, own - self.angle * math.sin(self.angle))
        return functional.cross_entropy(self.scale * cosine.scatter(1, speakers[:, None], moved), speakers)


def to_teacher(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``1 - cos`` to the teacher's embeddings (crops, size), of any length but 0."""
    return (1 - (embeddings * functional.normalize(targets, dim=1)).sum(1)).mean()
