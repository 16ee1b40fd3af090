"""From sound to frames: every encoder hears the recording in pieces, and the frames wait in a file for the head.

Pieces overlap: an encoder hears some seconds before and after each, whose frames are thrown away. Memory so does not
grow with the recording, and a frame hears what it would have heard in one go, or nearly: Mimi's attention reaches ten
seconds back in each of its layers, other encoders a second or two.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Event
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diarizer.sound import Sound
from featstore import FrameGrid, Store
from featstore.extractors import Extractor
from trainers.cascade.inputs import read

PIECE_S, BEFORE_S, AFTER_S = 300.0, 20.0, 4.0


class Frames(Protocol):
    """A recording's frames.

    Attributes
    ----------
    num_frames : that every feature has.
    energy : (num_frames,) root mean square of the sound under each frame, or None where there is no sound.
    """

    num_frames: int
    energy: NDArray[np.float32] | None

    def read(self, features: Sequence[str], start: int, stop: int) -> NDArray[np.float32]:
        """Frames ``start:stop`` of features side by side, (frames, sum of dims)."""
        ...


class StoredFrames:
    """Frames of an utterance of a store."""

    def __init__(self, store: Store, features: Sequence[str], id: str) -> None:
        self._store, self._id = store, id
        self.num_frames = least(features, {name: store.num_frames(name, id) for name in features})
        self.energy: NDArray[np.float32] | None = None

    def read(self, features: Sequence[str], start: int, stop: int) -> NDArray[np.float32]:
        return read(self._store, features, self._id, start, stop)


class HeardFrames:
    """Frames in files without names, which are gone once it is closed: 2 bytes a number, as a store has them."""

    def __init__(self, encoders: Mapping[str, Extractor]) -> None:
        self._dims = {name: encoder.spec.dim for name, encoder in encoders.items()}
        self._types = {name: np.dtype(encoder.spec.dtype) for name, encoder in encoders.items()}
        self._files = {name: tempfile.TemporaryFile() for name in encoders}  # noqa: SIM115
        self.num_frames = 0
        self.energy: NDArray[np.float32] | None = None

    def __enter__(self) -> HeardFrames:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, frames: NDArray[np.float32]) -> None:
        self._files[name].write(frames.astype(self._types[name]).tobytes())

    def finish(self, energy: NDArray[np.float32]) -> None:
        """No more frames will come."""
        counts = {}
        for name, file in self._files.items():
            file.flush()
            counts[name] = os.fstat(file.fileno()).st_size // (self._dims[name] * self._types[name].itemsize)
        self.num_frames = least(list(counts), counts)
        self.energy = np.resize(energy, self.num_frames) if len(energy) > self.num_frames else energy

    def read(self, features: Sequence[str], start: int, stop: int) -> NDArray[np.float32]:
        return np.concatenate([self._read(name, start, stop) for name in features], axis=1)

    def _read(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        row = self._dims[name] * self._types[name].itemsize
        raw = os.pread(self._files[name].fileno(), (stop - start) * row, start * row)
        return np.frombuffer(raw, self._types[name]).reshape(-1, self._dims[name]).astype(np.float32)


def least(features: Sequence[str], counts: Mapping[str, int]) -> int:
    """How many frames all features have.

    Raises
    ------
    ValueError : they differ by more than one.
    """
    found = [counts[name] for name in features]
    if max(found) - min(found) > 1:
        told = ", ".join(f"{name}: {counts[name]}" for name in features)
        raise ValueError(f"features differ by more than a frame ({told}); extract them again")
    return min(found)


def hear(
    sound: Sound, encoders: Mapping[str, Extractor], told: Callable[[float], None] = lambda _: None
) -> HeardFrames:
    """All frames of a recording, to be closed by a ``with``; the encoders work side by side.

    Parameters
    ----------
    told : hears how many seconds of the recording every encoder has done.

    Raises
    ------
    ValueError, OSError : the sound cannot be used; see `featstore.corpora.audio.load`.
    """
    frames, stop = HeardFrames(encoders), Event()
    done = dict.fromkeys(encoders, 0.0)
    energy: list[NDArray[np.float32]] = []
    first = next(iter(encoders))

    def run(name: str) -> None:
        encoder = encoders[name]
        for part, wave in _encoded(sound, encoder):
            if stop.is_set():
                return
            frames.add(name, part)
            if name == first:
                energy.append(_energy(wave, encoder.spec.grid, encoder.spec.sample_rate_hz))
            done[name] += len(wave) / encoder.spec.sample_rate_hz
            told(min(done.values()))

    try:
        with ThreadPoolExecutor(len(encoders)) as pool:
            running = [pool.submit(run, name) for name in encoders]
            try:
                for each in running:
                    each.result()
            finally:
                stop.set()  # where one failed, or the user has had enough, the others need not go on
        frames.finish(np.concatenate(energy))
    except BaseException:
        frames.__exit__()
        raise
    return frames


def _encoded(sound: Sound, encoder: Extractor) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Frames piece by piece, each with the wave that it is of."""
    spec = encoder.spec
    step = round(spec.grid.step_s * spec.sample_rate_hz)
    if abs(step - spec.grid.step_s * spec.sample_rate_hz) > 1e-6:  # no piece begins where a frame does
        wave = np.concatenate(list(sound.pieces(spec.sample_rate_hz, 1 << 20)))
        yield encoder.extract([wave])[0], wave
        return
    piece, before, after = (round(s / spec.grid.step_s) * step for s in (PIECE_S, BEFORE_S, AFTER_S))
    for wave, begin, length in _surrounded(sound.pieces(spec.sample_rate_hz, piece), before, after):
        found = encoder.extract([wave])[0]
        yield found[begin // step :][: -(-length // step)], wave[begin : begin + length]


def _surrounded(
    pieces: Iterable[NDArray[np.float32]], before: int, after: int
) -> Iterator[tuple[NDArray[np.float32], int, int]]:
    """Each piece with what is before and after it; where it begins in that, and its length."""
    nothing: NDArray[np.float32] = np.zeros(0, np.float32)
    pieces = iter(pieces)
    behind, here = nothing, next(pieces)
    for ahead in chain(pieces, [nothing]):
        yield np.concatenate([behind, here, ahead[:after]]), len(behind), len(here)
        behind, here = np.concatenate([behind, here])[-before:], ahead


def _energy(wave: NDArray[np.float32], grid: FrameGrid, rate_hz: int) -> NDArray[np.float32]:
    step = round(grid.step_s * rate_hz)
    filled = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)
    return np.sqrt(np.mean(filled**2, axis=1))
