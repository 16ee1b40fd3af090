"""Which rows of which part an utterance's frames are: a feature's index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featstore.store import layout
from featstore.store.changes import NONE, Changes
from featstore.store.ids import Ids, numbers
from featstore.store.layout import StoreError
from featstore.store.part import Part
from featstore.store.tables import read_tables
from featstore.types import FeatureSpec


class Index:
    """Where a feature's frames are. Arrays run over rows; `rows` maps an id to its row.

    Features extracted from one manifest mostly hold the same ids in the same order: then one of `known` is shared.
    """

    def __init__(
        self,
        store: Path,
        spec: FeatureSpec,
        part_names: Sequence[str],
        make_part: Callable[[Path, FeatureSpec, int, int], Part],
        known: Iterable[Ids] = (),
        changes: Changes = NONE,
    ) -> None:
        self.spec = spec
        self.store = store
        self.part_names = part_names
        paths = [layout.PartFiles(spec.name, name) for name in self.part_names]
        sizes, ids, self.first, self.num = read_rows([store / p.index for p in paths])
        #: Part number of each row.
        self.part = np.repeat(np.arange(len(paths), dtype=np.int32), sizes)
        # The first part that holds an id wins: two writers may have met.
        gone = changes.gone(self.part_names, sizes, ids)
        shared = [other for other in known if other.same(ids, gone)]
        self.rows = shared[0] if shared else Ids(ids, gone)
        #: First row of each part.
        self.begin = np.cumsum(sizes) - sizes
        self.parts = [
            make_part(store / p.folder, spec, int(self.num[begin : begin + size].sum()), int(size))
            for p, begin, size in zip(paths, self.begin, sizes, strict=True)
        ]

    def part_ids(self, part: int) -> pa.Array:
        """Ids in a part, by its number; without those that were removed."""
        begin = int(self.begin[part])
        stop = int(self.begin[part + 1]) if part + 1 < len(self.begin) else len(self.rows.ids)
        ids, gone = self.rows.ids[begin:stop], self.rows.gone
        return ids if gone is None else ids.filter(pa.array(~gone[begin:stop]))

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
    first, num = numbers(table["first_frame"]), numbers(table["num_frames"])
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
