"""verify: find every damage in a store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from featstore.store import failures, layout, lock, metadata
from featstore.store.changes import Changes
from featstore.store.check import Finding, check_part, files_below, not_now, stray, temporary
from featstore.store.codebooks import has_codebooks, read_codebooks
from featstore.store.layout import StoreError
from featstore.store.metadata import read_seal
from featstore.types import FeatureSpec
from featstore.upkeep.repair import mend
from featstore.upkeep.root import check_changes, check_root

#: Names that `writer.Writer` and `compact` give to parts.
_OWN_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}-\d{5,}(-m[0-9a-f]{8})*")


@dataclass
class Report:
    """What `verify` saw."""

    #: Bytes of frames by (feature, part).
    read: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Utterances that have frames there, each once, however many features it has.
    ids: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    #: Those of the findings that were repaired.
    repaired: list[Finding] = field(default_factory=list)
    #: Something is writing to the store: what looks left over may be its work.
    busy: bool = False

    @property
    def parts(self) -> int:
        return len(self.read)

    @property
    def utterances(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        return sum(self.read.values())

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
    root = check_root(store)
    if not repair:
        return _verify(store, root, progress, alone=False)
    if root and not (store / layout.ROOT).is_file():
        mend(store, root)  # the lock lies on it
    with lock.hold(store, alone=True):
        report = _verify(store, root, progress, alone=True)
        # The root last: a new one is not locked.
        report.repaired = [f for f in reversed(report.findings) if mend(store, f)]
    return report


@dataclass(frozen=True)
class _Known:
    """What is known of a feature: its spec, if there is one, which part holds an id, and what was removed."""

    spec: FeatureSpec | None
    changes: Changes
    #: Whether that is all of it: without it, what was added again looks like a copy.
    sure: bool
    seen: dict[str, str] = field(default_factory=dict)

    def ids(self, part: str, ids: tuple[str, ...]) -> list[str]:
        """Those of a part's ids that were not removed from it."""
        gone = self.changes.gone([part], np.array([len(ids)]), pa.array(ids, pa.string()))
        return [id for row, id in enumerate(ids) if gone is None or not gone[row]]


def _verify(store: Path, root: Finding | None, progress: Callable[[int, int], None], *, alone: bool) -> Report:
    report = Report(findings=[root] if root else [])
    changes, problems = check_changes(store)
    report.findings += problems
    # Before the parts: whoever is writing makes a part's folder first.
    facts = [p.stem for p in sorted(layout.utterances_dir(store).glob("[!.]*.parquet"))]
    folders = (layout.group_dir(store), store / "index")
    parts = {p.name: _part_names(store, p.name) for f in folders for p in sorted(f.glob("*")) if p.is_dir()}
    of, done = sum(len(found) for found in parts.values()), 0
    known: dict[str, _Known] = {}
    for name in sorted(parts):
        spec, problem = _check_spec(store, name)
        known[name] = _Known(spec, changes, sure=all(f.leftover for f in problems))
        found = []
        for part in parts[name]:
            found += _examine(store, name, part, known[name], report)
            done += 1
            progress(done, of)
        if spec and has_codebooks(spec):
            found += _check_codebooks(store, spec)
        if problem:
            ids = dict.fromkeys([*known[name].seen, *(id for finding in found for id in finding.utterances)])
            found.insert(0, _without_spec(store, name, problem, tuple(ids)))
        report.findings += found
    report.findings += _leftovers(store, {part for names in parts.values() for part in names}, facts)
    report.busy = not alone and any(f.leftover for f in report.findings) and _somebody_writes(store)
    # Others may have committed or merged meanwhile. If nobody is at work now, what is still there stays.
    again = (now for f in report.findings for now in _look_again(store, f, known, report))
    report.findings = list(dict.fromkeys(again))
    return report


def _look_again(store: Path, finding: Finding, known: dict[str, _Known], report: Report) -> list[Finding]:
    if finding.feature and finding.part:
        paths = layout.PartFiles(finding.feature, finding.part)
        if (store / paths.index).exists() or (store / paths.folder).exists():
            return _examine(store, finding.feature, finding.part, known[finding.feature], report)
        return []
    if not finding.leftover:
        return [finding]
    gone = not any((store / path).exists() for path in finding.paths)
    return [] if gone or layout.names_part(store, finding.part) else [finding]


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


def _check_codebooks(store: Path, spec: FeatureSpec) -> list[Finding]:
    path = layout.codebooks_path(spec.name)
    try:
        read_codebooks(store, spec)
        return []
    except StoreError as error:
        if now := not_now(error, store / path):
            return [Finding(spec.name, "", now)]
        if not (store / path).exists():
            return [Finding(spec.name, "", str(error))]
        problem = f"{error}; --repair sets it aside, then the same `featstore extract` command writes it again"
        return [Finding(spec.name, "", problem, remedy="move", paths=(path,))]


def _without_spec(store: Path, feature: str, error: StoreError, ids: tuple[str, ...]) -> Finding:
    path = store / layout.spec_path(feature)
    cannot = f"{len(layout.committed(store, feature))} parts cannot be read without it"
    if now := not_now(error, path):
        return Finding(feature, "", f"{now}; {cannot}", ids)
    problem = str(error).removesuffix("; run: featstore verify")
    if not path.exists():
        return Finding(feature, "", f"{problem}; {cannot}", ids)
    problem += f"; {cannot}; --repair sets it aside, then the same `featstore extract` command writes it again"
    return Finding(feature, "", problem, ids, remedy="move", paths=(layout.spec_path(feature),))


def _examine(store: Path, feature: str, part: str, known: _Known, report: Report) -> list[Finding]:
    """Read every byte of one part; `known.seen` gathers which part holds an id, `report` what was read."""
    paths = layout.PartFiles(feature, part)
    try:
        if not (store / paths.index).exists():
            return [_uncommitted(store, feature, part)]
    except OSError:  # not to be looked at now: the check says so
        pass
    checked = check_part(store, feature, part, known.spec)
    found = list(checked.findings)
    if checked.ids or not found:
        report.read[feature, part] = checked.num_bytes
    ids, seen = known.ids(part, checked.ids), known.seen
    report.ids.update(ids)
    if ids and known.sure and not any(f.part for f in found):
        others = {seen.setdefault(id, part) for id in ids} - {part}
        tables = (layout.PartFiles(feature, other).index for other in others)
        if all(seen[id] != part for id in ids) and all((store / table).exists() for table in tables):
            problem = f"all of it stands in part {seen[ids[0]]} too (two writers met)"
            found.append(Finding(feature, part, problem, leftover=True, remedy="delete", paths=paths.removal))
    return found


def _uncommitted(store: Path, feature: str, part: str) -> Finding:
    paths = layout.PartFiles(feature, part)
    remedy: Literal["move", "delete"] = "move"
    try:
        read_seal(store / paths.folder)
        what = "whole" if (store / paths.facts).exists() else "sealed"
        problem = f"{what}, but its index table is not there: an interrupted commit or copy"
    except StoreError as error:
        if now := not_now(error, store / paths.seal):
            return Finding(feature, part, now)
        remedy = _remedy(store, part)
        problem = "never committed (an interrupted write)" if remedy == "delete" else "does not belong here"
    return Finding(feature, part, problem, leftover=True, remedy=remedy, paths=paths.removal[1:])


def _remedy(store: Path, part: str) -> Literal["move", "delete"]:
    """For what has no index table: delete what an interrupted write left, not what an interrupted repair or others did."""
    begun = any((store / "damaged" / "index").glob(f"*/{part}.parquet*")) if _OWN_NAME.fullmatch(part) else True
    return "move" if begun else "delete"


def _leftovers(store: Path, known: set[str], facts: list[str]) -> Iterator[Finding]:
    """What belongs to no part that is committed."""
    for part in facts:
        if part not in known:
            problem = "its facts were written, its frames never committed"
            paths = (layout.PartFiles("", part).facts,)
            yield Finding("", part, problem, leftover=True, remedy=_remedy(store, part), paths=paths)
    if (store / "incoming").exists():
        problem = "parts of an interrupted pull or merge; the same command goes on"
        yield Finding("", "", problem, leftover=True, remedy="delete", paths=("incoming",))
    group, index = layout.group_dir(store), store / "index"
    tables = [layout.utterances_dir(store), store / layout.CHANGES, *(p for p in sorted(index.glob("*")) if p.is_dir())]
    books = store / layout.CODEBOOKS
    groups = [group, *(p for p in sorted(group.glob("*")) if p.is_dir())]
    kinds = (*((f, "*.parquet") for f in tables), *((f, "zarr.json") for f in groups), (books, "*.safetensors"))
    for folder, belongs in kinds:
        for path in sorted(folder.glob("*")):
            if path.is_file() and not path.match(belongs) and not temporary(path):
                yield stray(store, path)
    for path in sorted((store / "failures").glob("[!.]*.jsonl")):
        if not _is_failures(path):
            yield stray(store, path, "damaged: expected JSON objects with the keys feature and id")
    for path in (*(p for f in (*tables, books, store / "failures") for p in sorted(f.glob(".*"))), *files_below(group)):
        if temporary(path):
            yield stray(store, path, "a temporary file of an interrupted write", "delete")


def _is_failures(path: Path) -> bool:
    try:
        return None not in failures.read_entries(path)
    except FileNotFoundError:
        return True  # somebody has just gathered it
