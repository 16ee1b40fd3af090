"""Both: Viterbi over sets of voices, so that how many, who, and who spoke just before decide together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What one pass may hold: of many recordings side by side, each as long as the longest, frames × sets.
_MOST_CELLS = 1 << 25


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
    blend: float = 12.0
    change: float = 8.0


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

    Parameters
    ----------
    scores : tables (steps, states).
    prices : (states, states) of each, added on going from one state to another.
    """
    paths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(scores)
    for group in _groups([s.shape for s in scores]):
        for k, path in zip(group, _together([scores[k] for k in group], [prices[k] for k in group]), strict=True):
            paths[k] = path
    return paths


def _groups(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Tables of like length, as many as may be held side by side."""
    group: list[int] = []
    states = 0
    for k in sorted((k for k, shape in enumerate(shapes) if shape[0]), key=lambda k: -shapes[k][0]):
        states = max(states, shapes[k][1])
        if group and (len(group) + 1) * shapes[group[0]][0] * states > _MOST_CELLS:
            yield group
            group, states = [], shapes[k][1]
        group.append(k)
    if group:
        yield group


def _together(scores: Sequence[NDArray[np.float64]], prices: Sequence[NDArray[np.float64]]) -> list[NDArray[np.int64]]:
    """`best_paths` of tables side by side, the longest first: a step of Python does all of them."""
    lengths = [len(s) for s in scores]
    states = max(s.shape[1] for s in scores)
    table = np.full((lengths[0], len(scores), states), -np.inf, np.float32)
    price = np.full((len(scores), states, states), -np.inf)
    for k, (score, cost) in enumerate(zip(scores, prices, strict=True)):
        table[: len(score), k, : score.shape[1]] = score
        price[k, : len(cost), : len(cost)] = cost
    back = np.zeros((lengths[0], len(scores), states), np.int16)
    best = table[0].astype(np.float64)
    last = [best[k] if length == 1 else None for k, length in enumerate(lengths)]
    for step in range(1, lengths[0]):
        here = sum(length > step for length in lengths)  # they are in order of length
        total = best[:here, :, None] + price[:here]
        back[step, :here] = total.argmax(1)
        best = total.max(1) + table[step, :here]
        for k in range(here):
            if lengths[k] == step + 1:
                last[k] = best[k]
    paths = []
    for k, length in enumerate(lengths):
        path = np.empty(length, np.int64)
        path[-1] = np.argmax(last[k])
        for step in range(length - 1, 0, -1):
            path[step - 1] = back[step, k, path[step]]
        paths.append(path)
    return paths


def decode(recordings: Sequence[Evidence], at_once: int, how: Decoding) -> list[NDArray[np.bool_]]:
    """Who speaks in each recording, (answers, voices)."""
    sets = [sets_of(each.cosines.shape[1], at_once) for each in recordings]
    paths = best_paths(
        [scores_of(each, table, how) for each, table in zip(recordings, sets, strict=True)],
        [prices_of(table, how) for table in sets],
    )
    return [table[path] for table, path in zip(sets, paths, strict=True)]


def smooth_counts(counts: NDArray[np.float32], change: float) -> NDArray[np.int64]:
    """How many speak, (answers,), on the best path; `change` is the price of one more or one less."""
    classes = np.arange(counts.shape[1])
    prices = -change * np.abs(np.subtract.outer(classes, classes))
    return best_paths([counts.astype(np.float64)], [prices.astype(np.float64)])[0]
