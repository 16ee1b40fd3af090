"""Fit a diarization head: build it, train it, tune decoding on dev, measure on test, fill the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from evaluation.runs import LAST, RESULT
from featstore import Store
from featstore.extractors.device import pick_device
from trainers import distributed
from trainers.checkpoint import State, load_best, nothing_to_do, read_state
from trainers.config import ConfigError
from trainers.diarization import decode
from trainers.diarization.cache import CachedSource, blocks_of
from trainers.diarization.config import DiarizationConfig, FrozenConfig, UnfreezeConfig
from trainers.diarization.data import Crop, FrameSource, Source, windows
from trainers.diarization.evaluate import evaluate
from trainers.diarization.loop import Training, device_facts
from trainers.diarization.models import Adapter, adapter_sizes, count_parameters
from trainers.diarization.sessions import Session, Sessions, load_sessions
from trainers.diarization.whole import WholeHead, measure_whole
from trainers.progress import Progress, Unseen
from trainers.runs import Run
from trainers.scale import scale_of


def fit_diarizer(
    run: Run[DiarizationConfig],
    store: Store,
    *,
    progress: Progress | None = None,
    on_step: Callable[[State], None] | None = None,
) -> dict[str, Any]:
    """Train (or go on training) the run's model, tune decoding on dev, measure on test, and fill the run's folder.

    Parameters
    ----------
    on_step : told the state after each step; what it raises ends the run as a kill would.

    Returns
    -------
    What it wrote to result.json; of a run that had finished, what stands there, and a note that says so. In all but the
    first of several processes, nothing.

    Raises
    ------
    ConfigError : the store does not fit the configuration; see `load_sessions`.
    RunError : the loss is no longer a number; a checkpoint is damaged.
    """
    with distributed.group(run.config.device) as ranks:
        finished = _finished(run)
        if finished is None:
            device = pick_device(ranks.device)
            sessions = load_sessions(store, run.config)
            model, source = build(run, store, sessions, device)
            if ranks.first:
                run.begin()
            shown = progress if progress is not None and ranks.first else Unseen()
            training = Training(run, model, source, sessions, device, ranks, shown, on_step)
            training.to_the_end()
            if ranks.first:
                finished = _finish(run, store, sessions, training)
        return finished if finished and ranks.first else {}


def _finished(run: Run[DiarizationConfig]) -> dict[str, Any] | None:
    """The result of a run in which nothing is left to train or to measure."""
    if not all((run.path / name).exists() for name in (LAST, RESULT)):
        return None
    state, result = read_state(run), run.read_json(RESULT)
    # Fewer epochs in the result: it went on from there, and was stopped before it was measured again.
    return nothing_to_do(result) if state.finished and result["epochs"] == len(state.history) else None


def build(
    run: Run[DiarizationConfig], store: Store, sessions: Sessions, device: torch.device
) -> tuple[nn.Module, Source]:
    """The model on its device, with initial weights drawn from the seed, and what feeds it."""
    config = run.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        length = max(1, round(config.crop_s / sessions.grid.step_s))
        sizes = adapter_sizes(config)
        if isinstance(config, UnfreezeConfig):
            from trainers.diarization.unfreeze import AudioSource, UnfrozenMimi

            audio = AudioSource(store, config, length, device)
            unfrozen = UnfrozenMimi.make(store, config, sizes, length)
            _bring_to_scale(unfrozen.adapter, store, sessions, config)
            return unfrozen.to(device), audio
        assert isinstance(config, FrozenConfig)  # there are no others
        if config.chunk_frames > length:
            raise ConfigError(
                f"chunk_frames={config.chunk_frames}: more than the {length} frames that a crop of {config.crop_s:g} s has"
            )
        source = FrameSource(store, config, length, device)
        source.keep(_resident(source, sessions.train, config, device))
        adapter = Adapter(source.dim, **sizes)
        _bring_to_scale(adapter, store, sessions, config)
        adapter = adapter.to(device)
        if not config.cache:
            return adapter, source
        return adapter, CachedSource(source, config, blocks_of(config, sessions.grid.step_s), device)


def _bring_to_scale(adapter: Adapter, store: Store, sessions: Sessions, config: DiarizationConfig) -> None:
    if config.protocol == "sound":  # the published procedure takes features as they are
        adapter.scale.take(scale_of(store, config.features, [s.id for s in sessions.train]))


def _resident(
    source: FrameSource, sessions: list[Session], config: FrozenConfig, device: torch.device
) -> list[Session]:
    """The sessions to keep in device memory: all of them or none."""
    if config.resident == "auto":
        need = sum(s.num_frames for s in sessions) * source.dim * source.dtype.itemsize
        fits = device.type == "cuda" and need < torch.cuda.mem_get_info(device)[0] / 2
        return sessions if fits else []
    return sessions if config.resident == "yes" else []


def _finish(run: Run[DiarizationConfig], store: Store, sessions: Sessions, training: Training) -> dict[str, Any]:
    """Measure the best weights and write result.json, which says that the run has finished."""
    config, state, model, source, device = run.config, training.state, training.model, training.source, training.device
    best = load_best(run, model)

    def answers(chosen: Sequence[Session]) -> tuple[list[Crop], NDArray]:
        crops = windows(chosen, source.length)
        return crops, evaluate(model, source, crops, config, device).activity

    dev = answers(sessions.dev) if sessions.tuned_on == "dev" else None
    figures = decode.measure(run, store, sessions.grid, answers(sessions.test), dev)
    whole: dict[str, Any] = {}
    if isinstance(config, FrozenConfig) and config.protocol == "sound":  # the study knew windows only
        head = WholeHead(
            model, config, sessions.grid, {name: run.features[name].dim for name in config.features}, device
        )
        whole = measure_whole(head, store, sessions.dev, sessions.test)
    result = {
        "kind": config.kind,
        "protocol": config.protocol,
        "features": list(config.features),
        "warnings": run.warnings,
        "parameters": count_parameters(model),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "best_epoch": best["epoch"],
        "best_dev_loss": best["dev_loss"],
        **device_facts(device),
        "ranks": training.ranks.count,
        "train_s": sum(s.num_frames for s in sessions.train) * sessions.grid.step_s,
        "epochs": len(state.history),
        "steps": state.step,
        "step_seconds": state.busy_s / state.timed_steps if state.timed_steps else None,
        "input_share": state.waited_s / state.busy_s if state.busy_s else None,
        "resident": source.resident,
        "seconds": round(state.seconds, 3),
        "peak_memory_bytes": state.peak_memory_bytes,
        **figures,
        **whole,
        "notes": sessions.notes + _notes(config, state) + figures["notes"],
    }
    run.write_json(RESULT, result)
    return result


def _notes(config: DiarizationConfig, state: State) -> list[str]:
    notes = []
    if state.step < config.warmup_steps:
        notes.append(f"training ended after {state.step} steps, inside the warm-up of {config.warmup_steps}")
    dropped = sum(row["dropped_frames"] for row in state.history)
    if dropped:
        told = f"more than {config.speakers} speakers in a crop"
        notes.append(f"{dropped} frames of training speech had no channel: {told}")
    return notes
