"""What a store at an address says of itself: its version, and the specs of its features."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featstore.remote.client import Remote, first_line
from featstore.store import codebooks, layout, metadata
from featstore.store.changes import read_change
from featstore.store.layout import FingerprintMismatch, StoreError
from featstore.types import FeatureSpec


def read_specs(remote: Remote, files: dict[str, int]) -> dict[str, FeatureSpec]:
    """Specs of the features at an address, by name.

    Raises
    ------
    StoreError : no store there, another version, or metadata that was edited.
    """
    read_changes(remote, files)
    specs = {}
    for name in layout.committed_in(files):
        path = layout.spec_path(name)
        specs[name] = metadata.checked_spec(_attributes(remote, path), name, f"{remote.url}/{path}")
    return specs


def read_changes(remote: Remote, files: dict[str, int]) -> tuple[str, ...]:
    """Names of the changes of the store at an address, oldest first.

    Raises
    ------
    StoreError : no store there, another version, or metadata that was edited.
    """
    if layout.ROOT not in files:
        raise StoreError(f"{remote.url}: no store there (no {layout.ROOT})")
    return metadata.refuse_version(_attributes(remote, layout.ROOT), remote.url)


def _attributes(remote: Remote, path: str) -> dict[str, Any]:
    try:
        attributes = json.loads(remote.read(path, metadata.MAX_JSON_BYTES))["attributes"]
        return dict(attributes)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{remote.url}/{path}: not a group's metadata ({first_line(error)})") from None


def fetch_changes(remote: Remote, files: dict[str, int], names: Iterable[str], store: Path) -> None:
    """Copy changes into a store, or what keeps its tables, and check them; its root does not name them by that.

    Raises
    ------
    StoreError : one is missing or damaged.
    """
    for name in sorted(names):
        path = layout.change_path(name)
        if not (store / path).exists():
            remote.download(path, store / path, files.get(path, 0), store / layout.CHANGES)
        try:
            read_change(store, name)
        except StoreError as error:
            (store / path).unlink(missing_ok=True)
            raise StoreError(f"{remote.url}/{path}: damaged or missing; push the store again ({error})") from None


def write_specs(remote: Remote, there: dict[str, int], store: Path, specs: Iterable[str]) -> None:
    """Write features' zarr.json where they are not there; refuse other features under these names. Then the changes, and
    the root, which names those of both sides."""
    theirs = read_changes(remote, there) if layout.ROOT in there else ()
    for path in (layout.spec_path(name) for name in sorted(specs)):
        data = (store / path).read_bytes()
        if path not in there:
            remote.upload(path, data)
        elif remote.read(path, metadata.MAX_JSON_BYTES) != data:
            raise FingerprintMismatch(
                f"{remote.url}/{path}: holds another feature or version than {store}; push to another address"
            )
    mine = metadata.check_version(store)
    for path in map(layout.change_path, mine):
        if there.get(path) != (store / path).stat().st_size:
            remote.upload(path, store / path)
    if layout.ROOT not in there or set(mine) - set(theirs):
        remote.upload(layout.ROOT, metadata.root_json({*mine, *theirs}))


def write_codebooks(remote: Remote, there: dict[str, int], store: Path, specs: Iterable[FeatureSpec]) -> None:
    """Upload the codebooks of features of codes that are not there; those here are checked before they leave."""
    for spec in filter(codebooks.has_codebooks, specs):
        path = layout.codebooks_path(spec.name)
        data = codebooks.to_bytes(codebooks.read_codebooks(store, spec))
        if there.get(path) != len(data):
            remote.upload(path, data)


def fetch_codebooks(remote: Remote, there: dict[str, int], store: Path, spec: FeatureSpec) -> None:
    """Bring the codebooks of a feature of codes into a local store that lacks them.

    Raises
    ------
    StoreError : not there, or not those that the spec pins.
    """
    path = layout.codebooks_path(spec.name)
    if not codebooks.has_codebooks(spec) or (store / path).exists():
        return
    if not 0 < there.get(path, 0) <= codebooks.MAX_BYTES:
        raise StoreError(f"{remote.url}/{path}: the codebooks are missing, or no codebooks; push the store again")
    found = codebooks.from_bytes(remote.read(path, there[path]), spec, f"{remote.url}/{path}")
    codebooks.write_codebooks(store, spec, found)
