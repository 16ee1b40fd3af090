"""A step of a loop that counts them: its learning rate, its own random draws, the way down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.diarization.loop import seed_torch


def share_of_rate(step: int, steps: int) -> float:
    """Of the highest learning rate: linear over the first tenth, then half a cosine down to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Torch's global generators seeded by all numbers of a key inside, and as they were outside."""
    cuda = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=cuda):
        seed_torch(*key)
        yield


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter], lr: float, clip: float = 5.0
) -> None:
    """One step of the optimizer down the loss at this learning rate, gradients clipped to a norm."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
