"""The training loop both networks share: seeded by step, restartable to the bit, losses in a CSV file."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file


def cosine_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up, then a half cosine down to 2 % of `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(
    module: torch.nn.Module,
    loss_of: Callable[[int, np.random.Generator], tuple[torch.Tensor, Mapping[str, float]]],
    out: Path,
    *,
    steps: int,
    seed: int,
    rate: float,
    weight_decay: float = 0.01,
    stop_at: int | None = None,
    every: int = 50,
    on_checkpoint: Callable[[int], None] | None = None,
) -> None:
    """Run AdamW to step `steps` (or only to `stop_at`), going on from ``out/checkpoint.pt`` where there is one.

    Parameters
    ----------
    loss_of : ``(step, rng) -> (loss, numbers for the log)``. The generator depends on seed and step alone, so a
        restarted training sees the same crops as one that was never stopped.
    every : steps between checkpoints and lines in ``out/losses.csv`` (means over these steps).
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    checkpoint, log = out / "checkpoint.pt", out / "losses.csv"
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)  # noqa: TID251
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    else:
        log.unlink(missing_ok=True)
    sums: dict[str, float] = {}
    counted, started = 0, time.monotonic()
    last = min(steps, stop_at if stop_at is not None else steps)
    module.train()
    for step in range(first, last):
        torch.manual_seed(seed * 1_000_003 + step)  # dropout, noise; the crops come from the generator
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, rate)
        loss, numbers = loss_of(step, np.random.default_rng([seed, step]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        for name, value in {"loss": loss.item(), "gradient_norm": float(norm), **numbers}.items():
            sums[name] = sums.get(name, 0.0) + value
        counted += 1
        if (step + 1) % every == 0 or step + 1 == last:
            seconds += time.monotonic() - started
            started = time.monotonic()
            _log(log, {"step": step + 1, "seconds": round(seconds), **{k: v / counted for k, v in sums.items()}})
            sums, counted = {}, 0
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1, "seconds": seconds}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            if on_checkpoint is not None:
                on_checkpoint(step + 1)
                module.train()


def _log(path: Path, row: Mapping[str, float]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(row)
        writer.writerow([f"{value:.5g}" if isinstance(value, float) else value for value in row.values()])
    print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


def export(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], path: Path, trained: str) -> None:
    """Write float16 safetensors whose metadata hold the network's config as JSON under "config", atomically."""
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().clone() for k, v in tensors.items()}
    about = {"trained": trained, "licence": "see data_manifests/nano/MODEL_CARD.md"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path.with_suffix(".tmp"), metadata={"config": json.dumps(config, sort_keys=True), **about})
    os.replace(path.with_suffix(".tmp"), path)
