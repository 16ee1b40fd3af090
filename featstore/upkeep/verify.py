"""verify: find every damage in a store. repair: set damaged parts aside, so that a resumed extraction redoes them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from featstore import files
from featstore.store import failures, layout, lock, metadata
from featstore.store.index import read_rows
from featstore.store.layout import StoreError
from featstore.store.metadata import read_seal
from featstore.store.part import check_chunk
from featstore.store.tables import read_table
from featstore.types import FeatureSpec

#: Names that `writer.Writer` and `compact` give to parts.
_OWN_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}-\d{5,}(-m[0-9a-f]{8})*")
#: Errors that lie with the file. Any other, such as no permission or too many open files, says nothing about its bytes.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, which utterances it concerns (empty: nobody's data), what repair would do."""

    feature: str
    part: str
    problem: str
    utterances: tuple[str, ...] = ()
    #: True for what an interrupted write leaves behind: no data is lost.
    leftover: bool = False
    #: "move" sets `paths` (relative to the store) aside in ``damaged/``, "write" writes the root's zarr.json anew.
    remedy: Literal["", "move", "delete", "write"] = ""
    paths: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "utterances": list(self.utterances), "paths": list(self.paths)}


@dataclass
class Report:
    """What `verify` saw."""

    #: (utterances, bytes of frames) by (feature, part).
    read: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    #: Those of the findings that `repair` has dealt with.
    repaired: list[Finding] = field(default_factory=list)
    #: Something is writing to the store: what looks left over may be its work.
    busy: bool = False

    @property
    def parts(self) -> int:
        return len(self.read)

    @property
    def utterances(self) -> int:
        return sum(utterances for utterances, _ in self.read.values())

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.read.values())

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
        are missing then, and extracting again with the same command brings them back.
    progress : called with (parts done, parts in all).

    Raises
    ------
    StoreError : not a store, or another version; with `repair`: something writes to it.
    """
    store = Path(path)
    root = _check_root(store)
    if not repair:
        return _verify(store, root, progress, alone=False)
    if root and not (store / layout.ROOT).is_file():
        _repair(store, root)  # the lock lies on it
    with lock.hold(store, alone=True):
        report = _verify(store, root, progress, alone=True)
        # The root last: a new one is not locked.
        report.repaired = [f for f in reversed(report.findings) if _repair(store, f)]
    return report


def _verify(store: Path, root: Finding | None, progress: Callable[[int, int], None], *, alone: bool) -> Report:
    report = Report(findings=[root] if root else [])
    # Before the parts: whoever is writing makes a part's folder first.
    facts = [p.stem for p in sorted(layout.utterances_dir(store).glob("[!.]*.parquet"))]
    folders = (layout.group_dir(store), store / "index")
    parts = {p.name: _part_names(store, p.name) for f in folders for p in sorted(f.glob("*")) if p.is_dir()}
    of, done = sum(len(found) for found in parts.values()), 0
    known: dict[str, tuple[FeatureSpec | None, dict[str, str]]] = {}
    for name in sorted(parts):
        spec, problem = _check_spec(store, name)
        seen: dict[str, str] = {}
        known[name] = spec, seen
        found = []
        for part in parts[name]:
            found += _examine(store, name, part, spec, seen, report)
            done += 1
            progress(done, of)
        if problem:
            ids = dict.fromkeys([*seen, *(id for finding in found for id in finding.utterances)])
            found.insert(0, _without_spec(store, name, problem, tuple(ids)))
        report.findings += found
    report.findings += _leftovers(store, {part for names in parts.values() for part in names}, facts)
    report.busy = not alone and any(f.leftover for f in report.findings) and _somebody_writes(store)
    # Others may have committed or merged meanwhile. If nobody is at work now, what is still there stays.
    again = (now for f in report.findings for now in _look_again(store, f, known, report))
    report.findings = list(dict.fromkeys(again))
    return report


def _look_again(store: Path, finding: Finding, known: dict[str, Any], report: Report) -> list[Finding]:
    if finding.feature and finding.part:
        paths = layout.PartFiles(finding.feature, finding.part)
        if (store / paths.index).exists() or (store / paths.folder).exists():
            return _examine(store, finding.feature, finding.part, *known[finding.feature], report)
        return []
    if not finding.leftover:
        return [finding]
    gone = not any((store / path).exists() for path in finding.paths)
    return [] if gone or _committed(store, finding.part) else [finding]


def _somebody_writes(store: Path) -> bool:
    try:
        with lock.hold(store, alone=True):
            return False
    except StoreError:
        return True
    except OSError:
        return False


def _part_names(store: Path, feature: str) -> list[str]:
    in_group = {p.name for p in layout.feature_dir(store, feature).glob("*") if p.is_dir()}
    return sorted(in_group.union(layout.committed(store, feature)))


def _committed(store: Path, part: str) -> bool:
    return any((folder / f"{part}.parquet").exists() for folder in (store / "index").glob("*"))


def _check_root(store: Path) -> Finding | None:
    """The root's zarr.json holds nothing that is not known: where a store is around it, it can be written again."""
    path, whole = store / layout.ROOT, metadata.group_json({"whowhen_store": layout.VERSION})
    try:
        metadata.check_version(store)
        if path.read_bytes() == whole:
            return None
        problem = f"{path}: edited"
    except StoreError as error:
        if not any(
            any(store.glob(p)) for p in ("features.zarr/*/zarr.json", "index/*/*.parquet", "utterances/*.parquet")
        ):
            raise
        if now := _not_now(error, path):
            return Finding("", "", now)
        version = str(layout.VERSION).encode()
        if path.is_file() and re.sub(rb'(?<="whowhen_store": )\d+', version, path.read_bytes()) == whole:
            raise  # as we write it, but for the number
        problem = f"{path}: {'damaged' if path.exists() else 'missing'}, so the store cannot be opened"
    return Finding("", "", problem, remedy="write", paths=(path.relative_to(store).as_posix(),))


def _check_spec(store: Path, feature: str) -> tuple[FeatureSpec | None, StoreError | None]:
    path = store / layout.spec_path(feature)
    if not path.exists() and not layout.committed(store, feature):
        return None, None  # folders of an extraction stopped before it wrote the spec are nobody's loss
    try:
        spec = metadata.read_spec(store, feature)
        if path.read_bytes() != metadata.group_json({"spec": spec.to_json(), "fingerprint": spec.fingerprint}):
            raise StoreError(f"{path}: edited")
        return spec, None
    except StoreError as error:
        return None, error


def _without_spec(store: Path, feature: str, error: StoreError, ids: tuple[str, ...]) -> Finding:
    path = store / layout.spec_path(feature)
    cannot = f"{len(layout.committed(store, feature))} parts cannot be read without it"
    if now := _not_now(error, path):
        return Finding(feature, "", f"{now}; {cannot}", ids)
    problem = str(error).removesuffix("; run: featstore verify")
    if not path.exists():
        return Finding(feature, "", f"{problem}; {cannot}", ids)
    problem += f"; {cannot}; --repair sets it aside, then the same `featstore extract` command writes it again"
    return Finding(feature, "", problem, ids, remedy="move", paths=(path.relative_to(store).as_posix(),))


def check_part(
    store: Path, feature: str, part: str, spec: FeatureSpec | None, seen: dict[str, str], report: Report
) -> Finding | None:
    """Read every byte of one part; `seen` gathers which part holds an id, `report` what was read."""
    return next(iter(_examine(store, feature, part, spec, seen, report)), None)


def _examine(
    store: Path, feature: str, part: str, spec: FeatureSpec | None, seen: dict[str, str], report: Report
) -> list[Finding]:
    paths = layout.PartFiles(feature, part)
    index_path, facts_path, folder = (store / path for path in paths.removal)
    ids: tuple[str, ...] = ()
    size = 0
    try:
        if not index_path.exists():
            return [_uncommitted(store, feature, part)]
        ids = _ids(index_path)
        report.read[feature, part] = len(ids), size
        seal = read_seal(folder)
        sha = seal["sha256"]
        _same_sha(index_path, sha["index"])
        _same_sha(facts_path, sha["utterances"])
        for array in layout.ARRAYS:
            _same_sha(folder / layout.array_json(array), sha[array])
        if spec and seal["fingerprint"] != spec.fingerprint:
            raise StoreError(f"{folder}: written by another extractor ({seal['fingerprint']})")
        for key, crc in seal["chunk_crc32c"].items():
            size += _check_chunk(folder / key, crc)
            report.read[feature, part] = len(ids), size
        read_rows([index_path])
        if not ids:
            raise StoreError(f"{index_path}: names no utterance")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        if now := _not_now(error, folder):
            return [Finding(feature, part, now, _whose(store, feature, part, ids))]
        ours = isinstance(error, StoreError)
        problem = str(error) if ours else f"{folder}: not readable ({type(error).__name__}: {error})"
        return [Finding(feature, part, problem, _whose(store, feature, part, ids), remedy="move", paths=paths.removal)]
    belongs = {folder / key for key in (*map(layout.array_json, layout.ARRAYS), *seal["chunk_crc32c"])}
    belongs.add(store / paths.seal)
    found = [_stray(store, p) for p in _files(folder) if p not in belongs and not _temporary(p)]
    others = {seen.setdefault(id, part) for id in ids} - {part}
    if all(seen[id] != part for id in ids) and all(
        (store / layout.PartFiles(feature, p).index).exists() for p in others
    ):
        problem = f"all of it stands in part {seen[ids[0]]} too (two writers met)"
        found.append(Finding(feature, part, problem, leftover=True, remedy="delete", paths=paths.removal))
    return found


def _uncommitted(store: Path, feature: str, part: str) -> Finding:
    paths = layout.PartFiles(feature, part)
    try:
        read_seal(store / paths.folder)
        what = "whole" if (store / paths.facts).exists() else "sealed"
        problem = f"{what}, but its index table is not there: an interrupted commit or copy"
        remedy = "move"
    except StoreError as error:
        if _not_now(error, store):
            raise
        remedy = _remedy(store, part)
        problem = "never committed (an interrupted write)" if remedy == "delete" else "does not belong here"
    return Finding(feature, part, problem, leftover=True, remedy=remedy, paths=paths.removal[1:])


def _remedy(store: Path, part: str) -> Literal["move", "delete"]:
    """For what has no index table: delete what an interrupted write left, not what an interrupted repair or others did."""
    begun = any((store / "damaged" / "index").glob(f"*/{part}.parquet*")) if _OWN_NAME.fullmatch(part) else True
    return "move" if begun else "delete"


def _whose(store: Path, feature: str, part: str, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Ids in a damaged part: both of its tables hold them; the one that is as it was committed is right."""
    found, paths = [ids] if ids else [], layout.PartFiles(feature, part)
    try:
        sha = read_seal(store / paths.folder)["sha256"]
    except (StoreError, OSError):
        sha = {}
    for kind, path in (("utterances", store / paths.facts), ("index", store / paths.index)):
        try:
            own = _ids(path)
            found.insert(0 if hashlib.sha256(path.read_bytes()).hexdigest() == sha.get(kind) else len(found), own)
        except (StoreError, OSError):
            continue
    return found[0] if found else ()


def _ids(path: Path) -> tuple[str, ...]:
    return tuple(read_table(path, pa.schema([("id", pa.string())]))["id"].to_pylist())


def _same_sha(path: Path, expected: str) -> None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: missing") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise StoreError(f"{path}: not the file that was committed")


def _check_chunk(path: Path, sealed: int) -> int:
    if not path.is_file():
        raise StoreError(f"{path}: the chunk is missing")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= layout.CRC_BYTES:
            raise StoreError(f"{path}: cut short to {size} bytes")
        check_chunk(file, path, size - layout.CRC_BYTES, sealed)
    return size


def _not_now(error: BaseException | None, path: Path) -> str:
    """What to say where an error, or what it came of, lies with the machine and not with the file; else ""."""
    while error and not isinstance(error, OSError):
        error = error.__context__
    if not error or error.errno is None or error.errno in _DAMAGE:
        return ""
    return f"{error.filename or path}: not readable now ({error.strerror}); left where it is"


def _leftovers(store: Path, known: set[str], facts: list[str]) -> Iterator[Finding]:
    """What belongs to no part. Where it is a file or folder of its own, `Finding.part` is its path."""
    for part in facts:
        if part not in known:
            problem = "its facts were written, its frames never committed"
            paths = (layout.PartFiles("", part).facts,)
            yield Finding("", part, problem, leftover=True, remedy=_remedy(store, part), paths=paths)
    if (store / "incoming").exists():
        problem = "parts of an interrupted pull; pull again to go on"
        yield Finding("", "incoming/", problem, leftover=True, remedy="delete", paths=("incoming",))
    group, index = layout.group_dir(store), store / "index"
    tables = [layout.utterances_dir(store), *(p for p in sorted(index.glob("*")) if p.is_dir())]
    groups = [group, *(p for p in sorted(group.glob("*")) if p.is_dir())]
    for folder, belongs in (*((f, "*.parquet") for f in tables), *((f, "zarr.json") for f in groups)):
        for path in sorted(folder.glob("*")):
            if path.is_file() and not path.match(belongs) and not _temporary(path):
                yield _stray(store, path)
    for path in sorted((store / "failures").glob("[!.]*.jsonl")):
        if not _is_failures(path):
            yield _stray(store, path, "damaged: expected JSON objects with the keys feature and id")
    for path in (*(p for f in (*tables, store / "failures") for p in sorted(f.glob(".*"))), *_files(group)):
        if _temporary(path):
            yield _stray(store, path, "a temporary file of an interrupted write", "delete")


def _stray(store: Path, path: Path, problem: str = "", remedy: Literal["move", "delete"] = "move") -> Finding:
    name = path.relative_to(store).as_posix()
    return Finding("", name, problem or f"{path.name} does not belong here", (), True, remedy, (name,))


def _is_failures(path: Path) -> bool:
    try:
        return None not in failures.read_entries(path)
    except FileNotFoundError:
        return True  # somebody has just gathered it


def _files(folder: Path) -> list[Path]:
    """Files however deep; unlike rglob, whatever is removed meanwhile."""
    return sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)


def _temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"


def _repair(store: Path, finding: Finding) -> bool:
    index = layout.PartFiles(finding.feature, finding.part).index
    if not finding.remedy or (index not in finding.paths and _committed(store, finding.part)):
        return False  # committed since we looked: on a disk without locks
    for path in (store / name for name in finding.paths):
        if finding.remedy == "write":
            if path.is_dir():
                _move(store, path)
            path.parent.mkdir(exist_ok=True)
            files.write_atomically(path, metadata.group_json({"whowhen_store": layout.VERSION}))
        elif not os.path.lexists(path):
            continue
        elif finding.remedy == "move":
            _move(store, path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        files.sync(path.parent)
    return True


def _move(store: Path, path: Path) -> None:
    """Into ``STORE/damaged``, which is on the disk before the file is gone from where it was."""
    target = store / "damaged" / path.relative_to(store)
    name, number = target.name, 0
    while os.path.lexists(target):  # it was damaged before
        number += 1
        target = target.with_name(f"{name}.{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent
    while folder != store.parent:
        files.sync(folder)
        folder = folder.parent
    os.replace(path, target)
    files.sync(target.parent)
