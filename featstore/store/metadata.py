"""A store's zarr.json files: what they say, how they are checked, and how a store begins."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featstore.files import sync, write_once
from featstore.store.address import refuse_address
from featstore.store.layout import (
    GROUP,
    INDEX,
    ROOT,
    UTTERANCES,
    VERSION,
    VERSION_WITH_CHANGES,
    FingerprintMismatch,
    OtherVersion,
    StoreError,
    committed,
    feature_dir,
    group_dir,
    index_dir,
    is_store,
    not_readable,
    spec_path,
    utterances_dir,
)
from featstore.types import FeatureSpec

#: zarr.json files are a few kB; more is not ours and is not read.
MAX_JSON_BYTES = 1 << 20


def canonical(data: Any) -> bytes:
    """The one way we write JSON, so that any change of a byte shows."""
    return (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()


def group_json(attributes: dict[str, Any]) -> bytes:
    """zarr.json of a Zarr v3 group."""
    return canonical({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def sealed(attributes: dict[str, Any]) -> dict[str, Any]:
    """`attributes` with a digest of themselves under "seal"."""
    return {**attributes, "seal": hashlib.sha256(canonical(attributes)).hexdigest()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a zarr.json.

    Raises
    ------
    StoreError : missing, larger than 1 MiB, not JSON, not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StoreError(f"{path}: larger than {MAX_JSON_BYTES} bytes, so no metadata of a store; not read")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    except OSError as error:
        raise not_readable(path, error) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: not JSON ({error}); run: featstore verify") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def root_json(changes: Iterable[str]) -> bytes:
    """The root's zarr.json of a store with these changes; without any, it is what it was before there were changes."""
    if names := sorted(set(changes)):
        return group_json(sealed({"whowhen_store": VERSION_WITH_CHANGES, "changes": names}))
    return group_json({"whowhen_store": VERSION})


def check_version(store: Path) -> tuple[str, ...]:
    """Refuse what is not a store, or a store of another version; the names of its changes, oldest first.

    Raises
    ------
    OtherVersion, StoreError
    """
    refuse_address(store)
    root = store / ROOT
    refuse_file(store)
    refuse_inside(store)
    if not root.exists():
        what = "no such folder" if not store.exists() else f"not a store (no {ROOT} in it)"
        raise StoreError(f"{store}: {what}; make one with: featstore extract MANIFEST --store {store} --feature mimi")
    return refuse_version(read_json(root).get("attributes"), store)


def refuse_file(store: Path) -> None:
    """Refuse a file where a store's folder is meant.

    Raises
    ------
    StoreError
    """
    if store.is_file():
        with store.open("rb") as file:
            exported = file.read(8) == b"\x89HDF\r\n\x1a\n"
        advice = (
            f"an HDF5 file; unpack it: featstore import {store} --store FOLDER"
            if exported
            else "a file; featstore extract MANIFEST --store STORE makes one"
        )
        raise StoreError(f"{store}: expected a store's folder, found {advice}")


def refuse_inside(store: Path) -> None:
    """Refuse a folder of a store's own: a second store would be made there, or none found.

    Raises
    ------
    StoreError
    """
    whole = store.absolute()
    for folder in (whole, *whole.parents):
        if folder.name in (GROUP, INDEX, UTTERANCES) and is_store(folder.parent):
            raise StoreError(f"{store}: is inside of a store; name the store itself: {folder.parent}")


def refuse_version(attributes: Any, store: Path | str) -> tuple[str, ...]:
    """Refuse the attributes of a root, here or far away, unless they are of a version we read; the changes they name.

    Raises
    ------
    OtherVersion : they name another. StoreError : they name none, or changes that have no name of a change.
    """
    found = attributes.get("whowhen_store") if isinstance(attributes, dict) else None
    if type(found) is not int:
        raise StoreError(f"{store}: {ROOT} names no version; run: featstore verify")
    if found not in (VERSION, VERSION_WITH_CHANGES):
        made_by = read_maker(store) if isinstance(store, Path) else (VERSION, "")
        release = f" ({made_by[1]})" if made_by[0] == found else ""
        raise OtherVersion(
            f"{store}: a store of version {found}, this program reads version {VERSION} and {VERSION_WITH_CHANGES}; "
            f"use the whowhen release that wrote it{release}, or export it there and import it here"
        )
    if found == VERSION and "changes" not in attributes:
        return ()
    names = attributes.get("changes")
    whole = isinstance(names, list) and all(isinstance(name, str) and CHANGE.fullmatch(name) for name in names)
    if not whole or attributes != json.loads(root_json(names))["attributes"]:
        raise StoreError(f"{store}: {ROOT} was edited; run: featstore verify")
    return tuple(names)


#: Names of changes: time, and how the SHA-256 of the file begins.
CHANGE = re.compile(r"\d{8}T\d{12}-[0-9a-f]{16}")


def maker() -> dict[str, Any]:
    """What a part says of who wrote it: the version of its format, and our release where that is installed."""
    with suppress(PackageNotFoundError):
        return {"whowhen_store": VERSION, "release": version("whowhen")}
    return {"whowhen_store": VERSION}


def read_maker(store: Path) -> tuple[int, str]:
    """The format's version and the release that a part of a store was written with; version 0.1 said neither."""
    for path in group_dir(store).glob("*/*/zarr.json"):
        with suppress(StoreError):
            attributes = read_json(path).get("attributes")
            if isinstance(attributes, dict):
                found = attributes.get("whowhen_store")
                return found if type(found) is int else VERSION, str(attributes.get("release", "unknown"))[:40]
    return VERSION, "unknown"


def read_spec(store: Path, feature: str) -> FeatureSpec:
    """The spec a feature was written with.

    Raises
    ------
    StoreError : unreadable, or as `checked_spec`.
    """
    path = store / spec_path(feature)
    if not path.exists():
        raise StoreError(
            f"{path}: the feature's spec is missing; run the same `featstore extract` command: it writes it again"
        )
    attributes = read_json(path).get("attributes")
    try:
        return checked_spec(attributes, feature, path)
    except StoreError as error:
        raise StoreError(f"{error}; run: featstore verify") from None


def checked_spec(attributes: Any, feature: str, where: object) -> FeatureSpec:
    """The spec among the attributes of a feature's group: of a store here or far away, or of an HDF5 file.

    Raises
    ------
    StoreError : none, another feature's, or not the spec its fingerprint was taken of.
    """
    try:
        spec, fingerprint = FeatureSpec.from_json(attributes["spec"]), attributes["fingerprint"]
    except (TypeError, KeyError, ValueError) as error:
        raise StoreError(f"{where}: no feature spec ({' '.join(str(error).split())})") from None
    if spec.name != feature or spec.fingerprint != fingerprint:
        raise StoreError(f"{where}: the spec was edited: it no longer has the fingerprint it was written with")
    return spec


def read_seal(folder: Path) -> dict[str, Any]:
    """What a part was committed with: fingerprint, CRCs of chunks, digests of tables.

    Raises
    ------
    StoreError : missing, or edited.
    """
    path = folder / "zarr.json"
    attributes = read_json(path).get("attributes")
    if not isinstance(attributes, dict):
        raise StoreError(f"{path}: no attributes")
    bare = {k: v for k, v in attributes.items() if k != "seal"}
    if path.read_bytes() != group_json(sealed(bare)):
        raise StoreError(f"{path}: edited")
    if not all(isinstance(attributes.get(key), dict) for key in ("chunk_crc32c", "sha256")):
        raise StoreError(f"{path}: no digests")
    return attributes


def create(store: Path, spec: FeatureSpec) -> None:
    """Make the store and the feature's group where they are not there yet; safe against other writers.

    Raises
    ------
    OtherVersion : of the store that is there.
    FingerprintMismatch : the store holds another feature under this name, or parts of another whose spec is lost.
    StoreError : `store` is an address.
    OSError : no permission, no space.
    """
    refuse_address(store)
    refuse_file(store)
    refuse_inside(store)
    if (store / ROOT).exists():
        check_version(store)
    for folder in (feature_dir(store, spec.name), index_dir(store, spec.name), utterances_dir(store)):
        folder.mkdir(parents=True, exist_ok=True)
    write_once(store / ROOT, root_json(()))
    check_version(store)
    group = store / spec_path(spec.name)
    if not group.exists():
        _check_seals(store, spec)
    write_once(group, group_json({"spec": spec.to_json(), "fingerprint": spec.fingerprint}))
    # Whoever made them may have been killed before syncing: a commit is worth as much as every folder above it.
    for folder in (index_dir(store, spec.name), index_dir(store, spec.name).parent, utterances_dir(store)):
        sync(folder)
    for folder in (feature_dir(store, spec.name), group_dir(store), store, store.parent):
        sync(folder)
    found = read_spec(store, spec.name)
    if found.fingerprint != spec.fingerprint:
        raise FingerprintMismatch(f"feature {spec.name!r} in {store} {difference(found, spec)}")


def _check_seals(store: Path, spec: FeatureSpec) -> None:
    for part in committed(store, spec.name):
        try:
            found = read_seal(feature_dir(store, spec.name) / part).get("fingerprint")
        except StoreError:
            continue
        if found != spec.fingerprint:
            raise FingerprintMismatch(
                f"feature {spec.name!r} in {store} has lost its spec, and its parts hold fingerprint {found}, this "
                f"extractor has {spec.fingerprint}; appending would mix two models. Use the extractor that wrote them."
            )
        return


def difference(there: FeatureSpec, here: FeatureSpec) -> str:
    """What a feature that is there has otherwise than this one, and what to do."""
    a, b = there.to_json(), here.to_json()
    if a["weights_sha256"] != b["weights_sha256"]:
        return f"holds weights {a['weights_sha256'][:8]}…, this extractor has {b['weights_sha256'][:8]}…" + _MIX
    keys = [key for key in a if a[key] != b[key]]
    settings = {key for key in {*a["settings"], *b["settings"]} if a["settings"].get(key) != b["settings"].get(key)}
    if keys == ["settings"] and settings == {"weights"}:
        was, now = a["settings"].get("weights"), b["settings"].get("weights")
        return f"has these very weights by the name {was}, here they are {now}; name them with --weights as before"
    return "; ".join(f"has {key} = {a[key]}, this extractor {b[key]}" for key in keys) + _MIX


_MIX = "; appending would mix two models. Extract into a new store."
