"""Speech in, features out: manifests, extraction, and the store that holds the frames.

>>> import featstore
>>> store = featstore.open("STORE")
>>> store.frames("mimi", store.ids[0], start=0, stop=1125)
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from featstore.store.address import as_url
from featstore.store.layout import FingerprintMismatch, StoreError
from featstore.store.reader import Store
from featstore.store.writer import Writer
from featstore.store.writer import writer as _open_writer
from featstore.types import MIMI_GRID, Codebooks, FeatureSpec, FrameGrid, Turn, Utterance

__all__ = [
    "MIMI_GRID",
    "Codebooks",
    "FeatureSpec",
    "FingerprintMismatch",
    "FrameGrid",
    "Store",
    "StoreError",
    "Turn",
    "Utterance",
    "open",
    "writer",
]


def open(
    path: str | PathLike[str], *, verify: bool = False, cache: Path | None = None, cache_bytes: int | None = None
) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path : a folder, or the address that `featstore push` put a store at (``s3://…``, ``https://…``).
    verify : check each chunk's CRC32C the first time it is touched; a wrong one raises StoreError.
    cache, cache_bytes : of a store at an address only; see `featstore.remote.reader.open_remote`.

    Raises
    ------
    StoreError : not a store, another version, or metadata that was edited; at an address also: no answer.
    """
    if url := as_url(path):
        from featstore.remote.reader import CACHE_BYTES, open_remote

        return open_remote(url, verify=verify, cache=cache, cache_bytes=cache_bytes or CACHE_BYTES)
    return Store(Path(path), verify=verify)


def writer(
    path: str | PathLike[str],
    spec: FeatureSpec,
    *,
    codebooks: Codebooks | None = None,
    part_bytes: int | None = None,
    part_seconds: float | None = None,
) -> Writer:
    """Open a store for adding one feature; see `featstore.store.writer.writer`.

    Raises
    ------
    StoreError : `path` is an address, or what is there cannot be added to.
    """
    return _open_writer(path, spec, codebooks=codebooks, part_bytes=part_bytes, part_seconds=part_seconds)
