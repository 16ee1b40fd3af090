"""Who may be at work in a store at once."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from featstore.store.layout import ROOT, StoreError

#: How long to try. Plain `verify` holds the lock alone for a moment, to see whether anybody writes.
PATIENCE_S = 0.5


@contextmanager
def hold(store: Path, *, alone: bool = False) -> Iterator[None]:
    """Be at work in a store: any number of writers at once, or `alone`, to remove parts, nobody else.

    An advisory lock on the root's zarr.json; it ends with the process, however that ends. Who commits a change replaces
    that file while it holds the lock alone, so whoever waited meanwhile has to lock the new one. Where the disk has no
    locks nobody is kept out.

    Raises
    ------
    StoreError : somebody is at work whom this would disturb, or who would disturb this.
    """
    with ExitStack() as opened:
        try:
            while True:
                # Over NFS an exclusive lock needs a file that is open for writing.
                file = open(store / ROOT, "r+b")  # noqa: SIM115
                with ExitStack() as held:
                    held.enter_context(file)
                    _lock(file, store, alone)
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(store / ROOT)):
                        opened.enter_context(held.pop_all())
                        break
        except OSError as error:  # whoever may not write here disturbs nobody
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        yield


def _lock(file: BinaryIO, store: Path, alone: bool) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() - began < PATIENCE_S:
                time.sleep(0.02)
                continue
            who = "something else is writing to it or repairing it" if alone else "it is being repaired or compacted"
            raise StoreError(f"{store}: {who}; run this again when that is through") from None
        except OSError:  # this disk has no locks
            return
