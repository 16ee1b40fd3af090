"""Where everything lies inside a store. docs/store-format.md says the same for readers in other languages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

VERSION = 1


INDEX_SCHEMA = pa.schema([("id", pa.string()), ("first_frame", pa.int64()), ("num_frames", pa.int64())])


UTTERANCE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("recording", pa.string()),
        ("speaker", pa.string()),
        ("split", pa.string()),
        ("duration", pa.float64()),
        ("turns", pa.list_(pa.struct([("start", pa.float64()), ("end", pa.float64()), ("speaker", pa.string())]))),
        ("source", pa.string()),
        ("start", pa.float64()),
    ]
)


ARRAYS = ("frames", "mean", "std")


#: Each chunk file ends with its CRC32C.
CRC_BYTES = 4


class StoreError(ValueError):
    """A store cannot be opened, read or written as asked; the text says why and what to do."""


class FingerprintMismatch(StoreError):
    """Two different features under one name."""


def group_dir(store: Path) -> Path:
    return store / "features.zarr"


def feature_dir(store: Path, feature: str) -> Path:
    return group_dir(store) / feature


def index_dir(store: Path, feature: str) -> Path:
    return store / "index" / feature


def committed(store: Path, feature: str) -> list[str]:
    """Names of a feature's parts: what its index names."""
    return sorted(p.stem for p in index_dir(store, feature).glob("[!.]*.parquet"))


def utterances_dir(store: Path) -> Path:
    return store / "utterances"
