"""Input that no figure can be made of is refused in one sentence that says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.bootstrap import eer_intervals, median_interval, ratio_intervals
from evaluation.doctor import check_reference
from evaluation.frames import decode, frames_to_turns, turns_to_frames
from evaluation.rttm import read_uem
from evaluation.turns import NO_TURNS
from evaluation.verification import cosine_scores, det_curve
from featstore import MIMI_GRID

RNG = np.random.default_rng(0)
ZERO, ONE = np.zeros(1, np.int64), np.ones(1, np.int64)
CURVE = det_curve([0.1, 0.9], [False, True])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: ratio_intervals([1, 2], [3, 4], RNG, level=1.0), "level must lie between 0 and 1, found 1.0"),
        (lambda: ratio_intervals([1, 2], [3, 4], RNG, level=0.0), "level must lie between 0 and 1, found 0.0"),
        (lambda: ratio_intervals([1, 2], [3, 4], RNG, num_resamples=0), "num_resamples must be 1 or more, found 0"),
        (lambda: ratio_intervals([1, 2, 3], [3, 4], RNG), r"need one number a recording, found shapes \(3,\), \(2,\)"),
        (lambda: ratio_intervals([1, 2], [3, 4], RNG, baseline=[1]), r"found shapes \(2,\), \(2,\), \(1,\)"),
        (lambda: ratio_intervals([1, np.nan], [3, 4], RNG), "must be finite, and the totals' sum more than 0"),
        (lambda: ratio_intervals([1, 2], [3, 4], RNG, baseline=[1, 2], baseline_totals=[0, 0]), "sum more than 0"),
        (
            lambda: ratio_intervals([1, 1], [1, 0], np.random.default_rng(3), num_resamples=1),
            "all 1 resamples are degenerate",
        ),
        (
            lambda: eer_intervals([0.1, 0.9], [False, True], ["a"], ["b", "a"], RNG),
            "need one speaker for each side of 2 trials, found 3 in all",
        ),
        (
            lambda: median_interval([1.0, 2.0], ["a"], RNG),
            r"need a finite number and a speaker each, found \(2,\) and \(1,\)",
        ),
        (lambda: median_interval([1.0, np.inf], ["a", "b"], RNG), "need a finite number and a speaker each"),
        (lambda: check_reference({"m": NO_TURNS}, RNG), "this reference holds no speech to check a scorer with"),
        (lambda: turns_to_frames([], MIMI_GRID, 5, 4, ["a"]), "frames 5 to 4: stop lies before start"),
        (lambda: turns_to_frames([], MIMI_GRID, 0, 4, ["a", "a"]), "a speaker is named twice: a, a"),
        (
            lambda: frames_to_turns(np.zeros((4, 3)), MIMI_GRID, ["a", "b"]),
            r"\(frames, 2 speakers\), found shape \(4, 3\)",
        ),
        (lambda: frames_to_turns(np.zeros(4), MIMI_GRID, ["a"]), r"\(frames, 1 speakers\), found shape \(4,\)"),
        (lambda: decode(np.zeros(4), 0.5), r"must be \(frames, speakers\), found shape \(4,\)"),
        (lambda: decode(np.full((2, 2), np.nan), 0.5), "activity holds 4 NaN"),
        (lambda: decode(np.zeros((2, 2)), 0.5, 2), "median_frames must be odd and 1 or more, found 2"),
        (lambda: decode(np.zeros((2, 2)), 0.5, -1), "median_frames must be odd and 1 or more, found -1"),
        (lambda: cosine_scores(np.ones(4), ZERO, ZERO), r"vectors must be \(utterances, dim\), found shape \(4,\)"),
        (lambda: cosine_scores([[1, 0], [0, 0]], ZERO, ONE), r"1 of 2 vectors are zero or not finite \(first: row 1\)"),
        (lambda: CURVE.min_dcf(0.0), "p_target must lie between 0 and 1, found 0.0"),
        (lambda: CURVE.min_dcf(1.0), "p_target must lie between 0 and 1, found 1.0"),
        (lambda: det_curve([0.1, np.inf], [False, True]), r"1 of 2 scores are NaN or infinite \(first: trial 2\)"),
        (lambda: det_curve([0.1, 0.2], [True, True]), "need same- and different-speaker trials, found 2 and 0"),
    ],
)
def test_what_is_wrong_is_said(wrong: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def test_a_uem_without_a_region(tmp_path: Path) -> None:
    (tmp_path / "a.uem").write_text("; nothing\n\n")
    with pytest.raises(ValueError, match=r"a\.uem: no region in this UEM"):
        read_uem(tmp_path / "a.uem")
