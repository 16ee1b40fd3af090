"""The figures of a report's rows, with intervals, and how two rows differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Interval, eer_intervals, ratio_intervals
from evaluation.experiments import called
from evaluation.rows import Row, RunFacts
from evaluation.runs import RunError
from evaluation.verification import DetCurve, det_curve, evaluate_scores

#: Columns of scores.parquet that are systems, with the name the report gives them.
_SYSTEMS = {
    "raw": "raw cosine",
    "raw_centred": "raw, centred on the training mean",
    "probe": "linear probe",
    "lda": "LDA (scikit-learn)",
    "logreg": "logistic regression (scikit-learn)",
    "proxy": "proxy",
    "proxy_soft": "proxy on logits, right codes at half of the probability",
    "proxy_straight_through": "proxy on the likeliest codes of such logits (straight through)",
    "proxy_mixed": "proxy, codes against logits (right codes at half)",
    "proxy_doubtful": "proxy on logits, right codes at a fifth",
    "proxy_sharpened": "proxy on logits, right codes at a fifth, temperature 0.5",
    "proxy_corrupted_10": "proxy, 10 % of the codes wrong",
    "proxy_corrupted_30": "proxy, 30 % of the codes wrong",
    "mimi": "mean of Mimi's latents of the same audio",
    "titanet": "mean of TitaNet's frames of the same audio",
}

#: Forms that a proxy's input has in a training loop, which are compared with codes.
_FORMS = ("proxy_soft", "proxy_straight_through", "proxy_mixed")

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


def verification_figures(row: Row | RunFacts, num_resamples: int, rng: np.random.Generator) -> None:
    """Fill ``row.figures`` by system: EER with its interval by speaker, and its difference to raw cosine, paired.

    Raises
    ------
    RunError : scores.parquet is missing or damaged, or of other trials than another seed's.
    """
    of_seeds = row.runs if isinstance(row, Row) else [row]
    tables = [run.files.scores() for run in of_seeds]
    found = tables[0]
    same, left, right = found.same, found.left_speakers, found.right_speakers
    for run, table in zip(of_seeds, tables, strict=True):
        if (table.left_speakers, table.right_speakers) != (left, right) or (table.same != same).any():
            raise RunError(
                f"{run.files.path}: was scored on other trials than {of_seeds[0].files.path}, of another seed"
            )
    bootable = None not in left and None not in right
    for system, name in _SYSTEMS.items():
        if not all(system in table.systems for table in tables):
            continue
        values = np.stack([table.systems[system] for table in tables])
        each = [evaluate_scores(v, same).to_json() for v in values]
        figures = {**_mean(each), "interval": None, "against_raw": None, **_spread([e["eer"] for e in each])}
        if system in _FORMS:
            codes = np.stack([table.systems["proxy"] for table in tables])
            against = (
                eer_intervals(values, same, left, right, rng, baseline=codes, num_resamples=num_resamples)[1]
                if bootable
                else None
            )
            figures["against_codes"] = against.to_json() if against else None
        if bootable:
            raw = None if system == "raw" else np.stack([table.systems["raw"] for table in tables])
            interval, gap = eer_intervals(values, same, left, right, rng, baseline=raw, num_resamples=num_resamples)
            figures |= {"interval": interval.to_json(), "against_raw": gap.to_json() if gap else None}
        row.figures[system] = {"name": f"{name}, {called(tuple(row.files.features))}", **figures}


def _mean(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the figures of several seeds; their words are alike."""
    if len(each) == 1:
        return dict(each[0])
    return {
        key: _mean([e[key] for e in each])
        if isinstance(value, Mapping)
        else value
        if isinstance(value, str | int)
        else sum(e[key] for e in each) / len(each)
        for key, value in each[0].items()
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    several = len(values) > 1 and len(known) == len(values)
    return {"seeds": len(values), "spread": [min(known), max(known)] if several else None}


def plot_scores(row: Row, plotted: Plotted) -> None:
    """Add to `plotted` what is drawn of a probe's row: of several seeds, the first."""
    found = row.files.scores()
    drawn = (
        ("probe",) if row.protocol == "reference" else ("raw", "probe", "lda", "proxy", "proxy_mixed")
    )  # more would hide each other
    for system in drawn:
        if system not in row.figures:
            continue
        name = row.figures[system]["name"]
        label = name if system == "raw" else f"{name} ({row.variant or row.protocol})"
        if label not in plotted.curves:
            plotted.curves[label] = det_curve(found.systems[system], found.same)
            if system != "lda":
                plotted.scores[label] = (found.systems[system], found.same)


def diarization_figures(row: Row | RunFacts, num_resamples: int, rng: np.random.Generator) -> None:
    """Fill ``row.figures``: the corpus's rates, and their intervals by recording where there are two or more.

    ``figures["whole"]`` holds those of whole recordings where a head that answers by window was measured so too.
    """
    row.figures = _rates(row.result, num_resamples, rng)
    of_seeds = row.runs if isinstance(row, Row) else [row]
    row.figures |= _spread([run.result["test"]["der"] for run in of_seeds])
    if whole := row.result.get("whole"):
        row.figures["whole"] = _rates({**whole, "test": whole}, num_resamples, rng)
        row.figures["whole"] |= _spread([run.result["whole"]["der"] for run in of_seeds])


def _rates(result: Mapping[str, Any], num_resamples: int, rng: np.random.Generator) -> dict[str, Any]:
    figures = {key: value for key, value in result["test"].items() if key != "recordings"}
    recordings = result.get("recordings", {})
    for name in ERRORS:
        if interval := ratio_interval(recordings, name, num_resamples, rng):
            figures[f"{name}_interval"] = interval.to_json()
    return {**figures, "num_recordings": len(recordings)}


def ratio_interval(
    recordings: Mapping[str, Mapping[str, Any]], rate: str, num_resamples: int, rng: np.random.Generator
) -> Interval | None:
    """Interval of a rate of `ERRORS`, by recording; None of fewer than two recordings, or where these know it not."""
    each = list(recordings.values())
    totals = [e["total_s"] for e in each]
    if len(each) < 2 or sum(totals) <= 0 or not all(part in e for e in each for part in ERRORS[rate]):
        return None
    errors = [sum(e[part] for part in ERRORS[rate]) for e in each]
    return ratio_intervals(errors, totals, rng, num_resamples=num_resamples)[0]


def find(
    rows: Sequence[Row], experiment: str, protocol: str = "sound", features: Sequence[str] | None = None
) -> Row | None:
    """The first row of an experiment under a protocol, on all training data; experiment 1 is the probe's row.

    Parameters
    ----------
    features : in any order; None: whatever they are.
    """
    wanted = "1.5" if experiment == "1" else experiment
    return next(
        (
            row
            for row in rows
            if (row.experiment, row.protocol, row.train_fraction) == (wanted, protocol, 1.0)
            and (features is None or set(features) == set(row.features))
        ),
        None,
    )


def der_difference(
    recordings: Mapping[str, Mapping[str, Any]] | None,
    baseline: Mapping[str, Mapping[str, Any]] | None,
    num_resamples: int,
    seed: int,
) -> Interval | None:
    """Interval of the difference of two DERs, paired by recording; None where they have not the same recordings."""
    if not recordings or not baseline or len(baseline) < 2 or recordings.keys() != baseline.keys():
        return None
    errors, others = ([sum(side[n][p] for p in ERRORS["der"]) for n in baseline] for side in (recordings, baseline))
    totals = [of["total_s"] for of in baseline.values()]
    if sum(totals) <= 0:
        return None
    rng = np.random.default_rng(seed)
    return ratio_intervals(errors, totals, rng, baseline=others, num_resamples=num_resamples)[1]


def paired_difference(row: Row, baseline: Row, num_resamples: int, seed: int) -> Interval | None:
    """Interval of a row's DER minus another's, by recording: over whole recordings where both were measured so.

    None where they have not the same recordings.
    """
    both = [(r.recordings(True), r.recordings(False)) for r in (row, baseline)]
    whole = all(pair[0] for pair in both)
    first, second = (pair[0] if whole else pair[1] or pair[0] for pair in both)
    return der_difference(first, second, num_resamples, seed)


def same_scope(row: Row, baseline: Row) -> bool:
    """Whether `paired_difference` compares like with like: both by window, or both over whole recordings."""
    return row.whole_only == baseline.whole_only or bool(row.recordings(True) and baseline.recordings(True))
