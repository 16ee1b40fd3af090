"""Store and turns in, aligned, cropped, masked batches out.

Labels are rasterised when a crop is read: a frame is active when its centre lies in a turn. Nothing is cut or copied
beforehand, so crops start anywhere and real sessions weigh more by being drawn more often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from featstore import Store
from trainers.config import ConfigError
from trainers.diarization.config import DiarizationConfig
from trainers.diarization.models import Earlier
from trainers.diarization.sessions import Session

# ---- which crops

_BEGINS = (0.25, 0.25, 0.5)  # how often a crop's recording begins at its own start, anywhere, with the window
_SHORT = 0.2  # how often a window with which a recording begins is cut short


@dataclass(frozen=True, slots=True)
class Crop:
    """Frames ``start : start + length`` of a session; a batch pads the end where the session is over.

    Attributes
    ----------
    begin : the first frame of what a head with a cache is told of what came before; None: the window alone.
    draw : what its cache is drawn by; None: not at all, it is right.
    """

    session: Session
    start: int
    begin: int | None = None
    draw: int | None = None


class CropSampler:
    """Draws crops: a session comes up in proportion to its weight times its length.

    With a cache, a crop is a moment in a recording that began anywhere before it; some windows are short, as the first
    seconds of a recording are.

    Raises
    ------
    ConfigError : a pattern matches no session, or every session has the weight 0.
    """

    def __init__(self, sessions: Sequence[Session], config: DiarizationConfig, length: int) -> None:
        for pattern in config.sampling:
            if not any(fnmatchcase(s.id, pattern) for s in sessions):
                raise ConfigError(
                    f"sampling: {pattern!r} matches none of the {len(sessions)} training sessions, which are called "
                    f"{', '.join(s.id for s in sessions[:3])}{', …' if len(sessions) > 3 else ''}; * stands for any text"
                )
        weights = np.array([s.num_frames * _weight(s.id, config.sampling) for s in sessions], dtype=np.float64)
        if not weights.sum() > 0:
            raise ConfigError(f"sampling {config.sampling} gives every training session the weight 0")
        self.sessions, self.seed = sessions, config.seed
        self.cache, self.length = config.cache, length
        self.starts = np.array([max(0, s.num_frames - length) + 1 for s in sessions])
        self.ends = np.cumsum(weights)
        # A share of the sessions takes as many steps as all of them would.
        whole = float(self.ends[-1]) / config.train_fraction
        self.count = config.crops_per_epoch or max(1, round(whole / length))

    def epoch(self, epoch: int) -> list[Crop]:
        """The crops of an epoch in random order, by the seed and the epoch alone: a resumed run repeats them."""
        rng = np.random.default_rng([self.seed, 2, epoch])
        # Systematic sampling: each session comes up its expected number of times, give or take one.
        points = (rng.random() + rng.permutation(self.count)) / self.count * self.ends[-1]
        chosen = np.searchsorted(self.ends, points, side="right").clip(max=len(self.ends) - 1)
        starts = rng.integers(self.starts[chosen])
        crops = [Crop(self.sessions[i], start) for i, start in zip(chosen.tolist(), starts.tolist(), strict=True)]
        return [self._moment(crop, rng) for crop in crops] if self.cache else crops

    def _moment(self, crop: Crop, rng: np.random.Generator) -> Crop:
        """A crop with a beginning: of the recording's own, a random one, or none before the window."""
        begins = 0, int(rng.integers(crop.start + 1)), crop.start
        begin = begins[int(rng.choice(3, p=_BEGINS))]
        session = crop.session
        if begin == crop.start and rng.random() < _SHORT:  # nothing before: it may have lasted less than a window, too
            upto = min(session.num_frames, crop.start + int(rng.integers(1, self.length + 1)))
            session = replace(session, num_frames=upto)
        return Crop(session, crop.start, begin, int(rng.integers(2**32)))


def _weight(id: str, sampling: dict[str, float]) -> float:
    return next((weight for pattern, weight in sampling.items() if fnmatchcase(id, pattern)), 1.0)


def windows(sessions: Sequence[Session], length: int, *, cache: bool = False) -> list[Crop]:
    """Consecutive crops that cover every session; the last of each is shorter. With a `cache`, told of all before, and alone."""
    ways = (0, None) if cache else (None,)
    return [Crop(s, start, begin) for begin in ways for s in sessions for start in range(0, s.num_frames, length)]


# ---- labels


def rasterise(crop: Crop, length: int, speakers: int, *, resort: bool) -> tuple[NDArray[np.uint8], list[str], int]:
    """Who is active in each frame of a crop.

    Parameters
    ----------
    resort : order speakers by their arrival in the crop, and keep those who talk most where there are more than
        `speakers`; False keeps the session's order and its first ones (reference protocol).

    Returns
    -------
    labels : (length, speakers) uint8.
    names : of the channels; fewer than `speakers` where fewer talk.
    dropped : frames of speech by speakers who have no channel.
    """
    session, start = crop.session, crop.start
    upto = int(np.searchsorted(session.first, start + length, side="left"))
    first, last = session.first[:upto] - start, session.last[:upto] - start
    here = np.flatnonzero((last > 0) & (last > first))
    active = np.zeros((max(len(session.names), speakers), length), dtype=np.uint8)
    for a, b, k in zip(
        np.maximum(first[here], 0).tolist(), last[here].tolist(), session.speaker[here].tolist(), strict=True
    ):
        active[k, a:b] = 1
    active[:, session.num_frames - start if session.num_frames - start < length else length :] = 0
    order: NDArray[np.intp] = np.arange(len(active), dtype=np.intp)
    talk = active.sum(1, dtype=np.int64)
    if resort:
        kept = np.sort(np.argsort(-talk, kind="stable")[:speakers])
        arrival = np.where(talk[kept] > 0, active[kept].argmax(1), length)
        order = kept[np.argsort(arrival, kind="stable")]
    order = order[:speakers]
    present = [session.names[k] if k < len(session.names) else "" for k in order]
    if resort:
        present = [name for name, k in zip(present, order, strict=True) if talk[k]]
    return active[order].T, [name for name in present if name], int(talk.sum() - talk[order].sum())


# ---- batches


@dataclass(eq=False)
class Batch:
    """What a step sees, on the device.

    Attributes
    ----------
    inputs : features (batch, frames, dim), or waves (batch, samples) for unfreeze.
    labels : (batch, frames, K) uint8.
    mask : (batch, frames) bool, True on frames of the session.
    padded : whether any frame is masked; asking the mask itself would wait for the device.
    dropped : frames of speech by speakers who have no channel.
    earlier : what a head with a cache is told; labels then stand on the channels where they belong.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    padded: bool
    dropped: int
    earlier: Earlier | None = None


#: (batch, length, speakers) uint8, and the frames dropped, see `rasterise`.
Labels = tuple[NDArray[np.uint8], int]


def label_batch(crops: Sequence[Crop], length: int, speakers: int, *, resort: bool) -> Labels:
    """Labels of crops."""
    labels = np.empty((len(crops), length, speakers), np.uint8)
    dropped = 0
    for row, crop in enumerate(crops):
        labels[row], _, lost = rasterise(crop, length, speakers, resort=resort)
        dropped += lost
    return labels, dropped


def real_frames(crops: Sequence[Crop], length: int) -> NDArray[np.bool_]:
    """Which frames of crops are of their sessions, (batch, length)."""
    return np.arange(length) < np.array([crop.session.num_frames - crop.start for crop in crops])[:, None]


def prefetched(crops: Sequence[Crop], size: int, read: Callable[[Sequence[Crop], int], Batch]) -> Iterator[Batch]:
    """Batches of `size` crops in order; ``read(crops, number)`` reads the next while the caller computes."""
    starts = range(0, len(crops), size)
    if not starts:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, crops[:size], 0)
        for number in range(1, len(starts) + 1):
            batch = ahead.result()
            if number < len(starts):
                ahead = reader.submit(read, crops[starts[number] : starts[number] + size], number)
            yield batch


class Source(Protocol):
    """What feeds a model.

    Attributes
    ----------
    length : frames of a crop.
    resident : whether the training frames live in device memory.
    """

    length: int

    @property
    def resident(self) -> bool: ...

    def batches(self, crops: Sequence[Crop], size: int) -> Iterator[Batch]:
        """Batches of `size` crops in order; the next is read while the caller computes."""
        ...


class FrameSource:
    """Crops of features from the store: from the memory map, or from one tensor that lives on the device."""

    def __init__(self, store: Store, config: DiarizationConfig, length: int, device: torch.device) -> None:
        self._store, self._names, self._device = store, config.features, device
        self.length, self.speakers = length, config.speakers
        self.resort = config.protocol == "sound"
        specs = [store.features[name] for name in config.features]
        self.dim = sum(spec.dim for spec in specs)
        self.dtype = np.dtype("float32" if any(spec.dtype == "float32" for spec in specs) else "float16")
        self._table: torch.Tensor | None = None
        self._offsets: dict[str, int] = {}

    def keep(self, sessions: Sequence[Session]) -> None:
        """Copy the frames of `sessions` to the device, once; crops of them are an index from then on."""
        if not sessions:
            return
        total = sum(s.num_frames for s in sessions)
        kind = torch.float32 if self.dtype == np.float32 else torch.float16
        self._table = torch.empty(total, self.dim, dtype=kind, device=self._device)
        offset = 0
        for session in sessions:
            rows = np.empty((session.num_frames, self.dim), self.dtype)
            self._read(Crop(session, 0), rows)
            self._table[offset : offset + len(rows)] = torch.from_numpy(rows)
            self._offsets[session.id] = offset
            offset += session.num_frames

    @property
    def resident(self) -> bool:
        """Whether the training frames live in device memory."""
        return self._table is not None

    def _read(self, crop: Crop, out: NDArray) -> None:
        """Fill `out` (length, dim) from the memory map, with zeros where the session is over."""
        stop = min(crop.start + len(out), crop.session.num_frames)
        column = 0
        for name in self._names:
            rows = self._store.frames(name, crop.session.id, crop.start, stop)
            out[: len(rows), column : column + rows.shape[1]] = rows
            column += rows.shape[1]
        out[stop - crop.start :] = 0

    def blocks(self, id: str, firsts: NDArray[np.int64], block: int) -> torch.Tensor:
        """Means of frames ``first : first + block`` of a session for each of `firsts`, (blocks, dim) float32 on the device."""
        index = firsts[:, None] + np.arange(block)
        if self._table is not None and id in self._offsets:
            return self._table[torch.from_numpy(index + self._offsets[id]).to(self._device)].float().mean(1)
        read = [self._store.frames(name, id, 0, int(index.max(initial=-1)) + 1)[index] for name in self._names]
        means = [frames.mean(1, dtype=np.float32) for frames in read]
        return torch.from_numpy(np.concatenate(means, 1)).to(self._device)

    def batch(self, crops: Sequence[Crop], buffer: NDArray | None = None, made: Labels | None = None) -> Batch:
        """Read one batch into `buffer` (batch or more, length, dim), or new memory, with the labels `made`, or new ones."""
        labels, dropped = made or label_batch(crops, self.length, self.speakers, resort=self.resort)
        real = real_frames(crops, self.length)
        mask = torch.from_numpy(real).to(self._device)
        if self._table is not None and all(crop.session.id in self._offsets for crop in crops):
            first = torch.tensor([self._offsets[crop.session.id] + crop.start for crop in crops])
            index = first.to(self._device)[:, None] + torch.arange(self.length, device=self._device)
            inputs = self._table[index.clamp_(max=len(self._table) - 1)]
            if not real.all():  # the rows behind a session are the next one's
                inputs.masked_fill_(~mask.unsqueeze(-1), 0)
        else:
            if buffer is None:
                buffer = np.empty((len(crops), self.length, self.dim), self.dtype)
            for row, crop in enumerate(crops):
                self._read(crop, buffer[row])
            inputs = torch.from_numpy(buffer[: len(crops)]).to(self._device)
        return Batch(inputs, torch.from_numpy(labels).to(self._device), mask, not real.all(), dropped)

    def batches(self, crops: Sequence[Crop], size: int) -> Iterator[Batch]:
        """Batches of `size` crops in order; the next is read while the caller computes."""
        # Two buffers: one is read into while the other is computed on.
        shape = (size, self.length, self.dim)
        buffers = [None if self.resident else np.empty(shape, self.dtype) for _ in range(2)]
        yield from prefetched(crops, size, lambda group, number: self.batch(group, buffers[number % 2]))
