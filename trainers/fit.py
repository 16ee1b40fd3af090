"""The one training loop: adapter, fusion and unfreeze are settings of it.

Every random draw depends on the seed and on the epoch or step it is for, and on nothing that happened before. So a run
that was killed goes on from its last checkpoint to exactly the weights it would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.runs import LAST, MODEL, RESULT
from featstore import Store
from trainers import decode, distributed
from trainers.checkpoint import State, load_best, load_checkpoint, save_checkpoint, trained_tensors
from trainers.config import FitConfig
from trainers.data import Batch, Crop, CropSampler, FrameSource, windows
from trainers.losses import hybrid_loss
from trainers.models import Adapter, count_parameters, pick_device
from trainers.progress import Progress
from trainers.runs import Run, RunError
from trainers.sessions import Session, Sessions, load_sessions


def fit_diarizer(run: Run, store: Store, *, on_step: Callable[[State], None] | None = None) -> dict[str, Any]:
    """Train (or go on training) the run's model, tune decoding on dev, measure on test, and fill the run's folder.

    Parameters
    ----------
    on_step : told the state after each step; what it raises ends the run as a kill would.

    Returns
    -------
    What it wrote to result.json.

    Raises
    ------
    ConfigError : the store does not fit the configuration; see `trainers.data.load_sessions`.
    RunError : the loss is no longer a number; a checkpoint is damaged.
    """
    config = run.config
    with distributed.group(config.device) as ranks:
        device = pick_device(ranks.device)
        sessions = load_sessions(store, config)
        model, source = build(run, store, sessions, device)
        if ranks.first:
            run.begin()
        with _seeded(device):
            seconds, loop = _train(run, model, source, sessions, device, ranks, on_step)
        if not ranks.first:
            return {}
        state = load_best(run, model)
        crops = windows(sessions.test, source.length)
        test = (crops, evaluate(model, source, crops, config, device).activity)
        dev = test
        if config.protocol == "sound" and sessions.dev is not sessions.test:
            crops = windows(sessions.dev, source.length)
            dev = (crops, evaluate(model, source, crops, config, device).activity)
        result = decode.measure(run, store, sessions.grid, test, dev)
        result = {
            "kind": config.kind,
            "protocol": config.protocol,
            "features": list(config.features),
            "warnings": run.warnings,
            "parameters": count_parameters(model),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "best_epoch": state["epoch"],
            "best_dev_loss": state["dev_loss"],
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "ranks": ranks.count,
            **loop,
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(device),
            **result,
            "notes": sessions.notes + loop["notes"] + result["notes"],
        }
        run.write_json(RESULT, result)
        return result


def build(run: Run, store: Store, sessions: Sessions, device: torch.device) -> tuple[nn.Module, Any]:
    """The model on its device, with initial weights drawn from the seed, and what feeds it."""
    config = run.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        length = max(1, round(config.crop_s / sessions.grid.step_s))
        sizes = {key: getattr(config, key) for key in ("speakers", "width", "layers", "heads", "ffn", "dropout")}
        if config.kind == "unfreeze":
            from trainers.unfreeze import AudioSource, UnfrozenMimi

            source = AudioSource(store, config, length, device)
            return UnfrozenMimi.make(store, config, sizes, length).to(device), source
        source = FrameSource(store, config, length, device)
        source.keep(_resident(source, sessions.train, config, device))
        return Adapter(source.dim, **sizes).to(device), source


def _resident(source: FrameSource, sessions: list[Session], config: FitConfig, device: torch.device) -> list[Session]:
    """The sessions to keep in device memory: all of them or none."""
    if config.resident == "auto":
        need = sum(s.num_frames for s in sessions) * source.dim * source.dtype.itemsize
        fits = device.type == "cuda" and need < torch.cuda.mem_get_info(device)[0] / 2
        return sessions if fits else []
    return sessions if config.resident == "yes" else []


def _train(
    run: Run,
    model: nn.Module,
    source: Any,
    sessions: Sessions,
    device: torch.device,
    ranks: distributed.Ranks,
    on_step: Callable[[State], None] | None,
) -> tuple[float, dict[str, Any]]:
    config = run.config
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(
        [{"params": g["params"], "lr": g["lr"]} for g in groups],
        weight_decay=config.weight_decay,
        fused=device.type in ("cuda", "cpu"),
    )
    state = State()
    if (run.path / LAST).exists():
        state = load_checkpoint(run, model, optimizer, device)
    parallel = ranks.wrap(model, device)
    sampler = CropSampler(sessions.train, config, source.length)
    dev_windows = windows(sessions.dev, source.length)
    progress = Progress(run, state, shown=ranks.first)
    began, waited, steps, busy = time.perf_counter(), 0.0, 0, 0.0

    with progress:
        while not state.finished:
            crops = sampler.epoch(state.epoch)
            steps_in_epoch = -(-len(crops) // config.batch_size)
            progress.epoch(state, steps_in_epoch)
            rest = crops[state.step_in_epoch * config.batch_size :]
            mine = ranks.share(rest, config.batch_size)
            batches = source.batches(mine, config.batch_size // ranks.count)
            loss_sum = torch.tensor(state.loss_sum, dtype=_sum_dtype(device), device=device)
            parallel.train()
            entered = time.perf_counter()
            for batch, wait in _timed(batches):
                _seed_step(config.seed, state.step, ranks.rank)
                factor = learning_rate_factor(state.step + 1, config.warmup_steps)
                for group, facts in zip(optimizer.param_groups, groups, strict=True):
                    group["lr"] = facts["lr"] * factor
                _, loss = run_model(parallel, batch, config, device)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for facts in groups:
                    nn.utils.clip_grad_norm_(facts["params"], facts["clip"])
                optimizer.step()

                loss_sum += loss.detach().to(loss_sum)
                state.step += 1
                state.step_in_epoch += 1
                state.dropped += batch.dropped
                waited, steps = waited + wait, steps + 1
                progress.step(state, loss, waited / max(time.perf_counter() - entered + busy, 1e-9))
                if on_step is not None:
                    on_step(state)
                if config.checkpoint_steps and state.step % config.checkpoint_steps == 0:
                    state.loss_sum = float(loss_sum)
                    _check_finite(run, state)
                    if ranks.first:
                        save_checkpoint(run, model, optimizer, state)
            state.loss_sum = float(loss_sum)  # waits for the device, so that the clock below is right
            busy += time.perf_counter() - entered
            _check_finite(run, state)
            dev = evaluate(model, source, dev_windows, config, device) if ranks.first else None
            dev_loss, dev_der = ranks.tell((dev.loss, dev.der) if dev else (0.0, 0.0), device)
            state.history.append(
                {
                    "epoch": state.epoch,
                    "step": state.step,
                    "lr": config.lr * learning_rate_factor(state.step, config.warmup_steps),
                    "train_loss": state.loss_sum / steps_in_epoch,
                    "dev_loss": dev_loss,
                    "dev_der": dev_der,
                    "steps_per_s": round(steps / busy, 4),
                    "input_share": round(waited / busy, 5),
                    "dropped_frames": state.dropped,
                }
            )
            progress.row(state.history[-1])
            improved = dev_loss < state.best_loss
            if improved:
                state.best_loss, state.best_epoch = dev_loss, state.epoch
                if ranks.first:
                    facts = {"kind": config.kind, "epoch": state.epoch, "dev_loss": dev_loss, "dev_der": dev_der}
                    run.write_tensors(MODEL, trained_tensors(model), facts)
            state.finished = state.epoch >= config.epochs or state.epoch - state.best_epoch >= config.patience
            state.epoch, state.step_in_epoch, state.loss_sum, state.dropped = state.epoch + 1, 0, 0.0, 0
            if ranks.first:
                run.write_history(state.history)
                save_checkpoint(run, model, optimizer, state)  # after the best weights: a kill in between repeats them

    notes = []
    if state.step < config.warmup_steps:
        notes.append(f"training ended after {state.step} steps, inside the warm-up of {config.warmup_steps}")
    dropped = sum(row["dropped_frames"] for row in state.history)
    if dropped:
        told = f"more than {config.speakers} speakers in a crop"
        notes.append(f"{dropped} frames of training speech had no channel: {told}")
    return time.perf_counter() - began, {
        "epochs": len(state.history),
        "steps": state.step,
        "step_seconds": busy / steps if steps else None,
        "input_share": waited / busy if busy else None,
        "resident": bool(getattr(source, "resident", False)),
        "notes": notes,
    }


def parameter_groups(model: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    """Parameters with the learning rate and the gradient clip they train with; frozen ones are in no group."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    mimi = [p for name, p in named if name.startswith("mimi.")]
    rest = [p for name, p in named if not name.startswith("mimi.")]
    groups = [{"params": rest, "lr": config.lr, "clip": config.grad_clip}]
    return groups + ([{"params": mimi, "lr": config.mimi_lr, "clip": config.mimi_grad_clip}] if mimi else [])


def learning_rate_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up, then inverse square root: 1 at the end of the warm-up (`step` counts from 1); no warm-up: 1."""
    if not warmup_steps:
        return 1.0
    return min(step / warmup_steps, math.sqrt(warmup_steps / step))


def run_model(model: nn.Module, batch: Batch, config: FitConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits of one batch and their loss; the reference protocol neither masks padding nor sorts inside the crop."""
    sound = config.protocol == "sound"
    # Without a mask attention can take its fastest kernels.
    mask = batch.mask if sound and batch.padded else None
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(batch.inputs, mask)
    weights = {"sort_weight": config.sort_weight, "pil_weight": config.pil_weight}
    return logits, hybrid_loss(logits, batch.labels, mask, resort=sound, **weights)


@dataclass(frozen=True)
class Evaluation:
    """Loss and activities of a set of crops.

    Attributes
    ----------
    loss : mean over frames.
    der : frame-level, optimal mapping in each crop, at the best of the configured thresholds; for watching only.
    activity : (crops, length, speakers) float16 probabilities.
    """

    loss: float
    der: float
    activity: NDArray[np.float16]


@torch.no_grad()
def evaluate(
    model: nn.Module, source: Any, crops: Sequence[Crop], config: FitConfig, device: torch.device
) -> Evaluation:
    """Run the model over crops without training it."""
    model.eval()
    sums, frames = 0.0, 0
    activity = np.empty((len(crops), source.length, config.speakers), np.float16)
    tally = decode.FrameTally(config.thresholds)
    done = 0
    for batch in source.batches(crops, config.batch_size):
        logits, loss = run_model(model, batch, config, device)
        mask = batch.mask if config.protocol == "sound" else torch.ones_like(batch.mask)
        counted = int(mask.sum())
        sums, frames = sums + float(loss) * counted, frames + counted
        probability = logits.float().sigmoid()
        tally.add(probability, batch.labels, mask)
        activity[done : done + len(logits)] = probability.cpu().numpy()
        done += len(logits)
    return Evaluation(sums / max(frames, 1), tally.best_der(), activity)


def _check_finite(run: Run, state: State) -> None:
    if not math.isfinite(state.loss_sum):
        raise RunError(
            f"{run.path}: the loss became {state.loss_sum} in epoch {state.epoch}, by step {state.step}; "
            "lower lr (or precision=float32) and train a new run; the last good checkpoint is kept"
        )


# ---- small things


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators: seed them inside, leave them as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        yield


def _seed_step(*key: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and how long it was waited for."""
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - before


def peak_memory_bytes(device: torch.device) -> int:
    """The most device memory this process has held so far; on the CPU, the most memory (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
