"""Confidence intervals: trials resampled by speaker, diarization errors by recording.

Trials that share a speaker, and errors of one recording, are not independent; an interval that resamples single
trials is far too narrow. What is drawn with replacement here is the speaker or the recording. A draw is kept as a
*multiplicity* (how often each unit was drawn) and turned into weights, so nothing is copied or scored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.verification import checked_scores, det_curve


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and how far chance alone moves it: the bootstrap's percentile interval.

    Attributes
    ----------
    estimate : on the data as it is.
    low, high : quantiles (1 - level) / 2 and (1 + level) / 2 over the resamples.
    level : e.g. 0.95.
    num_units : speakers or recordings that were drawn from. Under about 20 the interval is too narrow.
    num_resamples : that gave a figure.
    num_degenerate : resamples without any same- or different-speaker trial (or without speech), left out.
    share_below_zero : share of resamples under 0, ties counted half; what a paired difference is read by.
    """

    estimate: float
    low: float
    high: float
    level: float
    num_units: int
    num_resamples: int
    num_degenerate: int
    share_below_zero: float

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return asdict(self)


def draw_multiplicities(num_units: int, num_resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each unit is drawn when `num_units` are drawn with replacement; shape (num_resamples, num_units).

    Raises
    ------
    ValueError : fewer than two units (one cannot vary), or no resample asked for.
    """
    if num_units < 2:
        raise ValueError(f"a bootstrap needs at least 2 speakers or recordings to draw from, found {num_units}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be 1 or more, found {num_resamples}")
    return rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)


def _interval(estimate: float, values: NDArray[np.float64], num_units: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    good = values[~np.isnan(values)]
    if not len(good):
        raise ValueError(f"all {len(values)} resamples are degenerate; more speakers or recordings are needed")
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=float(estimate),
        low=float(low),
        high=float(high),
        level=level,
        num_units=num_units,
        num_resamples=len(good),
        num_degenerate=len(values) - len(good),
        share_below_zero=float(np.mean(good < 0) + np.mean(good == 0) / 2),
    )


def _speaker_numbers(
    left_speakers: Sequence[Any] | NDArray[Any], right_speakers: Sequence[Any] | NDArray[Any], same: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    sides = np.concatenate([np.asarray(left_speakers), np.asarray(right_speakers)])
    if len(sides) != 2 * len(same):
        raise ValueError(f"need one speaker for each side of {len(same)} trials, found {len(sides)} in all")
    if any(speaker is None or speaker == "" for speaker in sides.tolist()):
        raise ValueError("a bootstrap by speaker needs the speaker of every trial's utterances; some have none")
    speakers, numbers = np.unique(sides, return_inverse=True)
    left, right = numbers[: len(same)], numbers[len(same) :]
    wrong = np.flatnonzero((left == right) != same)
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(same)} trials contradict the utterances' speakers "
            f"(first: trial {wrong[0] + 1}, labelled {'same' if same[wrong[0]] else 'different'}, "
            f"speakers {speakers[left[wrong[0]]]} and {speakers[right[wrong[0]]]})"
        )
    return left, right, len(speakers)


class _WeightedEer:
    """EER of one system for any weighting of its trials; the sort is done once."""

    def __init__(self, scores: NDArray[np.float64], same: NDArray[np.bool_]) -> None:
        self.order = np.argsort(scores)
        ranked = scores[self.order]
        self.same = same[self.order]
        # Last position of each run of equal scores; the EER may only be read off between runs.
        self.ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)

    def __call__(self, weights: NDArray[np.float64]) -> float:
        """EER with (trials,) weights in the trials' own order; NaN if one kind of trial weighs nothing."""
        ranked = weights[self.order]
        hits = ranked * self.same
        total_hits = hits.sum()
        total_others = ranked.sum() - total_hits
        if total_hits <= 0 or total_others <= 0:
            return float("nan")
        # miss + (1 - false alarm) ascends from 0 to 2 in the score, and is 1 where the two are equal.
        miss = np.cumsum(hits)
        both = miss / total_hits + (np.cumsum(ranked) - miss) / total_others
        at_ends = both[self.ends]
        after = min(int(np.searchsorted(at_ends, 1.0)), len(at_ends) - 1)
        low_sum, low_miss = (at_ends[after - 1], miss[self.ends[after - 1]]) if after else (0.0, 0.0)
        share = (1.0 - low_sum) / (at_ends[after] - low_sum)
        return float((low_miss + share * (miss[self.ends[after]] - low_miss)) / total_hits)


def eer_intervals(
    scores: ArrayLike,
    same: ArrayLike,
    left_speakers: Sequence[Any] | NDArray[Any],
    right_speakers: Sequence[Any] | NDArray[Any],
    rng: np.random.Generator,
    *,
    baseline: ArrayLike | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Interval, Interval | None]:
    """Interval of an EER over speakers; with `baseline`, also of the difference to another system's on these trials.

    Both sides of a trial are drawn: a different-speaker trial weighs the product of its speakers' multiplicities, as
    every copy of one meets every copy of the other; a same-speaker trial weighs its speaker's multiplicity, as a copy
    is compared with itself only (two copies of one person are not two people). Both systems see the same draws.

    Parameters
    ----------
    scores, baseline : (trials,) of the two systems, or (seeds, trials) of several runs of one: their mean EER.
    same : (trials,) bool.
    left_speakers, right_speakers : (trials,) speaker of each side.
    rng : the only source of randomness.

    Returns
    -------
    The interval of ``EER(scores)`` and that of ``EER(scores) - EER(baseline)``, or None without a baseline.

    Raises
    ------
    ValueError : as `checked_scores`; labels that contradict the speakers; fewer than two speakers.

    Source: the vertex bootstrap (Snijders and Borgatti, “Non-parametric standard errors and tests for network
    statistics”, 1999) as compared for verification by Fogliato, Patil and Perona, “Confidence intervals for error rates
    in 1:1 matching tasks”, arXiv 2306.01198; product weights: Owen and Eckles, “Bootstrapping data arrays of arbitrary
    order”, Annals of Applied Statistics 6 (2012).
    """
    sides = [np.atleast_2d(np.asarray(side)) for side in (scores, baseline) if side is not None]
    systems = [[checked_scores(each, same)[0] for each in side] for side in sides]
    same = np.asarray(same, np.bool_)
    left, right, num_speakers = _speaker_numbers(left_speakers, right_speakers, same)
    curves = [[_WeightedEer(each, same) for each in system] for system in systems]
    estimates = [float(np.mean([det_curve(each, same).eer[0] for each in system])) for system in systems]
    draws = draw_multiplicities(num_speakers, num_resamples, rng).astype(np.float64)
    values = np.empty((num_resamples, len(systems)))
    different = ~same
    for resample, multiplicity in enumerate(draws):
        weights = multiplicity[left]
        np.multiply(weights, multiplicity[right], out=weights, where=different)
        values[resample] = [np.mean([curve(weights) for curve in of_system]) for of_system in curves]
    first = _interval(estimates[0], values[:, 0], num_speakers, level)
    if baseline is None:
        return first, None
    return first, _interval(estimates[0] - estimates[1], values[:, 0] - values[:, 1], num_speakers, level)


def ratio_intervals(
    errors: ArrayLike,
    totals: ArrayLike,
    rng: np.random.Generator,
    *,
    baseline: ArrayLike | None = None,
    baseline_totals: ArrayLike | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Interval, Interval | None]:
    """Interval of ``sum(errors) / sum(totals)`` over recordings; with `baseline`, also of the paired difference.

    Serves DER (seconds of error over seconds of speech) and JER (summed speaker errors over speakers).

    Parameters
    ----------
    errors, totals : (recordings,) not yet divided.
    baseline : (recordings,) errors of another system on the same recordings.
    baseline_totals : (recordings,) what these are divided by, where it is not the same.

    Returns
    -------
    The interval of the ratio, and that of its difference to the baseline's, or None without one.

    Raises
    ------
    ValueError : shapes differ, a value is not finite, no total above 0, or fewer than two recordings.

    Source: Bisani and Ney, “Bootstrap estimates for confidence intervals in ASR performance evaluation”, ICASSP 2004.
    """
    errors, totals = np.asarray(errors, np.float64), np.asarray(totals, np.float64)
    other = errors if baseline is None else np.asarray(baseline, np.float64)
    others = totals if baseline_totals is None else np.asarray(baseline_totals, np.float64)
    if errors.ndim != 1 or not errors.shape == totals.shape == other.shape == others.shape:
        raise ValueError(f"need one number a recording, found shapes {errors.shape}, {totals.shape}, {other.shape}")
    if not np.isfinite([errors, totals, other, others]).all() or min(totals.sum(), others.sum()) <= 0:
        raise ValueError("errors and totals must be finite, and the totals' sum more than 0")
    draws = draw_multiplicities(len(errors), num_resamples, rng).astype(np.float64)
    weight = draws @ totals
    weight[weight <= 0] = np.nan
    first = _interval(errors.sum() / totals.sum(), (draws @ errors) / weight, len(errors), level)
    if baseline is None:
        return first, None
    if baseline_totals is None:
        gap = errors - other
        return first, _interval(gap.sum() / totals.sum(), (draws @ gap) / weight, len(errors), level)
    against = draws @ others
    against[against <= 0] = np.nan
    difference = errors.sum() / totals.sum() - other.sum() / others.sum()
    return first, _interval(difference, (draws @ errors) / weight - (draws @ other) / against, len(errors), level)


def median_interval(
    values: ArrayLike,
    units: Sequence[Any] | NDArray[Any],
    rng: np.random.Generator,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Interval of a median over speakers: each is drawn with all of its values.

    Parameters
    ----------
    values, units : (voices,) the figures, and whose each is.

    Raises
    ------
    ValueError : shapes differ, a value is not finite, or fewer than two speakers.
    """
    values = np.asarray(values, np.float64)
    names, numbers = np.unique(np.asarray(units), return_inverse=True)
    if values.ndim != 1 or numbers.shape != values.shape or not np.isfinite(values).all():
        raise ValueError(f"need a finite number and a speaker each, found {values.shape} and {numbers.shape}")
    order = np.argsort(values)
    draws = draw_multiplicities(len(names), num_resamples, rng)
    weights = np.cumsum(draws[:, numbers[order]], axis=1)
    half = weights[:, -1:] / 2
    # The middle value where their number is odd, and between the two middle ones where it is even.
    low, high = (weights < half).sum(1), (weights <= half).sum(1)
    ranked = values[order]
    medians = (ranked[low] + ranked[high.clip(max=len(ranked) - 1)]) / 2
    return _interval(np.median(values), medians, len(names), level)
