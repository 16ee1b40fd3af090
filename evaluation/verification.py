"""Same speaker or not: cosine scores, EER, minDCF and the DET curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Priors of the target speaker at which minDCF is reported (VoxSRC uses 0.05, older NIST evaluations 0.01).
DCF_PRIORS = (0.01, 0.05)

# Trials gathered at a time: two blocks of 256 rows stay in the processor's cache.
_BLOCK_TRIALS = 256


def cosine_scores(vectors: ArrayLike, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosine similarity of the pairs ``(left[i], right[i])`` of rows.

    Parameters
    ----------
    vectors : (utterances, dim).
    left, right : (trials,) row numbers.

    Returns
    -------
    (trials,) float32 in [-1, 1].

    Raises
    ------
    ValueError : a row is zero or not finite, so that it has no direction.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"vectors must be (utterances, dim), found shape {rows.shape}")
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(rows)} vectors are zero or not finite (first: row {bad[0]})")
    rows = rows / norms[:, None].astype(np.float32)
    scores = np.empty(len(left), np.float32)
    a = np.empty((min(_BLOCK_TRIALS, len(left)), rows.shape[1]), np.float32)
    b = np.empty_like(a)
    for start in range(0, len(left), _BLOCK_TRIALS):
        stop = min(start + _BLOCK_TRIALS, len(left))
        size = stop - start
        # mode="clip" lets take() write straight into `out`; the indices are in range already.
        np.take(rows, left[start:stop], axis=0, out=a[:size], mode="clip")
        np.take(rows, right[start:stop], axis=0, out=b[:size], mode="clip")
        np.einsum("ij,ij->i", a[:size], b[:size], out=scores[start:stop])
    return scores.clip(-1, 1, out=scores)


@dataclass(frozen=True, slots=True, eq=False)
class DetCurve:
    """Both error rates at every threshold that matters; a trial is accepted when its score is at or above it.

    Attributes
    ----------
    thresholds : (points,) ascending: each distinct score, then infinity.
    miss : (points,) share of same-speaker trials below the threshold; 0 to 1.
    false_alarm : (points,) share of different-speaker trials at or above it; 1 to 0.
    """

    thresholds: NDArray[np.float64]
    miss: NDArray[np.float64]
    false_alarm: NDArray[np.float64]

    @property
    def eer(self) -> tuple[float, float]:
        """The equal error rate, and the score where it is reached.

        Definition: where the ROC, its neighbouring points joined by straight lines, crosses miss = false alarm.
        Trials with equal scores are one step of it, so their order does not matter; perfectly separated scores give 0,
        scores that are all alike give 0.5. Source: the ROC interpolation that most published VoxCeleb numbers rest on
        (`sklearn.metrics.roc_curve` with a root search); the tests compare with it. The ROC *convex hull* instead
        gives a value equal or slightly lower.
        """
        gap = self.miss - self.false_alarm
        after = int(np.searchsorted(gap, 0.0))  # gap ascends from -1 to 1, so after >= 1
        if gap[after] == 0:
            return float(self.miss[after]), float(self.thresholds[after])
        share = -gap[after - 1] / (gap[after] - gap[after - 1])
        value = self.miss[after - 1] + share * (self.miss[after] - self.miss[after - 1])
        return float(value), float(self.thresholds[after - 1])

    def min_dcf(self, p_target: float, c_miss: float = 1.0, c_false_alarm: float = 1.0) -> float:
        """Least detection cost over all thresholds, divided by the cost of the better trivial system.

        Source: NIST Speaker Recognition Evaluation plans (2008 on):
        ``(c_miss·p·miss + c_fa·(1-p)·false_alarm) / min(c_miss·p, c_fa·(1-p))``.

        Raises
        ------
        ValueError : p_target is not between 0 and 1.
        """
        if not 0 < p_target < 1:
            raise ValueError(f"p_target must lie between 0 and 1, found {p_target}")
        miss, false_alarm = c_miss * p_target, c_false_alarm * (1 - p_target)
        return float((miss * self.miss + false_alarm * self.false_alarm).min() / min(miss, false_alarm))

    def thinned(self, points: int = 400) -> DetCurve:
        """At most about `points` points, spread so that the corners at both ends stay (for plots and JSON)."""
        if len(self.thresholds) <= points:
            return self
        # Evenly along each axis: few points would fall into the low-error corners by index alone.
        along = np.linspace(0, 1, points // 4)
        logs = np.geomspace(1 / len(self.thresholds), 1, points // 4)
        last = len(self.thresholds) - 1
        at = np.concatenate([np.searchsorted(self.miss, along), np.searchsorted(self.miss, logs)])
        back = last - np.concatenate(
            [np.searchsorted(self.false_alarm[::-1], along), np.searchsorted(self.false_alarm[::-1], logs)]
        )
        keep = np.unique(np.concatenate([at, back, [0, last]]).clip(0, last))
        return DetCurve(self.thresholds[keep], self.miss[keep], self.false_alarm[keep])


def checked_scores(scores: ArrayLike, same: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Both as arrays (trials,), after the checks that every figure here needs.

    Raises
    ------
    ValueError : lengths differ, a score is NaN or infinite, or one of the two kinds of trial is absent.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, np.bool_)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(f"scores and labels must both be (trials,), found {scores.shape} and {same.shape}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(scores)} scores are NaN or infinite (first: trial {bad[0] + 1})")
    if same.all() or not same.any():
        raise ValueError(
            f"need same- and different-speaker trials, found {same.sum()} and {(~same).sum()}; add the others to the list"
        )
    return scores, same


def det_curve(scores: ArrayLike, same: ArrayLike) -> DetCurve:
    """Error rates at every threshold.

    Parameters
    ----------
    scores : (trials,) higher means more alike.
    same : (trials,) bool.

    Raises
    ------
    ValueError : lengths differ, a score is NaN or infinite, or one of the two kinds of trial is absent.
    """
    scores, same = checked_scores(scores, same)
    order = np.argsort(scores)
    ranked, hits = scores[order], same[order]
    first = np.concatenate([[0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, [len(ranked)]])
    below = np.concatenate([[0], np.cumsum(hits)])[first]  # same-speaker trials under each threshold
    num_same = int(same.sum())
    num_different = len(same) - num_same
    return DetCurve(
        thresholds=np.append(ranked[first[:-1]], np.inf),
        miss=below / num_same,
        false_alarm=(num_different - (first - below)) / num_different,
    )


@dataclass(frozen=True, slots=True, eq=False)
class VerificationResult:
    """What a trial list says about a scorer. Rates are fractions.

    Attributes
    ----------
    num_trials, num_same : counts.
    eer, eer_threshold : see `DetCurve.eer`.
    min_dcf : by prior of the target speaker, normalised, both costs 1.
    mean_same, mean_different, min_score, max_score : of the scores.
    det : the curve they come from.
    """

    num_trials: int
    num_same: int
    eer: float
    eer_threshold: float
    min_dcf: Mapping[float, float]
    mean_same: float
    mean_different: float
    min_score: float
    max_score: float
    det: DetCurve = field(repr=False)

    def to_json(self, det_points: int = 0) -> dict[str, Any]:
        """A dict that `json` can write; with `det_points` it holds that many points of the DET curve too."""
        data: dict[str, Any] = {
            "num_trials": self.num_trials,
            "num_same": self.num_same,
            "num_different": self.num_trials - self.num_same,
            "eer": self.eer,
            "eer_threshold": self.eer_threshold,
            "eer_definition": "linear interpolation of the ROC",
            "min_dcf": {f"{prior:g}": value for prior, value in self.min_dcf.items()},
            "mean_same": self.mean_same,
            "mean_different": self.mean_different,
            "min_score": self.min_score,
            "max_score": self.max_score,
        }
        if det_points:
            curve = self.det.thinned(det_points)
            # The last threshold is infinity, which JSON cannot write.
            data["det"] = {"miss": curve.miss.tolist(), "false_alarm": curve.false_alarm.tolist()}
        return data


def evaluate_scores(scores: ArrayLike, same: ArrayLike, dcf_priors: Sequence[float] = DCF_PRIORS) -> VerificationResult:
    """Every figure this module knows, from scores and truth.

    Parameters
    ----------
    scores : (trials,) higher means more alike.
    same : (trials,) bool.

    Raises
    ------
    ValueError : lengths differ, a score is NaN or infinite, or one of the two kinds of trial is absent.
    """
    scores, same = checked_scores(scores, same)
    curve = det_curve(scores, same)
    eer, threshold = curve.eer
    return VerificationResult(
        num_trials=len(same),
        num_same=int(same.sum()),
        eer=eer,
        eer_threshold=threshold,
        min_dcf={prior: curve.min_dcf(prior) for prior in dcf_priors},
        mean_same=float(scores[same].mean()),
        mean_different=float(scores[~same].mean()),
        min_score=float(scores.min()),
        max_score=float(scores.max()),
        det=curve,
    )
