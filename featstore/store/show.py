"""A store in words: what `repr` and a notebook show of it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from featstore.store.reader import Store


def counted(number: int, noun: str) -> str:
    """``1 part``, ``2 parts``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def counts(table: pa.Table) -> dict[str, Any]:
    """Utterances, hours, speakers (of turns too), recordings, and utterances by split, of a table of utterances."""
    speakers = set(table["speaker"].unique().to_pylist())
    speakers |= set(pc.struct_field(pc.list_flatten(table["turns"]), "speaker").unique().to_pylist())
    return {
        "utterances": len(table),
        "hours": float(pc.sum(table["duration"]).as_py() or 0.0) / 3600,
        "speakers": len(speakers - {None}),
        "recordings": pc.count_distinct(table["recording"]).as_py(),
        "splits": {row["values"]: row["counts"] for row in pc.value_counts(table["split"]).to_pylist()},
    }


def as_text(store: Store) -> str:
    """A line for what is in it, and one for each feature."""
    return "\n".join(
        [
            f"Store({store.address!r}): {sentence(counts(store.utterances))}",
            *map("  ".__add__, _features(store).values()),
        ]
    )


def as_html(store: Store) -> str:
    """The same for a notebook."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in _features(store).items()
    )
    return f"<b>{escape(store.address)}</b>: {escape(sentence(counts(store.utterances)))}<table>{rows}</table>"


def sentence(found: Mapping[str, Any]) -> str:
    """What `counts` found, in words."""
    splits = ", ".join(f"{name or '(no split)'} {count}" for name, count in found["splits"].items())
    return ", ".join(
        [
            f"{counted(found['utterances'], 'utterance')} ({splits or 'none'})",
            f"{found['hours']:.2f} h",
            counted(found["speakers"], "speaker"),
            counted(found["recordings"], "recording"),
        ]
    )


def _features(store: Store) -> dict[str, str]:
    lines = {}
    for name, spec in store.features.items():
        index = store.index(name)
        weights = spec.warning or f"weights {spec.settings.get('weights', '?')}"
        there = sum(id in index.rows for id in store.ids)
        rate = f"{spec.dim}-d {spec.dtype} at {1 / spec.grid.step_s:g} Hz"
        lines[name] = (
            f"{name}: {rate}, {counted(there, 'utterance')}; {spec.model}, {weights.removeprefix(f'{name}: ')}"
        )
    return lines
