"""Ids looked up without a dict."""

from __future__ import annotations

import secrets
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

T = TypeVar("T")


class Ids(Mapping[str, int]):
    """Id → row, as a dict would have it, in 8 bytes an id beside the ids' own text (a dict takes some 180).

    Sorted hashes and a bisection; the first row wins where an id stands twice. Millions of Python strings would also
    make every forked reader copy the memory it only reads. An id's hash is its UTF-8 bytes as one number, modulo a
    number that nobody knows beforehand: NumPy computes it for all ids, and nobody can make ids that collide.
    """

    def __init__(self, ids: pa.ChunkedArray | pa.Array, gone: NDArray[np.bool_] | None = None) -> None:
        #: (rows,) the ids themselves.
        self.ids: pa.Array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        #: (rows,) those that were removed and are not found; None where all are.
        self.gone = gone
        self._modulus = 1 << 30 | secrets.randbits(30) | 1
        hashes = _remainders(self.ids, self._modulus)
        order = np.argsort(hashes)
        if gone is not None:
            order = order[~gone[order]]
        # bisect is three times as fast on an array.array as on NumPy's.
        self._hashes = array("i", hashes[order].tobytes())
        kind = "i" if len(ids) < 1 << 31 else "q"
        self._order = array(kind, order.astype(kind).tobytes())
        _, ends, text = self.ids.buffers()  # a text from its bytes is found quicker than through pyarrow's scalars
        self._ends = memoryview(ends or b"").cast("B").cast("i")[self.ids.offset :]
        self._text = memoryview(text or b"").cast("B")

    @overload
    def get(self, id: str, /) -> int | None: ...
    @overload
    def get(self, id: str, default: int | T, /) -> int | T: ...
    def get(self, id: str, default: int | T | None = None, /) -> int | T | None:
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
        return isinstance(id, str) and self.get(id) is not None

    def __iter__(self) -> Iterator[str]:
        """Every id once, in the order of its first row."""
        rows = self._there[first_of_each(self.ids.take(pa.array(self._there)))]
        for at in range(0, len(rows), _BLOCK):
            yield from self.ids.take(pa.array(rows[at : at + _BLOCK])).to_pylist()

    @property
    def _there(self) -> NDArray[np.int64]:
        """Rows that were not removed."""
        return np.arange(len(self.ids)) if self.gone is None else np.flatnonzero(~self.gone)

    @cached_property
    def _distinct(self) -> int:
        return int(pc.count_distinct(self.ids if self.gone is None else self.ids.take(pa.array(self._there))).as_py())

    def __len__(self) -> int:
        return self._distinct

    def __reduce__(self) -> tuple[type[Ids], tuple[pa.Array, NDArray[np.bool_] | None]]:
        return type(self), (self.ids, self.gone)

    def same(self, ids: pa.Array, gone: NDArray[np.bool_] | None) -> bool:
        """Whether it was made of these."""
        if gone is None or self.gone is None:
            return gone is self.gone and bool(self.ids.equals(ids))
        return np.array_equal(gone, self.gone) and bool(self.ids.equals(ids))


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
        # Four bytes from any one on.
        words: NDArray[np.uint32] = np.ndarray((len(data) - 3,), dtype="<u4", buffer=data, strides=(1,))
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
    codes = numbers(ids.dictionary_encode().indices)
    return np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


def numbers(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """A column without nulls as NumPy's, not copied; pyarrow's own to_numpy imports pandas where it is installed."""
    return np.from_dlpack(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
