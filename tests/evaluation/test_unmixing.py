"""Figures of sets of voices, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from evaluation.bootstrap import ratio_intervals
from evaluation.unmixing import Enrolment, assigned, clusters, counting, f1, followed, identify

A, B, C = np.eye(3, dtype=np.float32)


def stack(*vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack(vectors)


VOICES = [stack(A, B), stack(A, C), stack(B), stack(A)]
SPEAKERS = [("a", "b"), ("a", "c"), ("b",), ("a",)]
SAID = [("a1", "b1"), ("a2", "c1"), ("b2",), ("a1",)]


def test_an_enrolment_is_of_other_words() -> None:
    tilted = (A + B).astype(np.float32) / np.float32(np.sqrt(2))
    enrolment = Enrolment([stack(A), stack(tilted), stack(C)], [["a"], ["a"], ["c"]], [["a1"], ["a2"], ["c1"]])
    names, vectors = enrolment.without(["a1"])
    assert names == ["a", "c"] and vectors[0] == pytest.approx(tilted)
    assert enrolment.without(["a1", "a2"])[0] == ["c"]
    assert enrolment.without(["a1", "a2", "c1"]) == ([], pytest.approx(np.zeros((0, 1))))
    both = enrolment.without([])[1][0]
    assert both == pytest.approx((A + tilted) / np.linalg.norm(A + tilted))


def test_names_by_hand() -> None:
    enrolment = Enrolment(VOICES, SPEAKERS, SAID)
    found = [stack(B, A), stack(A, A), stack(A), stack(A)]
    told = identify(found, SPEAKERS, SAID, enrolment)
    # c has no words but those of the mixture: left out. In the second mixture a is named twice, in the third wrongly.
    assert (told["a"]["voices"], told["a"]["hits"], told["c"]["left_out"], told["c"]["voices"]) == (3, 3, 1, 0)
    assert (told["b"]["voices"], told["b"]["hits"]) == (2, 1)
    assert sum(s["given"] for s in told.values()) == 2 + 1 + 1 + 1 and sum(s["wrong"] for s in told.values()) == 1
    assert sum(s["twice"] for s in told.values()) == 1 and sum(s["several"] for s in told.values()) == 2
    assert told["b"]["wrong"] == 1 and told["a"]["twice"] == 1


def test_a_mixture_counted_right_is_shared_by_its_speakers() -> None:
    told = counting([2, 1, 1, 2], SPEAKERS)
    assert told["a"] == {"mixtures": 2.0, "right": 0.5} and told["b"] == {"mixtures": 1.5, "right": 1.5}
    assert sum(s["mixtures"] for s in told.values()) == 4 and sum(s["right"] for s in told.values()) == 2


def test_the_assignment_is_the_best_in_all_and_who_is_left_out_has_no_cosine() -> None:
    assert assigned(stack(B, A), stack(A, B))[2].tolist() == [1, 1]
    assert assigned(stack(B), stack(A, B))[2].tolist() == [0, 1]


def test_clusters_of_clear_voices_are_perfect_and_those_of_one_vector_say_nothing() -> None:
    rng = np.random.default_rng(0)
    voices = [stack(A, B), stack(B, C), stack(A, C), stack(A, B)]
    speakers = [("a", "b"), ("b", "c"), ("a", "c"), ("a", "b")]
    near = [v + 0.01 * rng.standard_normal(v.shape).astype(np.float32) for v in voices]
    told = clusters(near, voices, speakers, 0)
    assert told["ari"] == told["nmi"] == 1 and told["silhouette"] > 0.95
    assert clusters([stack(A, A)] * 4, voices, speakers, 0)["ari"] == pytest.approx(0)
    assert clusters([stack(A)], [stack(A)], [("a",)], 0) == {}


def chunks(*names: str) -> list[frozenset[str]]:
    return [frozenset(name) for name in names]


def test_people_followed_by_hand() -> None:
    #                a      a and b  b       nobody  a       c
    truth = chunks("a", "ab", "b", "", "a", "c")
    perfect = followed(truth, [[7], [7, 3], [3], [], [7], [5]])
    assert f1(perfect) == 1 and perfect["switches"] == 0 and (perfect["people"], perfect["numbers"]) == (3, 3)
    # a is called 9 when it comes back (a switch, a miss and a wrong number), and somebody is heard in the silence.
    other = followed(truth, [[7], [7, 3], [3], [3], [9], [5]])
    assert (other["hits"], other["present"], other["given"], other["switches"]) == (5, 6, 7, 1)
    assert f1(other) == pytest.approx(10 / 13)
    assert f1(followed(truth, [[]] * 6)) == 0 and f1(followed([], [])) == 0


def test_f1_equals_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    truth = [frozenset(n for n in "abc" if rng.random() < 0.5) for _ in range(200)]
    heard = [[k for k, n in enumerate("abc") if (n in there) != (rng.random() < 0.1)] for there in truth]
    matrix = np.array([[n in there for n in "abc"] for there in truth])
    given = np.array([[k in own for k in range(3)] for own in heard])
    assert f1(followed(truth, heard)) == pytest.approx(f1_score(matrix, given, average="micro"))


def test_a_difference_of_ratios_that_are_divided_by_different_totals() -> None:
    errors, totals, other, others = (
        np.array([1.0, 3, 2, 5]),
        np.array([4.0, 6, 8, 9]),
        np.array([2.0, 2, 2, 2]),
        np.full(4, 5.0),
    )
    _, gap = ratio_intervals(errors, totals, np.random.default_rng(0), baseline=other, baseline_totals=others)
    assert gap and gap.estimate == pytest.approx(11 / 27 - 8 / 20)
    draws = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=1000)
    values = draws @ errors / (draws @ totals) - draws @ other / (draws @ others)
    assert (gap.low, gap.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    _, same = ratio_intervals(errors, totals, np.random.default_rng(0), baseline=other, baseline_totals=totals)
    _, plain = ratio_intervals(errors, totals, np.random.default_rng(0), baseline=other)
    assert same == plain
