"""Finished runs as the report needs them: what an experiment asks, what its runs say, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import runs
from evaluation.bootstrap import Interval, eer_intervals, ratio_intervals
from evaluation.runs import RESULT, RunError, RunFiles
from evaluation.verification import DetCurve, det_curve, evaluate_scores
from featstore import FeatureSpec

#: The experiments, and what the reference study published of them (PersonaPlex-Voice-Diarization).
EXPERIMENTS: dict[str, dict[str, str]] = {
    "1": {
        "name": "baseline",
        "question": "Is there any speaker signal in Mimi's latents?",
        "published": "EER 35.01 %",
        "measure": "EER, raw cosine of mean-pooled latents, no training",
        "command": "trainers fit probe",
    },
    "1.5": {
        "name": "probe",
        "question": "Is it linearly separable?",
        "published": "EER 20.48 % (trained on its own test speakers)",
        "measure": "EER, cosine in the probe's space",
        "command": "trainers fit probe",
    },
    "poc": {
        "name": "PoC adapter",
        "question": "Does the adapter idea work at all?",
        "published": "none",
        "measure": "DER on two-speaker mixtures",
        "command": "trainers fit adapter --set experiment=poc",
    },
    "2": {
        "name": "adapter",
        "question": "Can a small head on frozen Mimi diarize?",
        "published": "FA+Miss 4.6 %, confusion ≈ 33 %; DER 65.03 % in step 3",
        "measure": "DER",
        "command": "trainers fit adapter",
    },
    "2.5": {
        "name": "unfreeze",
        "question": "Can fine-tuning Mimi's top layers unlock it?",
        "published": "confusion 33 % → 46 % (worse)",
        "measure": "DER",
        "command": "trainers fit unfreeze",
    },
    "3": {
        "name": "fusion",
        "question": "Mimi for when, TitaNet for who?",
        "published": "DER 60.93 % (Mimi alone 65.03 %)",
        "measure": "DER",
        "command": "trainers fit fusion",
    },
    "4": {
        "name": "cascade",
        "question": "Mimi for when, TitaNet for who, taken literally?",
        "published": "none",
        "measure": "DER of whole recordings, one identity throughout",
        "command": "trainers fit cascade",
    },
}
_OF_KIND = {"probe": "1.5", "adapter": "2", "unfreeze": "2.5", "fusion": "3", "cascade": "4"}
#: Columns of scores.parquet that are systems, with the name the report gives them.
_SYSTEMS = {
    "raw": "raw cosine",
    "raw_centred": "raw, centred on the training mean",
    "probe": "linear probe",
    "lda": "LDA (scikit-learn)",
    "logreg": "logistic regression (scikit-learn)",
}


#: What each rate sums over a recording, before it is divided by the reference speaker time.
ERRORS = {
    "der": ("missed_s", "false_alarm_s", "confusion_s"),
    "detection": ("missed_s", "false_alarm_s"),
    "fixed_der": ("missed_s", "false_alarm_s", "fixed_confusion_s"),
}


@dataclass(frozen=True)
class Plotted:
    """What verification runs give to plot, by label: DET curves, and (scores, same) for histograms."""

    curves: dict[str, DetCurve] = field(default_factory=dict)
    scores: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]] = field(default_factory=dict)


@dataclass
class RunFacts:
    """A finished run as the report needs it."""

    files: RunFiles
    result: dict[str, Any]
    experiment: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def protocol(self) -> str:
        return self.files.protocol

    @property
    def features(self) -> Mapping[str, FeatureSpec]:
        return self.files.features

    @property
    def diarizes(self) -> bool:
        return bool(self.result["kind"] != "probe")

    @property
    def title(self) -> str:
        return title_of(self.experiment)


def read_run(path: Path) -> RunFacts:
    """Read a finished run's folder.

    Raises
    ------
    RunError : it is none, it has not finished, or its files are damaged.
    """
    files = runs.open(path)
    result = files.result()
    if result is None:
        raise RunError(f"{path}: the run has not finished (no {RESULT}); go on with: trainers fit … --resume")
    try:
        return RunFacts(files, result, files.config["config"].get("experiment") or _OF_KIND[result["kind"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: damaged, or written by another version: {error}") from None


def title_of(experiment: str) -> str:
    """What a figure or a line of text calls an experiment."""
    name = EXPERIMENTS[experiment]["name"]
    return name if experiment == "poc" else f"{experiment} {name}"


def verification_figures(run: RunFacts, num_resamples: int, rng: np.random.Generator, plotted: Plotted) -> None:
    """Fill ``run.figures`` by system: EER with its interval by speaker, and its difference to raw cosine, paired.

    Parameters
    ----------
    plotted : gains what is drawn of this run.

    Raises
    ------
    RunError : scores.parquet is missing or damaged.
    """
    found = run.files.scores()
    same, left, right = found.same, found.left_speakers, found.right_speakers
    bootable = None not in left and None not in right
    features = "+".join(run.features)
    for system, name in _SYSTEMS.items():
        if system not in found.systems:
            continue
        name = name if features == "mimi" else f"{features}: {name}"
        values = found.systems[system]
        figures = evaluate_scores(values, same).to_json() | {"interval": None, "against_raw": None}
        if bootable:
            raw = None if system == "raw" else found.systems["raw"]
            interval, gap = eer_intervals(values, same, left, right, rng, baseline=raw, num_resamples=num_resamples)
            figures |= {"interval": interval.to_json(), "against_raw": gap.to_json() if gap else None}
        run.figures[system] = {"name": name, **figures}
        _plot(plotted, run.protocol, system, name, values, same)


def _plot(
    plotted: Plotted, protocol: str, system: str, name: str, values: NDArray[np.float32], same: NDArray[np.bool_]
) -> None:
    drawn = ("probe",) if protocol == "reference" else ("raw", "probe", "lda")  # more would hide each other
    label = name if system == "raw" else f"{name} ({protocol})"
    if system in drawn and label not in plotted.curves:
        plotted.curves[label] = det_curve(values, same)
        if system != "lda":
            plotted.scores[label] = (values, same)


def diarization_figures(run: RunFacts, num_resamples: int, rng: np.random.Generator) -> None:
    """Fill ``run.figures``: the corpus's rates, and their intervals by recording where there are two or more."""
    run.figures = dict(run.result["test"])
    recordings = list(run.result["recordings"].values())
    totals = [r["total_s"] for r in recordings]
    for name, parts in ERRORS.items():
        if len(recordings) > 1 and sum(totals) > 0:
            errors = [sum(r[p] for p in parts) for r in recordings]
            run.figures[f"{name}_interval"] = ratio_intervals(errors, totals, rng, num_resamples=num_resamples)[
                0
            ].to_json()
    run.figures["num_recordings"] = len(recordings)


def find_run(runs: Sequence[RunFacts], experiment: str, protocol: str) -> RunFacts | None:
    """The first run of an experiment under a protocol; experiment 1 is the probe's run, scored without it."""
    wanted = "1.5" if experiment == "1" else experiment
    # The experiments ask about Mimi; a probe on another feature alone is a yardstick beside them.
    return next(
        (r for r in runs if r.experiment == wanted and r.protocol == protocol and "mimi" in r.features),
        None,
    )


def paired_difference(run: RunFacts, baseline: RunFacts, num_resamples: int, seed: int) -> Interval | None:
    """Interval of the difference of two runs' DER, by recording; None where they have not the same recordings."""
    names = list(baseline.result["recordings"])
    if sorted(names) != sorted(run.result["recordings"]) or len(names) < 2:
        return None
    errors, others = (
        [sum(r.result["recordings"][n][p] for p in ERRORS["der"]) for n in names] for r in (run, baseline)
    )
    totals = [baseline.result["recordings"][n]["total_s"] for n in names]
    if sum(totals) <= 0:
        return None
    rng = np.random.default_rng(seed)
    return ratio_intervals(errors, totals, rng, baseline=others, num_resamples=num_resamples)[1]
