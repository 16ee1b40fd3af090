"""What the cascade reads: frames of features, and how many speak in each part of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.frames import turns_to_frames
from evaluation.turns import Turns
from featstore import FrameGrid, Store
from trainers.diarization.sessions import Session

#: Reads frames ``start:stop`` of features of one recording side by side, (frames, sum of dims) float32.
Read = Callable[[Sequence[str], int, int], NDArray[np.float32]]


def read(store: Store, features: Sequence[str], id: str, start: int, stop: int) -> NDArray[np.float32]:
    """Frames ``start:stop`` of features side by side, (frames, sum of dims)."""
    return np.concatenate([store.frames(name, id, start, stop).astype(np.float32) for name in features], axis=1)


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
