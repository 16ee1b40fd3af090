"""A part of the training data, for asking what more of it would bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def share_of(items: Sequence[T], share: float, seed: int) -> list[T]:
    """A share of `items`, at least one, drawn by the seed, in their order; of one seed, a smaller share is part of a larger."""
    order = np.random.default_rng([seed, 3]).permutation(len(items))
    count = max(1, round(share * len(items)))
    return [items[i] for i in np.sort(order[:count])]
