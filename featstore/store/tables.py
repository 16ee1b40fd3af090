"""The store's tables: Parquet written, and read without believing more than a file is long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featstore.store import footer, layout
from featstore.store.layout import StoreError
from featstore.types import Turn, Utterance


def utterance_table(utterances: Iterable[Utterance]) -> pa.Table:
    """Utterances as the store's table."""
    rows = [
        {
            "id": u.id,
            "recording": u.recording,
            "speaker": u.speaker,
            "split": u.split,
            "duration": u.duration_s,
            "turns": [{"start": t.start_s, "end": t.end_s, "speaker": t.speaker} for t in u.turns],
            "source": u.audio,
            "start": u.start_s,
        }
        for u in utterances
    ]
    return pa.Table.from_pylist(rows, schema=layout.UTTERANCE_SCHEMA)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    # Ids differ from row to row: without a dictionary they are read three times as fast.
    repeating = [name for name in table.schema.names if name not in ("id", "first_frame", "turns")]
    pq.write_table(table, sink, compression="zstd", use_dictionary=[*repeating, "turns.list.element.speaker"])
    data: bytes = sink.getvalue().to_pybytes()
    return data


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
        raise StoreError(f"{path}: missing; run: featstore verify STORE --repair") from None
    except OSError as error:
        raise layout.not_readable(path, error, "; run: featstore verify") from None
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
