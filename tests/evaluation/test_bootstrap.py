"""Intervals: weights against copies made by hand, coverage on data whose truth is known, pairing."""

from __future__ import annotations

import time

import numpy as np
import pytest

from evaluation.bootstrap import _WeightedEer, draw_multiplicities, eer_intervals, ratio_intervals
from evaluation.verification import det_curve


def all_pairs(num_speakers: int, takes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Speakers of both sides, and truth, of every pair of `takes` utterances of each speaker."""
    speaker = np.repeat(np.arange(num_speakers), takes)
    a, b = np.triu_indices(len(speaker), 1)
    return speaker[a], speaker[b], speaker[a] == speaker[b]


def test_weighted_eer_equals_the_eer_of_copied_trials() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        same = rng.random(60) < 0.4
        scores = np.round(rng.normal(size=60) + same, 1)  # rounded: ties
        weights = rng.integers(0, 4, 60)
        copies = np.repeat(np.arange(60), weights)
        assert _WeightedEer(scores, same)(weights.astype(float)) == pytest.approx(
            det_curve(scores[copies], same[copies]).eer[0], abs=1e-12
        )


def test_weighted_eer_of_separated_scores_is_zero() -> None:
    same = np.array([1, 1, 1, 0, 0, 0], bool)
    weighted = _WeightedEer(np.array([4.0, 5, 6, 1, 2, 3]), same)
    assert weighted(np.array([3.0, 0, 7, 1, 1, 5])) == 0
    assert np.isnan(weighted(np.array([3.0, 0, 7, 0, 0, 0])))


def test_resampled_trials_equal_a_bootstrap_that_copies_speakers() -> None:
    """The slow way: draw speakers, give each copy a name of its own, list the trials among the copies."""
    left, right, same = all_pairs(6, 3)
    scores = np.random.default_rng(1).normal(size=len(same)) + same
    draws = draw_multiplicities(6, 40, np.random.default_rng(7))
    by_hand = []
    for draw in draws:
        rows = []
        for copy_a, a in enumerate(np.repeat(np.arange(6), draw)):
            for copy_b, b in enumerate(np.repeat(np.arange(6), draw)):
                if a == b:
                    rows += list(np.flatnonzero((left == a) & (right == b))) if copy_a == copy_b else []
                else:
                    rows += list(np.flatnonzero((left == a) & (right == b)))
        by_hand.append(det_curve(scores[rows], same[rows]).eer[0])
    interval, _ = eer_intervals(scores, same, left, right, np.random.default_rng(7), num_resamples=40)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])), abs=1e-12)
    assert (interval.estimate, interval.num_units) == (pytest.approx(det_curve(scores, same).eer[0]), 6)


def test_same_seed_same_interval_and_global_seed_does_not_matter() -> None:
    left, right, same = all_pairs(8, 3)
    scores = np.random.default_rng(2).normal(size=len(same)) + same
    np.random.seed(1)
    first = eer_intervals(scores, same, left, right, np.random.default_rng(3), num_resamples=20)
    np.random.seed(2)
    labels = same.astype(int).tolist()  # as a file has them
    assert eer_intervals(scores, labels, left, right, np.random.default_rng(3), num_resamples=20) == first


def test_interval_covers_the_truth_where_single_trials_do_not() -> None:
    """Speakers differ in how alike they sound, so errors come in clumps: the truth must stay inside about 95 %."""
    covered = covered_by_trial = 0
    left, right, same = all_pairs(24, 5)
    trick = np.random.default_rng(99)
    runs = 50

    def draw(rng: np.random.Generator) -> np.ndarray:
        goat = rng.normal(size=24)  # per speaker: shifts all of its trials
        return 1.5 * same + goat[left] + goat[right] + 0.2 * rng.normal(size=len(same))

    truth = np.mean([det_curve(draw(np.random.default_rng(1000 + i)), same).eer[0] for i in range(100)])
    for i in range(runs):
        scores = draw(np.random.default_rng(i))
        interval, _ = eer_intervals(scores, same, left, right, np.random.default_rng(i), num_resamples=100)
        covered += interval.low <= truth <= interval.high
        eers = [det_curve(scores[k], same[k]).eer[0] for k in trick.integers(0, len(same), (40, len(same)))]
        covered_by_trial += np.quantile(eers, 0.025) <= truth <= np.quantile(eers, 0.975)
    assert covered >= 0.88 * runs
    assert covered_by_trial < 0.7 * runs


def test_paired_difference_is_narrower_than_either_interval() -> None:
    left, right, same = all_pairs(20, 4)
    rng = np.random.default_rng(4)
    goat = rng.normal(size=20)
    shared = 3 * same + goat[left] + goat[right]
    better, worse = shared + rng.normal(size=len(same)) / 2, shared + 4 * rng.normal(size=len(same))
    interval, difference = eer_intervals(
        better, same, left, right, np.random.default_rng(5), baseline=worse, num_resamples=200
    )
    assert difference is not None
    eers = [det_curve(scores, same).eer[0] for scores in (better, worse)]
    assert difference.estimate == pytest.approx(eers[0] - eers[1])
    assert difference.low < difference.estimate < difference.high < 0
    assert difference.share_below_zero > 0.975
    assert difference.high - difference.low < interval.high - interval.low
    _, none = eer_intervals(better, same, left, right, np.random.default_rng(5), baseline=better, num_resamples=20)
    assert none is not None
    assert (none.low, none.high, none.share_below_zero) == (0, 0, 0.5)


def test_what_cannot_be_resampled_is_refused() -> None:
    left, right, same = all_pairs(3, 2)
    scores = np.arange(len(same), dtype=float)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="1 of 15 trials contradict the utterances' speakers .first: trial 1"):
        eer_intervals(scores, np.concatenate([[not same[0]], same[1:]]), left, right, rng)
    for nobody in (None, ""):
        with pytest.raises(ValueError, match="some have none"):
            eer_intervals(scores, same, [nobody] * len(same), right.astype(str), rng)
    with pytest.raises(ValueError, match="at least 2"):
        ratio_intervals([1.0], [2.0], rng)
    with pytest.raises(ValueError, match="sum more than 0"):
        ratio_intervals([1.0, 0.0], [0.0, 0.0], rng)
    assert ratio_intervals([1.0, 2.0], [3.0, 4.0], rng)[0].num_resamples == 1000
    by_speaker, _ = eer_intervals(scores, same, left, right, rng)
    assert by_speaker.num_resamples + by_speaker.num_degenerate == 1000
    with pytest.raises(ValueError, match="level"):
        ratio_intervals([1.0, 2.0], [3.0, 4.0], rng, level=95)


def test_degenerate_resamples_are_counted() -> None:
    left, right, same = all_pairs(2, 2)  # one in two draws holds one speaker only: no different-speaker trial
    interval, _ = eer_intervals(np.arange(6.0), same, left, right, np.random.default_rng(0), num_resamples=200)
    assert 60 < interval.num_degenerate < 140
    assert interval.num_resamples + interval.num_degenerate == 200


def test_ratio_interval_equals_scipy() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(6)
    totals = rng.uniform(100, 2000, 16)
    errors = totals * rng.uniform(0.1, 0.4, 16)
    interval, _ = ratio_intervals(errors, totals, np.random.default_rng(0), num_resamples=4_000)
    expected = bootstrap(
        (errors, totals),
        lambda e, t, axis: e.sum(axis) / t.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=5e-3)
    _, difference = ratio_intervals(errors, totals, rng, baseline=errors + 0.02 * totals)
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((-0.02, -0.02))


def test_ratios_and_their_difference_by_hand() -> None:
    """Three recordings of 10, 20 and 70 s; a draw counts each as often as it came up, in errors and in seconds."""
    errors, others, totals = [5.0, 4.0, 7.0], [2.0, 8.0, 7.0], [10.0, 20.0, 70.0]
    interval, difference = ratio_intervals(
        errors, totals, np.random.default_rng(3), baseline=others, num_resamples=40, level=0.8
    )
    rates, gaps = [], []
    for draw in draw_multiplicities(3, 40, np.random.default_rng(3)):
        names = [name for name, times in enumerate(draw) for _ in range(times)]
        assert len(names) == 3
        seconds = sum(totals[name] for name in names)
        rates.append(sum(errors[name] for name in names) / seconds)
        gaps.append(sum(errors[name] - others[name] for name in names) / seconds)
    assert difference is not None
    for found, values, estimate in ((interval, rates, 16 / 100), (difference, gaps, -1 / 100)):
        assert found.estimate == pytest.approx(estimate)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])))
        below = sum(value < 0 for value in values) + sum(value == 0 for value in values) / 2
        assert found.share_below_zero == pytest.approx(below / 40)
        assert (found.level, found.num_units, found.num_resamples, found.num_degenerate) == (0.8, 3, 40, 0)
    assert 0 < difference.share_below_zero < 1


def test_a_draw_without_speech_has_no_ratio() -> None:
    interval, difference = ratio_intervals(
        [1.0, 2.0], [4.0, 0.0], np.random.default_rng(0), baseline=[1.0, 1.0], num_resamples=100
    )
    assert difference is not None
    assert 10 < interval.num_degenerate == difference.num_degenerate < 40  # one draw in four is the second one twice
    assert interval.num_resamples == 100 - interval.num_degenerate
    assert (interval.low, interval.high) == (0.25, 0.75)  # the first one twice; each once: 3 s of errors in 4 s


def test_a_thousand_resamples_of_voxceleb_take_seconds() -> None:
    rng = np.random.default_rng(8)
    left, right = rng.integers(0, 40, (2, 37_611))
    right[:18_802] = left[:18_802]
    same = left == right
    start = time.perf_counter()
    eer_intervals(rng.normal(size=37_611) + same, same, left, right, rng, num_resamples=1000)
    assert time.perf_counter() - start < 20
