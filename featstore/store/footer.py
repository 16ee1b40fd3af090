"""What a Parquet file claims to hold, read without believing a word of it.

pyarrow ends the whole process at some damaged column metadata (an exception that nothing catches; tests/data holds such a
file), so what must be known before pyarrow may read is taken from the footer here. Formats: parquet.thrift of apache/parquet-format, and the compact
protocol of Apache Thrift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_FOOTER_BYTES = 16 << 20
_MAX_DEPTH = 12
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_VARINTS = (4, 5, 6)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of one row group: values (nulls and list elements too), bytes without compression, and whether its
    values are numbers of a dictionary's entries.
    """

    path: str
    num_values: int
    num_bytes: int
    dictionary: bool


def read_columns(data: bytes) -> list[Column]:
    """Every column of every row group of a Parquet file.

    Raises
    ------
    ValueError : not a Parquet file, or its footer is not one.
    """
    size = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != b"PAR1" or not 0 < size <= min(len(data) - 8, MAX_FOOTER_BYTES):
        raise ValueError("no Parquet file, or cut short")
    try:
        groups = _Reader(data[-8 - size : -8]).struct()[4]
        found = [chunk[3] for group in groups for chunk in group[1]]
        # A path is a list of names; 11 is where its dictionary lies, if it has one.
        return [Column(b".".join(c[3]).decode(), int(c[5]), int(c[6]), 11 in c) for c in found]
    except (KeyError, TypeError, IndexError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"its footer is damaged ({type(error).__name__})") from None


class _Reader:
    """Structs as dicts of field number → value."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise RecursionError
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _VARINTS:
            return self._zigzag()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self._data) - self._at:  # each element takes a byte at least
                raise IndexError
            # In a list, a boolean is a byte of its own.
            return [self._byte() if head & 15 in (_TRUE, _FALSE) else self._value(head & 15, depth + 1) for _ in range(count)]  # fmt: skip
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise TypeError  # a map: Parquet's footer has none

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise IndexError
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise IndexError

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
