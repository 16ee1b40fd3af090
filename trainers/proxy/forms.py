"""Codes as something that makes codes would hand them over: as logits, or with some of them wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def logits_of(codes: Tensor, bins: int, share: float, generator: torch.Generator) -> Tensor:
    """Logits (…, bins): normal noise of spread 1, and at the right code so much more that `share` of the probability is its.

    The noise takes ``bins · e^½`` on average. There is no language model's own doubt in this: which codes are probable
    besides the right one is drawn blindly.

    Raises
    ------
    ValueError : `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, found {share}")
    noise = torch.randn(*codes.shape, bins, generator=generator)
    more = math.log(bins) + 0.5 + math.log(share / (1 - share))
    return noise + more * functional.one_hot(codes.long(), bins)


def corrupted(codes: Tensor, bins: int, rate: float, generator: torch.Generator) -> Tensor:
    """Codes of which a share of `rate` is replaced by any."""
    wrong = torch.rand(codes.shape, generator=generator) < rate
    return torch.where(wrong, torch.randint(bins, codes.shape, generator=generator), codes.long())
