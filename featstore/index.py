"""Which rows of which part an utterance's frames are: a feature's index, and ids looked up without a dict."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featstore import layout
from featstore.layout import StoreError
from featstore.part import Part
from featstore.types import FeatureSpec


class Ids(Mapping[str, int]):
    """Id → row, as a dict would have it, in 12 bytes an id beside the ids' own text (a dict takes some 180).

    Sorted hashes and a bisection; the first row wins where an id stands twice. Millions of Python strings would also
    make every forked reader copy the memory it only reads.
    """

    def __init__(self, ids: pa.ChunkedArray) -> None:
        self._ids = ids.combine_chunks()
        hashes = np.empty(len(ids), dtype=np.int64)
        for at in range(0, len(ids), _BLOCK):  # in blocks: as objects, all ids at once would be the largest thing here
            block = self._ids[at : at + _BLOCK].to_numpy(zero_copy_only=False)
            hashes[at : at + len(block)] = np.fromiter(map(hash, block), np.int64, len(block))
        order = np.argsort(hashes, kind="stable")
        # bisect is three times as fast on an array.array as on NumPy's.
        self._hashes = array("q", hashes[order].tobytes())
        self._order = array("i" if len(ids) < 1 << 31 else "q", order.astype("i4" if len(ids) < 1 << 31 else "i8"))

    def get(self, id: str, default: int | None = None) -> int | None:
        """The row of an id, or `default`."""
        key = hash(id)
        at = bisect_left(self._hashes, key)
        while at < len(self._hashes) and self._hashes[at] == key:
            row = self._order[at]
            if self._ids[row].as_py() == id:
                return row
            at += 1
        return default

    def __getitem__(self, id: str) -> int:
        row = self.get(id)
        if row is None:
            raise KeyError(id)
        return row

    def __contains__(self, id: object) -> bool:
        return self.get(id) is not None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        """Every id once, in the order of its first row."""
        rows = np.flatnonzero(first_of_each(self._ids))
        for at in range(0, len(rows), _BLOCK):
            yield from self._ids.take(pa.array(rows[at : at + _BLOCK])).to_pylist()

    @cached_property
    def _distinct(self) -> int:
        return pc.count_distinct(self._ids).as_py()

    def __len__(self) -> int:
        return self._distinct

    def __reduce__(self) -> tuple[type[Ids], tuple[pa.Array]]:
        # Python's string hashes differ from process to process.
        return type(self), (self._ids,)


_BLOCK = 1 << 16


def first_of_each(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """(rows,) True where an id stands for the first time."""
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    # Codes are given in order of appearance: a new one is larger than all before it.
    codes = ids.dictionary_encode().indices.to_numpy()
    return np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


class Index:
    """Where a feature's frames are. Arrays run over rows; `rows` maps an id to its row."""

    def __init__(
        self, store: Path, spec: FeatureSpec, make_part: Callable[[Path, FeatureSpec, int, int], Part]
    ) -> None:
        self.spec = spec
        self.store = store
        paths = sorted(p for p in layout.index_dir(store, spec.name).glob("*.parquet") if not p.name.startswith("."))
        tables = [read_table(path, layout.INDEX_SCHEMA) for path in paths]
        self.part_names = [path.stem for path in paths]
        sizes = np.array([len(t) for t in tables], dtype=np.int64)
        table = pa.concat_tables(tables) if tables else layout.INDEX_SCHEMA.empty_table()
        #: First frame inside the part, number of frames, part number.
        self.first = table["first_frame"].to_numpy()
        self.num = table["num_frames"].to_numpy()
        self.part = np.repeat(np.arange(len(tables), dtype=np.int32), sizes)
        # The first part that holds an id wins: two writers may have met.
        self.rows = Ids(table["id"])
        #: First row of each part.
        self.begin = np.cumsum(sizes) - sizes
        folder = layout.feature_dir(store, spec.name)
        self.parts = [
            make_part(folder / name, spec, int(self.num[begin : begin + size].sum()), int(size))
            for name, begin, size in zip(self.part_names, self.begin, sizes, strict=True)
        ]

    def row(self, id: str) -> int:
        """The row of an utterance.

        Raises
        ------
        KeyError : it does not have this feature.
        """
        row = self.rows.get(id)
        if row is None:
            raise KeyError(f"utterance {id!r} has no feature {self.spec.name!r} in {self.store}; extract it first")
        return row


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A table of a store.

    Raises
    ------
    StoreError : missing, not Parquet, or other columns than `schema`.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=schema.names, use_threads=False).select(schema.names).cast(schema)
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; run: featstore verify --repair") from None
    except (pa.ArrowException, KeyError, OSError) as error:
        raise StoreError(f"{path}: not readable ({str(error).splitlines()[0]}); run: featstore verify") from None
