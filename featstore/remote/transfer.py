"""push and pull: a store copied part by part.

The far side holds the same files as a local store. A part's index table goes there last, so what is there opens as
whole at any moment; ``listing.json``, which names every file, is for web servers, which cannot list.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from featstore.files import sync
from featstore.remote.client import LISTING, TOPS, TRANSFERS, Remote, first_line
from featstore.store import layout, lock, metadata
from featstore.store.layout import FingerprintMismatch, StoreError
from featstore.store.reader import Store
from featstore.types import FeatureSpec
from featstore.upkeep.verify import Report, check_part


@dataclass
class Transfer:
    """What a push or pull moved."""

    parts: int = 0
    parts_there: int = 0
    bytes: int = 0
    seconds: float = 0.0


def part_files(files: dict[str, int], feature: str, part: str) -> dict[str, int]:
    """The files of a part in the order of a commit: chunks, metadata, facts, seal, index."""
    folder = f"features.zarr/{feature}/{part}/"
    own = sorted(
        (p for p in files if p.startswith(folder)), key=lambda p: (p == f"{folder}zarr.json", "/c/" not in p, p)
    )
    order = [*own[:-1], f"utterances/{part}.parquet", *own[-1:], f"index/{feature}/{part}.parquet"]
    return {path: files[path] for path in order if path in files}


def committed(files: dict[str, int]) -> dict[str, list[str]]:
    """Parts by feature, as far as their index is there."""
    found: dict[str, list[str]] = {}
    for path in sorted(files):
        pieces = path.split("/")
        if len(pieces) == 3 and pieces[0] == "features.zarr" and pieces[2] == "zarr.json":
            found.setdefault(pieces[1], [])
        if len(pieces) == 3 and pieces[0] == "index" and path.endswith(".parquet") and not pieces[2].startswith("."):
            found.setdefault(pieces[1], []).append(pieces[2].removesuffix(".parquet"))
    return found


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
    _metadata(remote, there, path, here)
    have, want = committed(there), committed(here)
    with _moving(
        remote,
        [(f, p, part_files(here, f, p)) for f in specs for p in want.get(f, []) if p not in have.get(f, [])],
        progress,
    ) as (todo, transfer, moved, pool):
        transfer.parts_there = sum(map(len, want.values())) - len(todo)
        for feature, part, files in todo:
            _refuse(check_part(path, feature, part, specs[feature], {}, Report()), path)
            *first, facts, seal, index = files
            # Objects are written whole and parts never change: one of the right size is the right one.
            list(pool.map(lambda p: moved(p, there.get(p) != here[p] and remote.upload(p, path / p)), first))
            for file in (facts, seal, index):
                moved(file, remote.upload(file, path / file))
            transfer.parts += 1
    arrived = remote.files()
    lacking = [
        p for f in specs for part in want[f] for p, n in part_files(here, f, part).items() if arrived.get(p) != n
    ]
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
    specs = remote_specs(remote, there)
    for spec in specs.values():
        metadata.create(path, spec)
    if not specs:
        return Transfer()
    with lock.hold(path, alone=True):  # two pulls would share `incoming`
        have = committed(local_files(path))
        want = committed(there)
        incoming = path / "incoming"
        for leftover in incoming.glob(".*.tmp"):
            leftover.unlink()
        with _moving(
            remote,
            [(f, p, part_files(there, f, p)) for f in specs for p in want[f] if p not in have.get(f, [])],
            progress,
        ) as (todo, transfer, moved, pool):
            transfer.parts_there = sum(map(len, want.values())) - len(todo)
            for feature, part, files in todo:
                list(pool.map(lambda p: moved(p, remote.download(p, incoming / p, there[p], incoming)), files))
                finding = check_part(incoming, feature, part, specs[feature], {}, Report())
                if finding:
                    shutil.rmtree(layout.feature_dir(incoming, feature) / part, ignore_errors=True)
                    for table in (layout.utterances_dir(incoming), layout.index_dir(incoming, feature)):
                        (table / f"{part}.parquet").unlink(missing_ok=True)
                _refuse(finding, url)
                _take_in(incoming, path, feature, part)
                transfer.parts += 1
        shutil.rmtree(incoming, ignore_errors=True)
        return transfer


def remote_specs(remote: Remote, files: dict[str, int]) -> dict[str, FeatureSpec]:
    """Specs of the features at an address, by name.

    Raises
    ------
    StoreError : no store there, another version, or metadata that was edited.
    """
    if "features.zarr/zarr.json" not in files:
        raise StoreError(f"{remote.url}: no store there (no features.zarr/zarr.json)")
    root = _attributes(remote, "features.zarr/zarr.json")
    if root.get("whowhen_store") != layout.VERSION:
        raise StoreError(f"{remote.url}: a store of version {root.get('whowhen_store')!r}, expected {layout.VERSION}")
    specs = {}
    for name in committed(files):
        attributes = _attributes(remote, f"features.zarr/{name}/zarr.json")
        try:
            spec = FeatureSpec.from_json(attributes["spec"])
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"{remote.url}: feature {name!r} has no spec ({first_line(error)})") from None
        if spec.name != name or spec.fingerprint != attributes.get("fingerprint"):
            raise StoreError(f"{remote.url}: the spec of feature {name!r} was edited")
        specs[name] = spec
    return specs


def _attributes(remote: Remote, path: str) -> dict[str, Any]:
    try:
        attributes = json.loads(remote.read(path, metadata.MAX_JSON_BYTES))["attributes"]
        return dict(attributes)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{remote.url}/{path}: not a group's metadata ({first_line(error)})") from None


def _metadata(remote: Remote, there: dict[str, int], store: Path, here: dict[str, int]) -> None:
    """Write the root's and features' zarr.json where they are not there; refuse other features under these names."""
    for path in sorted(
        p for p in here if p.startswith("features.zarr/") and p.endswith("zarr.json") and p.count("/") < 3
    ):
        data = (store / path).read_bytes()
        if path not in there:
            remote.upload(path, data)
        elif remote.read(path, metadata.MAX_JSON_BYTES) != data:
            raise FingerprintMismatch(
                f"{remote.url}/{path}: holds another feature or version than {store}; push to another address"
            )


@contextmanager
def _moving(
    remote: Remote, todo: list[tuple[str, str, dict[str, int]]], progress: Callable[[int, int], None]
) -> Iterator[tuple[Any, Transfer, Callable[[str, int], None], ThreadPoolExecutor]]:
    """Count what moves; threads that stop with the first error."""
    transfer, began = Transfer(), time.monotonic()
    sizes = {p: size for _, _, files in todo for p, size in files.items()}
    of, done = sum(sizes.values()), 0
    progress(0, of)

    def moved(path: str, count: int) -> None:
        nonlocal done
        transfer.bytes += count
        transfer.seconds = time.monotonic() - began
        done += sizes[path]
        progress(done, of)

    pool = ThreadPoolExecutor(TRANSFERS)
    try:
        yield todo, transfer, moved, pool
    except BaseException:
        remote.stopped = True
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        transfer.seconds = time.monotonic() - began


def _take_in(incoming: Path, store: Path, feature: str, part: str) -> None:
    """Move a verified part into the store, its index last."""
    folder = layout.feature_dir(incoming, feature) / part
    for root, _, _ in os.walk(folder):
        sync(Path(root))
    target = layout.feature_dir(store, feature) / part
    if target.exists():  # left by a kill between these lines
        shutil.rmtree(target)
    os.replace(folder, target)
    sync(target.parent)
    for table in (layout.utterances_dir, partial(layout.index_dir, feature=feature)):
        os.replace(table(incoming) / f"{part}.parquet", table(store) / f"{part}.parquet")
        sync(table(store))


def _refuse(finding: Any, where: object) -> None:
    if finding:
        raise StoreError(f"{where}: part {finding.feature}/{finding.part} is damaged: {finding.problem}")
