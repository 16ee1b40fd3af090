"""Given an address, what takes a folder silently made one named ``s3:`` in the working folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import featstore
from featstore import StoreError
from featstore.exchange import export_hdf5, import_hdf5
from featstore.jobs import ray as ray_engine
from featstore.jobs.extract import extract
from featstore.remote.transfer import pull, push
from featstore.upkeep.compact import compact
from featstore.upkeep.verify import verify
from tests.fakes import FakeExtractor
from tests.featstore.store.test_store import fill

URL = "s3://bucket/store"


@pytest.mark.parametrize(
    "use",
    [
        lambda: featstore.writer(URL, FakeExtractor().spec),
        lambda: featstore.writer(Path(URL), FakeExtractor().spec),
        lambda: extract([], FakeExtractor(), URL),
        lambda: ray_engine.extract([], FakeExtractor, Path(URL)),
        lambda: compact(URL),
        lambda: verify(URL),
        lambda: verify(URL, repair=True),
        lambda: export_hdf5(URL, "x.h5"),
        lambda: import_hdf5("store.h5", URL),
        lambda: push(URL, "file:///nowhere"),
        lambda: pull(f"file://{Path.cwd()}/store", URL),
    ],
)
def test_an_address_is_refused(use: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "store", count=2)
    export_hdf5("store", "store.h5")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match=f"^{URL}: an address, .*then: featstore push FOLDER {URL} "):
        use()
    assert sorted(tmp_path.iterdir()) == before
