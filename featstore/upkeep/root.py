"""The root's zarr.json and the changes it names: whether they are whole, and what repair does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from featstore.store import layout, metadata
from featstore.store.changes import Changes, read_change, read_changes, whole_changes
from featstore.store.check import Finding, not_now, stray
from featstore.store.layout import OtherVersion, StoreError


def check_root(store: Path) -> Finding | None:
    """The root's zarr.json holds nothing that is not known: where a store is around it, it can be written again."""
    path = store / layout.ROOT
    try:
        whole = metadata.root_json(metadata.check_version(store))
        if path.read_bytes() == whole:
            return None
        problem = f"{path}: edited"
    except OtherVersion:
        raise
    except StoreError as error:
        if not any(
            any(store.glob(p)) for p in ("features.zarr/*/zarr.json", "index/*/*.parquet", "utterances/*.parquet")
        ):
            raise
        if now := not_now(error, path):
            return Finding("", "", now, paths=(layout.ROOT,))
        metadata.refuse_version({"whowhen_store": metadata.read_maker(store)[0]}, store)
        problem = f"{path}: {'damaged' if path.exists() else 'missing'}, so the store cannot be opened"
    return Finding("", "", problem, remedy="write", paths=(layout.ROOT,))


def check_changes(store: Path) -> tuple[Changes, list[Finding]]:
    """What the root's changes say where they are whole, and those that are not."""
    there = sorted(path.stem for path in (store / layout.CHANGES).glob("[!.]*.parquet"))
    remedy: Literal["move", "delete"] = "delete"
    try:
        names = metadata.check_version(store)
    except StoreError:  # a new root will name what is whole
        names, remedy = tuple(whole_changes(store)), "move"
    whole, findings = [], []
    for name in names:
        try:
            read_change(store, name)
            whole.append(name)
        except StoreError as error:
            path, root = layout.change_path(name), layout.ROOT
            if now := not_now(error, store / path):
                findings.append(Finding("", "", now, paths=(path,)))
                continue
            problem = str(error).partition("; run:")[0] + "; --repair goes back to the labels before it: relabel again"
            findings.append(Finding("", "", problem, remedy="forget", paths=(path, root)))
    for file in (store / layout.change_path(name) for name in there if name not in names):
        findings.append(stray(store, file, "a change that was never committed, or is in the parts by now", remedy))
    return read_changes(store, whole), findings
