"""Which rows of which part an utterance's frames are: a feature's index, and ids looked up without a dict."""

from __future__ import annotations

import secrets
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featstore import footer, layout
from featstore.layout import StoreError
from featstore.part import Part
from featstore.types import FeatureSpec


class Ids(Mapping[str, int]):
    """Id → row, as a dict would have it, in 8 bytes an id beside the ids' own text (a dict takes some 180).

    Sorted hashes and a bisection; the first row wins where an id stands twice. Millions of Python strings would also
    make every forked reader copy the memory it only reads. An id's hash is its UTF-8 bytes as one number, modulo a
    number that nobody knows beforehand: NumPy computes it for all ids, and nobody can make ids that collide.
    """

    def __init__(self, ids: pa.ChunkedArray | pa.Array) -> None:
        #: (rows,) the ids themselves.
        self.ids: pa.Array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        self._modulus = 1 << 30 | secrets.randbits(30) | 1
        hashes = _remainders(self.ids, self._modulus)
        order = np.argsort(hashes)
        # bisect is three times as fast on an array.array as on NumPy's.
        self._hashes = array("i", hashes[order].tobytes())
        kind = "i" if len(ids) < 1 << 31 else "q"
        self._order = array(kind, order.astype(kind).tobytes())
        _, ends, text = self.ids.buffers()  # a text from its bytes is found quicker than through pyarrow's scalars
        self._ends = memoryview(ends or b"").cast("B").cast("i")[self.ids.offset :]
        self._text = memoryview(text or b"").cast("B")

    def get(self, id: str, default: int | None = None) -> int | None:
        """The row of an id, or `default`."""
        try:
            text = id.encode()
        except (AttributeError, UnicodeEncodeError):  # no text, or none that a table can hold
            return default
        key = int.from_bytes(text, "little") % self._modulus
        hashes, ends, found = self._hashes, self._ends, None
        at = bisect_left(hashes, key)
        while at < len(hashes) and hashes[at] == key:
            row = self._order[at]
            if (found is None or row < found) and self._text[ends[row] : ends[row + 1]] == text:
                found = row
            at += 1
        return default if found is None else found

    def __getitem__(self, id: str) -> int:
        row = self.get(id)
        if row is None:
            raise KeyError(id)
        return row

    def __contains__(self, id: object) -> bool:
        return self.get(id) is not None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[str]:
        """Every id once, in the order of its first row."""
        rows = np.flatnonzero(first_of_each(self.ids))
        for at in range(0, len(rows), _BLOCK):
            yield from self.ids.take(pa.array(rows[at : at + _BLOCK])).to_pylist()

    @cached_property
    def _distinct(self) -> int:
        return pc.count_distinct(self.ids).as_py()

    def __len__(self) -> int:
        return self._distinct

    def __reduce__(self) -> tuple[type[Ids], tuple[pa.Array]]:
        return type(self), (self.ids,)


_BLOCK = 1 << 16


def _remainders(ids: pa.Array, modulus: int) -> NDArray[np.int32]:
    """(rows,) Each text's bytes as one little-endian number, modulo `modulus` (less than 2³¹)."""
    found = np.zeros(len(ids), dtype=np.int32)
    _, bounds, text = ids.buffers()
    mod, shift = np.uint64(modulus), np.uint64(32)

    def fill(at: int) -> None:
        rows = min(_BLOCK, len(ids) - at)
        ends = np.frombuffer(bounds, np.int32, rows + 1, 4 * (ids.offset + at))
        begin, size = (ends[:-1] - ends[0]).astype(np.int64), np.diff(ends)
        data = bytes(memoryview(text)[ends[0] : ends[-1]]) + bytes(3) if text else bytes(3)
        words = np.ndarray((len(data) - 3,), dtype="<u4", buffer=data, strides=(1,))  # four bytes from any one on
        rest = np.zeros(rows, dtype=np.uint64)
        whole = int(size.min()) // 4
        for k in range((int(size.max()) - 1) // 4, -1, -1):  # from the last word on: long division
            if k < whole:  # every text has this word
                rest <<= shift
                rest |= words[begin + 4 * k]
                rest %= mod
            else:
                here = np.flatnonzero(size > 4 * k)
                bits = 8 * np.minimum(size[here] - 4 * k, 4).astype(np.uint64)
                word = words[begin[here] + 4 * k] & ((np.uint64(1) << bits) - np.uint64(1))
                rest[here] = (rest[here] << shift | word) % mod
        found[at : at + rows] = rest

    with ThreadPoolExecutor() as pool:  # blocks stay in a processor's cache
        list(pool.map(fill, range(0, len(ids), _BLOCK)))
    return found


def first_of_each(ids: pa.Array) -> NDArray[np.bool_]:
    """(rows,) True where an id stands for the first time."""
    # Codes are given in order of appearance: a new one is larger than all before it.
    codes = _numbers(ids.dictionary_encode().indices)
    return np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


def _numbers(column: pa.Array | pa.ChunkedArray) -> NDArray:
    """A column without nulls as NumPy's, not copied; pyarrow's own to_numpy imports pandas where it is installed."""
    return np.from_dlpack(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


class Index:
    """Where a feature's frames are. Arrays run over rows; `rows` maps an id to its row.

    Features extracted from one manifest mostly hold the same ids in the same order: then one of `known` is shared.
    """

    def __init__(
        self,
        store: Path,
        spec: FeatureSpec,
        make_part: Callable[[Path, FeatureSpec, int, int], Part],
        known: Iterable[Ids] = (),
    ) -> None:
        self.spec = spec
        self.store = store
        self.part_names = layout.committed(store, spec.name)
        paths = [layout.index_dir(store, spec.name) / f"{name}.parquet" for name in self.part_names]
        sizes, ids, self.first, self.num = read_rows(paths)
        #: Part number of each row.
        self.part = np.repeat(np.arange(len(paths), dtype=np.int32), sizes)
        # The first part that holds an id wins: two writers may have met.
        shared = [other for other in known if other.ids.equals(ids)]
        self.rows = shared[0] if shared else Ids(ids)
        #: First row of each part.
        self.begin = np.cumsum(sizes) - sizes
        folder = layout.feature_dir(store, spec.name)
        self.parts = [
            make_part(folder / name, spec, int(self.num[begin : begin + size].sum()), int(size))
            for name, begin, size in zip(self.part_names, self.begin, sizes, strict=True)
        ]

    def part_ids(self, part: int) -> pa.Array:
        """Ids in a part, by its number."""
        begin = int(self.begin[part])
        stop = int(self.begin[part + 1]) if part + 1 < len(self.begin) else len(self.rows.ids)
        return self.rows.ids[begin:stop]

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


def read_rows(paths: Sequence[Path]) -> tuple[NDArray[np.int64], pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """Index tables of a feature, one behind another: rows of each, and of each row its id, first frame (inside its
    part) and number of frames.

    Raises
    ------
    StoreError : not readable, or the utterances of a part do not lie one behind another from its first frame on.
    """
    sizes, table = read_tables(paths, layout.INDEX_SCHEMA)
    first, num = _numbers(table["first_frame"]), _numbers(table["num_frames"])
    wrong = (num < 1) | (num > _MAX_FRAMES)
    if not wrong.any():
        before = np.cumsum(num) - num
        begin = np.repeat(np.cumsum(sizes) - sizes, sizes)
        wrong = first != before - before[begin]
    if wrong.any():
        part = int(np.searchsorted(np.cumsum(sizes), np.argmax(wrong), side="right"))
        raise StoreError(f"{paths[part]}: rows overlap or leave gaps; run: featstore verify")
    return sizes, table["id"].combine_chunks(), first, num


#: Of one utterance: more than five years at 12.5 Hz. Sums of them fit 64 bits.
_MAX_FRAMES = 1 << 31


def read_tables(paths: Sequence[Path], schema: pa.Schema) -> tuple[NDArray[np.int64], pa.Table]:
    """Tables of a store one behind another, each column in one piece; and how many rows each has. See `read_table`."""
    with ThreadPoolExecutor(2) as pool:  # more would wait for each other, and hold more
        tables = list(pool.map(lambda path: read_table(path, schema), paths))
    sizes = np.array([len(t) for t in tables], dtype=np.int64)
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    tables.clear()
    pa.default_memory_pool().release_unused()  # what reading took on the way, else kept: more than the tables
    columns = []
    for name in schema.names:  # one column at a time: the whole table must not be in memory twice
        columns.append(table[name].combine_chunks())
        table = table.drop_columns([name])
    pa.default_memory_pool().release_unused()
    return sizes, pa.Table.from_arrays(columns, schema=schema)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A table of a store. A stranger's file may claim more than it holds: it is believed as far as it is long.

    Raises
    ------
    StoreError : missing, not Parquet, other columns than `schema`, an id missing or too long, or sizes that no table
        of this many bytes has.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: missing; run: featstore verify --repair") from None
    except OSError as error:
        raise StoreError(f"{path}: not readable ({error.strerror}); run: featstore verify") from None
    try:
        columns = footer.read_columns(data)
        _check_claims(columns, len(data))
        # A text that stands often is kept once until all of them are known to be short.
        often = [c.path for c in columns if c.dictionary and c.path not in _NUMBERS]
        with pq.ParquetFile(pa.BufferReader(data), read_dictionary=often) as file:
            table = file.read(columns=schema.names, use_threads=False).select(schema.names)
        for name in schema.names:
            _check_values(name, table[name])
        if table.schema != schema:
            table = table.cast(schema)
        return table
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable ({str(error).splitlines()[0]}); run: featstore verify") from None


#: No column of ours takes fewer bytes a value than this allows: ids are all different.
_MAX_VALUES_PER_BYTE = 64
#: The longest text (an id has up to 1024 characters, of up to 4 bytes), and what a whole column may hold.
_MAX_TEXT_BYTES, _MAX_COLUMN_BYTES = 4096, 1 << 30


_NUMBERS = ("first_frame", "num_frames", "duration", "start", "turns.list.element.start", "turns.list.element.end")


def _check_claims(columns: Iterable[footer.Column], file_bytes: int) -> None:
    most = max(1 << 16, _MAX_VALUES_PER_BYTE * file_bytes)
    values: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for column in columns:  # of each row group: they add up
        path = column.path
        values[path] += column.num_values
        sizes[path] += column.num_bytes
        negative = min(column.num_values, column.num_bytes) < 0
        if negative or values[path] > most or sizes[path] > _MAX_COLUMN_BYTES:
            raise ValueError(f"{file_bytes} bytes that claim {values[path]} values of {sizes[path]} bytes in {path!r}")


_MAY_BE_NULL = ("speaker", "turns")


def _check_values(name: str, column: pa.ChunkedArray) -> None:
    if column.null_count and name not in _MAY_BE_NULL:
        raise ValueError(f"{name}: a row without a value")
    total = 0
    for chunk in column.chunks:
        for values, size in _texts(chunk):
            total += size
            if total > _MAX_COLUMN_BYTES:
                raise ValueError(f"{name}: more than {_MAX_COLUMN_BYTES} bytes of text")
            bounds = pc.min_max(pc.binary_length(values))
            shortest, longest = bounds["min"].as_py(), bounds["max"].as_py() or 0
            if longest > _MAX_TEXT_BYTES:
                raise ValueError(f"{name}: a text of {longest} bytes; up to {_MAX_TEXT_BYTES} are taken")
            if name == "id" and shortest == 0:
                raise ValueError("a row without an id")


def _texts(array: pa.Array) -> Iterator[tuple[pa.Array, int]]:
    """The texts in an array, however deep, as their dictionaries hold them; and their bytes once they are spelt out."""
    if isinstance(array, pa.DictionaryArray):
        for texts, _ in _texts(array.dictionary):
            yield texts, pc.sum(pc.binary_length(texts).take(array.indices)).as_py() or 0
    elif isinstance(array, pa.ListArray | pa.LargeListArray):
        yield from _texts(array.values)
    elif isinstance(array, pa.StructArray):
        for field in array.flatten():
            if field.null_count:
                raise ValueError("a turn without a value")
            yield from _texts(field)
    elif pa.types.is_binary(array.type) or pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        yield array, 0  # what it takes, it takes already
