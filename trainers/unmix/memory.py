"""A memory of voices: sets of embeddings come chunk by chunk, and who was heard before keeps their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Memory:
    """Known voices as sums of what was heard of them.

    In a chunk one number is one voice: the pairs of the largest cosine first, as far as they reach `threshold`; what is left
    over is somebody new. Who was heard in fewer than `confirm` chunks has no number yet.

    Source: the online memory of arXiv 2604.03219 (cosine to a running mean, one identity a voice a chunk, best first);
    `confirm` is ours.

    Parameters
    ----------
    threshold : cosine to a known voice from which on it is that one.
    """

    def __init__(self, threshold: float, confirm: int = 1) -> None:
        self.threshold, self.confirm = threshold, confirm
        self._sums: list[NDArray[np.float64]] = []
        self._heard: list[int] = []
        self._numbers: dict[int, int] = {}

    def __len__(self) -> int:
        """How many voices have a number."""
        return len(self._numbers)

    def hear(self, voices: NDArray[np.float32]) -> list[int | None]:
        """The numbers of a chunk's voices (voices, size) of length 1, from 0 in order of arrival; None: not yet known."""
        places: list[int | None] = [None] * len(voices)
        if self._sums and len(voices):
            known = np.stack(self._sums)
            cosines = voices @ (known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-9)).T
            while cosines.max() >= self.threshold:
                voice, place = (int(k) for k in np.unravel_index(cosines.argmax(), cosines.shape))
                places[voice] = place
                cosines[voice], cosines[:, place] = -np.inf, -np.inf
        for voice, known_as in enumerate(places):
            place = len(self._sums) if known_as is None else known_as
            if place == len(self._sums):
                self._sums.append(np.zeros(voices.shape[1]))
                self._heard.append(0)
            places[voice] = place
            self._sums[place] += voices[voice]
            self._heard[place] += 1
            if self._heard[place] >= self.confirm:
                self._numbers.setdefault(place, len(self._numbers))
        return [None if place is None else self._numbers.get(place) for place in places]
