"""Training from the store against the reference study's procedure: time a step, share of input, disk, memory.

    python benchmarks/training.py [--device cuda] [--steps 20] [--sessions 16]

The reference procedure, as published: one float32 .npy a session at 25 Hz, loaded whole for each example, every
second frame dropped, then a random 90 s crop; labels of the whole session rasterised beforehand; the
permutation-invariant loss as 24 passes of binary cross-entropy. Both sides train the same model on as many crops with
the same optimizer. Each side runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import featstore
from featstore import MIMI_GRID, FeatureSpec, Turn, Utterance
from featstore.extractors.device import pick_device
from trainers.config import FitConfig
from trainers.diarization.data import CropSampler, FrameSource
from trainers.diarization.evaluate import run_model
from trainers.diarization.losses import hybrid_loss
from trainers.diarization.models import Adapter
from trainers.diarization.sessions import load_sessions

SECONDS, CROP_FRAMES, DIM = 300, 1125, 512


def make_data(folder: Path, sessions: int) -> None:
    """The same sessions in both forms."""
    rng = np.random.default_rng(0)
    spec = FeatureSpec("mimi", DIM, "float16", 24000, MIMI_GRID, "noise", "", {})
    (folder / "npy").mkdir()
    frames = SECONDS * 25 // 2
    with featstore.writer(folder / "store", spec) as writer:
        for i in range(sessions):
            starts = np.sort(rng.uniform(0, SECONDS - 5, 100))
            turns = tuple(Turn(s, s + rng.uniform(1, 5), f"s{rng.integers(4)}") for s in starts)
            split = "train" if i else "dev"
            latents = rng.standard_normal((frames, DIM), np.float32)
            writer.add(Utterance(f"{i}", "none", 0.0, SECONDS, f"{i}", None, split, turns), latents)
            if i:
                np.save(folder / "npy" / f"{i}.npy", np.repeat(latents, 2, axis=0))
                labels = np.zeros((frames, 4), np.float32)
                for t in turns:
                    labels[int(t.start_s * 12.5) : int(np.ceil(t.end_s * 12.5)), int(t.speaker[1:])] = 1
                np.save(folder / "npy" / f"{i}.labels.npy", labels)


class Reference(torch.utils.data.Dataset):
    """A random crop of each session, read as the reference study reads it."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(p for p in folder.glob("*.npy") if "labels" not in p.name)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.paths[i % len(self.paths)]
        latents = np.load(path)[::2]  # noqa: TID251
        labels = np.load(path.with_suffix(".labels.npy"))  # noqa: TID251
        start = self.rng.integers(0, len(latents) - CROP_FRAMES + 1)
        rows = slice(start, start + CROP_FRAMES)
        return torch.from_numpy(latents[rows].copy()), torch.from_numpy(labels[rows].copy())


def permutation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``0.5 · BCE in the given order + 0.5 · least BCE over 24 permutations``, one pass for each."""
    passes = [bce(logits, labels[..., list(p)], reduction="none").mean((1, 2)) for p in permutations(range(4))]
    return 0.5 * bce(logits, labels) + 0.5 * torch.stack(passes).amin(0).mean()


def measure(side: str, folder: Path, steps: int, device: torch.device) -> dict[str, float]:
    """Times in seconds, memory in bytes."""
    config = FitConfig.make("adapter", settings=["crops_per_epoch=10000"])
    torch.manual_seed(0)
    model = Adapter(DIM).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if side == "reference":
        loader = iter(torch.utils.data.DataLoader(Reference(folder / "npy"), batch_size=4))

        def read():
            return tuple(x.to(device) for x in next(loader))

        def loss_fn(batch):
            return permutation_loss(model(batch[0]), batch[1])

        def alone(logits, batch):
            return permutation_loss(logits, batch[1])
    else:
        store = featstore.open(folder / "store")
        sessions = load_sessions(store, config)
        source = FrameSource(store, config, CROP_FRAMES, device)
        if device.type == "cuda":
            source.keep(sessions.train)
        batches = source.batches(CropSampler(sessions.train, config, CROP_FRAMES).epoch(1), 4)

        def read():
            return next(batches)

        def loss_fn(batch):
            return run_model(model, batch, config, device)[1]

        def alone(logits, batch):
            return hybrid_loss(logits, batch.labels, batch.mask)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def timed(action, times):
        action()
        wait()
        began = time.perf_counter()
        for _ in range(times):
            action()
        wait()
        return (time.perf_counter() - began) / times

    read_s = timed(read, 50)
    batch = read()
    logits = torch.randn(4, CROP_FRAMES, 4, device=device, requires_grad=True)
    loss_s = timed(lambda: alone(logits, batch).backward(), 20)

    waited = 0.0

    def step():
        nonlocal waited
        began = time.perf_counter()
        batch = read()
        waited += time.perf_counter() - began
        optimizer.zero_grad()
        loss_fn(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()
    waited = 0.0
    step_s = timed(step, steps)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    paths = (folder / "npy" if side == "reference" else folder / "store" / "features.zarr").rglob("*")
    disk = sum(p.stat().st_size for p in paths if p.is_file())
    return {
        "input alone, ms a batch": 1e3 * read_s,
        "loss alone, ms": 1e3 * loss_s,
        "step, ms": 1e3 * step_s,
        "input, % of the step": 100 * waited / (steps + 1) / step_s,
        "on disk, MB": disk / 1e6,
        "peak memory, MB": memory / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--side", choices=("ours", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = pick_device(given.device)
    if given.side:
        print(json.dumps(measure(given.side, given.data, given.steps, device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), given.sessions + 1)
        rows = {}
        for side in ("reference", "ours"):
            command = [sys.executable, __file__, "--side", side, "--data", folder]
            command += ["--device", str(device), "--steps", str(given.steps)]
            rows[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{given.sessions} sessions of {SECONDS} s, batch 4 x 90 s, 7,296,388 parameters, {name}")
    print(f"{'':26s}{'reference':>12s}{'ours':>12s}{'ratio':>10s}")
    for key, theirs in rows["reference"].items():
        ours = rows["ours"][key]
        print(f"{key:26s}{theirs:12.2f}{ours:12.2f}{theirs / max(ours, 1e-9):9.1f}x")


if __name__ == "__main__":
    main()
