"""Checkpoints: everything that a resumed run needs, in one safetensors file; nothing is pickled."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.runs import LAST, MODEL
from trainers.runs import Run, RunError


@dataclass
class State:
    """Where a run stands; with the weights and the optimizer's state, all that `last.safetensors` holds."""

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # of this epoch so far
    best_loss: float = math.inf
    best_epoch: int = 0
    dropped: int = 0  # frames of speech by speakers beyond the last channel, this epoch
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: frozen weights are not written again into every run."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Weights, optimizer and state in one file, so that they cannot disagree."""
    tensors = {f"model.{name}": value for name, value in trained_tensors(model).items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in slots.items()}
    facts = asdict(state)
    if math.isinf(state.best_loss):
        facts["best_loss"] = None
    run.write_tensors(LAST, tensors, facts)


def load_checkpoint(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> State:
    """Put what `save_checkpoint` wrote back.

    Raises
    ------
    RunError : damaged, or of another model.
    """
    tensors, facts = run.read_tensors(LAST)
    _load_tensors(run, model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            slots.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    try:
        state = State(**facts)
    except TypeError as error:
        raise RunError(f"{run.path / LAST}: of another version: {error}") from None
    if state.best_loss is None:
        state.best_loss = math.inf
    # More epochs may have been asked for since.
    state.finished = bool(state.history) and (
        state.epoch > run.config.epochs or state.epoch - 1 - state.best_epoch >= run.config.patience
    )
    return state


def load_best(run: Run, model: nn.Module) -> dict[str, Any]:
    tensors, facts = run.read_tensors(MODEL)
    _load_tensors(run, model, tensors)
    return facts


def _load_tensors(run: Run, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = trained_tensors(model)
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    wrong += [name for name in tensors if name not in own]
    if wrong:
        raise RunError(f"{run.path}: checkpoint and model differ in {len(wrong)} tensors (first: {wrong[0]})")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
