"""Pieces of files at an address, kept in memory: what many crops share is fetched once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from featstore.remote.client import Remote
from featstore.store.layout import StoreError

#: Bytes fetched at a time: a 90 s crop of Mimi's frames is a little more than one.
BLOCK_BYTES = 1 << 20


class Blocks:
    """Pieces of remote files, fetched once, side by side, and kept as long as `limit` bytes allow."""

    def __init__(self, remote: Remote, files: dict[str, int], limit: int) -> None:
        self.remote, self.files, self.limit = remote, files, limit
        self.held = 0
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._coming: dict[tuple[str, int], Future[bytes]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[Blocks], tuple[Remote, dict[str, int], int]]:
        return type(self), (self.remote, self.files, self.limit)

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises
        ------
        StoreError : it is not there.
        """
        size = self.files.get(path)
        if size is None:
            raise StoreError(f"{self.remote.url}/{path}: the chunk is missing; push the store again")
        return size

    def read(
        self,
        path: str,
        start: int,
        stop: int,
        block_bytes: int = 0,
        check: Callable[[bytes], None] = lambda data: None,
    ) -> memoryview:
        """Bytes ``start:stop`` of a file, in blocks of `block_bytes` (0: of `BLOCK_BYTES`), each of which passes `check` when it comes.

        Threads that want the same block wait for one request.
        """
        size = self.size(path)
        if stop > size:
            raise StoreError(f"{self.remote.url}/{path}: expected at least {stop} bytes, found {size}; push it again")
        if os.getpid() != self._process:  # the connection's threads have stayed behind
            raise StoreError(
                f"{self.remote.url}: opened before this process was forked; open it in the process itself; a "
                "DataLoader's workers: multiprocessing_context='spawn'"
            )
        block_bytes = block_bytes or BLOCK_BYTES
        numbers = range(start // block_bytes, -(-stop // block_bytes))
        pieces: dict[int, bytes] = {}
        mine: list[int] = []
        others: dict[int, Future[bytes]] = {}
        with self._lock:
            for n in numbers:
                key = (path, n)
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    pieces[n] = self._blocks[key]
                elif key in self._coming:
                    others[n] = self._coming[key]
                else:
                    mine.append(n)
                    self._coming[key] = Future()
        if mine:
            pieces |= self._fetch(path, mine, size, block_bytes, check)
        pieces |= {n: future.result() for n, future in others.items()}
        views = [memoryview(pieces[n])[max(start - n * block_bytes, 0) : stop - n * block_bytes] for n in numbers]
        return views[0] if len(views) == 1 else memoryview(b"".join(views))

    def hold(self, path: str, start: int, stop: int, block_bytes: int = 0) -> bool:
        """Whether `read` has all of these bytes here already."""
        size = block_bytes or BLOCK_BYTES
        return all((path, n) in self._blocks for n in range(start // size, -(-stop // size)))

    def _fetch(
        self, path: str, numbers: list[int], size: int, block_bytes: int, check: Callable[[bytes], None]
    ) -> dict[int, bytes]:
        starts = [n * block_bytes for n in numbers]
        try:
            found = self.remote.ranges(path, starts, [min(s + block_bytes, size) for s in starts])
            for data in found:
                check(data)
        except BaseException as error:
            with self._lock:
                for n in numbers:
                    self._coming.pop((path, n)).set_exception(error)
            raise
        with self._lock:
            for n, data in zip(numbers, found, strict=True):
                self._coming.pop((path, n)).set_result(data)
                self._blocks[path, n] = data
                self.held += len(data)
            while self.held > self.limit and self._blocks:
                self.held -= len(self._blocks.popitem(last=False)[1])
        return dict(zip(numbers, found, strict=True))
