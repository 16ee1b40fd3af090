"""`featstore.writer("s3://…")` made a folder called ``s3:`` and wrote into it."""

from __future__ import annotations

from pathlib import Path

import pytest

import featstore
from tests.test_store import spec


def test_an_address_takes_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(featstore.StoreError, match="featstore push FOLDER s3://bucket/s"):
        featstore.writer("s3://bucket/s", spec())
    assert list(tmp_path.iterdir()) == []
