"""verify: find every damage in a store. repair: set damaged parts aside, so that a resumed extraction redoes them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featstore import layout
from featstore.index import read_rows, read_table
from featstore.layout import StoreError
from featstore.part import crc32c
from featstore.types import FeatureSpec


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, and which utterances it concerns (empty: nobody's data)."""

    feature: str
    part: str
    problem: str
    utterances: tuple[str, ...] = ()
    #: True for what an interrupted write leaves behind: no data is lost.
    leftover: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "utterances": list(self.utterances)}


@dataclass
class Report:
    """What `verify` saw."""

    parts: int = 0
    utterances: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired: bool = False

    @property
    def damaged(self) -> list[Finding]:
        return [f for f in self.findings if not f.leftover]


def verify(
    path: str | PathLike[str], *, repair: bool = False, progress: Callable[[int, int], None] = lambda done, of: None
) -> Report:
    """Read every byte of a store and compare it with what was committed.

    Parameters
    ----------
    repair : delete what interrupted writes left behind, and move damaged parts to ``STORE/damaged``: their utterances
        are missing then, and extracting again with the same command brings them back. Run it while nothing writes.
    progress : called with (parts done, parts in all).

    Raises
    ------
    StoreError : not a store, or another version.
    """
    store = Path(path)
    layout.check_version(store)
    report = Report()
    root = layout.group_dir(store) / "zarr.json"
    if root.read_bytes() != layout.group_json({"whowhen_store": layout.VERSION}):
        report.findings.append(Finding("", "", f"{root}: edited"))
    features = sorted(
        {p.name for folder in (layout.group_dir(store), store / "index") for p in folder.glob("*") if p.is_dir()}
    )
    parts = {name: _part_names(store, name) for name in features}
    for name in features:  # empty folders of an extraction stopped before it wrote the spec are nobody's loss
        if not parts[name] and not (layout.feature_dir(store, name) / "zarr.json").exists():
            del parts[name]
    of, done = sum(len(found) for found in parts.values()), 0
    known: set[str] = set()
    for name in parts:
        spec = _check_feature(store, name, report)
        seen: dict[str, str] = {}
        for part in parts[name]:
            known.add(part)
            finding = check_part(store, name, part, spec, seen, report)
            if finding:
                report.findings.append(finding)
            done += 1
            progress(done, of)
    report.findings += _leftovers(store, known)
    if repair:
        for finding in report.findings:
            _set_aside(store, finding)
        report.repaired = True
    return report


def _part_names(store: Path, feature: str) -> list[str]:
    in_index = {p.stem for p in layout.index_dir(store, feature).glob("*.parquet") if not p.name.startswith(".")}
    in_group = {p.name for p in layout.feature_dir(store, feature).glob("*") if p.is_dir()}
    return sorted(in_index | in_group)


def _check_feature(store: Path, feature: str, report: Report) -> FeatureSpec | None:
    path = layout.feature_dir(store, feature) / "zarr.json"
    try:
        spec = layout.read_spec(store, feature)
        if path.read_bytes() != layout.group_json({"spec": spec.to_json(), "fingerprint": spec.fingerprint}):
            raise StoreError(f"{path}: edited")
        return spec
    except StoreError as error:
        report.findings.append(Finding(feature, "", str(error)))
        return None


def check_part(
    store: Path, feature: str, part: str, spec: FeatureSpec | None, seen: dict[str, str], report: Report
) -> Finding | None:
    """Read every byte of one part; `seen` gathers which part holds an id, `report` what was read."""
    folder = layout.feature_dir(store, feature) / part
    index_path = layout.index_dir(store, feature) / f"{part}.parquet"
    if not index_path.exists():
        return Finding(feature, part, "never committed (an interrupted write)", leftover=True)
    ids: tuple[str, ...] = ()
    try:
        ids = _ids(index_path)
        report.parts += 1
        report.utterances += len(ids)
        seal = read_seal(folder)
        sha = seal["sha256"]
        _same_sha(index_path, sha["index"])
        _same_sha(layout.utterances_dir(store) / f"{part}.parquet", sha["utterances"])
        for array in layout.ARRAYS:
            _same_sha(folder / array / "zarr.json", sha[array])
        if spec and seal["fingerprint"] != spec.fingerprint:
            raise StoreError(f"{folder}: written by another extractor ({seal['fingerprint']})")
        expected = dict(seal["chunk_crc32c"])
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(folder).as_posix()
            if path.is_file() and path.name != "zarr.json" and key not in expected:
                raise StoreError(f"{path}: does not belong here")
        for key, crc in expected.items():
            report.bytes += _check_chunk(folder / key, crc)
        read_rows([index_path])
    except StoreError as error:
        return Finding(feature, part, str(error), _whose(store, feature, part, ids))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        problem = f"{folder}: not readable ({type(error).__name__}: {error})"
        return Finding(feature, part, problem, _whose(store, feature, part, ids))
    if not ids:
        return Finding(feature, part, f"{index_path}: names no utterance")
    twice = tuple(id for id in ids if id in seen)
    seen.update(dict.fromkeys(ids, part))
    if len(twice) == len(ids):
        return Finding(feature, part, f"all of it stands in part {seen[ids[0]]} too (two writers met)", leftover=True)
    return None


def _whose(store: Path, feature: str, part: str, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Ids in a damaged part: both of its tables hold them; the one that is as it was committed is right."""
    found = [ids] if ids else []
    try:
        sha = read_seal(layout.feature_dir(store, feature) / part)["sha256"]
    except (StoreError, KeyError, TypeError):
        sha = {}
    for kind, folder in (("utterances", layout.utterances_dir(store)), ("index", layout.index_dir(store, feature))):
        path = folder / f"{part}.parquet"
        try:
            own = _ids(path)
            found.insert(0 if hashlib.sha256(path.read_bytes()).hexdigest() == sha.get(kind) else len(found), own)
        except (StoreError, OSError, AttributeError):
            continue
    return found[0] if found else ()


def _ids(path: Path) -> tuple[str, ...]:
    return tuple(read_table(path, pa.schema([("id", pa.string())]))["id"].to_pylist())


def read_seal(folder: Path) -> dict[str, Any]:
    """What a part was committed with: fingerprint, CRCs of chunks, digests of tables.

    Raises
    ------
    StoreError : missing, or edited.
    """
    path = folder / "zarr.json"
    attributes = layout.read_json(path).get("attributes")
    if not isinstance(attributes, dict):
        raise StoreError(f"{path}: no attributes")
    bare = {k: v for k, v in attributes.items() if k != "seal"}
    if path.read_bytes() != layout.group_json(layout.sealed(bare)):
        raise StoreError(f"{path}: edited")
    return attributes


def _same_sha(path: Path, expected: str) -> None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise StoreError(f"{path}: not the file that was committed")


def _check_chunk(path: Path, expected: int) -> int:
    """Both checks are needed: the CRC in the file finds damage, the CRC of the seal finds swapped files."""
    if not path.is_file():
        raise StoreError(f"{path}: the chunk is missing")
    size = path.stat().st_size
    if size <= layout.CRC_BYTES:
        raise StoreError(f"{path}: cut short to {size} bytes")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    found = int.from_bytes(data[-layout.CRC_BYTES :].tobytes(), "little")
    if crc32c(memoryview(data[: -layout.CRC_BYTES])) != found:
        raise StoreError(f"{path}: damaged (CRC32C differs)")
    if found != expected:
        raise StoreError(f"{path}: whole, but not the chunk that was committed here")
    return size


def _leftovers(store: Path, known: set[str]) -> Iterator[Finding]:
    """What belongs to no part. Where it is a file or folder of its own, `Finding.part` is its path."""
    for path in sorted(layout.utterances_dir(store).glob("*.parquet")):
        if not path.name.startswith(".") and path.stem not in known:
            yield Finding("", path.stem, "its facts were written, its frames never committed", leftover=True)
    if (store / "incoming").exists():
        yield Finding("", "incoming/", "parts of an interrupted pull; pull again to go on", leftover=True)
    group, index = layout.group_dir(store), store / "index"
    tables = [layout.utterances_dir(store), *(p for p in sorted(index.glob("*")) if p.is_dir())]
    groups = [group, *(p for p in sorted(group.glob("*")) if p.is_dir())]
    for folder, belongs in (*((f, "*.parquet") for f in tables), *((f, "zarr.json") for f in groups)):
        for path in sorted(folder.glob("*")):
            if path.is_file() and not path.match(belongs) and not _temporary(path):
                yield Finding("", path.relative_to(store).as_posix(), "does not belong here", leftover=True)
    for folder in (*tables, store / "failures", group):
        for path in sorted(folder.rglob(".*.tmp") if folder == group else folder.glob(".*.tmp")):
            name = path.relative_to(store).as_posix()
            yield Finding("", name, "a temporary file of an interrupted write", leftover=True)


def _temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"


def _set_aside(store: Path, finding: Finding) -> None:
    """Index first: without it, the part is no longer part of the store, whatever happens next."""
    if not finding.part:
        return  # a feature's or the store's own metadata: nothing to set aside without losing everything
    if "/" in finding.part:
        path = store / finding.part
        if path.is_dir():
            shutil.rmtree(path)
        elif _temporary(path):
            path.unlink(missing_ok=True)
        else:
            _move(store, path)
        return
    paths = [layout.utterances_dir(store) / f"{finding.part}.parquet"]
    if finding.feature:
        paths.insert(0, layout.index_dir(store, finding.feature) / f"{finding.part}.parquet")
        paths.append(layout.feature_dir(store, finding.feature) / finding.part)
    for path in paths:
        if not path.exists():
            continue
        if finding.leftover:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            _move(store, path)
        layout.sync(path.parent)


def _move(store: Path, path: Path) -> None:
    """Into ``STORE/damaged``, which is on the disk before the file is gone from where it was."""
    target = store / "damaged" / path.relative_to(store)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent
    while folder != store.parent:
        layout.sync(folder)
        folder = folder.parent
    os.replace(path, target)
    layout.sync(target.parent)
