"""Reading a store: frames straight from memory maps, utterances as a table.

The reader goes through neither zarr-python nor a copy: a chunk file holds raw little-endian rows, so a crop is a
view on the mapped file wherever one chunk holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featstore.store import layout, metadata, show
from featstore.store.changes import read_changes
from featstore.store.codebooks import read_codebooks
from featstore.store.ids import Ids, first_of_each
from featstore.store.index import Index
from featstore.store.part import Part
from featstore.store.tables import read_tables, utterance_from_row
from featstore.types import Codebooks, FeatureSpec, Frames, Utterance


class Store:
    """A store, or a part of one made by `select`. What was committed when it was opened is what it shows.

    A pickle (a worker that is spawned gets one) holds the tables that were read so far, so that it shows the same: each
    feature's index, the utterances, and of a store at a distance its list of files. Frames stay where they are.
    """

    def __init__(
        self,
        path: Path,
        *,
        verify: bool = False,
        make_part: Callable[[Path, FeatureSpec, int, int], Part] | None = None,
        address: str | None = None,
        parts: Mapping[str, Sequence[str]] | None = None,
        changes: Sequence[str] | None = None,
    ) -> None:
        there = metadata.check_version(path)
        self.path = path
        #: Labels put right and utterances removed: what the root names, unless somebody knows better.
        self.changes = read_changes(path, there if changes is None else changes)
        #: Names of the parts to show, by feature; None: what is committed when a feature is first touched.
        self._parts = parts
        #: Where it is, for messages and records; of a store at a distance `path` is only the copy of its tables.
        self.address = address or str(path)
        group = layout.group_dir(path)
        # A feature that has parts but no spec is damaged, not absent: reading its spec says so.
        names = {p.parent.name for p in group.glob("*/zarr.json")}
        names |= {p.name for p in (path / "index").glob("*") if p.name not in names and layout.committed(path, p.name)}
        names = names if parts is None else set(parts)
        #: FeatureSpec by name.
        self.features: dict[str, FeatureSpec] = {name: metadata.read_spec(path, name) for name in sorted(names)}
        #: The columns of each `select` that made this view.
        self.selected: tuple[dict[str, Any], ...] = ()
        self._indexes: dict[str, Index] = {}
        self._make_part = make_part or partial(Part, verify=verify)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("ids", "_rows")}  # made anew from `utterances`

    # ---- what is in it

    @cached_property
    def utterances(self) -> pa.Table:
        """One row an utterance: id, recording, speaker, split, duration, turns, source, start (times in seconds)."""
        # Every part brings the facts of its utterances; features know mostly the same ones. Read what adds some.
        indexes = list({id(index.rows): index for index in map(self.index, self.features)}.values())
        parts = sorted((name, i, p) for i, index in enumerate(indexes) for p, name in enumerate(index.part_names))
        ids = [indexes[i].part_ids(p) for _, i, p in parts]
        first = first_of_each(pa.concat_arrays(ids)) if ids else np.zeros(0, dtype=bool)
        needed, doubled, end = [], False, 0
        for (name, _, _), here in zip(parts, ids, strict=True):
            new, end = first[end : end + len(here)], end + len(here)
            if new.any():
                needed.append(name)
                doubled |= not new.all()
        files = [self.path / layout.PartFiles("", name).facts for name in needed]
        table = self.changes.apply(needed, *read_tables(files, layout.UTTERANCE_SCHEMA))
        return table.filter(pa.array(first_of_each(table["id"].combine_chunks()))) if doubled else table

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the utterances, in the order of `utterances`."""
        ids: list[str] = self.utterances["id"].to_pylist()
        return ids

    @cached_property
    def _rows(self) -> Ids:
        return Ids(self.utterances["id"])

    def __len__(self) -> int:
        return len(self.utterances)

    def __repr__(self) -> str:
        return show.as_text(self)

    def _repr_html_(self) -> str:
        return show.as_html(self)

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
            raise KeyError(f"utterance {id!r} is not in {self.address} ({len(self)} utterances)")
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
        view.__dict__ = self.__getstate__()
        view.__dict__["utterances"] = self.utterances if mask is None else self.utterances.filter(mask)
        view.selected = (*self.selected, columns)
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
                raise KeyError(f"{self.address} has no feature {feature!r} (there: {there}); extract it first")
            known = [other.rows for other in self._indexes.values()]
            parts = layout.committed(self.path, feature) if self._parts is None else self._parts[feature]
            spec = self.features[feature]
            index = self._indexes[feature] = Index(self.path, spec, parts, self._make_part, known, self.changes)
        return index

    def part_ids(self) -> list[tuple[str, pa.Array]]:
        """Every part of every feature: its name, and the ids in it."""
        indexes = [self.index(name) for name in self.features]
        return [(part, index.part_ids(p)) for index in indexes for p, part in enumerate(index.part_names)]

    def num_frames(self, feature: str, id: str) -> int:
        """How many frames an utterance has."""
        index = self.index(feature)
        return int(index.num[index.row(id)])

    def frames(self, feature: str, id: str, start: int = 0, stop: int | None = None) -> Frames:
        """Frames ``start:stop`` of an utterance, shape (frames, dim), read-only.

        A view on the memory map where one chunk holds them, else one copy. Like a slice, `start` and `stop` may be
        negative and are cut to what is there.

        Raises
        ------
        KeyError : no such feature or utterance.
        StoreError : a chunk is missing, of the wrong size or (with ``verify=True``) damaged. Never zeros instead.
        """
        part, start, stop = self._rows_of(feature, id, start, stop)
        return part.rows(start, stop)

    def at_hand(self, feature: str, id: str, start: int = 0, stop: int | None = None) -> bool:
        """Whether `frames` would give these without asking a server: of a store in a folder always.

        Raises
        ------
        KeyError : no such feature or utterance.
        """
        part, start, stop = self._rows_of(feature, id, start, stop)
        return part.at_hand(start, stop)

    def _rows_of(self, feature: str, id: str, start: int, stop: int | None) -> tuple[Part, int, int]:
        """The part that holds these frames, and where in it."""
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
        return index.parts[index.part[row]], first + start, first + max(start, stop)

    def codebooks(self, feature: str) -> Codebooks:
        """What makes vectors of a feature of codes: ``codebooks(f).table[k, code]``, summed over the k books.

        Raises
        ------
        KeyError : no such feature, or its frames are no codes. StoreError : missing or damaged.
        """
        self.index(feature)
        spec = self.features[feature]
        if not spec.whole:
            raise KeyError(f"feature {feature!r} of {self.address} has no codebooks: its frames are vectors already")
        return read_codebooks(self.path, spec)

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
        order = np.argsort(part, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(part[order])) + 1) if len(rows) else ():
            p = part[here[0]]
            out[here] = index.parts[p].pooled(statistic)[rows[here] - index.begin[p]]
        return out


def store_utterances(store: Store) -> Iterator[Utterance]:
    """Every utterance of a store or view, in order."""
    return (utterance_from_row(row) for batch in store.utterances.to_batches() for row in batch.to_pylist())
