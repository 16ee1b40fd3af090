"""A store on S3-compatible storage or behind a web server: push and pull. Reading crops from there: `remote_store`.

The far side holds the same files as a local store. A part's index table goes there last, so what is there opens as
whole at any moment; ``listing.json``, which names every file, is for web servers, which cannot list.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from featstore import layout
from featstore.integrity import Report, check_part
from featstore.layout import FingerprintMismatch, StoreError
from featstore.store import Store
from featstore.types import FeatureSpec

T = TypeVar("T")
LISTING = "listing.json"
#: Files moved at once; pieces of a file that go out at once; and the bytes asked for at a time. Together with the
#: time-out, a line of 0.3 MB/s is fast enough.
TRANSFERS, UPLOADS, PIECE_BYTES = 4, 2, 8 << 20
#: Bytes of a piece between two looks at whether to stop.
_SIP_BYTES = 128 << 10
#: Requests that fail with a server error, a reset or a time-out are repeated; so is what fails half-way, as a whole.
RETRIES, RETRY_S, ATTEMPTS, TIMEOUT_S = 8, 300.0, 4, 120.0
#: Where a cloud's own machines get their credentials, at Amazon, Google and Azure.
_MACHINE_ROLE = "169.254.169.254"
#: A listing names nine files a part, in 100 to 160 bytes each: 20,000 parts take at most 30 MB. JSON may take ten times
#: its bytes in memory, and more than twice what we need is not ours.
MAX_LISTING_BYTES = 64 << 20
_URL = re.compile(r"(s3|gs|az|https?|file):/+")
_TOPS = ("features.zarr/", "index/", "utterances/")
_SAFE = re.compile(r"[\w.+~ -]+(/[\w.+~ -]+)*")


@dataclass
class Transfer:
    """What a push or pull moved."""

    parts: int = 0
    parts_there: int = 0
    bytes: int = 0
    seconds: float = 0.0


def as_url(path: str | PathLike[str]) -> str | None:
    """`path` as the address of a remote store, or None; also where pathlib made ``s3:/bucket`` of ``s3://bucket``."""
    text = os.fspath(path)
    found = _URL.match(text)
    slashes = "///" if found and found[1] == "file" else "//"
    return f"{found[1]}:{slashes}{text[found.end() :].rstrip('/')}" if found else None


class Remote:
    """The files under an address. Credentials, region and endpoint come from the usual variables (AWS_… and so on).

    Parameters
    ----------
    make : make the folder of a ``file:///…`` address where it is not there.

    Raises
    ------
    StoreError : obstore is not installed, or the address or a variable makes no sense.
    """

    def __init__(self, url: str, *, make: bool = False) -> None:
        try:
            import obstore
            from obstore.store import HTTPStore, from_url
        except ModuleNotFoundError:
            raise StoreError(
                f"{url}: needs obstore, which is not installed; where whowhen was cloned: pip install -e '.[remote]'"
            ) from None
        if found := re.search("[#?]", url):  # obstore drops what follows, so that two addresses would be one store
            raise StoreError(f"{url}: an address cannot hold {found[0]!r}; choose another name")
        self.url = url
        self._obstore = obstore
        self.web = url.startswith("http")
        endpoints = _check_variables() if url.startswith("s3:") else []
        #: Set to end what is under way.
        self.stopped = False
        self._pool = ThreadPoolExecutor(TRANSFERS)  # without threads until something large is read
        settings: dict[str, Any] = {
            "client_options": {
                "allow_http": any(address.startswith("http://") for address in [url, *endpoints]),
                "timeout": timedelta(seconds=TIMEOUT_S),
            },
            "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
        }
        try:
            if url.startswith("file:"):
                self._store = from_url(url, mkdir=make)
            else:
                # A plain web server whatever its name; obstore takes some names for a storage service.
                self._store = (HTTPStore.from_url if self.web else from_url)(url, **settings)
        except (obstore.exceptions.BaseError, ValueError, OSError) as error:
            raise StoreError(f"{url}: not an address of a store: {_first_line(error)}") from None

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return type(self), (self.url,)

    def _call(self, path: str, action: Callable[[], T]) -> T:
        errors = self._obstore.exceptions
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except (FileNotFoundError, errors.NotFoundError):
                raise StoreError(f"{self.url}/{path}: not there") from None
            except (PermissionError, errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
                raise StoreError(f"{self.url}/{path}: access refused ({_first_line(error)})") from None
            except (errors.BaseError, OSError) as error:
                if _MACHINE_ROLE in str(error):  # asked where it found no keys; only a cloud's own machines answer
                    raise StoreError(
                        f"{self.url}: no credentials in the environment; s3:// needs AWS_ACCESS_KEY_ID and "
                        "AWS_SECRET_ACCESS_KEY, and where it is not Amazon's AWS_ENDPOINT_URL"
                    ) from None
                if "NoSuchBucket" in str(error):
                    raise StoreError(
                        f"{self.url}: no such bucket there; make it first, or check AWS_ENDPOINT_URL"
                    ) from None
                if re.search(r"status code: 40[13]\b", str(error)):  # so a listing is refused
                    raise StoreError(f"{self.url}/{path}: access refused ({_first_line(error)})") from None
                if attempt == ATTEMPTS or self.stopped:
                    raise StoreError(
                        f"{self.url}/{path}: given up after {attempt} attempts ({_first_line(error)})"
                    ) from None
                time.sleep(0.2 * 2**attempt)
            except BaseException as error:
                if type(error).__name__ != "PanicException":  # obstore's, and no Exception
                    raise
                raise StoreError(
                    f"{self.url}/{path}: obstore failed ({_first_line(error)}); check the address and the AWS_… variables"
                ) from None
        raise AssertionError

    def read(self, path: str, limit: int | None = None) -> bytes:
        """A whole file.

        Raises
        ------
        StoreError : not there, larger than `limit`, or not to be had after several attempts.
        """

        def get() -> bytes:
            found = self._obstore.get(self._store, path)
            if limit is not None and found.meta["size"] > limit:
                raise StoreError(f"{self.url}/{path}: {found.meta['size']} bytes, expected at most {limit}; not read")
            data = bytes(found.bytes())
            if len(data) != found.meta["size"]:
                raise OSError(f"{len(data)} of {found.meta['size']} bytes came")
            return data

        return self._call(path, get)

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Pieces ``start:end`` of a file, fetched side by side, at most PIECE_BYTES a request."""
        if sum(ends) - sum(starts) > PIECE_BYTES:
            spans = list(zip(starts, ends, strict=True))
            cuts = [(at, min(at + PIECE_BYTES, end)) for start, end in spans for at in range(start, end, PIECE_BYTES)]
            came = self._pool.map(lambda cut: self._piece(path, *cut), cuts)
            return [b"".join(islice(came, -(-(end - start) // PIECE_BYTES))) for start, end in spans]

        def get() -> list[bytes]:
            pieces = [bytes(p) for p in self._obstore.get_ranges(self._store, path, starts=starts, ends=ends)]
            if [len(p) for p in pieces] != [b - a for a, b in zip(starts, ends, strict=True)]:
                raise OSError("fewer bytes came than were asked for")
            return pieces

        return self._call(path, get)

    def _piece(self, path: str, start: int, end: int) -> bytes:
        """Bytes ``start:end`` of a file, sip by sip, so that a stop is quick on a slow line too."""

        def get() -> bytes:
            data = bytearray()
            for sip in self._obstore.get(self._store, path, options={"range": (start, end)}).stream(_SIP_BYTES):
                data += sip
                if self.stopped:
                    raise StoreError(f"{self.url}/{path}: stopped")
            if len(data) != end - start:
                raise OSError(f"{len(data)} of {end - start} bytes came")
            return bytes(data)

        return self._call(path, get)

    def download(self, path: str, target: Path, size: int, scratch: Path) -> int:
        """A file to `target`, synced; one that is there in the right size stays. Returns the bytes moved.

        What is under way lies in the folder `scratch`, so that nothing half is ever beside the files of a part.
        """
        if target.exists() and target.stat().st_size == size:
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = scratch / f".{os.urandom(8).hex()}.tmp"
        try:
            with open(temporary, "wb") as file:
                for start in range(0, size, PIECE_BYTES):
                    file.write(self._piece(path, start, min(start + PIECE_BYTES, size)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def upload(self, path: str, data: bytes | Path) -> int:
        """Write a file, whole or not at all. Returns the bytes moved."""
        self._call(path, lambda: self._obstore.put(self._store, path, data, max_concurrency=UPLOADS))
        return data.stat().st_size if isinstance(data, Path) else len(data)

    def files(self) -> dict[str, int]:
        """Bytes of every file by path.

        Raises
        ------
        StoreError : there is no store, or its listing names files outside of it.
        """
        if not self.web:

            def get() -> dict[str, int]:
                everything = chain.from_iterable(self._obstore.list(self._store))
                return {m["path"]: m["size"] for m in everything if m["path"].startswith(_TOPS)}

            found = self._call("", get)
        else:
            try:
                found = json.loads(self.read(LISTING, MAX_LISTING_BYTES))["files"]
                found = {path: size for path, size in found.items() if path.startswith(_TOPS)}
            except StoreError as error:
                raise StoreError(
                    f"{error}; a web server's store needs the {LISTING} that featstore push writes"
                ) from None
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise StoreError(f"{self.url}/{LISTING}: not a listing ({_first_line(error)})") from None
        for path, size in found.items():
            if not _SAFE.fullmatch(path) or ".." in path.split("/") or not isinstance(size, int) or size < 0:
                raise StoreError(f"{self.url}: {path!r}, {size!r} bytes, is no file of a store")
        return found


def _check_variables() -> list[str]:
    """The addresses among the AWS_… variables; refuses what obstore, which reads them by itself, would fail over.

    Raises
    ------
    StoreError
    """
    endpoints = []
    for name, value in [item for item in os.environ.items() if item[0].startswith("AWS_")]:
        if re.search(r"[\x00-\x1f\x7f]", value):
            raise StoreError(f"{name}: holds a control character (a line break?); set it again without")
        if name.startswith("AWS_ENDPOINT") and not value:
            del os.environ[name]  # means unset; obstore would take it for an address
        elif name.startswith("AWS_ENDPOINT"):
            if not re.fullmatch(r"https?://[!-~]+", value):
                raise StoreError(f"{name}: expected http://HOST:PORT or https://HOST, found {value!r}")
            endpoints.append(value)
    return endpoints


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


# ---- what belongs to a part


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
        for top in _TOPS
        for path in (store / top).rglob("*")
        if path.is_file()
    }


# ---- push and pull


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
        layout.create(path, spec)
    if not specs:
        return Transfer()
    with layout.hold(path, alone=True):  # two pulls would share `incoming`
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
            raise StoreError(f"{remote.url}: feature {name!r} has no spec ({_first_line(error)})") from None
        if spec.name != name or spec.fingerprint != attributes.get("fingerprint"):
            raise StoreError(f"{remote.url}: the spec of feature {name!r} was edited")
        specs[name] = spec
    return specs


def _attributes(remote: Remote, path: str) -> dict[str, Any]:
    try:
        attributes = json.loads(remote.read(path, layout.MAX_JSON_BYTES))["attributes"]
        return dict(attributes)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{remote.url}/{path}: not a group's metadata ({_first_line(error)})") from None


def _metadata(remote: Remote, there: dict[str, int], store: Path, here: dict[str, int]) -> None:
    """Write the root's and features' zarr.json where they are not there; refuse other features under these names."""
    for path in sorted(
        p for p in here if p.startswith("features.zarr/") and p.endswith("zarr.json") and p.count("/") < 3
    ):
        data = (store / path).read_bytes()
        if path not in there:
            remote.upload(path, data)
        elif remote.read(path, layout.MAX_JSON_BYTES) != data:
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
        layout.sync(Path(root))
    target = layout.feature_dir(store, feature) / part
    if target.exists():  # left by a kill between these lines
        shutil.rmtree(target)
    os.replace(folder, target)
    layout.sync(target.parent)
    for table in (layout.utterances_dir, partial(layout.index_dir, feature=feature)):
        os.replace(table(incoming) / f"{part}.parquet", table(store) / f"{part}.parquet")
        layout.sync(table(store))


def _refuse(finding: Any, where: object) -> None:
    if finding:
        raise StoreError(f"{where}: part {finding.feature}/{finding.part} is damaged: {finding.problem}")
