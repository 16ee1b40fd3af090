"""What takes mixtures apart without being trained to: groups of the teacher's own windows, copies of their mean, one set for all."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from evaluation.unmixing import Vectors

#: What dev chooses from: cosine distance at which groups end, and the share of the windows that makes a group a voice.
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)


@dataclass(frozen=True)
class Grouping:
    """How windows become voices, as dev chose it."""

    threshold: float
    min_share: float

    def __call__(self, windows: Vectors, most: int) -> Vectors:
        """Means (voices, size) of the groups of windows (windows, size), the largest first, `most` at most."""
        return _means(windows, _labels(_tree(windows), self.threshold), self.min_share, most)


def grouping_for(windows: Sequence[Vectors], counts: Sequence[int], most: int) -> Grouping:
    """The grouping that counts the voices of most mixtures right."""
    trees = [_tree(own) for own in windows]
    best, right = Grouping(THRESHOLDS[0], SHARES[0]), -1
    for threshold in THRESHOLDS:
        labels = [_labels(tree, threshold) for tree in trees]
        for share in SHARES:
            found = [min(most, _count(own, share)) for own in labels]
            if (hits := sum(f == c for f, c in zip(found, counts, strict=True))) > right:
                best, right = Grouping(threshold, share), hits
    return best


def means_of(windows: Vectors, count: int, seed: int) -> Vectors:
    """k-means of windows (windows, size) into `count` groups; their directions (count, size)."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        centres = KMeans(min(count, len(windows)), n_init=5, random_state=seed).fit(windows).cluster_centers_
    return unit(np.concatenate([centres, centres[[0] * (count - len(centres))]]))


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Of length 1."""
    out: Vectors = np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9), np.float32)
    return out


def _tree(windows: Vectors) -> NDArray[np.float64]:
    return linkage(windows.astype(np.float64), "average", "cosine") if len(windows) > 1 else np.zeros((0, 4))


def _labels(tree: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    return fcluster(tree, threshold, "distance").astype(np.int64) - 1 if len(tree) else np.zeros(1, np.int64)


def _count(labels: NDArray[np.int64], min_share: float) -> int:
    return max(1, int((np.bincount(labels) / len(labels) >= min_share).sum()))


def _means(windows: Vectors, labels: NDArray[np.int64], min_share: float, most: int) -> Vectors:
    sizes = np.bincount(labels)
    kept = np.argsort(-sizes, kind="stable")[: min(most, _count(labels, min_share))]
    return unit(np.stack([windows[labels == k].mean(0) for k in kept]))


def constant_set(voices: Sequence[Vectors], slots: int, seed: int) -> Vectors:
    """The set that knows nothing of a mixture: k-means of all training voices, the largest group first (slots, size)."""
    from sklearn.cluster import KMeans

    points = np.concatenate(list(itertools.islice(voices, 5000)))
    found = KMeans(slots, n_init=3, random_state=seed).fit(points)
    return unit(found.cluster_centers_[np.argsort(-np.bincount(found.labels_, minlength=slots))])
