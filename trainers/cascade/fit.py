"""Fit a cascade: train the head that counts, choose the rest on dev, measure whole recordings of test."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from evaluation.diarization import DiarizationErrors
from evaluation.runs import RESULT
from featstore import Store
from featstore.extractors.device import pick_device
from trainers.cascade.cascade import Cascade, new_head
from trainers.cascade.ceilings import ceilings
from trainers.cascade.choosing import choose
from trainers.cascade.config import CascadeConfig
from trainers.cascade.counting import classes_of, train
from trainers.cascade.inputs import counts, read
from trainers.cascade.measuring import Truth, summed
from trainers.checkpoint import nothing_to_do
from trainers.diarization.loop import device_facts, peak_memory_bytes
from trainers.diarization.models import count_parameters
from trainers.diarization.sessions import Sessions, load_sessions
from trainers.progress import Progress, Unseen
from trainers.runs import Run, RunError
from trainers.scale import scale_of

_ROWS = 20  # of history.csv


def fit_cascade(run: Run, store: Store, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, choose, measure, and fill the run's folder. A run that was cut off begins anew: it takes a minute.

    Returns
    -------
    What it wrote to result.json; of a run that had finished, what stands there, and a note that says so.

    Raises
    ------
    ConfigError : the store does not fit the configuration; see `load_sessions`.
    RunError : the loss is no longer a number.
    """
    if (run.path / RESULT).exists():
        return nothing_to_do(run.read_json(RESULT))
    config = cast(CascadeConfig, run.config)
    began = time.perf_counter()
    shown = progress if progress is not None else Unseen()
    device = pick_device(config.device)
    sessions = load_sessions(store, config)
    run.begin()
    cascade, costs = _train(run, config, store, sessions, device, shown)

    dev = Truth(sessions.dev, sessions.grid)
    heard = [cascade.listen(store, session) for session in dev.sessions]
    choice, tried = choose(cascade, heard, dev.total, lambda note: shown.update(costs["steps"], costs["steps"], note))
    cascade = cascade.with_choice(choice)
    cascade.save(run)
    # What is measured is what was written, and so what anyone uses later.
    cascade = Cascade.load(run, device)
    test = Truth(sessions.test, sessions.grid)
    turns = cascade.diarize([cascade.listen(store, session) for session in test.sessions])
    test.write(run.path, turns)
    errors = test.score(turns)
    result = {
        "kind": config.kind,
        "protocol": config.protocol,
        "features": list(config.features),
        "when": list(config.when_features),
        "who": list(config.who_features),
        "warnings": run.warnings,
        "parameters": count_parameters(cascade.head),
        "trainable_parameters": count_parameters(cascade.head),
        "counts": cascade.head.classes,
        "train_s": sum(s.num_frames for s in sessions.train) * sessions.grid.step_s,
        **device_facts(device),
        **costs,
        "peak_memory_bytes": peak_memory_bytes(device),
        "decoding": {
            "tuned_on": sessions.tuned_on,
            "mapping": "optimal",
            "clustering": choice.clustering,
            "threshold": choice.threshold,
            "nearest": choice.decoding.nearest,
            "blend": choice.decoding.blend,
            "change": choice.decoding.change,
            "sweep": tried,
        },
        "dev": dev.total(cascade.diarize(heard)).to_json(),
        "test": summed(errors).to_json(),
        "ceilings": ceilings(cascade, store, test, errors),
        "recordings": {name: each.to_json() for name, each in errors.items()},
        "notes": [*sessions.notes, *_notes(sessions, errors)],
        "seconds": round(time.perf_counter() - began, 3),
    }
    run.write_json(RESULT, result)
    return result


def _train(
    run: Run, config: CascadeConfig, store: Store, sessions: Sessions, device: torch.device, shown: Progress
) -> tuple[Cascade, dict[str, Any]]:
    """The head, trained, with the scales of both parts; and what it cost."""
    known = sessions.train
    when, who = (scale_of(store, names, [s.id for s in known]) for names in (config.when_features, config.who_features))
    labels = [counts(session, sessions.grid, config.substeps) for session in known]
    rows: list[dict[str, Any]] = []
    busy_s, waited_s, loss, done = 0.0, 0.0, 0.0, 0
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda, device_type="cuda"):
        torch.manual_seed(config.seed)
        # Counts that sets of voices cannot have are the last ones'; a head tells at least 0, 1 and 2 apart.
        classes = max(config.at_once + 1, classes_of(labels, config.counted))
        head = new_head(config, len(when.mean), classes).to(device)
        training = train(
            head,
            labels,
            lambda k, start, stop: when(read(store, config.when_features, known[k].id, start, stop)),
            crop_frames=max(1, round(config.crop_s / sessions.grid.step_s)),
            batch_size=config.batch_size,
            steps=config.steps,
            lr=config.lr,
            weight_decay=config.weight_decay,
            seed=config.seed,
            device=device,
        )
        every = max(1, config.steps // _ROWS)
        for row in training:
            busy_s, waited_s, loss = busy_s + row["seconds"], waited_s + row["waited_s"], loss + row["train_loss"]
            if row["step"] % every == 0 or row["step"] == config.steps:
                rows.append({"step": row["step"], "lr": row["lr"], "train_loss": loss / (row["step"] - done)})
                loss, done = 0.0, row["step"]
                if not np.isfinite(rows[-1]["train_loss"]):
                    raise RunError(f"{run.path}: the loss is no longer a number by step {row['step']}; lower lr")
                shown.update(row["step"], config.steps, f"counting, loss {rows[-1]['train_loss']:.4f}")
    run.write_history(rows)
    costs = {"steps": config.steps, "step_seconds": busy_s / config.steps, "input_share": waited_s / busy_s}
    return Cascade(config, sessions.grid, head, when, who, device), costs


def _notes(sessions: Sessions, errors: Mapping[str, DiarizationErrors]) -> list[str]:
    notes = []
    if sessions.tuned_on == "test":
        notes.append("decoding was tuned on the data that the figures are of")
    if summed(errors).total_s == 0:
        notes.append("nobody speaks in the test sessions: there is no error rate")
    return notes
