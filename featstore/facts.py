"""What a store holds, in numbers: `featstore info`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

import featstore
from featstore.store.address import as_url
from featstore.store.reader import Store


def facts_of(path: str | PathLike[str]) -> dict[str, Any]:
    """Utterances, hours, speakers, splits, bytes and failures of a store, and each feature's spec and size.

    Raises
    ------
    StoreError : as `featstore.open`.
    """
    store = featstore.open(path)
    table = store.utterances
    speakers = set(table["speaker"].to_pylist()) | set(
        pc.struct_field(pc.list_flatten(table["turns"]), "speaker").to_pylist()
    )
    failures = store.path / "failures.jsonl"
    return {
        "store": as_url(path) or str(path),
        "utterances": len(store),
        "hours": float(pc.sum(table["duration"]).as_py() or 0.0) / 3600,
        "speakers": len(speakers - {None}),
        "recordings": pc.count_distinct(table["recording"]).as_py(),
        "splits": {row["values"]: row["counts"] for row in pc.value_counts(table["split"]).to_pylist()},
        "bytes": _bytes(path),
        "failures": len(failures.read_bytes().splitlines()) if failures.exists() else 0,
        "features": {name: _feature(store, name) for name in store.features},
    }


def _feature(store: Store, name: str) -> dict[str, Any]:
    spec, index = store.features[name], store.index(name)
    return spec.to_json() | {
        "step_s": spec.grid.step_s,
        "fingerprint": spec.fingerprint,
        "weights": spec.settings.get("weights", "?"),
        "warning": spec.warning,
        "utterances": len(index.rows),
        "frames": int(np.sum(index.num)),
        "parts": len(index.part_names),
    }


def _bytes(path: str | PathLike[str]) -> int:
    if url := as_url(path):
        from featstore.remote.client import Remote

        return sum(Remote(url).files().values())
    return sum(p.stat().st_size for p in Path(path).rglob("*") if p.is_file())
