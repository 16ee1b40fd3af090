"""How well a set of embeddings says who is in a mixture: figures of sets of vectors, whoever made them.

Vectors are of length 1 throughout. What a figure must not lean on is the clean voice: slots are told apart by nothing but
the set itself, except where a figure says that it assigns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Vectors = NDArray[np.float32]


def assigned(found: Vectors, voices: Vectors) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The pairing of found vectors and voices of the largest cosines in all: rows, columns, and the cosine of every voice
    (voices,), 0 for one that nothing is left for."""
    cosines = found @ voices.T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    told = np.zeros(len(voices))
    told[columns] = cosines[rows, columns]
    return rows, columns, told


class Enrolment:
    """What everybody sounds like in other words than those of a mixture.

    Parameters
    ----------
    voices, speakers, utterances : of each mixture, its voices' vectors, whose they are, and what was said.
    """

    def __init__(
        self, voices: Sequence[Vectors], speakers: Sequence[Sequence[str]], utterances: Sequence[Sequence[str]]
    ) -> None:
        self.names = sorted({name for own in speakers for name in own})
        self._number = {name: k for k, name in enumerate(self.names)}
        self._sums: list[dict[str, NDArray[np.float64]]] = [{} for _ in self.names]
        for vectors, own, said in zip(voices, speakers, utterances, strict=True):
            for vector, name, utterance in zip(vectors, own, said, strict=True):
                sums = self._sums[self._number[name]]
                sums[utterance] = sums.get(utterance, 0) + vector.astype(np.float64)

    def without(self, said: Sequence[str]) -> tuple[list[str], Vectors]:
        """Names and (names, size) of everybody who is heard in other utterances than `said`."""
        names, vectors = [], []
        for name, sums in zip(self.names, self._sums, strict=True):
            if left := [vector for utterance, vector in sums.items() if utterance not in said]:
                names.append(name)
                vectors.append(np.sum(left, axis=0))
        if not names:
            return [], np.zeros((0, 1), np.float32)
        stacked = np.stack(vectors)
        unit: Vectors = (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)
        return names, unit


def named(found: Vectors, gallery: tuple[list[str], Vectors]) -> list[str]:
    """Who each vector is nearest to."""
    names, vectors = gallery
    return [names[k] for k in (found @ vectors.T).argmax(1)] if len(found) else []


def identify(
    sets: Sequence[Vectors],
    speakers: Sequence[Sequence[str]],
    utterances: Sequence[Sequence[str]],
    enrolment: Enrolment,
) -> dict[str, dict[str, float]]:
    """By true speaker: "voices" in all mixtures, "hits" among the names of the sets, and of the names given: "given", "wrong".

    A name counts once in a mixture. A voice that nobody could enrol (no other words of it) is left out; "left_out" counts it.
    A wrong name and a mixture in which a name came twice are shared evenly by the mixture's speakers.
    """
    told: dict[str, dict[str, float]] = {
        name: dict.fromkeys(("voices", "hits", "given", "wrong", "twice", "several", "left_out"), 0.0)
        for name in enrolment.names
    }
    for found, own, said in zip(sets, speakers, utterances, strict=True):
        gallery = enrolment.without(said)
        names = named(found, gallery) if gallery[0] else []
        known = [name for name in own if name in gallery[0]]
        for name in own:
            if name not in known:
                told[name]["left_out"] += 1
        for name in known:
            told[name]["voices"] += 1
            told[name]["hits"] += name in names
            told[name]["given"] += len(set(names)) / len(known)
            told[name]["wrong"] += len(set(names) - set(own)) / len(known)
            told[name]["several"] += (len(found) > 1) / len(known)
            told[name]["twice"] += (len(set(names)) < len(names)) / len(known)
    return told


def counting(counts: Sequence[int], speakers: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """By speaker, "mixtures" and how many of them were "right": a mixture is shared evenly by its speakers."""
    told: dict[str, dict[str, float]] = {}
    for count, own in zip(counts, speakers, strict=True):
        for name in own:
            sums = told.setdefault(name, {"mixtures": 0.0, "right": 0.0})
            sums["mixtures"] += 1 / len(own)
            sums["right"] += (count == len(own)) / len(own)
    return told


def clusters(
    sets: Sequence[Vectors], voices: Sequence[Vectors], speakers: Sequence[Sequence[str]], seed: int
) -> dict[str, float]:
    """ARI and NMI of k-means over all vectors of all mixtures into as many clusters as there are speakers, and the silhouette
    (cosine) by speaker. A vector's speaker is that of the clean voice it is assigned to, which flatters every system alike."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    vectors, names = [], []
    for found, own, who in zip(sets, voices, speakers, strict=True):
        rows, columns, _ = assigned(found, own)
        vectors += [found[r] for r in rows]
        names += [who[c] for c in columns]
    points, labels = np.stack(vectors), np.unique(names, return_inverse=True)[1]
    if not 1 < labels.max() + 1 < len(points):
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        groups = KMeans(int(labels.max()) + 1, n_init=10, random_state=seed).fit_predict(points)
    return {
        "ari": float(adjusted_rand_score(labels, groups)),
        "nmi": float(normalized_mutual_info_score(labels, groups)),
        "silhouette": float(silhouette_score(points, labels, metric="cosine")),
    }


def followed(truth: Sequence[frozenset[str]], heard: Sequence[Sequence[int]]) -> dict[str, float]:
    """How well numbers that a memory gave follow people through a recording, chunk by chunk.

    Numbers and people are paired by how many chunks they share, the best pairing in all. "hits" are chunks of a person in
    which its number was given, "present" those in which the person speaks, "given" the numbers given. A person's number in a
    chunk is the best of those given there by the same measure; "switches" counts when it is another than the time before.

    Parameters
    ----------
    truth : of each chunk, who speaks. heard : of each chunk, the numbers that the memory gave.
    """
    people = sorted(frozenset().union(*truth)) if truth else []
    numbers = sorted({n for given in heard for n in given})
    shared = np.zeros((len(people), len(numbers)))
    for there, given in zip(truth, heard, strict=True):
        for person in there:
            for number in given:
                shared[people.index(person), numbers.index(number)] += 1
    hits = float(shared[linear_sum_assignment(shared, maximize=True)].sum())
    switches = 0
    last: dict[str, int] = {}
    for there, given in zip(truth, heard, strict=True):
        who, what = sorted(there), sorted(set(given))
        part = shared[np.ix_([people.index(p) for p in who], [numbers.index(n) for n in what])]
        for row, column in zip(*linear_sum_assignment(part, maximize=True), strict=True):
            switches += last.get(who[row], what[column]) != what[column]
            last[who[row]] = what[column]
    return {
        "hits": hits,
        "present": float(sum(map(len, truth))),
        "given": float(sum(len(set(given)) for given in heard)),
        "switches": float(switches),
        "people": float(len(people)),
        "numbers": float(len(numbers)),
    }


def f1(told: Mapping[str, Any]) -> float:
    """Of sums that `followed` gives: 2 · hits / (present + given)."""
    total = told["present"] + told["given"]
    return 2 * told["hits"] / total if total else 0.0
