"""push and pull: a store copied part by part.

The far side holds the same files as a local store. A part's index table goes there last, so what is there opens as
whole at any moment; ``listing.json``, which names every file, is for web servers, which cannot list.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from featstore.remote.client import LISTING, TOPS, TRANSFERS, Remote
from featstore.remote.specs import (
    fetch_changes,
    fetch_codebooks,
    read_changes,
    read_specs,
    write_codebooks,
    write_specs,
)
from featstore.store import layout, lock, metadata
from featstore.store.changes import name_changes
from featstore.store.check import check_part
from featstore.store.commit import move_part, remove_part
from featstore.store.layout import StoreError
from featstore.store.reader import Store
from featstore.types import FeatureSpec

#: Feature → part → bytes of its files.
Parts = dict[str, dict[str, dict[str, int]]]
#: Has an action, which returns the bytes it moved, done with each path, side by side.
Move = Callable[[Callable[[str], int], Iterable[str]], None]

#: Seconds between two looks at how far the files under way are.
_LOOK_EVERY_S = 0.5


@dataclass
class Transfer:
    """What a push or pull moved."""

    parts: int = 0
    parts_there: int = 0
    bytes: int = 0
    seconds: float = 0.0


def local_files(store: Path) -> dict[str, int]:
    """Bytes of every file of a local store by path."""
    return {
        path.relative_to(store).as_posix(): path.stat().st_size
        for top in TOPS
        for path in (store / top).rglob("*")
        if path.is_file()
    }


def push(
    store: str | PathLike[str], url: str, *, progress: Callable[[int, int], None] = lambda done, of: None
) -> Transfer:
    """Copy a store to `url`, part by part; parts that are there stay. Each part is verified before it leaves.

    Parameters
    ----------
    url : ``s3://bucket/path``, ``gs://``, ``az://``, or ``file:///path`` (for a web server to serve).
    progress : called with (bytes done, bytes in all).

    Raises
    ------
    StoreError : a part is damaged; the far side cannot be reached, or is a web server, which takes no files.
    FingerprintMismatch : the far side holds another feature under a name.
    """
    path = Path(store)
    specs = Store(path).features
    remote = Remote(url, make=True)
    if remote.web:
        raise StoreError(f"{url}: a web server takes no files; push to its folder (file:///…) or to a bucket (s3://…)")
    there, here = remote.files(), local_files(path)
    write_specs(remote, there, path, specs)
    write_codebooks(remote, there, path, specs.values())
    have, want = layout.committed_in(there), layout.committed_in(here)
    with _moving(remote, have, want, progress) as (todo, transfer, move):
        for feature, part, files in todo:
            _refuse_damaged(path, feature, part, specs[feature], path)
            *first, facts, seal, index = files
            # Objects are written whole and parts never change: one of the right size is the right one.
            move(lambda p: remote.upload(p, path / p) if there.get(p) != here[p] else 0, first)
            for file in (facts, seal, index):
                move(lambda p: remote.upload(p, path / p), [file])
            transfer.parts += 1
    arrived = remote.files()
    lacking = [p for f in specs for files in want[f].values() for p, n in files.items() if arrived.get(p) != n]
    if lacking:
        raise StoreError(f"{url}/{lacking[0]}: not there in its size, nor {len(lacking) - 1} other files; push again")
    remote.upload(LISTING, json.dumps({"whowhen_store": layout.VERSION, "files": arrived}, sort_keys=True).encode())
    return transfer


def pull(
    url: str, store: str | PathLike[str], *, progress: Callable[[int, int], None] = lambda done, of: None
) -> Transfer:
    """Copy what `url` holds into a local store, part by part; each is verified before it becomes part of the store.

    Raises
    ------
    StoreError : nothing there, the far side cannot be reached, something else is at work in the local store, or what
        came is damaged (it is fetched anew next time).
    FingerprintMismatch : the store holds another feature under a name.
    """
    path, remote = Path(store), Remote(url)
    there = remote.files()
    specs = read_specs(remote, there)
    for spec in specs.values():
        metadata.create(path, spec)
        fetch_codebooks(remote, there, path, spec)
    if not specs:
        return Transfer()
    with lock.hold(path, alone=True):  # two pulls would share `incoming`
        have, want = layout.committed_in(local_files(path)), layout.committed_in(there)
        incoming = path / "incoming"
        for leftover in incoming.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        _pull_changes(remote, there, path)
        with _moving(remote, have, want, progress) as (todo, transfer, move):
            for feature, part, files in todo:
                move(lambda p: remote.download(p, incoming / p, there[p], incoming), files)
                try:
                    _refuse_damaged(incoming, feature, part, specs[feature], url)
                except StoreError:
                    remove_part(incoming, feature, part)
                    raise
                move_part(incoming, path, feature, part)
                transfer.parts += 1
        shutil.rmtree(incoming, ignore_errors=True)
        return transfer


def _pull_changes(remote: Remote, there: dict[str, int], store: Path) -> None:
    """Before the parts: a change says nothing of a part that is not there, and a part must not come without it."""
    theirs = read_changes(remote, there)
    mine = metadata.check_version(store)
    fetch_changes(remote, there, set(theirs) - set(mine), store)
    name_changes(store, {*mine, *theirs})


@contextmanager
def _moving(
    remote: Remote, have: Parts, want: Parts, progress: Callable[[int, int], None]
) -> Iterator[tuple[list[tuple[str, str, dict[str, int]]], Transfer, Move]]:
    """What is to do: feature, part, bytes of its files; the count of what is done; and how to have files moved."""
    todo = [(f, p, files) for f in want for p, files in want[f].items() if p not in have.get(f, {})]
    transfer, began = Transfer(parts_there=sum(map(len, want.values())) - len(todo)), time.monotonic()
    sizes = {p: size for _, _, files in todo for p, size in files.items()}
    of, done = sum(sizes.values()), 0
    progress(0, of)
    pool = ThreadPoolExecutor(TRANSFERS)
    under_way: dict[str, int] = {}
    remote.told = under_way.__setitem__  # by the threads

    def shown() -> None:
        progress(done + sum(list(under_way.values())), of)

    def move(action: Callable[[str], int], paths: Iterable[str]) -> None:
        nonlocal done
        for path, moving in [(path, pool.submit(action, path)) for path in paths]:  # counted here, by one thread
            while wait([moving], _LOOK_EVERY_S).not_done:
                shown()
            transfer.bytes += moving.result()
            transfer.seconds = time.monotonic() - began
            done += sizes[path]
            under_way.pop(path, None)
            shown()

    try:
        yield todo, transfer, move
    except BaseException:
        remote.stopped = True  # threads stop with the first error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        transfer.seconds = time.monotonic() - began


def _refuse_damaged(store: Path, feature: str, part: str, spec: FeatureSpec, where: object) -> None:
    for finding in check_part(store, feature, part, spec).findings:
        again = "run it again" if store != where else f"run: featstore verify {store} --repair"
        raise StoreError(f"{where}: part {feature}/{part} is damaged: {finding.problem}; {again}")
