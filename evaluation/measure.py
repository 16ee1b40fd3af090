"""From files to figures, one function a command: EER of a trial list, DER of RTTMs, the doctor's checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

import featstore
from evaluation import audit
from evaluation.bootstrap import Interval, eer_intervals, ratio_intervals
from evaluation.diarization import DiarizationResult, score
from evaluation.doctor import Check, check_reference
from evaluation.rows import expand
from evaluation.rttm import read_rttm, read_uem
from evaluation.trials import read_trials, score_trials
from evaluation.turns import Turns
from evaluation.verification import VerificationResult, evaluate_scores


def measure_eer(
    store: str | PathLike[str],
    features: Sequence[str],
    trials: str | PathLike[str],
    *,
    centre: bool = False,
    num_resamples: int = 0,
    seed: int = 0,
) -> dict[str, tuple[VerificationResult, Interval | None, tuple[str, ...]]]:
    """By feature, cosine scores on a trial list and their EER; its interval by speaker; what must stand beside it.

    Parameters
    ----------
    features : names; none are all of the store's.
    centre : see `evaluation.trials.score_trials`.
    num_resamples : of the 95 % interval; 0 is no interval.

    Raises
    ------
    OSError, ValueError, KeyError : as `featstore.open`, `read_trials`, `score_trials` and `eer_intervals`.
    """
    opened, listed = featstore.open(store), read_trials(trials)
    found = {}
    for feature in dict.fromkeys(features or opened.features):
        scored = score_trials(opened, feature, listed, centre=centre)
        same, interval = scored.trials.same, None
        if num_resamples:
            rng = np.random.default_rng(seed)  # the same draws for every feature
            sides = scored.left_speakers, scored.right_speakers
            interval, _ = eer_intervals(scored.scores, same, *sides, rng, num_resamples=num_resamples)
        found[feature] = evaluate_scores(scored.scores, same), interval, scored.warnings
    return found


def measure_der(
    ref: str | PathLike[str],
    hyp: str | PathLike[str],
    *,
    uem: str | PathLike[str] | None = None,
    collar_s: float = 0.0,
    skip_overlap: bool = False,
    channels: Sequence[str] = (),
    num_resamples: int = 0,
    seed: int = 0,
) -> tuple[DiarizationResult, Interval | None, tuple[str, ...]]:
    """DER of one RTTM file or folder against another; its interval by recording; what was odd.

    Parameters
    ----------
    uem, collar_s, skip_overlap : see `evaluation.diarization`.
    channels : hypothesis speakers in channel order, for the fixed figure; without it, order of arrival.
    num_resamples : of the 95 % interval; 0 is no interval.

    Raises
    ------
    OSError, ValueError : as `read_rttm`, `read_uem`, `score` and `ratio_intervals`; a channel that nobody has.
    """
    notes: list[str] = []
    reference, hypothesis = read_rttm(ref, notes.append), read_rttm(hyp, notes.append)
    _check_channels(channels, hypothesis, hyp)
    result = score(
        reference,
        hypothesis,
        uem=None if uem is None else read_uem(uem, notes.append),
        collar_s=collar_s,
        skip_overlap=skip_overlap,
        hypothesis_order=channels or None,
    )
    interval = None
    if num_resamples:
        each = list(result.recordings.values())
        wrong, spoken = [e.wrong_s for e in each], [e.total_s for e in each]
        interval, _ = ratio_intervals(wrong, spoken, np.random.default_rng(seed), num_resamples=num_resamples)
    return result, interval, (*notes, *result.notes)


def _check_channels(channels: Sequence[str], hypothesis: Mapping[str, Turns], path: str | PathLike[str]) -> None:
    speakers = {name for turns in hypothesis.values() for name in turns.speakers}
    if absent := [name for name in channels if name not in speakers]:
        raise ValueError(
            f"--channels: {', '.join(absent)} in no recording of {path}; there are {', '.join(sorted(speakers)[:10])}"
        )


def examine(
    runs: Sequence[Path] = (),
    *,
    ref: str | PathLike[str] | None = None,
    uem: str | PathLike[str] | None = None,
    store: str | PathLike[str] | None = None,
    seed: int = 0,
) -> tuple[list[Check], list[str]]:
    """Try the scorer on a reference, look for leaks in a store, take runs' figures again: checks, and what was odd.

    Raises
    ------
    ValueError : nothing to look at, or a UEM without a reference.
    OSError, ValueError : as `read_rttm`, `read_uem`, `featstore.open` and `evaluation.runs.open`.
    """
    if ref is None and store is None and not runs:
        raise ValueError("nothing to look at: give --ref RTTM, --store STORE or runs")
    if uem is not None and ref is None:
        raise ValueError("--uem says what of a reference to score: give --ref too")
    checks: list[Check] = []
    notes: list[str] = []
    opened = None if store is None else featstore.open(store)
    if ref is not None:
        regions = None if uem is None else read_uem(uem, notes.append)
        grids = {f"the frames of {name}": spec.grid for name, spec in opened.features.items()} if opened else {}
        checks += check_reference(read_rttm(ref, notes.append), np.random.default_rng(seed), uem=regions, grids=grids)
    if opened is not None:
        checks += audit.check_store(opened)
    for run in expand(runs):
        checks += audit.check_run(run, opened)
    return checks, notes
