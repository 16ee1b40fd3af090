"""Who: voices of a recording, found by clustering pieces in which one speaker is heard."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import eigh

_ROUNDS = 2  # of moving pieces to the nearest voice
_MOST_VOICES = 20  # that spectral clustering looks for
#: Pieces that are held against each other: 64 MB of distances, three quarters of an hour of one speaker at a time.
_MOST_PIECES = 4000
_FINER = 0.9  # what a threshold is multiplied by until there are enough voices


def unit(x: NDArray) -> NDArray:
    """Rows of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-9)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of a recording in which one speaker is heard.

    Attributes
    ----------
    vectors : (pieces, dim), the mean of each piece's frames, of length 1.
    weights : (pieces,) frames of each.
    """

    vectors: NDArray[np.float32]
    weights: NDArray[np.float64]


class Limits(NamedTuple):
    """How many voices there may be; `most` is None where nobody says."""

    least: int = 1
    most: int | None = None


ANY = Limits()


def pieces_of(frames: NDArray[np.float32], single: NDArray[np.bool_], piece: int, edge: int) -> Pieces:
    """Cut stretches in which one speaker is heard into pieces of about `piece` frames.

    Parameters
    ----------
    frames : (frames, dim).
    single : (frames,) where one speaker is heard.
    edge : frames left out at both ends of a stretch, of which at least the middle stays.
    """
    change = np.diff(np.concatenate([[0], single.astype(np.int8), [0]]))
    means, weights = [], []
    for first, last in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
        cut = min(edge, (last - first - 1) // 2)
        inside = frames[first + cut : last - cut]
        for part in np.array_split(inside, max(1, round(len(inside) / piece))):
            means.append(part.mean(0))
            weights.append(len(part))
    vectors = unit(np.stack(means)) if means else np.zeros((0, frames.shape[1]), np.float32)
    return Pieces(vectors, np.array(weights, np.float64))


def groupings(
    pieces: Pieces, clustering: str, thresholds: tuple[float, ...], seed: int = 0
) -> Mapping[float, NDArray[np.int64]]:
    """Which cluster each piece is in, (pieces,) from 0, at each threshold.

    Parameters
    ----------
    clustering : "average" or "complete" linkage, which ends where clusters are `threshold` apart (cosine distance),
        and then clusters whose means are nearer than that become one: a mean says more of a voice than its pieces do.
        Or "spectral", where each piece is joined to the share `threshold` of pieces nearest to it.
    seed : of the spectral method's draws.

    Of more than `_MOST_PIECES` every n-th is grouped, and the others go to the group that they are nearest to.
    """
    count = len(pieces.weights)
    if count > _MOST_PIECES:
        some = np.linspace(0, count - 1, _MOST_PIECES).round().astype(np.int64)
        few = groupings(Pieces(pieces.vectors[some], pieces.weights[some]), clustering, thresholds, seed)
        return {threshold: _to_nearest(pieces, some, labels) for threshold, labels in few.items()}
    if count < 2:
        return dict.fromkeys(thresholds, np.zeros(count, np.int64))
    if clustering == "spectral":
        return {share: _spectral(pieces.vectors, share, seed) for share in thresholds}
    tree = linkage(pieces.vectors, clustering, "cosine")
    cut = {threshold: fcluster(tree, threshold, "distance").astype(np.int64) - 1 for threshold in thresholds}
    return {threshold: _merged(pieces, labels, threshold) for threshold, labels in cut.items()}


def _to_nearest(pieces: Pieces, some: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of all pieces: of `some` as they are, of the others that of the nearest mean."""
    means = np.zeros((labels.max() + 1, pieces.vectors.shape[1]))
    np.add.at(means, labels, pieces.weights[some, None] * pieces.vectors[some])
    near = (pieces.vectors @ unit(means).T.astype(np.float32)).argmax(1)
    near[some] = labels
    return near


def _merged(pieces: Pieces, labels: NDArray[np.int64], threshold: float, most: int | None = None) -> NDArray[np.int64]:
    """The two clusters whose means are nearest become one, as long as these are nearer than `threshold`.

    With `most`, as long as there are more than that, however far they are.
    """
    sums = np.zeros((labels.max() + 1, pieces.vectors.shape[1]))
    np.add.at(sums, labels, pieces.weights[:, None] * pieces.vectors)
    belongs = np.arange(len(sums))
    left = list(range(len(sums)))
    while len(left) > 1:
        means = unit(sums[left])
        cosines = np.triu(means @ means.T + 2, 1)
        i, j = (int(n) for n in np.unravel_index(cosines.argmax(), cosines.shape))
        if len(left) <= most if most is not None else 1 - (cosines[i, j] - 2) >= threshold:
            break
        a, b = left[i], left.pop(j)
        sums[a] += sums[b]
        belongs[belongs == b] = a
    return np.unique(belongs[labels], return_inverse=True)[1].astype(np.int64)


def _spectral(vectors: NDArray[np.float32], share: float, seed: int) -> NDArray[np.int64]:
    """As many clusters as lie before the widest gap between eigenvalues of the normalised Laplacian."""
    from sklearn.cluster import SpectralClustering

    count = len(vectors)
    cosines = (vectors @ vectors.T).astype(np.float64)
    near = max(2, round(share * count))
    joined = (cosines >= np.sort(cosines, axis=1)[:, -near][:, None]).astype(np.float64)
    joined = (joined + joined.T) / 2
    np.fill_diagonal(joined, 0)
    degree = np.sqrt(joined.sum(1).clip(1e-9))
    most = min(_MOST_VOICES, count - 1)
    values = eigh(np.eye(count) - joined / np.outer(degree, degree), eigvals_only=True, subset_by_index=[0, most])
    voices = int(np.diff(values).argmax()) + 1
    if voices == 1:
        return np.zeros(count, np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        found = SpectralClustering(voices, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
        return found.fit_predict(joined).astype(np.int64)


def voices_of(pieces: Pieces, labels: NDArray[np.int64], min_share: float) -> NDArray[np.float32]:
    """Voices (voices, dim) of length 1: means of clusters, each piece moved to the voice it is nearest to.

    A cluster of less than `min_share` of the time is no voice; the largest always is one.
    """
    if not len(labels):
        return pieces.vectors
    share = np.bincount(labels, pieces.weights) / pieces.weights.sum()
    voices = np.stack([_mean(pieces, labels == k) for k in np.flatnonzero(share >= min(min_share, share.max()))])
    for _ in range(_ROUNDS):
        near = (pieces.vectors @ voices.T).argmax(1)
        voices = np.stack([_mean(pieces, near == k) if (near == k).any() else v for k, v in enumerate(voices)])
    return voices


def voices_within(
    pieces: Pieces, clustering: str, threshold: float, min_share: float, limits: Limits, seed: int = 0
) -> NDArray[np.float32]:
    """`voices_of` the pieces, grouped more finely until there are enough, the nearest joined where there are too many.

    Where half the threshold does not give enough, k-means does. A recording that has fewer pieces than voices asked for
    gives fewer.
    """
    from sklearn.cluster import KMeans

    least = min(limits.least, len(pieces.weights))
    voices: NDArray[np.float32] = np.zeros((0, pieces.vectors.shape[1]), np.float32)
    finer = threshold
    while finer > threshold / 2 and (len(voices) < least or finer == threshold):
        (labels,) = groupings(pieces, clustering, (finer,), seed).values()
        voices = voices_of(pieces, labels, min_share)
        finer *= _FINER
    if len(voices) < least:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Number of distinct clusters")
            means = KMeans(least, n_init=10, random_state=seed).fit(pieces.vectors, sample_weight=pieces.weights)
        return voices_of(pieces, means.labels_.astype(np.int64), 0.0)
    if limits.most is None or len(voices) <= limits.most:
        return voices
    near = (pieces.vectors @ voices.T).argmax(1).astype(np.int64)
    near = np.unique(near, return_inverse=True)[1].astype(np.int64)  # a voice may have no piece left
    return voices_of(pieces, _merged(pieces, near, threshold, limits.most), 0.0)


def _mean(pieces: Pieces, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    return unit(pieces.weights[chosen].astype(np.float32) @ pieces.vectors[chosen])
