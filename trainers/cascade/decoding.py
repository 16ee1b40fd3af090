"""Both: Viterbi over sets of voices, so that how many, who, and who spoke just before decide together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What one pass may hold: of many recordings side by side, each as long as the longest, frames × sets.
_MOST_CELLS = 1 << 23
#: Answers of a recording that are decoded as one, and what they hear before and after: a path has long forgotten by then
#: where it began. 10 minutes and 30 s at 20 ms.
_BLOCK, _MARGIN = 30_000, 1_500


@dataclass(frozen=True)
class Decoding:
    """What voices and changes weigh against the counts, in units of a log-probability of one answer of the head.

    Attributes
    ----------
    nearest : of how much nearer the frame is to the nearest voices than to the set's: mean cosines.
    blend : of how much nearer the frame is to the sum of a set's voices than to the nearest voice alone: cosines.
    change : price of a voice that begins or ends.
    """

    nearest: float = 5.0
    blend: float = 25.0
    change: float = 10.0


class Evidence(NamedTuple):
    """What a recording says: all that is decoded.

    Attributes
    ----------
    counts : (answers, classes) log-probabilities of 0, 1, 2, … speakers.
    cosines : (answers, voices) of each answer's frame with each voice.
    among : (voices, voices) cosines of the voices with each other.
    """

    counts: NDArray[np.float32]
    cosines: NDArray[np.float32]
    among: NDArray[np.float32]


def sets_of(voices: int, at_once: int) -> NDArray[np.bool_]:
    """All sets of at most `at_once` of the voices, (sets, voices); the first is empty."""
    chosen = [c for size in range(min(at_once, voices) + 1) for c in combinations(range(voices), size)]
    table = np.zeros((len(chosen), voices), np.bool_)
    for row, members in enumerate(chosen):
        table[row, list(members)] = True
    return table


def scores_of(evidence: Evidence, sets: NDArray[np.bool_], how: Decoding) -> NDArray[np.float64]:
    """The score of each set at each answer of the head, (answers, sets)."""
    size = sets.sum(1)
    most = int(size.max())
    counts = evidence.counts.astype(np.float64)
    if counts.shape[1] > most + 1:  # more than any set has is the largest set's business
        counts = np.concatenate([counts[:, :most], np.logaddexp.reduce(counts[:, most:], axis=1)[:, None]], axis=1)
    elif counts.shape[1] < most + 1:
        raise ValueError(f"sets of {most} voices, but the head tells apart {counts.shape[1]} counts only")
    scores = counts[:, size]
    if not most:
        return scores
    cosines = evidence.cosines.astype(np.float64)
    sums = cosines @ sets.T
    nearest = np.sort(cosines, axis=1)[:, ::-1].cumsum(1)[:, :most] / np.arange(1, most + 1)
    scores[:, size > 0] += how.nearest * (sums / size.clip(1) - nearest[:, size.clip(1) - 1])[:, size > 0]
    length = np.sqrt(np.einsum("si,ij,sj->s", sets, evidence.among.astype(np.float64), sets).clip(1e-9))
    scores[:, size > 1] += how.blend * (sums / length - cosines.max(1, keepdims=True))[:, size > 1]
    return scores


def prices_of(sets: NDArray[np.bool_], how: Decoding) -> NDArray[np.float64]:
    """Minus the price of going from one set to another, (sets, sets)."""
    return -how.change * (sets[:, None] != sets[None]).sum(2).astype(np.float64)


def best_paths(scores: Sequence[NDArray[np.float64]], prices: Sequence[NDArray[np.float64]]) -> list[NDArray[np.int64]]:
    """Viterbi: the path of the highest score through each table, (steps,) columns.

    All tables go side by side, so that Python's share is that of the longest alone.

    Parameters
    ----------
    scores : tables (steps, states).
    prices : (states, states) of each, added on going from one state to another.
    """
    order = sorted(range(len(scores)), key=lambda k: -len(scores[k]))
    lengths = [len(scores[k]) for k in order]
    paths: list[NDArray[np.int64]] = [np.zeros(len(each), np.int64) for each in scores]
    order = order[: sum(length > 0 for length in lengths)]
    if not order:
        return paths
    states = max(scores[k].shape[1] for k in order)
    table = np.full((lengths[0], len(order), states), -np.inf, np.float32)
    price = np.full((len(order), states, states), -np.inf)
    for row, k in enumerate(order):
        table[: len(scores[k]), row, : scores[k].shape[1]] = scores[k]
        price[row, : len(prices[k]), : len(prices[k])] = prices[k]
    back = np.zeros(table.shape, np.int16)
    best = table[0].astype(np.float64)
    for step in range(1, lengths[0]):
        going = sum(length > step for length in lengths)
        total = best[:going, :, None] + price[:going]
        back[step, :going] = total.argmax(1)
        best[:going] = total.max(1) + table[step, :going]  # of those that are over, the last stays
    for row, k in enumerate(order):
        path = paths[k]
        path[-1] = best[row].argmax()
        for step in range(len(path) - 1, 0, -1):
            path[step - 1] = back[step, row, path[step]]
    return paths


def best_path(scores: NDArray[np.float64], prices: NDArray[np.float64]) -> NDArray[np.int64]:
    """`best_paths` of one table, without what many need."""
    best = scores.copy()  # of the paths that end in each state, step by step
    to = np.ascontiguousarray(prices.T)
    total = np.empty_like(to)
    for step in range(1, len(best)):
        np.add(best[step - 1], to, out=total)
        best[step] += np.maximum.reduce(total, 1)
    path = np.zeros(len(best), np.int64)
    path[-1:] = state = best[-1].argmax() if len(best) else 0
    for step in range(len(best) - 2, -1, -1):
        path[step] = state = (best[step] + to[state]).argmax()
    return path


def decode(recordings: Sequence[Evidence], at_once: int, how: Decoding) -> list[NDArray[np.bool_]]:
    """Who speaks in each recording, (answers, voices). Long ones go in blocks, for memory's sake."""
    blocks = [(k, begin) for k, each in enumerate(recordings) for begin in range(0, len(each.counts), _BLOCK)]
    found = _decode([_block(recordings[k], begin) for k, begin in blocks], at_once, how)
    active: list[NDArray[np.bool_]] = [
        np.zeros((len(each.counts), each.cosines.shape[1]), np.bool_) for each in recordings
    ]
    for (k, begin), part in zip(blocks, found, strict=True):
        active[k][begin : begin + _BLOCK] = part[min(begin, _MARGIN) :][:_BLOCK]
    return active


def _block(evidence: Evidence, begin: int) -> Evidence:
    around = slice(max(0, begin - _MARGIN), begin + _BLOCK + _MARGIN)
    return Evidence(evidence.counts[around], evidence.cosines[around], evidence.among)


def _decode(recordings: Sequence[Evidence], at_once: int, how: Decoding) -> list[NDArray[np.bool_]]:
    sets = [sets_of(each.cosines.shape[1], at_once) for each in recordings]
    active: list[NDArray[np.bool_]] = [np.zeros((0, 0), np.bool_)] * len(recordings)
    for group in _groups([(len(each.counts), len(table)) for each, table in zip(recordings, sets, strict=True)]):
        scores = [scores_of(recordings[k], sets[k], how) for k in group]
        for k, path in zip(group, best_paths(scores, [prices_of(sets[k], how) for k in group]), strict=True):
            active[k] = sets[k][path]
    return active


def _groups(shapes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Tables (steps, states) of like length, as many as may be held side by side."""
    group: list[int] = []
    states = 0
    for k in sorted(range(len(shapes)), key=lambda k: -shapes[k][0]):
        states = max(states, shapes[k][1])
        if group and (len(group) + 1) * shapes[group[0]][0] * states > _MOST_CELLS:
            yield group
            group, states = [], shapes[k][1]
        group.append(k)
    if group:
        yield group


def smooth_counts(counts: NDArray[np.float32], change: float) -> NDArray[np.int64]:
    """How many speak, (answers,), on the best path; `change` is the price of one more or one less."""
    classes = np.arange(counts.shape[1])
    prices = -change * np.abs(np.subtract.outer(classes, classes))
    return best_path(counts.astype(np.float64), prices.astype(np.float64))
