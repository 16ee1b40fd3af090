"""Runs that count steps: from the last checkpoint to the end, looked at on dev; a kind says what a step and a look are."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.runs import LAST
from trainers.checkpoint import foreign, load_optimizer, optimizer_tensors
from trainers.diarization.loop import device_facts, peak_memory_bytes
from trainers.diarization.models import count_parameters
from trainers.progress import Progress
from trainers.runs import Run, RunError


@dataclass
class StepState:
    """Where a run that counts steps stands."""

    step: int = 0
    loss_sum: float = 0.0  # since dev was looked at
    summed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class StepTraining(ABC):
    """From the last checkpoint, if there is one, to the end of all steps; dev is looked at now and then.

    Every draw of a kind depends on the seed and the step alone, so a run that was killed goes on to exactly the weights
    that it would have had.

    Parameters
    ----------
    total : steps in all; each `config.steps` of them are looked at `config.looks` times.
    on_step : told the state after each step; what it raises ends the run as a kill would.
    given : tensors of the model that a checkpoint need not hold, by name.

    Attributes
    ----------
    model, optimizer, state : what a checkpoint holds; `_start` makes the first two, for the state that is.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_name = "the loss"

    def __init__(
        self,
        run: Run[Any],
        state: Any,
        total: int,
        device: torch.device,
        progress: Progress,
        on_step: Callable[[Any], None] | None = None,
        given: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.run, self.state, self.total, self.device = run, state, total, device
        self.progress, self.on_step, self.given = progress, on_step, given
        if (run.path / LAST).exists():
            self._resume()
        else:
            self._start()
        self.began = time.perf_counter() - self.state.seconds

    @abstractmethod
    def _start(self) -> None:
        """Model and optimizer as they are before `state.step`."""

    @abstractmethod
    def _step(self) -> float:
        """One step down; the loss."""

    @abstractmethod
    def _dev(self) -> dict[str, float]:
        """What dev says, for the history; the best weights go to the run's folder."""

    @abstractmethod
    def _told(self, loss: float) -> str:
        """What the progress says of a step."""

    def to_the_end(self) -> None:
        """Train all steps that are left.

        Raises
        ------
        RunError : the loss is no longer a number.
        """
        config, state = self.run.config, self.state
        every = max(1, config.steps // config.looks)
        while state.step < self.total:
            value = self._step()
            state.step += 1
            state.loss_sum, state.summed = state.loss_sum + value, state.summed + 1
            inside = (state.step - 1) % config.steps + 1
            look = inside % every == 0 or inside == config.steps
            if look:
                self._look()
            if look or (config.checkpoint_steps and state.step % config.checkpoint_steps == 0):
                self._save()
            self.progress.update(state.step, self.total, self._told(value))
            if self.on_step is not None:
                self.on_step(state)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What a result says of the training, and of the model that came of it."""
        count = count_parameters(model)
        return {
            "parameters": count,
            "trainable_parameters": count,
            "steps": self.state.step,
            **device_facts(self.device),
            "step_seconds": self.state.seconds / self.state.step,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "fit_seconds": round(self.state.seconds, 3),
        }

    def _look(self) -> None:
        state, run = self.state, self.run
        mean = state.loss_sum / state.summed
        if not math.isfinite(mean):
            raise RunError(f"{run.path}: {self.loss_name} is no longer a number by step {state.step}; lower lr")
        state.history.append({"step": state.step, "train_loss": mean, **self._dev()})
        state.loss_sum, state.summed = 0.0, 0
        run.write_history(state.history)

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self.began
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items() if k not in self.given}
        self.run.write_tensors(LAST, tensors | optimizer_tensors(self.optimizer), asdict(self.state))

    def _resume(self) -> None:
        tensors, facts = self.run.read_tensors(LAST)
        try:
            self.state = type(self.state)(**facts)
            self._start()
            own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            self.model.load_state_dict(own | dict(self.given))
            load_optimizer(self.optimizer, tensors)
        except (TypeError, RuntimeError, ValueError) as error:
            raise foreign(self.run, LAST, error) from None
