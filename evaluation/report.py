"""The report: what was published, what the published procedure gives here, what a sound one gives, side by side.

Reads run folders only (result.json, scores.parquet, RTTMs), so that it can be made anywhere, long after the store.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.audit import check_run
from evaluation.diarization import score
from evaluation.results import (
    EXPERIMENTS,
    RunFacts,
    diarization_figures,
    find_run,
    paired_difference,
    read_run,
    title_of,
    verification_figures,
)
from evaluation.rttm import read_rttm, read_uem
from evaluation.verification import DetCurve

YARDSTICKS = (
    ("Mimi's quantised tokens under an ECAPA head, VoxCeleb1", "EER 18.68 % (8 codebooks), 23.91 % (32)", "DASB, arXiv 2506.10274"),
    ("EnCodec / DAC / SpeechTokenizer, same head", "EER 13.54 / 15.86 / 10.45 %", "DASB, arXiv 2506.10274"),
    ("continuous self-supervised features, same head", "EER 2.10 %", "DASB, arXiv 2506.10274"),
    ("TitaNet-L, VoxCeleb1-O cleaned", "EER 0.66–0.68 %", "NVIDIA's model card"),
    ("pyannote 3.1, AMI test (headset mix / array)", "DER 18.8 / 22.7 %", "pyannote; no collar, overlap scored"),
    ("DiariZen-L, AMI test (array)", "DER 13.9 %", "no collar, overlap scored"),
)  # fmt: skip
_TIMELINES = 3


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
    curves: dict[str, DetCurve] = {}
    scores: dict[str, tuple[NDArray, NDArray[np.bool_]]] = {}
    for run in found:
        rng = np.random.default_rng(seed)
        if run.result["kind"] == "probe":
            verification_figures(run, num_resamples, rng, curves, scores)
        else:
            diarization_figures(run, num_resamples, rng)
    facts = {
        "whowhen": metadata.version("whowhen"),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "warnings": sorted({w for run in found for w in run.warnings}),
        "failed_checks": [check.to_json() for run in found for check in check_run(run.path) if check.level == "error"],
        "findings": _findings(found, num_resamples, seed),
        "experiments": [_row(id, facts, found) for id, facts in EXPERIMENTS.items()],
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "experiment": run.experiment,
                "kind": run.result["kind"],
                "protocol": run.protocol,
                "features": {name: f["fingerprint"] for name, f in run.features.items()},
                "weights": {
                    name: {
                        "model": f["spec"]["model"],
                        "from": f["spec"]["settings"].get("weights", "?"),
                        "sha256": f["spec"]["weights_sha256"],
                    }
                    for name, f in run.features.items()
                },
                "warnings": run.warnings,
                "figures": run.figures,
                "notes": run.result.get("notes", []),
                "result": {k: v for k, v in run.result.items() if k not in ("systems", "recordings", "notes")},
            }
            for run in found
        ],
        "yardsticks": [dict(zip(("what", "figure", "source"), y, strict=True)) for y in YARDSTICKS],
    }
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    pictures = _pictures(found, curves, scores)
    for name, template in (("report.html", "report.html.j2"), ("report.md", "report.md.j2")):
        (target / name).write_text(_render(template, facts | {"pictures": pictures}), encoding="utf-8")
    return facts


# ---- rows and sentences


def _row(id: str, facts: dict[str, str], runs: Sequence[RunFacts]) -> dict[str, Any]:
    """One experiment: published, reference and sound beside each other."""
    row: dict[str, Any] = {"id": id, **facts}
    for protocol in ("reference", "sound"):
        run = find_run(runs, id, protocol)
        row[protocol] = _cell(id, run) if run else None
    return row


def _cell(id: str, run: RunFacts) -> dict[str, Any]:
    result, reference = run.result, run.protocol == "reference"
    cell: dict[str, Any] = {"run": run.name, "warnings": run.warnings}
    if id in ("1", "1.5"):
        figures = run.figures["raw" if id == "1" else "probe"]
        cell["lines"] = [{"what": "EER", "value": figures["eer"], "interval": figures.get("interval")}]
        cell["on"] = (
            f"{result['num_trials']:,} trials, {result['num_trial_speakers']} speakers"
            + ("" if id == "1" else f"; trained on {result['num_utterances']} utterances of {result['num_speakers']}"
               + (" of these very speakers" if reference else " other speakers"))
        )  # fmt: skip
        return cell
    figures = run.figures
    keys = [("FA+Miss", "detection"), ("confusion", "fixed_confusion" if reference else "confusion")]
    main = ("DER, fixed channels", "fixed_der") if reference else ("DER", "der")
    cell["lines"] = [
        {"what": what, "value": figures[key], "interval": figures.get(f"{key}_interval")} for what, key in [main, *keys]
    ]
    if reference:
        cell["lines"].append(
            {"what": "its DER, mapped", "value": figures["der"], "interval": figures.get("der_interval")}
        )
    else:
        cell["lines"].append({"what": "JER", "value": figures["jer"], "interval": None})
    tuned = result["decoding"]
    cell["on"] = (
        f"{figures['num_recordings']} recordings, {figures['scored_s'] / 60:.1f} min; threshold {tuned['threshold']:g}, "
        f"median {tuned['median']}, tuned on {tuned['tuned_on']}"
    )
    return cell


def _findings(runs: Sequence[RunFacts], num_resamples: int, seed: int) -> list[str]:
    """What the sound runs say, each sentence with its interval; “undecided” where chance covers it."""
    found = []
    probe = find_run(runs, "1.5", "sound")
    if probe:
        raw, trained = probe.figures["raw"], probe.figures["probe"]
        found.append(
            f"Untrained cosine on mean-pooled latents errs at {_rate(raw['eer'], raw.get('interval'))} "
            "(50 % would be chance)."
        )
        if gap := trained.get("against_raw"):
            found.append(
                f"A linear probe, trained on other speakers, errs at {_rate(trained['eer'], trained['interval'])}: "
                f"{_verdict(gap, 'better', 'worse')} than raw cosine."
            )
    in_sample = find_run(runs, "1.5", "reference")
    if probe and in_sample:
        honest, own = probe.figures["probe"]["eer"], in_sample.figures["probe"]["eer"]
        found.append(
            f"Trained on its own test speakers, as published, the probe errs at {100 * own:.1f} % instead of "
            f"{100 * honest:.1f} %."
        )
    adapter = find_run(runs, "2", "sound")
    for id, words in (("2.5", "Unfreezing Mimi's top layers"), ("3", "Adding TitaNet")):
        other = find_run(runs, id, "sound")
        if not adapter or not other:
            continue
        steps, against = other.result["steps"], adapter.result["steps"]
        if not 0.5 <= steps / max(against, 1) <= 2:
            found.append(
                f"{words} cannot be judged from these runs: {steps} training steps against the adapter's {against}."
            )
        elif gap := paired_difference(other, adapter, num_resamples, seed):
            found.append(f"{words} is {_verdict(gap.to_json(), 'better', 'worse')} than the adapter alone (DER).")
    for id in ("2", "2.5", "3"):
        run = find_run(runs, id, "reference")
        if run and run.figures["fixed_der"]:
            share = run.figures["fixed_der"] - run.figures["der"]
            found.append(
                f"Of the {100 * run.figures['fixed_der']:.1f} % that the reference protocol reports for experiment {id}, "
                f"{100 * share:.1f} points are its scoring with fixed channels."
            )
    return found


def _verdict(gap: dict[str, Any], better: str, worse: str) -> str:
    points = f"{100 * abs(gap['estimate']):.1f} points (95 % interval of the difference {_span(gap)})"
    if gap["high"] < 0:
        return f"{points} {better}"
    if gap["low"] > 0:
        return f"{points} {worse}"
    return f"not clearly {better} or {worse}: {points} {better if gap['estimate'] < 0 else worse}"


def _span(interval: dict[str, Any]) -> str:
    return f"{100 * interval['low']:.1f} … {100 * interval['high']:.1f}"


def _rate(value: float | None, interval: dict[str, Any] | None) -> str:
    if value is None:
        return "undefined"
    return f"{100 * value:.1f} %" + (f" [{_span(interval)}]" if interval else "")


# ---- pictures and pages


def _pictures(
    runs: Sequence[RunFacts], curves: dict[str, DetCurve], scores: dict[str, tuple[NDArray, NDArray[np.bool_]]]
) -> dict[str, Any]:
    from evaluation import plots

    pictures: dict[str, Any] = dict.fromkeys(("det", "histograms", "errors", "flaws", "histories")) | {"timelines": []}
    if curves:
        pictures["det"] = plots.det(curves)
        pictures["histograms"] = plots.histograms(scores)
    diarizers = [run for run in runs if run.result["kind"] != "probe"]
    if bars := _error_bars(diarizers):
        pictures["errors"] = plots.stacks(bars, "share of reference speech, %")
    if bars := _flaw_bars(diarizers):
        pictures["flaws"] = plots.stacks(bars, "DER as the reference protocol reports it, %")
    if histories := {f"{run.name}": h for run in diarizers if (h := _history(run.path / "history.csv"))}:
        pictures["histories"] = plots.histories(histories)
    for run in diarizers:
        if run.protocol == "sound":
            pictures["timelines"] += _timelines(run)
    return pictures


def _error_bars(runs: Sequence[RunFacts]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    from evaluation.plots import PALETTE

    return [
        (
            run.title,
            [
                (label, run.figures[key], colour)
                for (label, key), colour in zip(
                    (("missed", "missed_detection"), ("false alarm", "false_alarm"), ("confusion", "confusion")),
                    (PALETTE[5], PALETTE[4], PALETTE[1]),
                    strict=True,
                )
            ],
        )
        for run in runs
        if run.protocol == "sound" and run.figures["der"] is not None
    ]


def _flaw_bars(runs: Sequence[RunFacts]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """The reference protocol's figure = the sound run's error + what training and tuning add + what scoring adds."""
    from evaluation.plots import PALETTE

    bars = []
    for id in EXPERIMENTS:
        reference, sound = find_run(runs, id, "reference"), find_run(runs, id, "sound")
        if id == "1" or not reference or not sound or reference.result["kind"] == "probe":
            continue
        published_way, mapped, remains = reference.figures["fixed_der"], reference.figures["der"], sound.figures["der"]
        if None in (published_way, mapped, remains):
            continue
        bars.append(
            (
                title_of(id),
                [
                    ("what remains under the sound protocol", remains, PALETTE[2]),
                    ("training order, padding, tuning on test", mapped - remains, PALETTE[4]),
                    ("scoring with fixed channels", published_way - mapped, PALETTE[1]),
                ],
            )
        )
    return bars


def _history(path: Path) -> dict[str, list[float]] | None:
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"epoch", "train_loss", "dev_der"} <= rows[0].keys():
        return None
    return {key: [float(row[key] or "nan") for row in rows] for key in ("epoch", "train_loss", "dev_der")}


def _timelines(run: RunFacts) -> list[dict[str, str]]:
    """The first windows of a run: best to look at, not best in score."""
    from evaluation import plots

    reference, hypothesis = (read_rttm(run.path / f"{side}.rttm") for side in ("ref", "hyp"))
    uem = read_uem(run.path / "windows.uem")
    spoken = {name: uem[name] for name in uem if name in reference and name in hypothesis}
    if not spoken:
        return []
    scored = score(reference, hypothesis, uem=spoken)
    by_recording: dict[str, str] = {}
    for name in spoken:
        by_recording.setdefault(name.rpartition("@")[0], name)
    return [
        {
            "title": f"{run.title}: {name}, DER {_rate(scored.recordings[name].der, None)}",
            "svg": plots.timeline(
                reference[name], hypothesis[name], scored.mappings[name], *map(float, spoken[name][0])
            ),
        }
        for name in list(by_recording.values())[:_TIMELINES]
    ]


def _render(template: str, facts: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("evaluation", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": lambda line: _rate(line["value"], line["interval"]), "span": _span}
    environment.filters["glued"] = lambda text: text.replace(" %", "\u00a0%")  # no line ends before a % sign
    return environment.get_template(template).render(facts)
