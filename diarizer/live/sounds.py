"""Sound as it comes: any rate, any number of channels, pushes of any size; samples at an encoder's rate out.

soxr's own stream keeps a state that cannot be saved. Here blocks of fixed length are resampled with some of what lies
before and after, whose samples are thrown away: the same numbers (to 1e-7 of full scale), and nothing to keep but sound.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from featstore.corpora.audio import MIN_RATE_HZ

#: Samples, at the lower of both rates, that are heard before and after a block.
_AROUND = 160
_BLOCK_S = 0.02


def mono(samples: ArrayLike) -> NDArray[np.float32]:
    """Samples (n,) or (n, channels) as mono float32; integers have their type's full scale.

    Raises
    ------
    ValueError : another shape or type, NaN or infinite samples.
    """
    wave = np.asarray(samples)
    if wave.ndim == 2 and wave.shape[0] < wave.shape[1] and 0 < wave.shape[0] <= 16 and wave.shape[1] > 16:
        raise ValueError(f"samples must be (samples,) or (samples, channels), found {wave.shape}: turn them round")
    if wave.ndim not in (1, 2) or wave.dtype.kind not in "fiu" or (wave.ndim == 2 and not wave.shape[1]):
        raise ValueError(
            f"samples must be numbers of shape (samples,) or (samples, channels), found {wave.dtype} of {wave.shape}"
        )
    full = 1.0 if wave.dtype.kind == "f" else float(np.iinfo(wave.dtype).max)
    one = (wave.mean(1) if wave.ndim == 2 else wave).astype(np.float32) / np.float32(full)
    if not np.isfinite(one).all():
        raise ValueError(f"samples hold NaN or infinity, first at {int(np.argmin(np.isfinite(one)))}")
    return one


class Resampler:
    """From one rate to another, in blocks: what comes out does not depend on the sizes of what is put in.

    Raises
    ------
    ValueError : a rate below 1000 Hz.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        if from_hz < MIN_RATE_HZ:
            raise ValueError(f"samples need their rate in Hz, {MIN_RATE_HZ} or more, found {from_hz!r}")
        self.from_hz, self.to_hz = from_hz, to_hz
        unit = from_hz // gcd(from_hz, to_hz)
        self._block = unit * max(1, round(_BLOCK_S * from_hz / unit))
        self._around = unit * -(-_AROUND * max(1, -(-from_hz // to_hz)) // unit)
        self._wave: NDArray[np.float32] = np.zeros(0, np.float32)
        self._before = 0

    @property
    def ahead_s(self) -> float:
        """How long sound waits here at most."""
        return 0.0 if self.from_hz == self.to_hz else (self._block + self._around) / self.from_hz

    def push(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes out of mono samples."""
        if self.from_hz == self.to_hz:
            return wave
        self._wave = np.concatenate([self._wave, wave])
        out = []
        while len(self._wave) >= self._before + self._block + self._around:
            out.append(self._one(self._block, self._before + self._block + self._around))
            drop = max(0, self._before + self._block - self._around)
            self._wave, self._before = self._wave[drop:], self._before + self._block - drop
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """The rest."""
        left = len(self._wave) - self._before
        rest = self._one(left, len(self._wave)) if left > 0 else np.zeros(0, np.float32)
        self._wave, self._before = np.zeros(0, np.float32), 0
        return rest

    def _one(self, samples: int, upto: int) -> NDArray[np.float32]:
        found = soxr.resample(self._wave[:upto], self.from_hz, self.to_hz, "HQ")
        begin = self._before * self.to_hz // self.from_hz
        return found[begin : begin + -(-samples * self.to_hz // self.from_hz)]

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"wave": self._wave, "before": np.array(self._before)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._wave, self._before = state["wave"], int(state["before"])
