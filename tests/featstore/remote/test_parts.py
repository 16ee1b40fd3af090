"""Reading at a distance by hand, without a server: what is kept, what is asked for again, when it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from featstore import StoreError
from featstore.remote import client
from featstore.remote.blocks import Blocks

pytest.importorskip("obstore")


class Far:
    """A file whose bytes count up, and the pieces of it that were asked for."""

    url = "far://bucket"

    def __init__(self, size: int) -> None:
        self.data, self.asked = bytes(range(size)), []

    def ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        self.asked += zip(starts, ends, strict=True)
        return [self.data[start:end] for start, end in zip(starts, ends, strict=True)]


def test_what_was_read_last_is_kept_longest() -> None:
    far = Far(45)
    blocks = Blocks(far, {"file": 45}, 20)
    for start in (0, 10, 0, 20):
        assert bytes(blocks.read("file", start + 2, start + 9, 10)) == far.data[start + 2 : start + 9]
    assert far.asked == [(0, 10), (10, 20), (20, 30)] and blocks.held == 20
    blocks.read("file", 0, 10, 10)
    assert len(far.asked) == 3  # the first was read again, so the second had to go
    assert bytes(blocks.read("file", 18, 45, 10)) == far.data[18:45]  # across blocks, to the end of the file
    assert far.asked[3:] == [(10, 20), (30, 40), (40, 45)] and blocks.held == 15


def test_a_piece_that_is_damaged_is_not_kept() -> None:
    far, found = Far(20), []

    def check(data: bytes) -> None:
        found.append(data)
        if len(found) == 1:
            raise StoreError("damaged")

    blocks = Blocks(far, {"file": 20}, 1 << 20)
    with pytest.raises(StoreError, match="damaged"):
        blocks.read("file", 0, 5, 10, check)
    assert blocks.held == 0 and bytes(blocks.read("file", 0, 5, 10, check)) == far.data[:5]
    assert len(far.asked) == len(found) == 2
    with pytest.raises(StoreError, match="far://bucket/other: the chunk is missing"):
        blocks.read("other", 0, 5)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> client.Remote:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    return client.Remote(f"file://{tmp_path}")


def serving(far: client.Remote, size: int, *bodies: bytes) -> list[bytes]:
    """Let a file of `size` bytes come as these bodies, one after the other; those that are left."""
    left = list(bodies)
    found = SimpleNamespace(meta={"size": size}, bytes=lambda: left.pop(0))
    far._obstore = SimpleNamespace(get=lambda store, path: found, exceptions=far._obstore.exceptions)
    return left


def test_half_a_file_is_asked_for_again(far: client.Remote) -> None:
    left = serving(far, 4, b"ab", b"abc", b"abcd", b"")
    assert far.read("x") == b"abcd" and left == [b""]
    left = serving(far, 4, *[b"abc"] * 9)
    with pytest.raises(StoreError, match=r"x: given up after 4 attempts \(3 of 4 bytes came\)"):
        far.read("x")
    assert len(left) == 9 - client.ATTEMPTS


def test_a_file_larger_than_it_may_be_is_not_read(far: client.Remote) -> None:
    left = serving(far, 4, b"abcd")
    with pytest.raises(StoreError, match="x: 4 bytes, expected at most 3; not read"):
        far.read("x", limit=3)
    assert left and far.read("x", limit=4) == b"abcd"


def test_what_was_stopped_is_not_tried_again(far: client.Remote) -> None:
    left = serving(far, 4, *[b"abc"] * 9)
    far.stopped = True
    with pytest.raises(StoreError, match="given up after 1 attempts"):
        far.read("x")
    assert len(left) == 8
