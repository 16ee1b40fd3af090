"""The files under an address: a bucket, a web server, or a folder that one serves."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from featstore.files import naming
from featstore.remote.endpoint import endpoint
from featstore.store import layout
from featstore.store.layout import StoreError

T = TypeVar("T")


LISTING = "listing.json"


#: Files moved at once, pieces of a file that go up at once, and the bytes of a crop asked for at a time.
TRANSFERS, UPLOADS, PIECE_BYTES = 4, 2, 8 << 20


#: Bytes of a file between two looks at whether to stop, as it comes and as it goes (the least that S3 takes for a part).
_SIP_BYTES, _PART_BYTES = 128 << 10, 5 << 20


#: Requests that fail with a server error, a reset or a time-out are repeated; so is what fails half-way, as a whole. A
#: server that is silent so long has gone: on a line of 0.3 MB/s the pieces of all files take less to go up. A whole file
#: may take an hour to come.
RETRIES, RETRY_S, ATTEMPTS, SILENCE_S, REQUEST_S = 8, 300.0, 4, 120.0, 3600.0


#: Where a cloud's own machines get their credentials, at Amazon, Google and Azure.
_MACHINE_ROLE = "169.254.169.254"


#: A listing names nine files a part, in 100 to 160 bytes each: 20,000 parts take at most 30 MB. JSON may take ten times
#: its bytes in memory, and more than twice what we need is not ours.
MAX_LISTING_BYTES = 64 << 20


TOPS = tuple(f"{top}/" for top in (layout.GROUP, layout.INDEX, layout.UTTERANCES, layout.CHANGES, layout.CODEBOOKS))


_SAFE = re.compile(r"[\w.+~ -]+(/[\w.+~ -]+)*")


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
        #: The S3 server that the environment names; "" for Amazon's.
        self.endpoint = endpoint() if url.startswith("s3:") else ""
        #: Set to end what is under way.
        self.stopped = False
        #: Called, from any thread, with a file's path and the bytes of it that have come or gone.
        self.told: Callable[[str, int], None] = lambda path, count: None
        self._pool = ThreadPoolExecutor(TRANSFERS)  # without threads until something large is read
        settings: dict[str, Any] = {
            "client_options": {
                "allow_http": url.startswith("http://") or self.endpoint.startswith("http://"),
                "timeout": timedelta(seconds=REQUEST_S),
                "read_timeout": timedelta(seconds=SILENCE_S),
            },
            "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
        }
        if self.endpoint:
            settings["config"] = {"endpoint": self.endpoint}
        try:
            if url.startswith("file:"):
                self._store = from_url(url, mkdir=make)
            else:
                # A plain web server whatever its name; obstore takes some names for a storage service.
                self._store = (HTTPStore.from_url if self.web else from_url)(url, **settings)
        except (obstore.exceptions.BaseError, ValueError, OSError) as error:
            if url.startswith("file:") and not make:
                raise StoreError(f"{url}: no such folder; check the address, or push a store there first") from None
            raise StoreError(f"{url}: not an address of a store: {first_line(error)}") from None

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return type(self), (self.url,)

    def _call(self, path: str, action: Callable[[], T]) -> T:
        errors = self._obstore.exceptions
        where = f"{self.url}/{path}"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except (FileNotFoundError, errors.NotFoundError):
                raise StoreError(f"{where}: not there") from None
            except (PermissionError, errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
                raise StoreError(f"{where}: access refused ({first_line(error)})") from None
            except errors.NotSupportedError:
                raise StoreError(
                    f"{where}: this server ignores Range requests, and reading frames at a distance needs them; copy "
                    f"the store: featstore pull {self.url} STORE"
                ) from None
            except (errors.BaseError, OSError) as error:
                # obstore has classes for what becomes of a file, but says only in words why a listing failed, and
                # that it found no credentials and asked the machine for some.
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise  # of the disk that is written to here, at which no server is to blame
                if _MACHINE_ROLE in str(error):
                    raise StoreError(
                        f"{self.url}: no credentials in the environment; s3:// needs AWS_ACCESS_KEY_ID and "
                        "AWS_SECRET_ACCESS_KEY, and where it is not Amazon's AWS_ENDPOINT_URL"
                    ) from None
                status = (re.search(r"status code: (\d{3})", str(error)) or ["", ""])[1]
                if status == "404" and not path:
                    raise StoreError(
                        f"{self.url}: no such bucket there; make it first, or check AWS_ENDPOINT_URL"
                    ) from None
                if status in ("401", "403"):
                    raise StoreError(f"{where}: access refused ({first_line(error)})") from None
                if attempt == ATTEMPTS or self.stopped:
                    raise StoreError(
                        f"{where}: given up after {attempt} attempts ({first_line(error)}); is the address right, and the "
                        "server there?"
                    ) from None
                time.sleep(0.2 * 2**attempt)
            except BaseException as error:
                if type(error).__name__ != "PanicException":  # of obstore's: no Exception, and in no module to import
                    raise
                raise StoreError(
                    f"{where}: obstore failed ({first_line(error)}); check the address and the AWS_… variables"
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
        def get() -> bytes:
            data = bytes(self._obstore.get_range(self._store, path, start=start, end=end))
            if len(data) != end - start:
                raise OSError(f"{len(data)} of {end - start} bytes came")
            return data

        return self._call(path, get)

    def download(self, path: str, target: Path, size: int, scratch: Path) -> int:
        """A file to `target`, synced; one that is there in the right size stays. Returns the bytes moved.

        What is under way lies in the folder `scratch`, so that nothing half is ever beside the files of a part. Other
        processes may do the same at the same time.

        Raises
        ------
        StoreError : not there, not of `size` bytes, or not to be had after several attempts.
        """
        with suppress(FileNotFoundError):
            if target.stat().st_size == size:
                return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = scratch / f".{os.urandom(8).hex()}.tmp"
        try:
            with naming(target), open(temporary, "wb") as file:
                self._call(path, lambda: self._receive(path, size, file))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def _receive(self, path: str, size: int, file: BinaryIO) -> None:
        """A whole file, sip by sip, so that a stop is quick; where the line broke before, only what is missing."""
        get = partial(self._obstore.get, self._store, path)
        try:
            found = get(options={"range": (file.tell(), size)}) if file.tell() else get()
        except self._obstore.exceptions.NotSupportedError:  # a whole file comes from any server
            file.seek(0)
            file.truncate()
            found = get()
        if found.meta["size"] != size:
            raise StoreError(f"{self.url}/{path}: {found.meta['size']} bytes, expected {size}; not read")
        for sip in found.stream(_SIP_BYTES):
            file.write(sip)
            self._moved(path, file.tell())
        if file.tell() != size:
            raise OSError(f"{file.tell()} of {size} bytes came")

    def upload(self, path: str, data: bytes | Path) -> int:
        """Write a file, whole or not at all. Returns the bytes moved."""
        size = data.stat().st_size if isinstance(data, Path) else len(data)

        def pieces() -> Iterator[bytes]:
            with open(data, "rb") as file:
                while piece := file.read(_PART_BYTES):
                    yield piece
                    self._moved(path, file.tell())

        def put() -> None:
            what = pieces() if isinstance(data, Path) and size > _PART_BYTES else data
            self._obstore.put(self._store, path, what, chunk_size=_PART_BYTES, max_concurrency=UPLOADS)

        self._call(path, put)
        return size

    def _moved(self, path: str, count: int) -> None:
        self.told(path, count)
        if self.stopped:
            raise StoreError(f"{self.url}/{path}: stopped")

    def files(self) -> dict[str, int]:
        """Bytes of every file by path.

        Raises
        ------
        StoreError : there is no store, or its listing names files outside of it.
        """
        if not self.web:

            def get() -> dict[str, int]:
                everything = chain.from_iterable(self._obstore.list(self._store))
                return {m["path"]: m["size"] for m in everything if m["path"].startswith(TOPS)}

            found = self._call("", get)
        else:
            try:
                found = json.loads(self.read(LISTING, MAX_LISTING_BYTES))["files"]
                found = {path: size for path, size in found.items() if path.startswith(TOPS)}
            except StoreError as error:
                missing = f"; a web server's store needs the {LISTING} that featstore push writes"
                raise StoreError(f"{error}{missing if str(error).endswith('not there') else ''}") from None
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise StoreError(f"{self.url}/{LISTING}: not a listing ({first_line(error)})") from None
        for path, size in found.items():
            if not _SAFE.fullmatch(path) or ".." in path.split("/") or not isinstance(size, int) or size < 0:
                raise StoreError(f"{self.url}: {path!r}, {size!r} bytes, is no file of a store")
        return found


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
