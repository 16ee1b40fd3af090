"""All that a report says, from run folders only: report.json, and what its page is drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from os import PathLike
from typing import Any

import numpy as np

from evaluation import baselines
from evaluation.answer import answer, pairs, question
from evaluation.audit import check_run
from evaluation.chart import chart, test_set, trivial_systems
from evaluation.findings import findings, whole_against_windows
from evaluation.flaws import flaws
from evaluation.proxy import proxies
from evaluation.results import Plotted, diarization_figures, plot_scores, verification_figures
from evaluation.rows import Row, RunFacts, expand, read_run, rows_of
from evaluation.sets import set_figures
from evaluation.table import experiments_table
from evaluation.terms import TERMS, YARDSTICKS
from evaluation.voices import extraction_figures
from evaluation.voices import tables as tables_of_voices
from evaluation.words import SIGN


def gather(
    paths: Sequence[str | PathLike[str]], num_resamples: int, seed: int
) -> tuple[dict[str, Any], list[Row], Plotted]:
    """What report.json holds, the rows that it is made from, and what is to be plotted of the verification runs.

    Each run is audited on the way (`evaluation.audit.check_run`).

    Parameters
    ----------
    paths : runs, or folders that hold runs.
    num_resamples : of every 95 % interval; trials are resampled by speaker, diarization errors by recording.

    Raises
    ------
    ValueError : no run, or a folder that is not a finished run and holds none.
    """
    if not paths:
        raise ValueError("no run given; make one with: trainers fit probe --store STORE --out RUN")
    found = [read_run(path) for path in expand(paths)]
    rows, plotted = rows_of(found), Plotted()
    for row in rows:
        _measure(row, num_resamples, seed)
        if row.diarizes:
            baselines.look_at_truth(row)
        elif not row.unmixes and not row.extracts:
            plot_scores(row, plotted)
    facts = {
        "whowhen": metadata.version("whowhen"),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "warnings": sorted({warning for run in found for warning in run.files.warnings}),
        "failed_checks": [c.to_json() for run in found for c in check_run(run.files.path) if c.level == "error"],
        "question": question(pairs(rows), rows),
        "answer": answer(rows, num_resamples, seed),
        "sign": SIGN,
        "terms": [{"term": term, "text": text} for term, text in TERMS.items()],
        "chart": chart(rows),
        "chart_on": test_set(rows),
        "baselines": trivial_systems(rows, num_resamples, seed),
        "findings": findings(rows, num_resamples, seed),
        "flaws": flaws(rows),
        "experiments": experiments_table(rows),
        "proxies": proxies(rows),
        "learning": _learning(rows),
        "whole": [
            {"label": row.label, **split} for row in rows if (split := whole_against_windows(row, num_resamples, seed))
        ],
        "voices": tables_of_voices(rows),
        "runs": [_run(run, row) for run, row in sorted(_with_rows(rows), key=lambda pair: found.index(pair[0]))],
        "yardsticks": [dict(zip(("what", "figure", "source"), y, strict=True)) for y in YARDSTICKS],
    }
    return facts, rows, plotted


def _measure(row: Row, num_resamples: int, seed: int) -> None:
    """Figures of a row and of each of its runs; of a single run they are the same."""
    each: list[Row | RunFacts] = [row, *(row.runs if len(row.runs) > 1 else ())]
    measure = set_figures if row.unmixes else diarization_figures if row.diarizes else verification_figures
    if row.extracts:
        measure = extraction_figures
    for of in each:
        measure(of, num_resamples, np.random.default_rng(seed))
    if len(row.runs) == 1:
        row.runs[0].figures = row.figures


def _with_rows(rows: Sequence[Row]) -> list[tuple[RunFacts, Row]]:
    return [(run, row) for row in rows for run in row.runs]


def _run(run: RunFacts, row: Row) -> dict[str, Any]:
    """All that one run says."""
    features = run.files.features
    return {
        "name": run.name,
        "path": str(run.files.path),
        "label": row.label,
        "seed": run.seed,
        "experiment": run.experiment,
        "kind": run.result["kind"],
        "protocol": run.files.protocol,
        "features": {name: spec.fingerprint for name, spec in features.items()},
        "weights": {
            name: {
                "model": spec.model,
                "from": spec.settings.get("weights", "?"),
                "sha256": spec.weights_sha256,
            }
            for name, spec in features.items()
        },
        "warnings": run.files.warnings,
        "figures": run.figures,
        "notes": run.result.get("notes", []),
        "result": {
            k: v
            for k, v in run.result.items()
            if k not in ("systems", "recordings", "notes", "whole", "sets", "memory", "extraction", "examples")
        },
    }


def _learning(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """DER and loss by amount of training data, of heads that were trained on different shares of it."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.diarizes:
            curves.setdefault((row.label, row.protocol), []).append(row)
    return [
        {
            "label": label if protocol == "sound" else f"{label}, {protocol} protocol",
            "points": [_point(row) for row in sorted(of, key=lambda row: row.train_fraction)],
        }
        for (label, protocol), of in curves.items()
        if max(Counter(row.train_fraction for row in of).values()) == 1 < len(of)
    ]


def _point(row: Row) -> dict[str, Any]:
    losses = [loss for run in row.runs if (loss := run.result.get("best_dev_loss")) is not None]
    seconds = row.result.get("train_s")
    return {
        "train_fraction": row.train_fraction,
        "hours": seconds / 3600 if seconds is not None else None,
        "der": row.figures["der"],
        "interval": row.figures.get("der_interval"),
        "loss": sum(losses) / len(losses) if len(losses) == len(row.runs) else None,
        "seeds": len(row.runs),
    }
