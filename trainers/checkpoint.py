"""Checkpoints: everything that a resumed run needs, in one safetensors file; nothing is pickled."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.runs import LAST, MODEL, RESULT
from trainers.diarization.config import DiarizationConfig
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
    # What it has cost up to here, in all the processes that it took:
    seconds: float = 0.0
    busy_s: float = 0.0  # in steps
    waited_s: float = 0.0  # of that, for input
    timed_steps: int = 0  # the steps that busy_s is of
    peak_memory_bytes: int = 0


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, and the scale it found: frozen weights are not written again into every run."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | {name: b for name, b in model.named_buffers() if _is_scale(name)}


def _is_scale(name: str) -> bool:
    return f".{name}".endswith((".scale.mean", ".scale.size"))


def save_checkpoint(
    run: Run[DiarizationConfig],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    average: nn.Module | None = None,
) -> None:
    """Weights, their average, optimizer and state in one file, so that they cannot disagree."""
    tensors = {f"model.{name}": value for name, value in trained_tensors(model).items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in trained_tensors(average).items()}
    tensors |= optimizer_tensors(optimizer)
    facts = asdict(state)
    if math.isinf(state.best_loss):
        facts["best_loss"] = None
    run.write_tensors(LAST, tensors, facts)


def load_checkpoint(
    run: Run[DiarizationConfig],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> State:
    """Put what `save_checkpoint` wrote back.

    Raises
    ------
    RunError : damaged, or of another model.
    """
    tensors, facts = run.read_tensors(LAST)
    for prefix, target in (("model.", model), ("average.", average)):
        if target is not None:
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            _load_tensors(run, LAST, target, own)
    load_optimizer(optimizer, tensors)
    return _state(run, facts)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors by name, for a checkpoint; `load_optimizer` puts it back."""
    slots = optimizer.state_dict()["state"].items()
    return {f"optimizer.{number}.{key}": value for number, slot in slots for key, value in slot.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put what `optimizer_tensors` gave back; `tensors` may hold others."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            slots.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def read_state(run: Run[DiarizationConfig]) -> State:
    """Where the run stands by its last checkpoint.

    Raises
    ------
    RunError : there is none, or it is damaged.
    """
    return _state(run, run.read_tensors(LAST)[1])


def _state(run: Run[DiarizationConfig], facts: dict[str, Any]) -> State:
    try:
        state = State(**facts)
    except TypeError as error:
        raise foreign(run, LAST, error) from None
    if state.best_loss is None:
        state.best_loss = math.inf
    # More epochs may have been asked for since.
    state.finished = bool(state.history) and (
        state.epoch > run.config.epochs or state.epoch - 1 - state.best_epoch >= run.config.patience
    )
    if "seconds" not in facts and (run.path / RESULT).exists():
        _take_costs(state, run.read_json(RESULT))
    return state


def _take_costs(state: State, result: dict[str, Any]) -> None:
    """Version 0.1 wrote what a run had cost into its result alone."""
    if result["step_seconds"]:
        state.seconds, state.timed_steps = result["seconds"], result["steps"]
        state.busy_s = result["step_seconds"] * result["steps"]
        state.waited_s = result["input_share"] * state.busy_s
        state.peak_memory_bytes = result["peak_memory_bytes"]


def nothing_to_do(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a run that had finished when it was resumed, and a note that says so."""
    return result | {
        "notes": [*result["notes"], "nothing was left to do: the run had finished; its files are as they were"]
    }


def load_best(run: Run[DiarizationConfig], model: nn.Module) -> dict[str, Any]:
    tensors, facts = run.read_tensors(MODEL)
    _load_tensors(run, MODEL, model, tensors)
    return facts


def foreign(run: Run[Any], name: str, told: object) -> RunError:
    """What to raise of tensors that are whole, and not of this model."""
    return RunError(
        f"{run.path / name}: of another version or model: {' '.join(str(told).split())[:200]}; train a new run (another --out)"
    )


def _load_tensors(run: Run[DiarizationConfig], name: str, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = trained_tensors(model)
    # Version 0.1 trained on features as they are.
    as_made = {k: torch.full_like(v, k.endswith(".size")) for k, v in own.items() if _is_scale(k) and k not in tensors}
    tensors = tensors | as_made
    wrong = [key for key in own if key not in tensors or tensors[key].shape != own[key].shape]
    wrong += [key for key in tensors if key not in own]
    if wrong:
        raise foreign(run, name, f"tensors differ: {', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}")
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])
