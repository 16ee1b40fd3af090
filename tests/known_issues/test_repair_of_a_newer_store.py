"""`verify --repair` took a store of a newer version for a damaged one and wrote its root anew, as version 1; a writer made
folders in one before it refused it. No store said which release had written it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore import StoreError
from featstore.exchange import export_hdf5, import_hdf5
from featstore.remote.transfer import pull, push
from featstore.store import metadata
from featstore.upkeep.compact import compact
from featstore.upkeep.verify import verify
from tests.featstore.store.test_store import fill, spec

NEWER = {"zarr_format": 3, "node_type": "group", "attributes": {"whowhen_store": 3, "shards": [1, 2]}}


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    fill(tmp_path / "newer")
    (tmp_path / "newer" / "features.zarr" / "zarr.json").write_text(json.dumps(NEWER))
    return tmp_path / "newer"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


USES: dict[str, Callable[[Path, Path], object]] = {
    "open": lambda store, other: featstore.open(store),
    "writer": lambda store, other: featstore.writer(store, spec("another")),
    "verify": lambda store, other: verify(store),
    "repair": lambda store, other: verify(store, repair=True),
    "compact": lambda store, other: compact(store),
    "export": lambda store, other: export_hdf5(store, other.parent / "x.h5"),
    "import": lambda store, other: import_hdf5(other.parent / "other.h5", store),
    "push": lambda store, other: push(store, f"file://{other.parent}/far"),
    "push there": lambda store, other: push(other, f"file://{store}"),
    "pull": lambda store, other: pull(f"file://{store}", other.parent / "t"),
    "pull there": lambda store, other: pull(f"file://{other}", store),
    "open far": lambda store, other: featstore.open(f"file://{store}", cache=other.parent / "cache"),
}


@pytest.mark.parametrize("use", USES)
def test_everything_refuses_another_version(newer: Path, tmp_path: Path, use: str) -> None:
    if "pu" in use or "far" in use:
        pytest.importorskip("obstore")
    fill(tmp_path / "other")
    export_hdf5(tmp_path / "other", tmp_path / "other.h5")
    before = files(newer)
    with pytest.raises(StoreError, match="version 3"):
        USES[use](newer, tmp_path / "other")
    assert files(newer) == before


def test_a_lost_root_of_another_version_is_not_written_by_this_one(newer: Path) -> None:
    (seal,) = newer.glob("features.zarr/mimi/*/zarr.json")
    attributes = {key: value for key, value in metadata.read_seal(seal.parent).items() if key != "seal"}
    assert (attributes["whowhen_store"], attributes["release"]) == (1, version("whowhen"))
    attributes |= {"whowhen_store": 3, "release": "9.1.0"}
    seal.write_bytes(metadata.group_json(metadata.sealed(attributes)))
    root = newer / "features.zarr" / "zarr.json"
    with pytest.raises(
        StoreError, match="version 3, this program reads version 1 and 2; use the whowhen release that wrote it .9.1.0."
    ):
        featstore.open(newer)
    for lost in (root.unlink, lambda: root.write_bytes(b"{")):
        lost()
        before = files(newer)
        with pytest.raises(StoreError, match="version 3, .* that wrote it .9.1.0."):
            verify(newer, repair=True)
        assert files(newer) == before


def test_a_seal_without_a_release_is_one_of_version_0_1(tmp_path: Path) -> None:
    data = fill(tmp_path / "s")
    (seal,) = (tmp_path / "s").glob("features.zarr/mimi/*/zarr.json")
    attributes = metadata.read_seal(seal.parent)
    old = {key: attributes[key] for key in ("fingerprint", "chunk_crc32c", "sha256")}
    seal.write_bytes(metadata.group_json(metadata.sealed(old)))
    assert verify(tmp_path / "s").findings == []
    np.testing.assert_array_equal(featstore.open(tmp_path / "s", verify=True).frames("mimi", "u1"), data["u1"])
    (tmp_path / "s" / "features.zarr" / "zarr.json").unlink()
    assert verify(tmp_path / "s", repair=True).repaired and verify(tmp_path / "s").findings == []
