"""What a store holds, in numbers: `featstore info`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

import featstore
from featstore.store.address import as_url
from featstore.store.reader import Store
from featstore.store.show import counts


def facts_of(path: str | PathLike[str]) -> dict[str, Any]:
    """Utterances, hours, speakers, splits, bytes and failures of a store, and each feature's spec and size.

    Raises
    ------
    StoreError : as `featstore.open`.
    """
    store = featstore.open(path)
    failures = store.path / "failures.jsonl"
    return {
        "store": as_url(path) or str(path),
        **counts(store.utterances),
        "changes": len(store.changes.names),
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
