"""A store under a torch DataLoader.

>>> crops = Crops(featstore.open("store").select(split="train"), "mimi", length=125)
>>> for batch in DataLoader(crops, batch_size=32, shuffle=True, num_workers=4):
...     batch["mimi"]  # (32, 125, 512) float32

Of a store at a distance a batch's crops are fetched side by side, and `ByPart` draws them so that what was fetched with one is
used by others while it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

import featstore
from featstore.store.address import as_url
from featstore.store.layout import StoreError
from featstore.store.reader import Store
from featstore.types import Frames

#: Crops of a batch that are fetched side by side from a store at a distance.
AT_ONCE = 16


class Crops(Dataset[dict[str, Any]]):
    """Crops of equal length of the utterances of a store or view; `shuffle=True` of a DataLoader mixes them anew each epoch.

    An utterance gives as many crops as it is long, at least one. An item is a dict: each feature by its name, (length,
    dim), zeros behind the end of a shorter utterance; ``id``; ``speaker`` ("" where the store names none); ``start``, the
    crop's first frame; ``frames``, how many are not padding.

    Workers may be forked or spawned (of a store at a distance: spawned): a pickle says where the store is and what was
    selected, in a few kilobytes, and the worker opens it. Random starts come from torch's generator, which a DataLoader
    seeds anew for each worker and epoch.

    Parameters
    ----------
    features : one name, or several whose frames lie at the same times.
    length : of a crop, in frames.
    random : start crops anywhere; False: one behind another from the start, so that an epoch holds every frame once.
    dtype : of the tensors; the store keeps float16, which halves what workers hand over.

    Raises
    ------
    KeyError : the store has no such feature.
    ValueError : nothing is selected, a length below 1, or features of other frame rates.
    """

    def __init__(
        self,
        store: Store,
        features: str | Sequence[str],
        length: int,
        *,
        random: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.features = (features,) if isinstance(features, str) else tuple(features)
        self.length, self.random, self.dtype = length, random, dtype
        if length < 1:
            raise ValueError(f"length: expected 1 frame or more, found {length}")
        grids = {name: store.index(name).spec.grid for name in self.features}
        if len(set(grids.values())) != 1:
            raise ValueError(f"features of one crop need frames at the same times, found {grids}")
        self._address, self._selected = store.address, store.selected
        self._use(store)
        if not len(self._ids):
            raise ValueError(f"{store.address}: no utterance of what was selected has {' and '.join(self.features)}")

    def _use(self, store: Store) -> None:
        self._store: Store | None = store
        indexes = [store.index(name) for name in self.features]
        self._ids = [id for id in store.ids if all(id in index.rows for index in indexes)]
        speakers = dict(zip(*(store.utterances[name].to_pylist() for name in ("id", "speaker")), strict=True))
        self._speakers = [speakers[id] or "" for id in self._ids]
        num = np.array([[i.num[i.rows[id]] for id in self._ids] for i in indexes], dtype=np.int64).min(
            axis=0, initial=1 << 62
        )
        crops = num // self.length if self.random else -(-num // self.length)
        self._num, self._ends = num, np.cumsum(np.maximum(crops, 1))
        self._part = np.array([indexes[0].part[indexes[0].rows[id]] for id in self._ids], dtype=np.int32)
        self._found = len(self._ids), int(num.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_ids", "_speakers", "_num", "_ends", "_part")} | {
            "_store": None,
            "_len": len(self),
        }

    def _open(self) -> Store:
        """The store, which a worker opens at its first item."""
        if self._store is None:
            store, was = featstore.open(self._address), self._found
            for columns in self._selected:
                store = store.select(**columns)
            self._use(store)
            if self._found != was:
                raise StoreError(
                    f"{self._address}: other utterances are in it than when the dataset was made; make it anew"
                )
            return store
        return self._store

    def __len__(self) -> int:
        return int(self._ends[-1]) if hasattr(self, "_ends") else int(vars(self)["_len"])

    def __getitem__(self, item: int) -> dict[str, Any]:
        drawn = self._draw(item)
        return self._made(drawn, self._read(drawn))

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """A batch, which a DataLoader asks for at once: with a line in between, several requests are under way.

        What is at hand is read here and first, before what comes may take its place: a thread costs more than such a crop.
        """
        drawn = [self._draw(item) for item in items]
        if as_url(self._address) is None:
            return [self._made(crop, self._read(crop)) for crop in drawn]
        found = {n: self._read(crop) for n, crop in enumerate(drawn) if self._at_hand(crop)}
        if far := [n for n in range(len(drawn)) if n not in found]:
            # Threads only wait: torch in a new one starts threads of its own.
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found |= zip(far, pool.map(lambda n: self._read(drawn[n]), far), strict=True)
        return [self._made(crop, found[n]) for n, crop in enumerate(drawn)]

    def _draw(self, item: int) -> tuple[int, int, int]:
        """Which utterance, by its row, and from which frame to which."""
        self._open()
        if not 0 <= item < len(self):
            raise IndexError(f"crop {item} of {len(self)}")
        row = int(np.searchsorted(self._ends, item, side="right"))
        num = int(self._num[row])
        if self.random:
            start = int(torch.randint(max(num - self.length, 0) + 1, ()))
        else:
            start = (item - (int(self._ends[row - 1]) if row else 0)) * self.length
        return row, start, min(start + self.length, num)

    def _read(self, drawn: tuple[int, int, int]) -> list[Frames]:
        row, start, stop = drawn
        return [self._open().frames(name, self._ids[row], start, stop) for name in self.features]

    def _at_hand(self, drawn: tuple[int, int, int]) -> bool:
        row, start, stop = drawn
        return all(self._open().at_hand(name, self._ids[row], start, stop) for name in self.features)

    def _made(self, drawn: tuple[int, int, int], frames: list[Frames]) -> dict[str, Any]:
        row, start, stop = drawn
        found = {"id": self._ids[row], "speaker": self._speakers[row], "start": start, "frames": stop - start}
        return found | dict(zip(self.features, map(self._crop, frames), strict=True))

    def _crop(self, frames: Frames) -> torch.Tensor:
        """A tensor of its own: the store's frames are read-only, which torch would warn of."""
        whole = torch.empty((self.length, frames.shape[1]), dtype=self.dtype)
        whole[: len(frames)] = torch.from_numpy(frames.copy())  # torch widens float16 ten times as fast as NumPy
        whole[len(frames) :] = 0
        return whole


class ByPart(Sampler[int]):
    """A DataLoader's `sampler`: crops in random order, a few of the store's parts after another, new parts each epoch.

    Crops all over a store at a distance fetch a megabyte for each of them once the store is larger than what is kept of
    it. Those of `at_once` parts fetch it once. What is near in time is then near in the store: the price is that crops are
    mixed among those of `at_once` parts, not of all.

    Raises
    ------
    ValueError : `at_once` below 1.
    """

    def __init__(self, crops: Crops, at_once: int = 8) -> None:
        if at_once < 1:
            raise ValueError(f"at_once: expected 1 part or more, found {at_once}")
        self.crops, self.at_once = crops, at_once

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[int]:
        crops = self.crops
        crops._open()
        part = np.repeat(crops._part, np.diff(crops._ends, prepend=0))
        turn = torch.randperm(int(part.max()) + 1).numpy() // self.at_once
        mixed = torch.randperm(len(part)).numpy()
        yield from mixed[np.argsort(turn[part[mixed]], kind="stable")].tolist()
