"""Voices as they come: pieces of speech in a bounded memory, grouped anew with every piece, as the cascade groups them.

Pieces that are much alike become one, with their weight, where the memory is full. Groups keep the number of the voice
whose pieces they hold; a new one gets the next. Where there are more voices than slots, who was silent longest leaves
its slot and is known again by a single vector, if it comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from trainers.cascade.clusters import Pieces, groupings, unit

_MOST_PIECES = 160
_MOST_GONE = 100  # voices that left their slots and are known again
#: A group is a voice from this share of all speech on, and at most from so many seconds on.
_SHARE, _ENOUGH_S = 0.02, 2.5
_ROUNDS = 2  # of moving pieces to the nearest voice


class Voices:
    """What voices sound like, so far.

    Parameters
    ----------
    dim : of vectors.
    clustering, threshold : see `trainers.cascade.clusters.groupings`.
    slots : voices at once at most.
    step_s : of a frame.
    least_s : of speech that make a voice, at least.

    Attributes
    ----------
    numbers : of the voices in slots, by arrival.
    means : (voices, dim) of length 1.
    same : voices that turned out to be others; who asks takes them away.
    """

    def __init__(
        self, dim: int, clustering: str, threshold: float, slots: int, step_s: float, least_s: float = 0.6
    ) -> None:
        self.dim, self.clustering, self.threshold = dim, clustering, threshold
        self.slots, self.step_s, self.least_s = slots, step_s, least_s
        self.forget()

    def forget(self) -> None:
        """As new."""
        self.sums: NDArray[np.float32] = np.zeros((0, self.dim), np.float32)
        self.weights: NDArray[np.float64] = np.zeros(0)
        self.last: NDArray[np.int64] = np.zeros(0, np.int64)
        self.of: NDArray[np.int64] = np.zeros(0, np.int64)
        self.gone: NDArray[np.float32] = np.zeros((0, self.dim), np.float32)
        self.gone_numbers: NDArray[np.int64] = np.zeros(0, np.int64)
        self.next = 0
        self.numbers: tuple[int, ...] = ()
        self.means: NDArray[np.float32] = np.zeros((0, self.dim), np.float32)
        self.same: dict[int, int] = {}

    def add(self, vector: NDArray[np.float32], weight: float, at: int) -> None:
        """Hear a piece: a vector of length 1, its frames, and when that was."""
        self.sums = np.concatenate([self.sums, weight * vector[None]])
        self.weights = np.append(self.weights, weight)
        self.last, self.of = np.append(self.last, at), np.append(self.of, -1)
        if len(self.weights) > _MOST_PIECES:
            self._join_nearest()
        self._group()
        if len(self.numbers) > self.slots:
            self._recycle()

    def _group(self) -> None:
        pieces = Pieces(unit(self.sums).astype(np.float32), self.weights)
        (labels,) = groupings(pieces, self.clustering, (self.threshold,)).values()
        belongs = self._matched(labels)
        there = self._heavy(belongs)
        for _ in range(_ROUNDS):  # as `voices_of` does it
            near = there[(pieces.vectors @ self._means(belongs, there).T).argmax(1)]
            belongs = np.where(np.isin(belongs, there), near, belongs)
        for old in set(self.of[self.of >= 0].tolist()) - set(belongs.tolist()):
            to = belongs[(self.of == old) & (belongs >= 0)]
            if len(to):
                self.same[old] = int(np.bincount(to).argmax())
        self.of = belongs
        self._refresh()

    def _matched(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The voice of each piece: groups have the number of which they hold most, new ones the next, scraps none."""
        groups = int(labels.max()) + 1
        numbers = np.unique(self.of[self.of >= 0])
        shared = np.zeros((groups, len(numbers)))
        for k, number in enumerate(numbers.tolist()):
            shared[:, k] = np.bincount(labels, self.weights * (self.of == number), groups)
        rows, columns = linear_sum_assignment(shared, maximize=True)
        found = {g: int(numbers[k]) for g, k in zip(rows.tolist(), columns.tolist(), strict=True) if shared[g, k] > 0}
        weight = np.bincount(labels, self.weights, groups)
        first = [int(np.flatnonzero(labels == g)[0]) for g in range(groups)]
        for g in sorted((g for g in range(groups) if g not in found), key=lambda g: first[g]):
            if weight[g] >= min(self._enough, weight.max()):
                vector = unit(self.sums[labels == g].sum(0))
                found[g] = self._newcomer(vector, set(found.values()) | set(numbers.tolist()))
        return np.array([found.get(g, -1) for g in labels.tolist()], np.int64)

    @property
    def _enough(self) -> float:
        """The weight from which a group is a voice."""
        return min(max(_SHARE * float(self.weights.sum()), self.least_s / self.step_s), _ENOUGH_S / self.step_s)

    def _heavy(self, belongs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the groups that are voices now; a lighter one keeps its number until it is."""
        numbers = np.unique(belongs[belongs >= 0])
        weights = np.array([self.weights[belongs == n].sum() for n in numbers.tolist()])
        return numbers[weights >= min(self._enough, weights.max(initial=0.0))]

    def _newcomer(self, vector: NDArray[np.float32], there: set[int]) -> int:
        """The next number, or that of who was here before."""
        cosines = np.where([n not in there for n in self.gone_numbers.tolist()], self.gone @ vector, -1)
        if len(cosines) and cosines.max() > 1 - self.threshold:
            number = int(self.gone_numbers[cosines.argmax()])
            keep = self.gone_numbers != number
            self.gone, self.gone_numbers = self.gone[keep], self.gone_numbers[keep]
            return number
        self.next += 1
        return self.next - 1

    def _means(self, belongs: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return unit(np.stack([self.sums[belongs == n].sum(0) for n in numbers.tolist()])).astype(np.float32)

    def _refresh(self) -> None:
        numbers = self._heavy(self.of)
        self.numbers = tuple(numbers.tolist())
        self.means = self._means(self.of, numbers) if len(numbers) else np.zeros((0, self.dim), np.float32)

    def _recycle(self) -> None:
        """Who was silent longest leaves its slot."""
        last = [int(self.last[self.of == n].max()) for n in self.numbers]
        k = int(np.argmin(last))
        number, keep = self.numbers[k], self.of != self.numbers[k]
        self.gone = np.concatenate([self.gone, self.means[k : k + 1]])[-_MOST_GONE:]
        self.gone_numbers = np.append(self.gone_numbers, number)[-_MOST_GONE:]
        self._keep(keep)
        self._refresh()

    def _keep(self, keep: NDArray[np.bool_]) -> None:
        self.sums, self.weights, self.last, self.of = (
            self.sums[keep],
            self.weights[keep],
            self.last[keep],
            self.of[keep],
        )

    def _join_nearest(self) -> None:
        """The two nearest pieces of one voice become one; where each voice has one piece, any two."""
        vectors = unit(self.sums)
        cosines = np.triu(vectors @ vectors.T + 2, 1)
        alike = np.where((self.of[:, None] == self.of) & (self.of >= 0), cosines, 0)
        alike = alike if alike.any() else cosines
        i, j = (int(n) for n in np.unravel_index(alike.argmax(), alike.shape))
        self.sums[i] += self.sums[j]
        self.weights[i] += self.weights[j]
        self.last[i] = max(self.last[i], self.last[j])
        self._keep(np.arange(len(self.weights)) != j)

    def state(self) -> dict[str, NDArray[Any]]:
        """What `restore` takes."""
        names = ("sums", "weights", "last", "of", "gone", "gone_numbers")
        return {name: getattr(self, name) for name in names} | {"next": np.array(self.next)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""
        for name, value in arrays.items():
            setattr(self, name, int(value) if name == "next" else value)
        self._refresh()


class Listening:
    """Frames in which one voice is heard, one after the other, cut into pieces as they come.

    Parameters
    ----------
    piece, edge : see `trainers.cascade.clusters.pieces_of`.
    """

    def __init__(
        self, dim: int, piece: int, edge: int, told: Callable[[NDArray[np.float32], float, int], None]
    ) -> None:
        self.piece, self.edge, self.told, self.dim = piece, edge, told, dim
        self.forget()

    def forget(self) -> None:
        """As new."""
        self.stretch: NDArray[np.float32] = np.zeros((0, self.dim), np.float32)
        self.cut = False

    def hear(self, frame: NDArray[np.float32], single: bool, at: int) -> None:
        """Hear frame number `at`, of length 1."""
        if single:
            self.stretch = np.concatenate([self.stretch, frame[None]])
            first = 0 if self.cut else self.edge
            if len(self.stretch) == first + self.piece + self.edge:
                self._tell(self.stretch[first : first + self.piece], at)
                self.stretch, self.cut = self.stretch[first + self.piece :], True
        elif len(self.stretch):
            self.finish(at)

    def finish(self, at: int) -> None:
        """The stretch is over."""
        if not self.cut:  # a short one: its middle
            edge = min(self.edge, (len(self.stretch) - 1) // 2)
            inside = self.stretch[edge : len(self.stretch) - edge]
        else:
            inside = self.stretch[: -self.edge] if self.edge else self.stretch
        if len(inside) >= (self.piece + 1) // 2 or (not self.cut and len(inside)):
            self._tell(inside, at)
        self.forget()

    def _tell(self, inside: NDArray[np.float32], at: int) -> None:
        self.told(unit(inside.mean(0)), float(len(inside)), at)
