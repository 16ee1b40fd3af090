"""What the cascade reads: frames of features on one scale, and how many speak in each part of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evaluation.frames import turns_to_frames
from evaluation.turns import Turns
from featstore import FrameGrid, Store
from trainers.diarization.sessions import Session

# Means and variances do not change after so many frames: 22 hours on Mimi's grid.
_ENOUGH_FRAMES = 1_000_000


def read(store: Store, features: Sequence[str], id: str, start: int, stop: int) -> NDArray[np.float32]:
    """Frames ``start:stop`` of features side by side, (frames, sum of dims)."""
    return np.concatenate([store.frames(name, id, start, stop).astype(np.float32) for name in features], axis=1)


@dataclass(frozen=True, eq=False)
class Scale:
    """What brings features to one size: each its mean vector, and one number for all of its dimensions.

    Dimensions of a feature keep their relation to each other; one that hardly changes is not blown up.

    Attributes
    ----------
    mean, size : (dim,) float32, over the features side by side; `size` is one number inside a feature.
    """

    mean: NDArray[np.float32]
    size: NDArray[np.float32]

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames (…, dim) on this scale."""
        return (frames - self.mean) / self.size


def scale_of(store: Store, features: Sequence[str], sessions: Sequence[Session], seed: int) -> Scale:
    """The scale of `sessions`; where they are many, of those drawn first.

    ``size`` is the square root of the mean over a feature's dimensions of its variance over frames; 1 for a feature
    that never changes.
    """
    dims = [store.features[name].dim for name in features]
    count, total, squares = 0, np.zeros(sum(dims)), np.zeros(sum(dims))
    for k in np.random.default_rng([seed, 3]).permutation(len(sessions)).tolist():
        if count >= _ENOUGH_FRAMES:
            break
        frames = read(store, features, sessions[k].id, 0, sessions[k].num_frames).astype(np.float64)
        count, total, squares = count + len(frames), total + frames.sum(0), squares + (frames**2).sum(0)
    mean = total / max(count, 1)
    variance = (squares / max(count, 1) - mean**2).clip(0)
    edges = np.cumsum([0, *dims])
    sizes = [np.sqrt(variance[a:b].mean()) for a, b in pairwise(edges)]
    size = np.repeat([s if s > 0 else 1.0 for s in sizes], dims)
    return Scale(mean.astype(np.float32), size.astype(np.float32))


def finer(grid: FrameGrid, substeps: int) -> FrameGrid:
    """The grid that cuts each frame into `substeps` equal ones."""
    step_s = grid.step_s / substeps
    return FrameGrid(grid.first_centre_s - (grid.step_s - step_s) / 2, step_s)


def active(session: Session, grid: FrameGrid, substeps: int) -> NDArray[np.bool_]:
    """Who speaks, (frames · substeps, speakers), columns as in ``session.names``."""
    stop = session.num_frames * substeps
    return turns_to_frames(Turns.of(session.turns), finer(grid, substeps), 0, stop, session.names)


def counts(session: Session, grid: FrameGrid, substeps: int) -> NDArray[np.uint8]:
    """How many speak, (frames · substeps,)."""
    return active(session, grid, substeps).sum(1).astype(np.uint8)
