"""An HDF5 file whose feature has an id that is no utterance's ended in a bare KeyError, after half of it was imported."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from featstore import StoreError
from featstore.exchange import export_hdf5, import_hdf5
from tests.featstore.store.test_store import fill


def test_an_id_without_an_utterance_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    export_hdf5(tmp_path / "s", tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        ids = file["features/mimi/id"].asstr()[:]
        ids[3] = "nobody"
        del file["features/mimi/id"]
        file["features/mimi"].create_dataset("id", data=list(ids), dtype=h5py.string_dtype())
    with pytest.raises(StoreError, match="s.h5: feature 'mimi': 'nobody' is no utterance of this file"):
        import_hdf5(tmp_path / "s.h5", tmp_path / "t")
    assert not (tmp_path / "t").exists()
