"""compact: few large parts in place of many small ones, so that a large store opens fast."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, urandom
from pathlib import Path
from typing import Any

import numpy as np

from featstore.store import layout, lock, metadata
from featstore.store.changes import drop_changes
from featstore.store.check import check_part
from featstore.store.commit import commit_part, remove_part
from featstore.store.index import Index
from featstore.store.layout import StoreError
from featstore.store.reader import Store
from featstore.store.tables import read_table, utterance_from_row

#: Parts are merged until one holds this much. 16 TB of frames are then 32,000 parts.
MERGED_BYTES = 512 << 20


@dataclass
class Compaction:
    """Parts before and after, over all features."""

    parts_before: int = 0
    parts_after: int = 0


def compact(
    path: str | PathLike[str],
    *,
    part_bytes: int = MERGED_BYTES,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Compaction:
    """Merge neighbouring parts until each holds `part_bytes`; utterances keep their order and their bytes.

    A merged part is committed before the parts it replaces are removed, so a kill at any moment loses nothing, and the
    same call finishes what it left. Every part is verified before it is merged or dropped for its copies, and so are the
    copies; of those that stay as they are, only whether a chunk is missing or cut. Labels put right are in the new parts' own tables, utterances removed are in none: of those, the frames are gone
    then. Readers that have the store open must open it again. Free disk space for one merged part is needed.

    Parameters
    ----------
    progress : called with (parts done, parts there were).

    Raises
    ------
    StoreError : not a store, something writes to it, or damaged; what is damaged is not touched, nor are its copies.
    OSError : no space, no permission.
    """
    path = Path(path)
    metadata.check_version(path)
    with lock.hold(path, alone=True):
        store = Store(path)
        for name in store.features:
            _refuse_lacking(path, store.index(name))
        done = Compaction(sum(len(store.index(name).part_names) for name in store.features))
        seen = 0
        for name in store.features:
            if _drop_doubled(store.path, store.index(name)):
                store = Store(path)
            index = store.index(name)
            for group in _groups(index, part_bytes):
                if len(group) > 1 or index.part_names[group[0]] in store.changes.rows:
                    _merge(store, index, group)
                seen += len(group)
                progress(seen, done.parts_before)
            done.parts_after += len(Store(path).index(name).part_names)
        drop_changes(path, store.changes.names)
    progress(done.parts_before, done.parts_before)
    return done


def _drop_doubled(store: Path, index: Index) -> int:
    """Remove parts whose every utterance stands in another too: what a killed compaction or two writers leave."""
    if len(index.rows) == len(index.rows.ids):
        return 0
    ids = [set(index.part_ids(p).to_pylist()) for p in range(len(index.parts))]
    copies = Counter(id for part in ids for id in part)
    sharing = [p for p, part in enumerate(ids) if any(copies[id] > 1 for id in part)]
    for p in sharing:  # also those that stay, here and in `_merge`: they may be the damaged ones
        _check(store, index, p)
    dropped = 0
    for p in sorted(sharing, key=lambda p: len(ids[p])):
        if all(copies[id] > 1 for id in ids[p]):
            copies.subtract(ids[p])
            remove_part(store, index.spec.name, index.part_names[p])
            dropped += 1
    return dropped


def _refuse_lacking(store: Path, index: Index) -> None:
    for name, part in zip(index.part_names, index.parts, strict=True):
        for key in part.lacking():
            file = store / layout.PartFiles(index.spec.name, name).folder / key
            raise StoreError(f"{file}: the chunk is missing or cut short; run: featstore verify {store} --repair")


def _check(store: Path, index: Index, part: int) -> None:
    for finding in check_part(store, index.spec.name, index.part_names[part], index.spec).findings:
        raise StoreError(f"{finding.problem}; run: featstore verify {store} --repair")


def _groups(index: Index, part_bytes: int) -> list[list[int]]:
    """Runs of neighbouring parts, each run as long as its bytes stay within `part_bytes`."""
    row_bytes = index.spec.dim * np.dtype(index.spec.dtype).itemsize
    groups: list[list[int]] = []
    held = 0
    for p, part in enumerate(index.parts):
        size = part.num_frames * row_bytes
        if not groups or held + size > part_bytes:
            groups.append([])
            held = 0
        groups[-1].append(p)
        held += size
    return groups


def _merge(store: Store, index: Index, group: list[int]) -> None:
    """One part out of several, then remove those. An utterance that stands twice is kept once, where readers find it."""
    for p in group:  # a merged part has seals of its own: nothing damaged may come under them
        _check(store.path, index, p)
    name = index.spec.name
    ids = [id for p in group for id in index.part_ids(p).to_pylist() if index.part[index.rows[id]] == p]
    if ids:
        # Sorts where its first part did, so utterances keep their order. An earlier merge's suffix goes: names stay short.
        first = re.sub(r"-m[0-9a-f]{8}$", "", index.part_names[group[0]])
        merged = f"{first}-m{urandom(4).hex()}"
        facts: dict[str, dict[str, Any]] = {}  # from the tables just checked; another feature's may be damaged
        for p in group:
            part = index.part_names[p]
            table = read_table(store.path / layout.PartFiles(name, part).facts, layout.UTTERANCE_SCHEMA)
            for row in store.changes.apply([part], np.array([len(table)]), table).to_pylist():
                facts.setdefault(row["id"], row)  # the first copy, as its frames
        frames = [store.frames(name, id) for id in ids]
        commit_part(store.path, index.spec, merged, [utterance_from_row(facts[id]) for id in ids], frames)
    for p in group:
        remove_part(store.path, name, index.part_names[p])
