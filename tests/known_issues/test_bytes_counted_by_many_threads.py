"""Four threads added to one count of bytes moved, without a lock, and lost some."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from featstore.remote import transfer
from featstore.store import layout
from tests.featstore.store.test_store import fill

pytest.importorskip("obstore")


class Slow(transfer.Transfer):
    """Reading `bytes` takes long enough for every other thread to read it too."""

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if name == "bytes":
            time.sleep(0.005)
        return value


def test_every_byte_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "near", count=12, part_bytes=1200)
    monkeypatch.setattr(transfer, "Transfer", Slow)
    parts = layout.committed_in(transfer.local_files(tmp_path / "near"))["mimi"]
    of = sum(size for files in parts.values() for size in files.values())
    url, seen = f"file://{tmp_path}/far", []

    def progress(moved: int, of: int) -> None:
        seen.append((moved, of))

    assert transfer.push(tmp_path / "near", url, progress=progress).bytes == of
    assert transfer.pull(url, tmp_path / "copy", progress=progress).bytes == of
    pushed = seen.index((of, of)) + 1
    for told in (seen[:pushed], seen[pushed:]):
        assert told == sorted(told) and (told[0], told[-1]) == ((0, of), (of, of))
