"""Fit an extraction: train it, keep the best on dev, measure every way to say whom to extract on test voices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from evaluation.extraction import PACKAGES, figures, raters
from evaluation.runs import RESULT, VOICES
from featstore import Store
from featstore.extractors.device import pick_device
from trainers.checkpoint import nothing_to_do
from trainers.progress import Progress, Unseen
from trainers.runs import Run
from trainers.tse.config import TseConfig
from trainers.tse.data import TseData, load_data
from trainers.tse.loop import State, Training
from trainers.tse.measure import Measured, measure
from trainers.tse.network import Extractor

if TYPE_CHECKING:
    from trainers.tse.choices import Choices

_LEFT = dict.fromkeys(("predicted", "memory"), "; what came out is the mixture")


def fit_tse(
    run: Run[TseConfig],
    store: Store,
    *,
    progress: Progress | None = None,
    on_step: Callable[[State], None] | None = None,
) -> dict[str, Any]:
    """Train (or go on), measure on test once, and fill the run's folder.

    Returns
    -------
    What it wrote to result.json; of a run that had finished, what stands there, and a note that says so.

    Raises
    ------
    ConfigError : the store does not fit the configuration; see `load_data`.
    RunError : the loss is no longer a number; a checkpoint is damaged.
    """
    if (run.path / RESULT).exists():
        return nothing_to_do(run.read_json(RESULT))
    config = run.config
    data = load_data(config, store)
    device = pick_device(config.device)
    shown = progress if progress is not None else Unseen()
    choices = _choices(config, data, store, device)  # says what is wrong with it before hours of training
    run.begin()
    training = Training(run, data, device, shown, on_step)
    training.to_the_end()
    return _finish(run, store, data, training, choices, shown)


def _choices(config: TseConfig, data: TseData, store: Store, device: torch.device) -> Choices | None:
    if not config.sets:
        return None
    from trainers.tse.choices import Choices

    return Choices(config.sets, config, data, store, device)


def _finish(
    run: Run[TseConfig], store: Store, data: TseData, training: Training, choices: Choices | None, shown: Progress
) -> dict[str, Any]:
    config, state, device = run.config, training.state, training.device
    began = time.perf_counter()
    network = Extractor.load(run, device)
    found = measure(run, data, network, choices, device, shown)
    columns = list(dict.fromkeys(name for row in found.rows for name in row))
    table = {name: [row.get(name, float("nan")) for row in found.rows] for name in columns}
    run.write_table(VOICES, pa.table(table))
    told = figures(table, 1000, config.seed)
    result = {
        "kind": config.kind,
        "protocol": config.protocol,
        "features": list(config.features),
        "warnings": run.warnings,
        "notes": [*data.notes, *_notes(found, choices)],
        "num_mixtures": len(data.splits["train"]),
        "num_speakers": len(data.speakers("train")),
        "num_test_mixtures": len({row["mixture"] for row in found.rows}),
        "num_test_voices": len(found.rows),
        "num_test_speakers": len({row["speaker"] for row in found.rows}),
        "silent_voices": {"train": state.silent, "test": found.silent},
        "unknown_voices": found.unknown,
        **training.facts(network),
        "architecture": config.architecture,
        "condition": config.condition,
        "memory": None if choices is None else {"threshold": choices.threshold, "confirm": choices.confirm},
        "dev_si_sdr": state.best,
        "best_step": state.best_step,
        "input_share": state.waited_s / state.seconds,
        "extraction": told,
        "swaps": found.swaps,
        "examples": found.examples,
        "seconds": round(state.seconds + time.perf_counter() - began, 3),
    }
    run.write_json(RESULT, result)
    return result


def _notes(found: Measured, choices: Choices | None) -> list[str]:
    notes = []
    if found.silent:
        notes.append(f"{found.silent} test voices are silent: nothing is measured on them")
    missing = [f"{name} (pip install {package})" for name, package in PACKAGES.items() if name not in raters()]
    if missing:
        notes.append(f"not measured, for want of a package: {', '.join(missing)}")
    if choices is None and "oracle" in found.swaps:
        notes.append("nobody was asked for by a predicted set: no run of fit unmix was named (sets)")
    for system, count in found.unknown.items():
        if count:
            notes.append(f"{system}: {count} voices had nobody to ask for" + _LEFT.get(system, "; they are left out"))
    return notes
