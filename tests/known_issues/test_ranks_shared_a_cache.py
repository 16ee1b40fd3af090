"""Processes that opened one far store at different times removed tables from under each other in the cache they share."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore import StoreError
from featstore.remote import reader
from featstore.remote.transfer import push
from featstore.store import layout
from tests.featstore.store.test_store import fill, spec, utterance

pytest.importorskip("obstore")


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A folder with a store of several parts, pushed to."""
    fill(tmp_path / "near", count=12, part_bytes=1200)
    push(tmp_path / "near", f"file://{tmp_path}/far")
    return tmp_path / "far"


def parts(far: Path) -> list[str]:
    return layout.committed(far, "mimi")


def test_a_part_that_went_away_stays_for_who_saw_it(far: Path, tmp_path: Path) -> None:
    cache, url = tmp_path / "cache", f"file://{far}"
    early = featstore.open(url, cache=cache)
    gone = parts(far)[1]
    (far / layout.PartFiles("mimi", gone).index).unlink()  # merged into another, say
    late = featstore.open(url, cache=cache)
    near = featstore.open(tmp_path / "near")
    assert early.index("mimi").part_names == near.index("mimi").part_names
    assert early.ids == near.ids
    assert gone not in late.index("mimi").part_names
    assert 0 < len(late) < len(early)
    for store in (early, late):
        for id in store.ids:
            assert store.frames("mimi", id).tobytes() == near.frames("mimi", id).tobytes()


def test_a_part_that_came_later_is_not_seen_before(far: Path, tmp_path: Path) -> None:
    cache, url = tmp_path / "cache", f"file://{far}"
    early = featstore.open(url, cache=cache)
    with featstore.writer(tmp_path / "near", spec()) as out:
        out.add(utterance("u50"), np.ones((9, 8)))
    push(tmp_path / "near", url)
    late = featstore.open(url, cache=cache)
    assert (len(early), len(late)) == (12, 13)
    assert late.num_frames("mimi", "u50") == 9
    with pytest.raises(KeyError, match="u50"):
        early.num_frames("mimi", "u50")


def test_two_that_find_the_same_damage_both_say_so(far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = far / layout.PartFiles("mimi", parts(far)[0]).seal
    seal.write_bytes(seal.read_bytes().replace(b'"seal"', b'"sael"'))
    both, read_seal = threading.Barrier(2, timeout=30), reader.read_seal

    def read_together(folder: Path) -> dict[str, object]:
        try:
            return read_seal(folder)
        except StoreError:
            both.wait()
            raise

    monkeypatch.setattr(reader, "read_seal", read_together)
    said: list[str] = []

    def open_it() -> None:
        try:
            featstore.open(f"file://{far}", cache=tmp_path / "cache")
        except (StoreError, OSError) as error:
            said.append(str(error))

    ranks = [threading.Thread(target=open_it) for _ in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(said) == 2 and all("edited" in line for line in said)
    assert not os.path.exists(tmp_path / "cache" / layout.PartFiles("mimi", parts(far)[0]).seal)
