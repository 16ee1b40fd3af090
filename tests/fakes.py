"""A cheap deterministic encoder for tests of everything around encoders."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import time
from pathlib import Path

import numpy as np

from featstore import MIMI_GRID, FeatureSpec, Utterance


class FakeExtractor:
    """Eight statistics of each 80 ms at 8 kHz; `slow_s` sleeps that long a batch."""

    def __init__(self, name: str = "fake", slow_s: float = 0.0, bad: float | None = None) -> None:
        self.spec = FeatureSpec(name, 8, "float16", 8000, MIMI_GRID, "fake", "f" * 64, {"weights": "file"})
        self.batches: list[list[int]] = []
        self._slow_s, self._bad = slow_s, bad

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        time.sleep(self._slow_s)
        self.batches.append([len(w) for w in waves])
        if self._bad is not None and any(np.isclose(np.abs(w).max(), self._bad, atol=1e-3) for w in waves):
            raise ValueError("this wave is refused")
        # The batch's size leaves a trace, as a real encoder's rounding does: only equal batches give equal bytes.
        return [self._frames(w) + 2.0**-9 * len(waves) for w in waves]

    def _frames(self, wave: np.ndarray) -> np.ndarray:
        blocks = np.pad(wave, (0, -len(wave) % 640)).reshape(-1, 640)
        bands = np.abs(np.fft.rfft(blocks, axis=1))[:, :320].reshape(len(blocks), 8, 40).mean(2)
        return bands.astype(np.float32)


def tone(seconds: float, rate_hz: int = 8000, hz: float = 300.0, peak: float = 0.5) -> np.ndarray:
    """A sine of a length, as float32."""
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def slow_extraction(
    utterances: list[Utterance],
    store: Path,
    shard: tuple[int, int] = (0, 1),
    together: multiprocessing.synchronize.Barrier | None = None,
) -> multiprocessing.process.BaseProcess:
    """Start an extraction in a process of its own, with tiny parts, for killing; `together`: when all are there."""
    process = forkserver().Process(target=_extract_slowly, args=(utterances, store, shard, together))
    process.start()
    return process


def forkserver(*modules: str) -> multiprocessing.context.ForkServerContext:
    """Starts processes in milliseconds: what an extraction imports, also on its way, is there before they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fakes", "featstore.jobs.extract", "zarr.codecs", "pandas", *modules])
    return context


def _extract_slowly(
    utterances: list[Utterance],
    store: Path,
    shard: tuple[int, int],
    together: multiprocessing.synchronize.Barrier | None,
) -> None:
    from featstore.jobs.extract import extract
    from featstore.store import writer

    if together is not None:
        together.wait()
    writer.PART_BYTES, writer.PART_SECONDS = 2000, 0.1
    extract(utterances, FakeExtractor(slow_s=0.02), store, batch_s=5, shard=shard)
