"""The memory of voices by hand, and the groups that it is compared on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from trainers.unmix.memory import Memory
from trainers.unmix.rivals import Grouping, constant_set, grouping_for, means_of


def units(*degrees: float) -> NDArray[np.float32]:
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32).reshape(
        -1, 2
    )


def test_who_comes_back_has_the_same_number() -> None:
    memory = Memory(threshold=0.8)
    assert memory.hear(units(0, 90)) == [0, 1]
    assert memory.hear(units()) == []  # a gap
    assert memory.hear(units(95)) == [1] and memory.hear(units(180)) == [2] and memory.hear(units(5, 175)) == [0, 2]
    assert len(memory) == 3


def test_one_number_is_one_voice_of_a_chunk_and_the_best_comes_first() -> None:
    memory = Memory(threshold=0.8)
    memory.hear(units(0))
    # Both are near to number 0, the second nearer: the first is somebody new, however near.
    assert memory.hear(units(30, 10)) == [1, 0]


def test_a_voice_is_the_mean_of_what_was_heard_of_it() -> None:
    memory = Memory(threshold=math.cos(math.radians(25)))
    for degrees in (0, 20, 40):  # 40 is 30 from the mean of the first two
        found = memory.hear(units(degrees))
    assert found == [1]
    memory = Memory(threshold=math.cos(math.radians(25)))
    for degrees in (0, 20, 34):  # and 34 is 24, though 34 from the first
        found = memory.hear(units(degrees))
    assert found == [0]


def test_the_threshold_itself_is_near_enough() -> None:
    memory = Memory(threshold=0.0)
    memory.hear(np.array([[1, 0]], np.float32))
    assert memory.hear(np.array([[0, 1]], np.float32)) == [0]


def test_who_is_not_confirmed_has_no_number() -> None:
    memory = Memory(threshold=0.8, confirm=2)
    assert memory.hear(units(0, 90)) == [None, None] and len(memory) == 0
    assert memory.hear(units(90)) == [0]  # numbers are given in the order in which they are deserved
    assert memory.hear(units(0, 180)) == [1, None] and len(memory) == 2


def windows(*groups: tuple[float, int]) -> NDArray[np.float32]:
    return units(*(degrees + 0.1 * k for degrees, count in groups for k in range(count)))


def test_groups_of_windows_are_voices_the_largest_first() -> None:
    found = Grouping(threshold=0.1, min_share=0.1)(windows((0, 5), (90, 9), (180, 1)), most=4)
    assert np.round(np.degrees(np.arctan2(found[:, 1], found[:, 0]))).tolist() == [90.0, 0.0]  # one of 15 is no voice
    assert len(Grouping(0.1, 0.05)(windows((0, 5), (90, 9), (180, 1)), most=4)) == 3
    assert len(Grouping(0.1, 0.05)(windows((0, 5), (90, 9), (180, 1)), most=2)) == 2
    assert len(Grouping(0.1, 0.9)(windows((0, 5), (90, 5)), most=4)) == 1  # somebody is always there


def test_dev_chooses_the_grouping_that_counts_best() -> None:
    one, two = windows((0, 5), (20, 5)), windows((0, 5), (60, 5))  # 1 - cos 20° is 0.06, 1 - cos 60° is 0.5
    found = grouping_for([one, two] * 3, [1, 2] * 3, 3)
    assert 0.06 < found.threshold < 0.5 and [len(found(own, 3)) for own in (one, two)] == [1, 2]
    found = grouping_for([one, two] * 3, [1, 1] * 3, 3)
    assert [len(found(own, 3)) for own in (one, two)] == [1, 1]


def test_as_many_means_as_are_asked_for() -> None:
    found = means_of(windows((0, 5), (90, 9)), 2, seed=0)
    assert sorted(np.round(np.degrees(np.arctan2(found[:, 1], found[:, 0]))).tolist()) == [0.0, 90.0]
    assert means_of(units(10), 3, seed=0) == pytest.approx(np.repeat(units(10), 3, 0))
    assert constant_set([windows((0, 3)), windows((90, 6))], 2, seed=0)[0] == pytest.approx(units(90.25)[0], abs=0.01)
