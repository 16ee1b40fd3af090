"""The labels of a store as digests, so that a run can say later whether it was trained on these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featstore.store.ids import numbers
from featstore.store.reader import Store

#: What labels are. Where the audio lies is none of them.
LABELS = ("id", "recording", "speaker", "duration", "turns")


def label_digests(store: Store) -> dict[str, dict[str, Any]]:
    """Split → how many utterances it has, and 16 hex digits over the labels of all of them, whatever their order."""
    found = {}
    for split in sorted(set(store.utterances["split"].unique().to_pylist())):
        table = store.select(split=split).utterances
        table = table.take(pc.sort_indices(table["id"])).select(LABELS)
        digest = hashlib.sha256()
        for column in table.columns:
            _feed(digest, column.combine_chunks())
        found[split] = {"utterances": len(table), "sha256": digest.hexdigest()[:16]}
    return found


def other_labels(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Which splits have other labels or utterances than a run was trained on, in words; "" where none has or nobody noted.

    Parameters
    ----------
    then, now : as `label_digests` gives them.
    """
    if not then:
        return ""
    told = []
    for split in sorted({*then, *now}):
        was, found = (labels.get(split, {"utterances": 0}) for labels in (then, now))
        if was == found:
            continue
        counts = was["utterances"], found["utterances"]
        what = f"{counts[0]} utterances then, {counts[1]} now" if counts[0] != counts[1] else "other labels"
        told.append(f"{split or '(no split)'}: {what}")
    return "; ".join(told)


def _feed(digest: Any, array: pa.Array) -> None:
    """Lengths and values; what lies under nulls or before an offset is nobody's."""
    digest.update(numbers(pc.cast(pc.is_valid(array), pa.int8())).tobytes())
    if pa.types.is_list(array.type):
        digest.update(numbers(pc.fill_null(pc.list_value_length(array), 0)).tobytes())
        for field in pc.list_flatten(array).flatten():
            _feed(digest, field)
    elif pa.types.is_string(array.type):
        array = pc.fill_null(array, "")
        digest.update(numbers(pc.binary_length(array)).tobytes())
        digest.update("".join(array.to_pylist()).encode())
    else:
        digest.update(numbers(pc.fill_null(array, 0.0)).tobytes())
