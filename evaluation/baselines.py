"""What a system scores that knows nothing: one speaker throughout; and one that hears speech but tells no voices apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.diarization import DiarizationErrors, score
from evaluation.rows import Row
from evaluation.runs import Diarization, session_of
from evaluation.turns import Turns

Baseline = dict[str, dict[str, Any]]


def whole(answered: Diarization) -> Diarization:
    """Windows put together to the sessions that they are of; of the answer nothing: its channels end with a window."""
    reference: dict[str, list[Turns]] = {}
    uem: dict[str, list[NDArray[np.float64]]] = {}
    for window, regions in answered.uem.items():
        uem.setdefault(session_of(window), []).append(regions)
        if window in answered.reference:
            reference.setdefault(session_of(window), []).append(answered.reference[window])
    return Diarization(
        {name: Turns.of([turn for turns in each for turn in turns]) for name, each in reference.items()},
        {},
        {name: np.concatenate(each) for name, each in uem.items()},
    )


#: What they are called, and what they answer.
ONE_SPEAKER, TRUE_SPEECH = "one speaker throughout", "true speech, one speaker"


def look_at_truth(row: Row) -> None:
    """Fill ``row.trivial`` and ``row.orders`` from the run's folder; OSError, ValueError: what it needs is missing."""
    answered = row.files.diarization()
    row.orders = _other_orders(answered)
    sides = {row.whole_only: answered}
    if "whole" in row.result:
        sides[True] = whole(answered)
    for scope, of in sides.items():
        row.trivial |= {(ONE_SPEAKER, scope): one_speaker(of), (TRUE_SPEECH, scope): true_speech(of)}


def _other_orders(answered: Diarization) -> tuple[int, int]:
    sessions = whole(answered).reference
    windows = [
        (turns.speakers, sessions[session_of(name)].speakers)
        for name, turns in answered.reference.items()
        if len(turns)
    ]
    return sum(own != order[: len(own)] for own, order in windows), len(windows)


def one_speaker(answered: Diarization) -> Baseline:
    """Errors by recording of “one speaker throughout”: somebody speaks all the time, and it is always the same voice."""
    return _errors(answered, lambda turns, regions: regions)


def true_speech(answered: Diarization) -> Baseline:
    """Errors by recording of “true speech, one speaker”: wherever anybody speaks, the same voice does."""
    return _errors(answered, lambda turns, regions: np.column_stack([turns.start_s, turns.end_s]))


def _errors(answered: Diarization, speaks: Callable[[Turns, NDArray[np.float64]], NDArray[np.float64]]) -> Baseline:
    hypothesis = {}
    for name, regions in answered.uem.items():
        spans = speaks(answered.reference.get(name, Turns.of([])), regions)
        hypothesis[name] = Turns.from_arrays(spans[:, 0], spans[:, 1], ["anybody"] * len(spans)).merged()
    scored = score(answered.reference, hypothesis, uem=answered.uem).recordings
    summed: dict[str, DiarizationErrors] = {}
    for name, errors in scored.items():
        summed[session_of(name)] = summed.get(session_of(name), DiarizationErrors()) + errors
    return {name: errors.to_json() for name, errors in summed.items()}


def der(recordings: Mapping[str, Mapping[str, Any]]) -> float | None:
    """DER over recordings whose errors are given in seconds; None without reference speech."""
    total = sum(r["total_s"] for r in recordings.values())
    wrong = sum(r["missed_s"] + r["false_alarm_s"] + r["confusion_s"] for r in recordings.values())
    return wrong / total if total > 0 else None
