"""What a store at an address says of itself: its version, and the specs of its features."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featstore.remote.client import Remote, first_line
from featstore.store import layout, metadata
from featstore.store.layout import FingerprintMismatch, StoreError
from featstore.types import FeatureSpec


def read_specs(remote: Remote, files: dict[str, int]) -> dict[str, FeatureSpec]:
    """Specs of the features at an address, by name.

    Raises
    ------
    StoreError : no store there, another version, or metadata that was edited.
    """
    if layout.ROOT not in files:
        raise StoreError(f"{remote.url}: no store there (no {layout.ROOT})")
    metadata.refuse_version(_attributes(remote, layout.ROOT), remote.url)
    specs = {}
    for name in layout.committed_in(files):
        path = layout.spec_path(name)
        specs[name] = metadata.checked_spec(_attributes(remote, path), name, f"{remote.url}/{path}")
    return specs


def _attributes(remote: Remote, path: str) -> dict[str, Any]:
    try:
        attributes = json.loads(remote.read(path, metadata.MAX_JSON_BYTES))["attributes"]
        return dict(attributes)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{remote.url}/{path}: not a group's metadata ({first_line(error)})") from None


def write_specs(remote: Remote, there: dict[str, int], store: Path, specs: Iterable[str]) -> None:
    """Write the root's and features' zarr.json where they are not there; refuse other features under these names."""
    for path in (layout.ROOT, *(layout.spec_path(name) for name in sorted(specs))):
        data = (store / path).read_bytes()
        if path not in there:
            remote.upload(path, data)
        elif remote.read(path, metadata.MAX_JSON_BYTES) != data:
            raise FingerprintMismatch(
                f"{remote.url}/{path}: holds another feature or version than {store}; push to another address"
            )
