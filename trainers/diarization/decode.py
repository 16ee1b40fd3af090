"""From activities to turns to figures: tune decoding on dev, apply it to test, count errors.

A model sees crops, so it is measured on crops: consecutive windows cover every session, each window is scored with its
own speaker mapping, and errors are summed over the windows of a recording and over the corpus before they are divided.
Two mappings stand side by side: *optimal*, as the field scores, and *fixed*, where channel i must be the i-th speaker
to arrive (in the window; in the whole session under the reference protocol), as the published figures were.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import featstore
from evaluation.diarization import DiarizationErrors, score
from evaluation.frames import channel_names, decode, frames_to_turns
from evaluation.runs import MODEL, OUTPUTS, Diarization, window_name, write_diarization
from evaluation.turns import Turns
from featstore import FeatureSpec, FrameGrid, Store
from trainers.diarization.config import DiarizationConfig
from trainers.diarization.data import Crop, rasterise
from trainers.diarization.losses import assignment_costs
from trainers.diarization.sessions import Session
from trainers.runs import Run, output_spec


class FrameTally:
    """Counts frame-level errors at several thresholds; sums first, divides last."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = tuple(thresholds)
        self.total = 0
        # (thresholds, 4): missed, false alarms, right under the optimal mapping, right under the fixed one
        self.counts = np.zeros((len(self.thresholds), 4), np.int64)

    def add(self, activity: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Count crops: activity and labels (batch, frames, K), mask (batch, frames) True where a frame counts."""
        truth = (labels > 0) & mask.unsqueeze(-1)
        speaking = truth.sum(-1)
        self.total += int(speaking.sum())
        for row, threshold in enumerate(self.thresholds):
            answer = (activity >= threshold) & mask.unsqueeze(-1)
            excess = answer.sum(-1) - speaking
            overlap = answer.transpose(1, 2).float() @ truth.float()
            self.counts[row] += [
                int((-excess).clamp(min=0).sum()),
                int(excess.clamp(min=0).sum()),
                round(float(-assignment_costs(-overlap).amin(1).double().sum())),
                round(float(overlap.diagonal(dim1=1, dim2=2).double().sum())),
            ]

    def der(self, mapping: str = "optimal") -> NDArray[np.float64]:
        """DER at each threshold; NaN where nobody speaks."""
        _, false_alarm, optimal, fixed = self.counts.T
        right = optimal if mapping == "optimal" else fixed
        # missed + false alarm + confusion, where confusion = min(reference, answer) - right
        return (self.total + false_alarm - right) / self.total if self.total else np.full(len(self.thresholds), np.nan)

    def best_der(self) -> float:
        """The least DER over thresholds, optimal mapping; 1 where nobody speaks (an error rate has no base there)."""
        return float(self.der().min()) if self.total else 1.0


class Windows:
    """Consecutive windows of sessions with the truth about each, ready to be scored.

    Parameters
    ----------
    crops : from `trainers.diarization.data.windows`.
    length : frames of a whole window; the last of a session is shorter.
    sound : score what the session holds, channels in order of arrival in the window. Otherwise, as published, score
        the padding as silence and take the order of arrival in the session.
    """

    def __init__(self, crops: Sequence[Crop], grid: FrameGrid, length: int, config: DiarizationConfig) -> None:
        sound = config.protocol == "sound"
        self.crops, self.grid, self.speakers = list(crops), grid, config.speakers
        self.names = [window_name(crop.session.id, crop.start * grid.step_s) for crop in crops]
        self.frames = [min(length, c.session.num_frames - c.start) if sound else length for c in crops]
        self.reference: dict[str, Turns] = {}
        self.order: dict[str, list[str]] = {}
        self.uem: dict[str, NDArray[np.float64]] = {}
        for name, crop, frames in zip(self.names, self.crops, self.frames, strict=True):
            start_s = grid.first_centre_s + (crop.start - 0.5) * grid.step_s
            region = (max(0.0, start_s), start_s + frames * grid.step_s)
            self.uem[name] = np.array([region])
            self.reference[name] = _clipped(crop.session, *region)
            self.order[name] = rasterise(crop, length, config.speakers, resort=sound)[1]

    def turns(self, activity: NDArray, threshold: float, median_frames: int) -> dict[str, Turns]:
        """Decode activities (windows, length, speakers)."""
        channels = channel_names(self.speakers)
        return {
            name: frames_to_turns(decode(rows[:frames], threshold, median_frames), self.grid, channels, crop.start)
            for name, crop, frames, rows in zip(self.names, self.crops, self.frames, activity, strict=True)
        }

    def score(self, hypothesis: Mapping[str, Turns]) -> Mapping[str, DiarizationErrors]:
        """Errors by window."""
        channels = channel_names(self.speakers)
        return score(
            self.reference, hypothesis, uem=self.uem, reference_order=self.order, hypothesis_order=channels
        ).recordings

    def by_recording(self, errors: Mapping[str, DiarizationErrors]) -> dict[str, DiarizationErrors]:
        """Errors summed over the windows of each recording."""
        sums: dict[str, DiarizationErrors] = {}
        for name, crop in zip(self.names, self.crops, strict=True):
            recording = crop.session.recording
            sums[recording] = sums.get(recording, DiarizationErrors()) + errors[name]
        return sums


def _clipped(session: Session, start_s: float, end_s: float) -> Turns:
    turns = [t for t in session.turns if t.start_s < end_s and t.end_s > start_s]
    return Turns.from_arrays(
        [max(t.start_s, start_s) for t in turns], [min(t.end_s, end_s) for t in turns], [t.speaker for t in turns]
    )


def tune(activity: NDArray, windows: Windows, config: DiarizationConfig) -> dict[str, Any]:
    """Sweep threshold × median filter; the best by DER (sound: optimal mapping, reference: fixed channels).

    Returns
    -------
    dict : threshold, median, mapping, sweep (a list of threshold, median, der).
    """
    mapping = "optimal" if config.protocol == "sound" else "fixed"
    sweep = []
    for median in config.medians:
        for threshold in config.thresholds:
            errors = sum(windows.score(windows.turns(activity, threshold, median)).values(), DiarizationErrors())
            der = errors.der if mapping == "optimal" else errors.fixed_der
            sweep.append({"threshold": threshold, "median": median, "der": _number(der)})
    best = min(sweep, key=lambda row: np.inf if row["der"] is None else row["der"])
    return {"threshold": best["threshold"], "median": best["median"], "mapping": mapping, "sweep": sweep}


def measure(
    run: Run[DiarizationConfig],
    store: Store,
    grid: FrameGrid,
    test: tuple[Sequence[Crop], NDArray],
    dev: tuple[Sequence[Crop], NDArray] | None,
) -> dict[str, Any]:
    """Tune on dev, decode test, and write what came out: RTTMs, UEM, activities.

    Parameters
    ----------
    test, dev : crops, and the model's activities on them (crops, length, speakers). Without dev, as in the reference
        protocol, decoding is tuned on test, and the figures say so.

    Returns
    -------
    The figures of result.json.
    """
    config = run.config
    length = test[1].shape[1]
    windows = Windows(test[0], grid, length, config)
    decoding = (
        tune(test[1], windows, config) if dev is None else tune(dev[1], Windows(dev[0], grid, length, config), config)
    )
    hypothesis = windows.turns(test[1], decoding["threshold"], decoding["median"])
    errors = windows.score(hypothesis)
    corpus = sum(errors.values(), DiarizationErrors())

    write_diarization(run.path, Diarization(windows.reference, hypothesis, windows.uem))
    _write_activity(run, store, grid, *test)

    scored = [e for e in errors.values() if e.total_s > 0]
    notes = ["decoding was tuned on the data that the figures are of"] if dev is None else []
    if corpus.total_s == 0:
        notes.append("nobody speaks in the test sessions: there is no error rate")
    return {
        "decoding": {"tuned_on": "test" if dev is None else "dev", **decoding},
        "window_s": length * grid.step_s,
        "num_windows": len(errors),
        "test": corpus.to_json(),
        # Averages of rates, as the reference study reports: not comparable with anyone's DER.
        "mean_window_der": _number(float(np.mean([e.der for e in scored]))) if scored else None,
        "mean_window_fixed_der": _number(float(np.mean([e.fixed_der for e in scored]))) if scored else None,
        "recordings": {name: e.to_json() for name, e in windows.by_recording(errors).items()},
        "notes": notes,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _write_activity(
    run: Run[DiarizationConfig], store: Store, grid: FrameGrid, crops: Sequence[Crop], activity: NDArray
) -> None:
    weights = hashlib.sha256((run.path / MODEL).read_bytes()).hexdigest()
    facts = output_spec(
        "activity",
        activity.shape[2],
        run.features.values(),
        model=run.config.kind,
        window_frames=activity.shape[1],
        protocol=run.config.protocol,
    )
    spec = FeatureSpec(**facts, dtype="float16", grid=grid, weights_sha256=weights)
    shutil.rmtree(run.path / OUTPUTS, ignore_errors=True)  # of an earlier, shorter training of this run
    with featstore.writer(run.path / OUTPUTS, spec) as writer:
        rows = iter(activity)
        for id, parts in groupby(crops, key=lambda crop: crop.session.id):
            frames = [next(rows)[: crop.session.num_frames - crop.start] for crop in parts]
            utterance = store.utterance(id)
            if writer.missing([utterance]):
                writer.add(utterance, np.concatenate(frames))
