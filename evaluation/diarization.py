"""Diarization errors, exact to the boundary: missed detection, false alarm, confusion, DER, JER.

The time line is cut at every boundary of either side; between two cuts nothing changes, so each piece counts by its
length. Nothing is rounded to frames.

Conventions, where scorers differ:

* ``collar_s`` is what is left out on *each side* of a reference boundary, as in md-eval's ``-c`` and spyder.
  pyannote.metrics' ``collar`` is the whole width: ``collar_s=0.25`` here is ``collar=0.5`` there.
* Overlapping turns of one speaker are joined, as spyder and dscore do; pyannote.metrics counts them twice.
* With a UEM, what it lists is scored and nothing else. Without one, a recording is scored from the first to the last
  boundary of either side, as pyannote.metrics does; a recording that only the hypothesis has cannot be scored then,
  and is listed. A recording that only the reference has is missed in full.
* One optimal mapping of speakers a recording, after collar and overlap are cut out.

Sources: NIST, “The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan” and md-eval-22.pl (DER); Ryant
et al., “The Second DIHARD Diarization Challenge evaluation plan” (JER).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from evaluation.turns import NO_TURNS, Turns


@dataclass(frozen=True, slots=True)
class DiarizationErrors:
    """Seconds of each error, of a recording or summed over many: add first, divide last.

    Attributes
    ----------
    total_s : reference speaker time (two speakers at once count twice).
    missed_s, false_alarm_s, confusion_s : errors under the optimal mapping.
    fixed_confusion_s : confusion where the i-th channel of the hypothesis must be the i-th speaker of the reference.
    scored_s : length of what was scored, speech or not.
    jaccard_errors : sum over reference speakers of 1 - Jaccard index.
    num_speakers : reference speakers with time in what was scored.
    """

    total_s: float = 0.0
    missed_s: float = 0.0
    false_alarm_s: float = 0.0
    confusion_s: float = 0.0
    fixed_confusion_s: float = 0.0
    scored_s: float = 0.0
    jaccard_errors: float = 0.0
    num_speakers: int = 0

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    @property
    def wrong_s(self) -> float:
        """Seconds of all errors, under the optimal mapping."""
        return self.missed_s + self.false_alarm_s + self.confusion_s

    @property
    def der(self) -> float:
        """(missed + false alarm + confusion) / total; NaN without reference speech."""
        return self._share(self.wrong_s)

    @property
    def fixed_der(self) -> float:
        """DER without a mapping: with `fixed_confusion_s`. Only for comparison with figures published that way."""
        return self._share(self.missed_s + self.false_alarm_s + self.fixed_confusion_s)

    @property
    def detection(self) -> float:
        """(missed + false alarm) / total: how well *when* is known, whoever it is. Published as “FA+Miss”."""
        return self._share(self.missed_s + self.false_alarm_s)

    @property
    def jer(self) -> float:
        """Mean Jaccard error over reference speakers; NaN without any."""
        return self.jaccard_errors / self.num_speakers if self.num_speakers else math.nan

    def _share(self, seconds: float) -> float:
        return seconds / self.total_s if self.total_s > 0 else math.nan

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write: rates (None where undefined), then seconds."""
        rates = {
            "der": self.der,
            "missed_detection": self._share(self.missed_s),
            "false_alarm": self._share(self.false_alarm_s),
            "confusion": self._share(self.confusion_s),
            "detection": self.detection,
            "fixed_confusion": self._share(self.fixed_confusion_s),
            "fixed_der": self.fixed_der,
            "jer": self.jer,
        }
        seconds = {n: getattr(self, n) for n in self.__slots__}
        return {**{k: None if math.isnan(v) else v for k, v in rates.items()}, **seconds}


@dataclass(frozen=True, slots=True)
class DiarizationResult:
    """Scores of a set of recordings.

    Attributes
    ----------
    recordings : errors by recording.
    mappings : by recording, hypothesis speaker → reference speaker.
    notes : what one must know about these numbers (recordings that one side lacks).
    unscored : recordings that could not be scored, with the reason.
    """

    recordings: Mapping[str, DiarizationErrors]
    mappings: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...] = ()
    unscored: Mapping[str, str] | None = None

    @property
    def corpus(self) -> DiarizationErrors:
        """Errors summed over the recordings."""
        return sum(self.recordings.values(), DiarizationErrors())

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return {
            "corpus": self.corpus.to_json(),
            "recordings": {
                name: {**errors.to_json(), "mapping": dict(self.mappings[name])}
                for name, errors in self.recordings.items()
            },
            "notes": list(self.notes),
            "unscored": dict(self.unscored or {}),
        }


def score_recording(
    reference: Turns,
    hypothesis: Turns,
    *,
    regions: NDArray[np.float64] | None = None,
    collar_s: float = 0.0,
    skip_overlap: bool = False,
    reference_order: Sequence[str] | None = None,
    hypothesis_order: Sequence[str] | None = None,
) -> tuple[DiarizationErrors, dict[str, str]]:
    """Errors of one recording, and which reference speaker each hypothesis speaker was mapped to.

    Parameters
    ----------
    regions : (regions, 2) seconds to score; without them, from the first to the last boundary of either side.
    collar_s : seconds left out on each side of each reference boundary.
    skip_overlap : leave out where several reference speakers talk.
    reference_order, hypothesis_order : names in channel order for the fixed-channel figure; without them, order of
        arrival.

    Raises
    ------
    ValueError : a collar that is negative or leaves nothing to score.
    """
    if not 0 <= collar_s <= 10:
        raise ValueError(f"collar must be 0 to 10 seconds (md-eval's is 0.25), found {collar_s:g}")
    if regions is None:
        times = np.concatenate([reference.start_s, reference.end_s, hypothesis.start_s, hypothesis.end_s])
        regions = np.array([[times.min(), times.max()]]) if len(times) else np.zeros((0, 2))
    spans = [
        (reference.start_s, reference.end_s, reference.speaker, len(reference.speakers)),
        (hypothesis.start_s, hypothesis.end_s, hypothesis.speaker, len(hypothesis.speakers)),
        (regions[:, 0], regions[:, 1], np.zeros(len(regions), np.int64), 1),
    ]
    if collar_s > 0:
        whole = reference.merged()  # a boundary inside the same speaker's other turn is none
        edges = np.concatenate([whole.start_s, whole.end_s])
        spans.append((edges - collar_s, edges + collar_s, np.zeros(len(edges), np.int64), 1))
    cuts, where = np.unique(np.concatenate([t for s in spans for t in s[:2]]), return_inverse=True)
    if len(cuts) < 2:
        return DiarizationErrors(), {}
    layers, at = [], 0
    for start_s, _, lane, lanes in spans:
        begin, end = where[at : at + len(start_s)], where[at + len(start_s) : at + 2 * len(start_s)]
        at += 2 * len(start_s)
        size = len(cuts) * lanes
        # Lanes are rows so that the running count and the products below walk memory in order.
        begin, end = lane * len(cuts) + begin, lane * len(cuts) + end
        steps = np.bincount(begin, minlength=size) - np.bincount(end, minlength=size)
        layers.append(np.cumsum(steps.reshape(lanes, len(cuts))[:, :-1], axis=1) > 0)
    ref, hyp, inside, *collars = layers
    num_ref = ref.sum(axis=0)
    keep = inside[0]
    if collars:
        keep = keep & ~collars[0][0]
    if skip_overlap:
        keep = keep & (num_ref < 2)
    seconds = np.diff(cuts) * keep
    num_hyp = hyp.sum(axis=0)
    total = float(num_ref @ seconds)
    both = float(np.minimum(num_ref, num_hyp) @ seconds)  # where as many are matched as can be
    together = (ref * seconds) @ hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers) seconds
    ref_s, hyp_s = ref @ seconds, hyp @ seconds
    rows, columns = linear_sum_assignment(together, maximize=True)
    hit = together[rows, columns] > 0
    rows, columns = rows[hit], columns[hit]
    matched = together[rows, columns]
    union = ref_s[rows] + hyp_s[columns] - matched
    num_speakers = int((ref_s > 0).sum())
    errors = DiarizationErrors(
        total_s=total,
        missed_s=max(0.0, total - both),
        false_alarm_s=max(0.0, float(num_hyp @ seconds) - both),
        confusion_s=max(0.0, both - float(matched.sum())),
        fixed_confusion_s=max(0.0, both - _fixed(together, reference, hypothesis, reference_order, hypothesis_order)),
        scored_s=float(seconds.sum()),
        jaccard_errors=float(num_speakers - (matched / union).sum()),
        num_speakers=num_speakers,
    )
    pairs = zip(columns.tolist(), rows.tolist(), strict=True)
    return errors, {hypothesis.speakers[j]: reference.speakers[i] for j, i in pairs}


def _fixed(
    together: NDArray[np.float64],
    reference: Turns,
    hypothesis: Turns,
    reference_order: Sequence[str] | None,
    hypothesis_order: Sequence[str] | None,
) -> float:
    """Seconds matched when channel i can only be speaker i."""
    row = {name: i for i, name in enumerate(reference.speakers)}
    column = {name: i for i, name in enumerate(hypothesis.speakers)}
    names = zip(reference_order or reference.speakers, hypothesis_order or hypothesis.speakers, strict=False)
    return sum(float(together[row[r], column[h]]) for r, h in names if r in row and h in column)


def score(
    reference: Mapping[str, Turns],
    hypothesis: Mapping[str, Turns],
    *,
    uem: Mapping[str, NDArray[np.float64]] | None = None,
    collar_s: float = 0.0,
    skip_overlap: bool = False,
    reference_order: Mapping[str, Sequence[str]] | None = None,
    hypothesis_order: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
) -> DiarizationResult:
    """Score a set of recordings; see this module's text for what is scored and how.

    Parameters
    ----------
    reference, hypothesis : recording → Turns.
    uem : recording → (regions, 2) seconds to score.
    collar_s : seconds left out on each side of each reference boundary.
    skip_overlap : leave out where several reference speakers talk.
    reference_order, hypothesis_order : names in channel order, by recording (for the hypothesis also one order for
        all); without them, order of arrival.

    Raises
    ------
    ValueError : a collar that is negative or not finite; nothing that both could be scored on.
    """
    if uem is None:
        names, why = list(reference), "only in the hypothesis, and no UEM says what to score"
        unscored = {n: why for n in hypothesis if n not in reference}
    else:
        names = [n for n in uem if n in reference or n in hypothesis]
        unscored = {n: "not in the UEM" for n in dict.fromkeys([*reference, *hypothesis]) if n not in uem}
    if not names:
        raise ValueError(
            f"nothing to score: {len(reference)} recordings in the reference ({_some(reference)}), "
            f"{len(hypothesis)} in the hypothesis ({_some(hypothesis)})"
            + (f", {len(uem)} in the UEM ({_some(uem)})" if uem else "")
            + "; a recording is scored by its name in the reference, or in the UEM"
        )
    notes = []
    if absent := [n for n in names if n not in hypothesis]:
        notes.append(f"{len(absent)} recordings only in the reference, missed in full: {_some(absent)}")
    if absent := [n for n in names if n not in reference]:
        notes.append(f"{len(absent)} recordings only in the hypothesis, false alarm in full: {_some(absent)}")
    if unscored:
        notes.append(f"{len(unscored)} recordings NOT scored ({', '.join(set(unscored.values()))}): {_some(unscored)}")
    recordings, mappings = {}, {}
    for name in names:
        by_name = hypothesis_order.get(name) if isinstance(hypothesis_order, Mapping) else hypothesis_order
        recordings[name], mappings[name] = score_recording(
            reference.get(name, NO_TURNS),
            hypothesis.get(name, NO_TURNS),
            regions=None if uem is None else uem[name],
            collar_s=collar_s,
            skip_overlap=skip_overlap,
            reference_order=(reference_order or {}).get(name),
            hypothesis_order=by_name,
        )
    return DiarizationResult(recordings, mappings, tuple(notes), unscored)


def _some(names: Mapping[str, Any] | Sequence[str]) -> str:
    names = list(names)
    return (", ".join(names[:5]) + (", …" if len(names) > 5 else "")) or "none"
