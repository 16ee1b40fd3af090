"""The report: what was published, what the published procedure gives here, what a sound one gives, side by side.

Reads run folders only, so that it can be made anywhere, long after the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.audit import check_run
from evaluation.findings import findings, rate, span
from evaluation.pictures import pictures
from evaluation.results import (
    EXPERIMENTS,
    Plotted,
    RunFacts,
    diarization_figures,
    find_run,
    read_run,
    verification_figures,
)

YARDSTICKS = (
    ("Mimi's quantised tokens under an ECAPA head, VoxCeleb1", "EER 18.68 % (8 codebooks), 23.91 % (32)", "DASB, arXiv 2506.10274"),
    ("EnCodec / DAC / SpeechTokenizer, same head", "EER 13.54 / 15.86 / 10.45 %", "DASB, arXiv 2506.10274"),
    ("continuous self-supervised features, same head", "EER 2.10 %", "DASB, arXiv 2506.10274"),
    ("TitaNet-L, VoxCeleb1-O cleaned", "EER 0.66–0.68 %", "NVIDIA's model card"),
    ("pyannote 3.1, AMI test (headset mix / array)", "DER 18.8 / 22.7 %", "pyannote; no collar, overlap scored"),
    ("DiariZen-L, AMI test (array)", "DER 13.9 %", "no collar, overlap scored"),
)  # fmt: skip


def report(
    runs: Sequence[str | PathLike[str]], out: str | PathLike[str], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Write report.html, report.md and report.json into `out`; returns what report.json holds.

    Each run is audited on the way (`evaluation.audit.check_run`); what does not hold stands on top of the page.

    Parameters
    ----------
    num_resamples : of every 95 % interval; trials are resampled by speaker, diarization errors by recording.

    Raises
    ------
    ValueError : no run, or a folder that is not a finished run.
    """
    if not runs:
        raise ValueError("no run given; make one with: trainers fit probe --store STORE --out RUN")
    found = [read_run(Path(run)) for run in runs]
    plotted = Plotted()
    for run in found:
        rng = np.random.default_rng(seed)
        if run.diarizes:
            diarization_figures(run, num_resamples, rng)
        else:
            verification_figures(run, num_resamples, rng, plotted)
    facts = {
        "whowhen": metadata.version("whowhen"),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "warnings": sorted({warning for run in found for warning in run.files.warnings}),
        "failed_checks": [check.to_json() for run in found for check in check_run(run.path) if check.level == "error"],
        "findings": findings(found, num_resamples, seed),
        "experiments": [_row(id, experiment, found) for id, experiment in EXPERIMENTS.items()],
        "runs": [_run(run) for run in found],
        "yardsticks": [dict(zip(("what", "figure", "source"), y, strict=True)) for y in YARDSTICKS],
    }
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = facts | {"pictures": pictures(found, plotted)}
    for name, template in (("report.html", "report.html.j2"), ("report.md", "report.md.j2")):
        (target / name).write_text(_render(template, shown), encoding="utf-8")
    return facts


def _run(run: RunFacts) -> dict[str, Any]:
    """All that one run says."""
    return {
        "name": run.name,
        "path": str(run.path),
        "experiment": run.experiment,
        "kind": run.result["kind"],
        "protocol": run.protocol,
        "features": {name: spec.fingerprint for name, spec in run.features.items()},
        "weights": {
            name: {
                "model": spec.model,
                "from": spec.settings.get("weights", "?"),
                "sha256": spec.weights_sha256,
            }
            for name, spec in run.features.items()
        },
        "warnings": run.files.warnings,
        "figures": run.figures,
        "notes": run.result.get("notes", []),
        "result": {k: v for k, v in run.result.items() if k not in ("systems", "recordings", "notes")},
    }


def _row(id: str, experiment: dict[str, str], runs: Sequence[RunFacts]) -> dict[str, Any]:
    """One experiment: published, reference and sound beside each other."""
    row: dict[str, Any] = {"id": id, **experiment}
    for protocol in ("reference", "sound"):
        run = find_run(runs, id, protocol)
        told = run and (_diarization(run) if run.diarizes else _verification(id, run))
        row[protocol] = {"run": run.name, "warnings": run.files.warnings, **told} if run and told else None
    return row


def _verification(id: str, run: RunFacts) -> dict[str, Any]:
    result, figures = run.result, run.figures["raw" if id == "1" else "probe"]
    on = f"{result['num_trials']:,} trials, {result['num_trial_speakers']} speakers"
    if id != "1":
        whose = "of these very speakers" if run.protocol == "reference" else "other speakers"
        on += f"; trained on {result['num_utterances']} utterances of {result['num_speakers']} {whose}"
    return {"lines": [{"what": "EER", "value": figures["eer"], "interval": figures.get("interval")}], "on": on}


def _diarization(run: RunFacts) -> dict[str, Any]:
    figures, tuned = run.figures, run.result["decoding"]
    if run.protocol == "reference":
        lines = {
            "DER, fixed channels": "fixed_der",
            "FA+Miss": "detection",
            "confusion": "fixed_confusion",
            "its DER, mapped": "der",
        }
    else:
        lines = {"DER": "der", "FA+Miss": "detection", "confusion": "confusion", "JER": "jer"}
    told = [
        {"what": what, "value": figures[key], "interval": figures.get(f"{key}_interval")} for what, key in lines.items()
    ]
    chosen = f"threshold {tuned['threshold']:g}"
    if "ceilings" in run.result:
        told += [
            {"what": f"DER, {name.replace('_', ' ')}", "value": ceiling["test"]["der"], "interval": None}
            for name, ceiling in run.result["ceilings"].items()
        ]
        chosen = f"whole, one identity throughout; {tuned['clustering']} clusters, {chosen}"
    else:
        chosen += f", median {tuned['median']}"
    on = f"{figures['num_recordings']} recordings, {figures['scored_s'] / 60:.1f} min; {chosen}"
    return {"lines": told, "on": f"{on}, tuned on {tuned['tuned_on']}"}


def _render(template: str, facts: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("evaluation", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": lambda line: rate(line["value"], line["interval"]), "span": span}
    environment.filters["glued"] = lambda text: text.replace(" %", "\u00a0%")  # no line ends before a % sign
    return environment.get_template(template).render(facts)
