"""Crops through a DataLoader: how the rate grows with its workers, and what it is limited by.

    python benchmarks/loader.py [--recordings 64] [--seconds 6] [--length 125]

Beside `featstore.torch.Crops` run, in the same order of rounds, the same tensors made of nothing (one array in memory, copied
and widened, in the same workers with the same transport): more than that no store can give. The rate of plain copying
by as many processes says what the memory gives.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import featstore
from featstore import MIMI_GRID, FeatureSpec, Utterance
from featstore.torch import Crops

DIM, FRAMES, BATCH = 512, 3750, 32


class Nothing(Dataset[dict[str, Any]]):
    """The tensors of `Crops`, of one array."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, item: int) -> dict[str, Any]:
        whole = torch.empty((self.length, DIM))
        np.copyto(whole.numpy(), _array()[item % (FRAMES - self.length) :][: self.length])
        return {"mimi": whole, "id": "r", "speaker": "", "start": 0, "frames": self.length}


_ARRAY: list[np.ndarray] = []


def _array() -> np.ndarray:
    if not _ARRAY:
        _ARRAY.append(np.ones((FRAMES, DIM), np.float16))
    return _ARRAY[0]


def rate(data: Dataset[dict[str, Any]], workers: int, context: str, seconds: float) -> float:
    """Crops a second, once all workers run."""
    loader = DataLoader(
        data,
        BATCH,
        sampler=torch.utils.data.RandomSampler(data, replacement=True, num_samples=1 << 20),  # type: ignore[arg-type]
        num_workers=workers,
        multiprocessing_context=context,
    )
    batches = iter(loader)
    for _ in range(3 * workers):  # starting is not what is measured
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    spent = time.perf_counter() - began
    del batches
    return count / spent


def copying(processes: int, seconds: float) -> float:
    """Bytes a second that so many processes copy from one large array to another."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.map(_copy, [seconds] * processes, chunksize=1))


def _copy(seconds: float) -> float:
    source, target = np.ones(32 << 20, np.uint8), np.zeros(32 << 20, np.uint8)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        np.copyto(target, source)
        count += source.nbytes
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--length", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        spec = FeatureSpec("mimi", DIM, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {"weights": "file"})
        with featstore.writer(store, spec) as out:
            for i in range(options.recordings):
                frames = rng.normal(size=(FRAMES, DIM)).astype(np.float16)
                out.add(Utterance(f"r{i}", "x", 0.0, 300.0, f"r{i}", None, "train", ()), frames)
        kinds = {"Crops": Crops(featstore.open(store), "mimi", options.length), "nothing": Nothing(options.length)}
        asked = [(name, context, n) for n in (1, 2, 4) for context in ("spawn", "fork") for name in kinds]
        found: dict[tuple[str, str, int], list[float]] = {key: [] for key in asked}
        copied: dict[int, list[float]] = {1: [], 2: [], 4: []}
        for _ in range(options.rounds):
            for name, context, n in asked:
                found[name, context, n].append(rate(kinds[name], n, context, options.seconds))
            for n in copied:
                copied[n].append(copying(n, 1.0))
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, crops of {options.length} frames, float32, medians"
        )
        for n in copied:
            print(f"plain copying, {n} processes: {statistics.median(copied[n]) / 1e9:.1f} GB/s")
        for context in ("spawn", "fork"):
            for name in kinds:
                medians = {n: statistics.median(found[name, context, n]) for n in (1, 2, 4)}
                told = ", ".join(f"{n}: {m:.0f} ({m / medians[1]:.2f} ×)" for n, m in medians.items())
                print(f"{context} {name:8} crops/s by workers: {told}")


if __name__ == "__main__":
    main()
