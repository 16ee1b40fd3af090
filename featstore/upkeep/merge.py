"""merge: the parts of several stores in one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pyarrow.compute as pc

from featstore import files
from featstore.store import layout, lock, metadata
from featstore.store.changes import name_changes, read_change
from featstore.store.check import check_part, files_below
from featstore.store.codebooks import has_codebooks, write_codebooks
from featstore.store.commit import move_part
from featstore.store.layout import FingerprintMismatch, StoreError
from featstore.store.reader import Store
from featstore.store.writer import FACTS
from featstore.types import FeatureSpec


@dataclass
class Merged:
    """Parts copied, parts that were there already, bytes copied, and the utterances that there are then."""

    parts: int = 0
    parts_there: int = 0
    bytes: int = 0
    utterances: int = 0


def merge(
    stores: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Merged:
    """Copy the parts of several stores, and what was put right in them, into one, which may be there already.

    Each part is verified before it is copied; a kill loses nothing, and the same call goes on. What stands in two stores
    is kept once: by the first part that holds it.

    Parameters
    ----------
    progress : called with (parts done, parts in all).

    Raises
    ------
    FingerprintMismatch : two stores hold different features under a name.
    StoreError : not a store, damaged, something else is at work in it, or an id has other labels in another store. Nothing
        was copied then, unless a part is damaged.
    OSError : no space, no permission.
    """
    target = Path(out)
    sources = [path for path in map(Path, stores) if path.resolve() != target.resolve()]
    with ExitStack() as held:
        for path in sources:
            metadata.check_version(path)
            held.enter_context(lock.hold(path))
        opened = [Store(path) for path in sources]
        specs = _specs([*([Store(target)] if (target / layout.ROOT).exists() else []), *opened])
        for spec in specs.values():
            metadata.create(target, spec)
        for store in opened:
            for name in filter(lambda name: has_codebooks(specs[name]), store.features):
                write_codebooks(target, specs[name], store.codebooks(name))
        held.enter_context(lock.hold(target, alone=True))
        done = Merged()
        # Before the parts: a change says nothing of a part that is not there, and a part must not come without it.
        _copy_changes(sources, target)
        work = [
            (store, name, part) for store in opened for name in store.features for part in store.index(name).part_names
        ]
        for number, (store, name, part) in enumerate(work):
            progress(number, len(work))
            if (target / layout.PartFiles(name, part).index).exists():
                done.parts_there += 1
                continue
            done.bytes += _copy_part(store, target, name, part)
            done.parts += 1
        progress(len(work), len(work))
        shutil.rmtree(target / "incoming", ignore_errors=True)
        done.utterances = len(Store(target))
        return done


def _specs(stores: Sequence[Store]) -> dict[str, FeatureSpec]:
    """Specs of all features by name, once it is known that the stores do not contradict each other."""
    specs: dict[str, tuple[FeatureSpec, Store]] = {}
    for number, store in enumerate(stores):
        for name, spec in store.features.items():
            there, where = specs.setdefault(name, (spec, store))
            if there.fingerprint != spec.fingerprint:
                what = (
                    metadata.difference(there, spec)
                    .replace("this extractor", str(store.path))
                    .partition("; appending")[0]
                )
                raise FingerprintMismatch(
                    f"feature {name!r} in {where.path} {what}; one store cannot hold both. Extract one of them again"
                )
        for other in stores[:number]:
            _refuse_other_labels(other, store)
    return {name: spec for name, (spec, _) in specs.items()}


def _refuse_other_labels(a: Store, b: Store) -> None:
    at = pc.index_in(b.utterances["id"], value_set=a.utterances["id"].combine_chunks())
    both = pc.is_valid(at)
    theirs, ours = b.utterances.filter(both), a.utterances.take(at.filter(both))
    for name in FACTS:
        if ours[name].combine_chunks().equals(theirs[name].combine_chunks()):
            continue
        for id, was, now in zip(*(c.to_pylist() for c in (ours["id"], ours[name], theirs[name])), strict=True):
            if (was or None) != (now or None):
                raise StoreError(
                    f"utterance {id!r} has {name} {str(was)[:80]!r} in {a.path} and {str(now)[:80]!r} in {b.path}; one id "
                    "must mean one utterance: featstore relabel one of the stores, or extract with other utt_ids"
                )


def _copy_changes(sources: Sequence[Path], target: Path) -> None:
    names = set(metadata.check_version(target))
    for source in sources:
        for name in metadata.check_version(source):
            if name not in names:
                read_change(source, name)
                path = layout.change_path(name)
                (target / path).parent.mkdir(exist_ok=True)
                files.write_atomically(target / path, (source / path).read_bytes())
                names.add(name)
    files.sync(target)
    name_changes(target, names)


def _copy_part(store: Store, target: Path, feature: str, part: str) -> int:
    for finding in check_part(store.path, feature, part, store.features[feature]).findings:
        raise StoreError(f"{finding.problem}; run: featstore verify {store.path} --repair")
    paths, size = layout.PartFiles(feature, part), 0
    inside = [path.relative_to(store.path).as_posix() for path in files_below(store.path / paths.folder)]
    for name in paths.in_order(inside):
        copy = target / "incoming" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.path / name, copy)
        files.sync(copy)
        size += copy.stat().st_size
    move_part(target / "incoming", target, feature, part)
    return size
