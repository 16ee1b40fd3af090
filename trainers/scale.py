"""One scale: every feature minus its mean vector, divided by one number, both of the training frames.

Encoders' values differ in size by a hundred times; side by side as they are, a head hardly sees the smaller ones. One
number a feature, since a number a dimension would blow up dimensions that hardly change. docs/decisions/0009 has what
was compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore import Store


@dataclass(frozen=True, eq=False)
class Scale:
    """What brings features side by side to one scale.

    Attributes
    ----------
    mean, size : (dim,) float32, over the features side by side; `size` is one number inside a feature.
    """

    mean: NDArray[np.float32]
    size: NDArray[np.float32]

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames (…, dim) on this scale."""
        return (frames - self.mean) / self.size


def scale_of(store: Store, features: Sequence[str], ids: Sequence[str]) -> Scale:
    """The scale of all frames of the utterances `ids`.

    ``size`` is the square root of the mean over a feature's dimensions of its variance over frames; 1 for a feature
    that never changes. No frame is read: the store keeps mean and deviation of every utterance.
    """
    means, sizes = [], []
    for name in features:
        frames = np.array([store.num_frames(name, id) for id in ids], dtype=np.float64)[:, None]
        mean, std = (store.pooled(name, ids, statistic).astype(np.float64) for statistic in ("mean", "std"))
        centre = (frames * mean).sum(0) / frames.sum()
        variance = (frames * (std**2 + (mean - centre) ** 2)).sum(0) / frames.sum()
        size = float(np.sqrt(variance.mean()))
        means.append(centre)
        sizes.append(np.full(len(centre), size if size > 0 else 1.0))
    return Scale(np.concatenate(means).astype(np.float32), np.concatenate(sizes).astype(np.float32))


class OneScale(nn.Module):
    """A `Scale` that travels with a network's weights; as made, it changes nothing."""

    mean: Tensor
    size: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("size", torch.ones(dim))

    def take(self, scale: Scale) -> None:
        """Use `scale` from now on."""
        self.mean.copy_(torch.from_numpy(scale.mean))
        self.size.copy_(torch.from_numpy(scale.size))

    def forward(self, features: Tensor) -> Tensor:
        """Features (…, dim) of any floating type → float32 on this scale."""
        return (features.float() - self.mean) / self.size
