"""Reading a store: frames straight from memory maps, utterances as a table.

The reader goes through neither zarr-python nor a copy: a chunk file holds raw little-endian rows, so a crop is a
view on the mapped file wherever one chunk holds it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featstore import layout
from featstore.layout import StoreError
from featstore.types import FeatureSpec, Turn, Utterance


def open_store(path: str | PathLike[str], *, verify: bool = False) -> Store:
    """Open a store for reading (also as ``featstore.open``).

    Parameters
    ----------
    verify : check each chunk's CRC32C the first time it is touched; a wrong one raises StoreError.

    Raises
    ------
    StoreError : not a store, another version, or metadata that was edited.
    """
    return Store(Path(path), verify=verify)


class Store:
    """A store, or a part of one made by `select`. What was committed when it was opened is what it shows."""

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        layout.check_version(path)
        self.path = path
        group = layout.group_dir(path)
        names = sorted(p.parent.name for p in group.glob("*/zarr.json"))
        #: FeatureSpec by name.
        self.features: dict[str, FeatureSpec] = {name: layout.read_spec(path, name) for name in names}
        self._indexes: dict[str, Index] = {}
        self._verify = verify

    # ---- what is in it

    @cached_property
    def utterances(self) -> pa.Table:
        """One row an utterance: id, recording, speaker, split, duration, turns, source, start (times in seconds)."""
        folder = layout.utterances_dir(self.path)
        parts = sorted({part for name in self.features for part in self.index(name).part_names})
        tables = [_read_table(folder / f"{part}.parquet", layout.UTTERANCE_SCHEMA) for part in parts]
        table = pa.concat_tables(tables) if tables else layout.UTTERANCE_SCHEMA.empty_table()
        if len(self.features) > 1 or pc.count_distinct(table["id"]).as_py() != len(table):
            # Each feature's parts carry the utterances they hold: keep the first row of each id.
            ids = np.asarray(table["id"].to_numpy(zero_copy_only=False), dtype=object)
            _, first = np.unique(ids, return_index=True)
            table = table.take(pa.array(np.sort(first)))
        return table.combine_chunks()

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the utterances, in the order of `utterances`."""
        return self.utterances["id"].to_pylist()

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    def utterance(self, id: str) -> Utterance:
        """One utterance, with its turns.

        Raises
        ------
        KeyError : it is not in the store.
        """
        row = self._rows.get(id)
        if row is None:
            raise KeyError(f"utterance {id!r} is not in {self.path} ({len(self)} utterances)")
        facts = self.utterances.slice(row, 1).to_pylist()[0]
        return utterance_from_row(facts)

    def select(self, **columns: Any) -> Store:
        """A view on the utterances whose columns have the given values (a list means “one of these”).

        Example: ``store.select(split="train", speaker=["a", "b"])``.

        Raises
        ------
        KeyError : no such column.
        """
        mask = None
        for name, wanted in columns.items():
            if name not in self.utterances.column_names:
                raise KeyError(
                    f"utterances have no column {name!r}; there are {', '.join(self.utterances.column_names)}"
                )
            values = [wanted] if wanted is None or isinstance(wanted, str | float | int) else list(wanted)
            hit = pc.is_in(self.utterances[name], pa.array(values, type=self.utterances.schema.field(name).type))
            mask = hit if mask is None else pc.and_(mask, hit)
        view = object.__new__(type(self))
        view.__dict__ = {k: v for k, v in self.__dict__.items() if k not in ("ids", "_rows")}
        view.__dict__["utterances"] = self.utterances if mask is None else self.utterances.filter(mask)
        return view

    # ---- frames

    def index(self, feature: str) -> Index:
        """The index of a feature: which rows of which part an utterance's frames are.

        Raises
        ------
        KeyError : the store has no such feature.
        """
        index = self._indexes.get(feature)
        if index is None:
            if feature not in self.features:
                there = ", ".join(self.features) or "none"
                raise KeyError(f"{self.path} has no feature {feature!r} (there: {there}); extract it first")
            index = self._indexes[feature] = Index(self.path, self.features[feature], self._verify)
        return index

    def num_frames(self, feature: str, id: str) -> int:
        """How many frames an utterance has."""
        index = self.index(feature)
        return int(index.num[index.row(id)])

    def frames(self, feature: str, id: str, start: int = 0, stop: int | None = None) -> NDArray:
        """Frames ``start:stop`` of an utterance, shape (frames, dim), read-only.

        A view on the memory map where one chunk holds them, else one copy. Like a slice, `start` and `stop` may be
        negative and are cut to what is there.

        Raises
        ------
        KeyError : no such feature or utterance.
        StoreError : a chunk is missing, of the wrong size or (with ``verify=True``) damaged. Never zeros instead.
        """
        index = self._indexes.get(feature) or self.index(feature)
        row = index.rows.get(id)
        if row is None:
            row = index.row(id)
        num = int(index.num[row])
        if start != 0 or stop is not None:
            start, stop, _ = slice(start, stop).indices(num)
        else:
            stop = num
        first = int(index.first[row])
        return index.parts[index.part[row]].rows(first + start, first + max(start, stop))

    def pooled(self, feature: str, ids: Sequence[str] | None = None, statistic: str = "mean") -> NDArray[np.float32]:
        """Mean (or "std") over each utterance's frames, shape (len(ids), dim); all of this view's without `ids`.

        Raises
        ------
        KeyError : no such feature, utterance or statistic.
        """
        if statistic not in ("mean", "std"):
            raise KeyError(f"no statistic {statistic!r}; there are mean and std")
        index = self.index(feature)
        rows = np.array([index.row(id) for id in (self.ids if ids is None else ids)], dtype=np.int64)
        out = np.empty((len(rows), index.spec.dim), dtype=np.float32)
        part = index.part[rows]
        for p in np.unique(part):
            here = np.flatnonzero(part == p)
            out[here] = index.parts[p].pooled(statistic)[index.position[rows[here]]]
        return out


class Index:
    """Where a feature's frames are. Arrays run over rows; `rows` maps an id to its row."""

    def __init__(self, store: Path, spec: FeatureSpec, verify: bool) -> None:
        self.spec = spec
        self.store = store
        paths = sorted(p for p in layout.index_dir(store, spec.name).glob("*.parquet") if not p.name.startswith("."))
        tables = [_read_table(path, layout.INDEX_SCHEMA) for path in paths]
        self.part_names = [path.stem for path in paths]
        sizes = [len(t) for t in tables]
        table = pa.concat_tables(tables) if tables else layout.INDEX_SCHEMA.empty_table()
        ids = table["id"].to_pylist()
        #: First frame inside the part, number of frames, part number, position inside the part.
        self.first = table["first_frame"].to_numpy()
        self.num = table["num_frames"].to_numpy()
        self.part = np.repeat(np.arange(len(tables), dtype=np.int32), sizes)
        self.position = np.concatenate([np.arange(n) for n in sizes]) if sizes else np.zeros(0, dtype=np.int64)
        # The first part that holds an id wins: two writers may have met.
        self.rows = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))
        folder = layout.feature_dir(store, spec.name)
        self.parts = [
            Part(folder / name, spec, verify, int(t["num_frames"].to_numpy().sum()), len(t))
            for name, t in zip(self.part_names, tables, strict=True)
        ]

    def row(self, id: str) -> int:
        row = self.rows.get(id)
        if row is None:
            raise KeyError(f"utterance {id!r} has no feature {self.spec.name!r} in {self.store}; extract it first")
        return row


class Part:
    """One immutable part of a feature: its chunk files, mapped when first touched."""

    def __init__(self, folder: Path, spec: FeatureSpec, verify: bool, num_frames: int, num_utterances: int) -> None:
        self._folder, self._spec, self._verify = folder, spec, verify
        self._num_frames, self._num_utterances = num_frames, num_utterances
        self._chunk_rows = 0
        self._chunks: list[NDArray | None] = []
        self._pooled: dict[str, NDArray] = {}

    def rows(self, start: int, stop: int) -> NDArray:
        if not self._chunk_rows:
            self._chunk_rows = self._read_chunk_rows("frames", self._num_frames)
            self._chunks = [None] * -(-self._num_frames // self._chunk_rows)
        size = self._chunk_rows
        i = start // size
        if stop <= (i + 1) * size:
            chunk = self._chunks[i] if i < len(self._chunks) else None
            if chunk is None:
                chunk = self._chunk(i)
            return chunk[start - i * size : stop - i * size]
        pieces = [
            self._chunk(j)[max(start - j * size, 0) : min(stop - j * size, size)] for j in range(i, -(-stop // size))
        ]
        return np.concatenate(pieces)

    def _chunk(self, i: int) -> NDArray:
        if i >= len(self._chunks):  # only an empty crop at the very end asks for this
            return np.empty((0, self._spec.dim), dtype=self._spec.dtype)
        chunk = self._chunks[i]
        if chunk is None:
            chunk = self._chunks[i] = self._map("frames", i, self._chunk_rows, self._spec.dtype)
        return chunk

    def pooled(self, statistic: str) -> NDArray:
        array = self._pooled.get(statistic)
        if array is None:
            rows = self._read_chunk_rows(statistic, self._num_utterances)
            array = self._pooled[statistic] = self._map(statistic, 0, rows, "float32")
        return array

    def _read_chunk_rows(self, array: str, rows: int) -> int:
        path = self._folder / array / "zarr.json"
        meta = layout.read_json(path)
        try:
            shape, chunk = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        except (KeyError, TypeError):
            raise StoreError(f"{path}: no Zarr v3 array metadata; run: featstore verify") from None
        if shape != [rows, self._spec.dim] or len(chunk) != 2 or chunk[1] != shape[1] or not 0 < chunk[0] <= rows:
            raise StoreError(
                f"{path}: expected shape {[rows, self._spec.dim]} in whole rows, found shape {shape}, chunks {chunk}; "
                "run: featstore verify"
            )
        return int(chunk[0])

    def _map(self, array: str, i: int, rows: int, dtype: str) -> NDArray:
        path = self._folder / array / "c" / str(i) / "0"
        kind = np.dtype(dtype).newbyteorder("<")
        size = rows * self._spec.dim * kind.itemsize
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size + layout.CRC_BYTES:
                    raise StoreError(
                        f"{path}: expected {size + layout.CRC_BYTES} bytes, found {found}; run: featstore verify"
                    )
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise StoreError(f"{path}: the chunk is missing; run: featstore verify --repair") from None
        if self._verify and crc32c(memoryview(mapped)[:size]) != int.from_bytes(mapped[size:], "little"):
            raise StoreError(f"{path}: damaged (CRC32C differs); run: featstore verify --repair")
        return np.frombuffer(mapped, dtype=kind, count=rows * self._spec.dim).reshape(rows, self._spec.dim)


def crc32c(data: memoryview | bytes) -> int:
    """CRC32C (Castagnoli), as in Zarr's crc32c codec; in steps, so that a large chunk is never copied whole."""
    import google_crc32c

    value, step = 0, 8 << 20
    for start in range(0, len(data), step):
        value = google_crc32c.extend(value, bytes(data[start : start + step]))
    return value


def utterance_from_row(facts: dict[str, Any]) -> Utterance:
    """An Utterance from a row of the store's table."""
    turns = tuple(Turn(t["start"], t["end"], t["speaker"]) for t in facts["turns"] or ())
    return Utterance(
        id=facts["id"],
        audio=facts["source"],
        start_s=facts["start"],
        duration_s=facts["duration"],
        recording=facts["recording"],
        speaker=facts["speaker"],
        split=facts["split"],
        turns=turns,
    )


def store_utterances(store: Store) -> Iterable[Utterance]:
    """Every utterance of a store or view, in order."""
    return (utterance_from_row(row) for batch in store.utterances.to_batches() for row in batch.to_pylist())


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, memory_map=False, partitioning=None)
        return table.select(schema.names).cast(schema)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; run: featstore verify --repair") from None
    except (pa.ArrowException, KeyError, OSError) as error:
        raise StoreError(f"{path}: not readable ({str(error).splitlines()[0]}); run: featstore verify") from None
