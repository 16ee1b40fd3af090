"""What is heard: a file, a part of one, or samples, at any rate and with any number of channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from featstore import Utterance
from featstore.corpora import audio

#: Shorter than this there is no telling who spoke.
MIN_S = 0.5


@dataclass(frozen=True, eq=False)
class Sound:
    """A recording's sound.

    Attributes
    ----------
    source : a file's path, a stretch of a file, or (samples,) float32 at `rate_hz`.
    """

    source: str | Utterance | NDArray[np.float32]
    rate_hz: int = 0

    @classmethod
    def of_samples(cls, samples: ArrayLike, rate_hz: int) -> Sound:
        """Sound of an array (samples,) or (samples, channels), full scale ±1; integers have their type's full scale.

        Raises
        ------
        ValueError : another shape, no samples, NaN or infinite ones, silence, a rate below 1000 Hz.
        """
        wave = np.asarray(samples)
        if wave.ndim == 2 and wave.shape[0] < wave.shape[1] and wave.shape[0] <= 16:
            raise ValueError(f"samples must be (samples,) or (samples, channels), found {wave.shape}: turn them round")
        if wave.ndim not in (1, 2) or wave.dtype.kind not in "fiu" or not wave.size:
            raise ValueError(
                f"samples must be numbers of shape (samples,) or (samples, channels), found {wave.dtype} of {wave.shape}"
            )
        if not isinstance(rate_hz, int | np.integer) or rate_hz < audio.MIN_RATE_HZ:
            raise ValueError(f"samples need their rate in Hz, {audio.MIN_RATE_HZ} or more, found {rate_hz!r}")
        full = 1.0 if wave.dtype.kind == "f" else float(np.iinfo(wave.dtype).max)
        mono = (wave.mean(1) if wave.ndim == 2 else wave).astype(np.float32) / np.float32(full)
        if not np.isfinite(mono).all():
            raise ValueError(f"samples hold NaN or infinity, first at {int(np.argmin(np.isfinite(mono)))}")
        if np.abs(mono).max() < audio.SILENCE:
            raise ValueError("samples are silent: there is no speech in them")
        return cls(np.ascontiguousarray(mono), int(rate_hz))

    @property
    def duration_s(self) -> float:
        """Seconds, of a file by its header.

        Raises
        ------
        ValueError, OSError : like `featstore.corpora.audio.load`; shorter than `MIN_S`.
        """
        if isinstance(self.source, Utterance):
            seconds = self.source.duration_s
            if math.isnan(seconds):
                seconds = audio.duration_s(self.source.audio) - self.source.start_s
        elif isinstance(self.source, str):
            seconds = audio.duration_s(self.source)
        else:
            seconds = len(self.source) / self.rate_hz
        if seconds < MIN_S:
            name = "samples" if isinstance(self.source, np.ndarray) else getattr(self.source, "audio", self.source)
            raise ValueError(f"{name}: too short: {seconds:.2f} s, expected {MIN_S:g} s or more")
        return seconds

    def pieces(self, rate_hz: int, samples: int) -> Iterator[NDArray[np.float32]]:
        """Mono pieces of `samples` at a rate, the last shorter.

        Raises
        ------
        ValueError, OSError : like `featstore.corpora.audio.load`.
        """
        if not isinstance(self.source, np.ndarray):
            return audio.pieces(self.source, rate_hz, samples)
        wave = self.source if rate_hz == self.rate_hz else soxr.resample(self.source, self.rate_hz, rate_hz, "HQ")
        return (wave[at : at + samples] for at in range(0, len(wave), samples))
