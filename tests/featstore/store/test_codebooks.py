"""Features of codes: whole numbers, and codebooks that go wherever the feature goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore import Store, StoreError, Utterance
from featstore.exchange import export_hdf5, import_hdf5
from featstore.upkeep.compact import compact
from featstore.upkeep.verify import verify
from tests.codes import codebooks, make_store, spec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", {"train": 2})


def same(one: Store, other: Store) -> bool:
    ids = one.ids
    return other.ids == ids and all(
        np.array_equal(one.frames("mimi-codes", id), other.frames("mimi-codes", id)) for id in ids
    )


def test_codes_come_back_as_whole_numbers_and_any_zarr_reader_gives_them(store: Store) -> None:
    import zarr

    found = store.frames("mimi-codes", "train1/2")
    assert found.dtype == np.int16 and found.shape == (42, 3)
    (part,) = store.index("mimi-codes").part_names
    array = zarr.open_array(str(store.path / "features.zarr" / "mimi-codes" / part / "frames"), mode="r")
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array[:40], store.frames("mimi-codes", "train0/0"))
    assert store.features["mimi-codes"].whole


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (np.full((4, 3), 1.5), "expected whole numbers, found fractions"),
        (np.full((4, 3), 40000), r"within ±32767 \(int16"),
    ],
)
def test_what_is_no_code_is_refused(store: Store, frames: np.ndarray, match: str) -> None:
    with (
        featstore.writer(store.path, store.features["mimi-codes"]) as writer,
        pytest.raises(ValueError, match=match),
    ):
        writer.add(Utterance("new", "new.wav", 0.0, 1.0, "new", None, ""), frames)


def test_the_table_is_books_through_their_projections(store: Store) -> None:
    books = codebooks()
    table = store.codebooks("mimi-codes").table
    assert table.shape == (3, 16, 12) and table.dtype == np.float32
    np.testing.assert_allclose(table[0, 5], books.projections[0] @ books.books[0, 5], rtol=1e-5)
    np.testing.assert_allclose(table[2, 7], books.projections[1] @ books.books[2, 7], rtol=1e-5)


def test_a_feature_of_codes_is_not_written_without_its_codebooks(tmp_path: Path) -> None:
    books = codebooks()
    with pytest.raises(ValueError, match="its spec pins codebooks; pass them"):
        featstore.writer(tmp_path / "a", spec(books))
    with pytest.raises(ValueError, match="these are not the codebooks that its spec pins"):
        featstore.writer(tmp_path / "b", spec(books), codebooks=codebooks(seed=1))


def test_vectors_have_no_codebooks(tmp_path: Path) -> None:
    from tests.sessions import spec as vectors

    with featstore.writer(tmp_path / "s", vectors()) as writer:
        writer.add(Utterance("a", "a.wav", 0.0, 1.0, "a", None, ""), np.zeros((3, 8)))
    with pytest.raises(KeyError, match="has no codebooks: its frames are vectors already"):
        featstore.open(tmp_path / "s").codebooks("mimi")


def test_codebooks_go_out_and_in_with_hdf5(store: Store, tmp_path: Path) -> None:
    export_hdf5(store.path, tmp_path / "s.h5")
    assert import_hdf5(tmp_path / "s.h5", tmp_path / "again") == 6
    again = featstore.open(tmp_path / "again")
    assert same(store, again) and again.codebooks("mimi-codes").sha256 == codebooks().sha256


def test_an_hdf5_file_whose_codebooks_were_changed_is_refused(store: Store, tmp_path: Path) -> None:
    import h5py

    export_hdf5(store.path, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["features/mimi-codes/codebooks"][-100] ^= 1
    with pytest.raises(StoreError, match="not the codebooks that feature 'mimi-codes' was written with"):
        import_hdf5(tmp_path / "s.h5", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_codebooks_are_pushed_pulled_and_read_at_a_distance(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    from featstore.remote.transfer import pull, push

    (tmp_path / "far").mkdir()
    url = f"file://{tmp_path}/far"
    push(store.path, url)
    assert "codebooks/mimi-codes.safetensors" in (tmp_path / "far/listing.json").read_text()
    pull(url, tmp_path / "near")
    near = featstore.open(tmp_path / "near")
    assert same(store, near) and near.codebooks("mimi-codes").sha256 == codebooks().sha256
    there = featstore.open(url, cache=tmp_path / "cache")
    assert there.codebooks("mimi-codes").sha256 == codebooks().sha256
    assert verify(tmp_path / "near").findings == []


def test_a_place_that_lost_the_codebooks_is_named(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    from featstore.remote.transfer import pull, push

    (tmp_path / "far").mkdir()
    push(store.path, f"file://{tmp_path}/far")
    (tmp_path / "far/codebooks/mimi-codes.safetensors").unlink()
    with pytest.raises(StoreError, match=r"codebooks/mimi-codes.safetensors: the codebooks are missing"):
        pull(f"file://{tmp_path}/far", tmp_path / "near")


def test_merged_stores_keep_their_codebooks(store: Store, tmp_path: Path) -> None:
    from featstore.upkeep.merge import merge

    merge([store.path], tmp_path / "out")
    out = featstore.open(tmp_path / "out")
    assert same(store, out) and out.codebooks("mimi-codes").sha256 == codebooks().sha256


def test_compact_keeps_codes_and_codebooks(store: Store) -> None:
    with featstore.writer(store.path, store.features["mimi-codes"]) as writer:
        writer.add(Utterance("new", "new.wav", 0.0, 1.0, "new", None, ""), np.ones((5, 3)))
    assert compact(store.path).parts_after == 1
    again = featstore.open(store.path)
    assert again.frames("mimi-codes", "new").dtype == np.int16 and len(again.ids) == 7
    assert again.codebooks("mimi-codes").sha256 == codebooks().sha256
    assert verify(store.path).findings == []


@pytest.mark.parametrize("damage", ["lost", "changed", "cut"])
def test_verify_finds_codebooks_that_are_damaged_and_the_writer_brings_them_back(store: Store, damage: str) -> None:
    path = store.path / "codebooks/mimi-codes.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "lost":
        shutil.rmtree(path.parent)
    else:
        data[-1] ^= 1
        path.write_bytes(data if damage == "changed" else data[:-9])
    with pytest.raises(
        StoreError, match=r"mimi-codes.safetensors: (the codebooks are missing|damaged|not the codebooks)"
    ):
        featstore.open(store.path).codebooks("mimi-codes")
    report = verify(store.path, repair=True)
    assert [f.feature for f in report.damaged] == ["mimi-codes"] and len(report.repaired) == (damage != "lost")
    assert not path.exists()
    with featstore.writer(store.path, store.features["mimi-codes"], codebooks=codebooks()):
        pass
    assert verify(store.path).findings == []
    assert same(store, featstore.open(store.path))


def test_what_does_not_belong_beside_codebooks_is_called_left_over(store: Store) -> None:
    (store.path / "codebooks/.x.tmp").write_text("")
    (store.path / "codebooks/notes.txt").write_text("")
    assert sorted(f.paths for f in verify(store.path).findings) == [("codebooks/.x.tmp",), ("codebooks/notes.txt",)]
