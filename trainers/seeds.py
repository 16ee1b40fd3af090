"""The same fit with several seeds: ordinary runs side by side, and how far their figures lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.extraction import judged_by
from evaluation.runs import CONFIG
from featstore import Store
from trainers import kinds
from trainers.config import ConfigError, FitConfig
from trainers.progress import Progress
from trainers.runs import Run


def fit_seeds(
    config: FitConfig, store: Store, out: Path, count: int, *, resume: bool = False, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Fit `count` runs in ``out/seed0``, ``out/seed1``, …, from the configuration's seed on.

    Parameters
    ----------
    resume : go on with those that are there, begin the others.

    Returns
    -------
    What each wrote to result.json, by the name of its folder; nothing in all but the first of several processes.

    Raises
    ------
    ConfigError : `out` is a run itself.
    RunError : see `Run.create`; before anything is trained.
    """
    if (out / CONFIG).exists():
        raise ConfigError(f"{out}: is a run of one seed; several go into folders of their own: choose another --out")
    seeds = range(config.seed, config.seed + count)
    runs = [Run.create(out / f"seed{s}", replace(config, seed=s), store, resume=resume) for s in seeds]
    fit = kinds.function_of(config.kind)
    results = {run.path.name: fit(run, store, progress=progress) for run in runs}
    return {name: result for name, result in results.items() if result}


def spread(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and greatest of the figure that runs of one kind are judged by.

    Returns
    -------
    dict : measure ("DER", "EER" of probe and proxy, "names not found" of unmix, "SI-SDRi" of tse in dB), values (by run), mean, min, max; of those the
    last three None where no run has a figure.
    """
    values: dict[str, float | None] = {}
    measure = "DER"
    for name, result in results.items():
        if "sets" in result:
            measure, values[name] = "names not found", 1 - result["names_found"]
        elif "extraction" in result:  # by which way of asking it is judged
            of = result["extraction"]
            measure, values[name] = "SI-SDRi", judged_by(of["enrolled" if "enrolled" in of else "none"])["si_sdri"]
        elif "systems" in result:  # the system that was fitted is called as its kind is
            measure, values[name] = "EER", result["systems"][result["kind"]]["eer"]
        else:
            values[name] = result["test"]["der"]
    known = [value for value in values.values() if value is not None]
    return {
        "measure": measure,
        "values": values,
        "mean": sum(known) / len(known) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
    }
