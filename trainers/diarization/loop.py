"""The one training loop: adapter, fusion and unfreeze are settings of it.

Every random draw depends on the seed and on the epoch or step it is for, and on nothing that happened before. So a run
that was killed goes on from its last checkpoint to exactly the weights it would have had.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.runs import LAST, MODEL
from trainers.checkpoint import State, load_checkpoint, save_checkpoint, trained_tensors
from trainers.diarization.config import DiarizationConfig, UnfreezeConfig
from trainers.diarization.data import Batch, CropSampler, Source, windows
from trainers.diarization.evaluate import evaluate, run_model
from trainers.diarization.log import Log
from trainers.diarization.sessions import Sessions
from trainers.distributed import Ranks
from trainers.progress import Progress
from trainers.runs import Run, RunError


class Training:
    """A model on its way from its last checkpoint, if there is one, to the end of its epochs or of its patience.

    Parameters
    ----------
    on_step : told the state after each step; what it raises ends the run as a kill would.

    Attributes
    ----------
    state : where it stands, with what all of it has cost; the best weights lie in the run's folder.
    """

    def __init__(
        self,
        run: Run[DiarizationConfig],
        model: nn.Module,
        source: Source,
        sessions: Sessions,
        device: torch.device,
        ranks: Ranks,
        progress: Progress,
        on_step: Callable[[State], None] | None = None,
    ) -> None:
        self.run, self.model, self.source, self.config = run, model, source, run.config
        self.device, self.ranks, self.on_step = device, ranks, on_step
        self.groups = parameter_groups(model, self.config)
        self.optimizer = torch.optim.AdamW(
            [{"params": g["params"], "lr": g["lr"]} for g in self.groups],
            weight_decay=self.config.weight_decay,
            fused=device.type in ("cuda", "cpu"),
        )
        self.average = copy.deepcopy(model) if self.config.ema else None
        #: What is looked at and kept: the average, where there is one.
        self.measured = model if self.average is None else self.average
        self.state = State()
        if (run.path / LAST).exists():
            self.state = load_checkpoint(run, model, self.optimizer, self.average)
        self.log = Log(run, self.state, progress, first=ranks.first)
        self.parallel = ranks.wrap(model, device)
        self.sampler = CropSampler(sessions.train, self.config, source.length)
        self.dev_windows = windows(sessions.dev, source.length, cache=self.config.cache)
        self.loss_sum = torch.zeros((), dtype=_sum_dtype(device), device=device)
        self.began = time.perf_counter() - self.state.seconds  # as if it had never been stopped

    def to_the_end(self) -> None:
        """Train all epochs that are left.

        Raises
        ------
        RunError : the loss is no longer a number.
        """
        with _seeded(self.device), self.log:
            while not self.state.finished:
                self.epoch()

    def epoch(self) -> None:
        """Train the rest of the epoch, look at dev, and write what it came to."""
        config, state = self.config, self.state
        crops = self.sampler.epoch(state.epoch)
        steps = -(-len(crops) // config.batch_size)
        mine = self.ranks.share(crops[state.step_in_epoch * config.batch_size :], config.batch_size)
        self.loss_sum.fill_(state.loss_sum)
        self.parallel.train()
        entered = time.perf_counter() - state.busy_s
        for batch, waited_s in _timed(self.source.batches(mine, config.batch_size // self.ranks.count)):
            loss = self._step(batch)
            state.waited_s += waited_s
            state.busy_s = time.perf_counter() - entered
            self.log.step(state, loss, steps)
            if self.on_step is not None:
                self.on_step(state)
            if config.checkpoint_steps and state.step % config.checkpoint_steps == 0:
                self._take_loss()
                self._save()
        self._take_loss()  # waits for the device, so that the clock below is right
        state.busy_s = time.perf_counter() - entered
        self._close_epoch(steps)

    def _step(self, batch: Batch) -> Tensor:
        config, state = self.config, self.state
        seed_torch(config.seed, state.step, self.ranks.rank)
        factor = learning_rate_factor(state.step + 1, config.warmup_steps)
        for group, facts in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = facts["lr"] * factor
        _, loss = run_model(self.parallel, batch, config, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for facts in self.groups:
            nn.utils.clip_grad_norm_(facts["params"], facts["clip"])
        self.optimizer.step()
        self.loss_sum += loss.detach().to(self.loss_sum)
        state.step += 1
        state.step_in_epoch += 1
        state.timed_steps += 1
        state.dropped += batch.dropped
        if self.average is not None:
            update_average(self.average, self.model, config.ema, state.step)
        return loss

    def _close_epoch(self, steps: int) -> None:
        config, state, first = self.config, self.state, self.ranks.first
        dev = evaluate(self.measured, self.source, self.dev_windows, config, self.device) if first else None
        dev_loss, dev_der = self.ranks.tell((dev.loss, dev.der) if dev else (0.0, 0.0), self.device)
        row = {
            "epoch": state.epoch,
            "step": state.step,
            "lr": config.lr * learning_rate_factor(state.step, config.warmup_steps),
            "train_loss": state.loss_sum / steps,
            "dev_loss": dev_loss,
            "dev_der": dev_der,
            "steps_per_s": round(state.timed_steps / state.busy_s, 4),
            "input_share": round(state.waited_s / state.busy_s, 5),
            "dropped_frames": state.dropped,
        }
        state.history.append(row)
        self.log.epoch(row)
        if dev_loss < state.best_loss:
            state.best_loss, state.best_epoch = dev_loss, state.epoch
            if first:
                facts = {"kind": config.kind, "epoch": state.epoch, "dev_loss": dev_loss, "dev_der": dev_der}
                self.run.write_tensors(MODEL, trained_tensors(self.measured), facts)
        state.finished = state.epoch >= config.epochs or state.epoch - state.best_epoch >= config.patience
        state.epoch, state.step_in_epoch, state.loss_sum, state.dropped = state.epoch + 1, 0, 0.0, 0
        if first:
            self.run.write_history(state.history)
        self._save()  # after the best weights: a kill in between repeats them

    def _take_loss(self) -> None:
        state = self.state
        state.loss_sum = float(self.loss_sum)
        if not math.isfinite(state.loss_sum):
            raise RunError(
                f"{self.run.path}: the loss became {state.loss_sum} in epoch {state.epoch}, by step {state.step}; "
                "lower lr (or precision=float32) and train a new run; the last good checkpoint is kept"
            )

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self.began
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, peak_memory_bytes(self.device))
        if self.ranks.first:
            save_checkpoint(self.run, self.model, self.optimizer, self.state, self.average)


def parameter_groups(model: nn.Module, config: DiarizationConfig) -> list[dict[str, Any]]:
    """Parameters with the learning rate and the gradient clip they train with; frozen ones are in no group."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    mimi = [p for name, p in named if name.startswith("mimi.")]
    rest = [p for name, p in named if not name.startswith("mimi.")]
    groups = [{"params": rest, "lr": config.lr, "clip": config.grad_clip}]
    if mimi:
        assert isinstance(config, UnfreezeConfig)  # no other model holds Mimi
        groups.append({"params": mimi, "lr": config.mimi_lr, "clip": config.mimi_grad_clip})
    return groups


def learning_rate_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up, then inverse square root: 1 at the end of the warm-up (`step` counts from 1); no warm-up: 1."""
    if not warmup_steps:
        return 1.0
    return min(step / warmup_steps, math.sqrt(warmup_steps / step))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average of a model's weights on after a step (from 1): ``average += (1 - d) · (weights - average)``.

    ``d = min(decay, (1 + step) / (10 + step))``, so that the initial weights are soon forgotten.
    Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    weights = trained_tensors(model)
    for name, mean in trained_tensors(average).items():
        mean.lerp_(weights[name], 1 - min(decay, (1 + step) / (10 + step)))


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators: seed them inside, leave them as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        yield


def seed_torch(*key: int) -> None:
    """Seed torch's global generators by all numbers of a key."""
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


def device_facts(device: torch.device) -> dict[str, str]:
    """What a result says of the device that it was made on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": str(device), "device_name": name}


def peak_memory_bytes(device: torch.device) -> int:
    """The most device memory this process has held so far; on the CPU, the most memory (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
