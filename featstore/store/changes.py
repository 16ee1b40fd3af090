"""Changes: labels put right and utterances removed, without touching a part. What the root's zarr.json names counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featstore import files
from featstore.store import layout, metadata
from featstore.store.ids import first_of_each, numbers
from featstore.store.layout import StoreError
from featstore.store.tables import parquet_bytes, read_table


@dataclass(frozen=True)
class Changes:
    """What several changes say together.

    Attributes
    ----------
    names : of the changes, oldest first.
    rows : part → its rows of CHANGE_SCHEMA, one an id.
    """

    names: tuple[str, ...] = ()
    rows: Mapping[str, pa.Table] = field(default_factory=dict)

    def apply(self, parts: Sequence[str], sizes: NDArray[np.int64], table: pa.Table) -> pa.Table:
        """Utterances of several parts, one behind another, as they are now.

        Parameters
        ----------
        sizes : (parts,) rows of each part in `table`.
        """
        if not any(part in self.rows for part in parts):
            return table
        begin = np.cumsum(sizes) - sizes
        pieces = [
            self._apply(part, table.slice(int(at), int(size)))
            for part, at, size in zip(parts, begin, sizes, strict=True)
        ]
        return pa.concat_tables(pieces).combine_chunks()

    def _apply(self, part: str, table: pa.Table) -> pa.Table:
        own = self.rows.get(part)
        if own is None:
            return table
        at = _found(table["id"], own)
        picked = np.where(at < 0, np.arange(len(table)), len(table) + at)
        now = pa.concat_tables([table, own.select(table.column_names)]).take(pa.array(picked))
        return now.filter(pa.array(~_removed(at, own)))

    def gone(self, parts: Sequence[str], sizes: NDArray[np.int64], ids: pa.Array) -> NDArray[np.bool_] | None:
        """(rows,) of several parts, one behind another: True where a row was removed; None where none was."""
        gone = None
        for part, end, size in zip(parts, np.cumsum(sizes), sizes, strict=True):
            own = self.rows.get(part)
            if own is None or not pc.any(own["removed"]).as_py():
                continue
            gone = np.zeros(len(ids), dtype=bool) if gone is None else gone
            here = slice(int(end - size), int(end))
            gone[here] = _removed(_found(ids[here], own), own)
        return gone


NONE = Changes()


def _found(ids: pa.Array | pa.ChunkedArray, own: pa.Table) -> NDArray[np.int64]:
    """The row of each id in `own`, -1 where it has none."""
    at = pc.index_in(ids, value_set=own["id"].combine_chunks())
    return numbers(pc.fill_null(at, -1)).astype(np.int64)


def _removed(at: NDArray[np.int64], own: pa.Table) -> NDArray[np.bool_]:
    removed = np.array([*own["removed"].to_pylist(), False], dtype=bool)  # -1 is the last
    return removed[at]


def read_changes(store: Path, names: Iterable[str]) -> Changes:
    """Changes of a store, by name.

    Raises
    ------
    StoreError : one is missing or damaged.
    """
    names = tuple(sorted(names))
    if not names:
        return NONE
    # The newest first: of several rows for an id, the first is kept.
    table = pa.concat_tables([read_change(store, name) for name in reversed(names)])
    codes = numbers(table["part"].combine_chunks().dictionary_encode().indices)
    order = np.argsort(codes, kind="stable")
    table, codes = table.take(pa.array(order)).combine_chunks(), codes[order]
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(table)]
    rows = {}
    for begin, end in pairwise(edges):
        own = table.slice(begin, end - begin)
        rows[own["part"][0].as_py()] = own.filter(pa.array(first_of_each(own["id"].combine_chunks())))
    return Changes(names, rows)


def read_change(store: Path, name: str) -> pa.Table:
    """One change.

    Raises
    ------
    StoreError : missing, damaged, or empty.
    """
    path = store / layout.change_path(name)
    with suppress(OSError):  # `read_table` says what is wrong
        if _digest(path.read_bytes()) != name.partition("-")[2]:
            raise StoreError(f"{path}: not the change that was committed; run: featstore verify STORE --repair")
    table = read_table(path, layout.CHANGE_SCHEMA)
    if not len(table):
        raise StoreError(f"{path}: changes nothing; run: featstore verify STORE --repair")
    return table


def whole_changes(store: Path) -> list[str]:
    """Names of the changes that lie whole in a store, whether its root names them or not."""
    found = []
    for path in sorted((store / layout.CHANGES).glob("[!.]*.parquet")):
        with suppress(StoreError):
            if metadata.CHANGE.fullmatch(path.stem):
                read_change(store, path.stem)
                found.append(path.stem)
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def commit_change(store: Path, table: pa.Table) -> str:
    """Write a change (CHANGE_SCHEMA) and commit it, with the store's lock held alone; its name.

    Raises
    ------
    OSError : no space, no permission; the store is as it was.
    """
    data = parquet_bytes(table)
    there = metadata.check_version(store)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{_digest(data)}"
    path = store / layout.change_path(name)
    path.parent.mkdir(exist_ok=True)
    try:
        files.write_atomically(path, data)
        files.sync(store)
        name_changes(store, (*there, name))
    except BaseException:
        if name not in metadata.check_version(store):
            path.unlink(missing_ok=True)
        raise
    return name


def name_changes(store: Path, names: Iterable[str]) -> None:
    """Have the root name these changes and no others: from then on they count."""
    if set(names := tuple(names)) != set(metadata.check_version(store)):
        files.write_atomically(store / layout.ROOT, metadata.root_json(names))


def drop_changes(store: Path, names: Iterable[str]) -> None:
    """Forget changes that the parts say themselves by now; a kill in between leaves files that count for nothing."""
    names = set(names)
    name_changes(store, [name for name in metadata.check_version(store) if name not in names])
    for name in names:
        (store / layout.change_path(name)).unlink(missing_ok=True)
    with suppress(OSError):
        (store / layout.CHANGES).rmdir()


def changed_rows(parts: Sequence[tuple[str, pa.Array]], utterances: pa.Table, *, removed: bool) -> pa.Table:
    """The rows of a change: one for each part that holds one of `utterances` (UTTERANCE_SCHEMA, as they are to be).

    Parameters
    ----------
    parts : (name, ids) of every part.
    """
    ids = pa.concat_arrays([ids for _, ids in parts] or [pa.array([], pa.string())])
    at = numbers(pc.fill_null(pc.index_in(ids, value_set=utterances["id"].combine_chunks()), -1))
    names = np.repeat(np.arange(len(parts)), [len(ids) for _, ids in parts])[at >= 0]
    columns = [
        pa.array([name for name, _ in parts], pa.string()).take(pa.array(names)),
        pa.array([removed] * len(names)),
    ]
    rows = utterances.take(pa.array(at[at >= 0]))
    return pa.Table.from_arrays([*columns, *rows.columns], schema=layout.CHANGE_SCHEMA)
