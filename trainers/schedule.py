"""A step's learning rate and its own random draws, for loops that count steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
