"""HDF5 carries a store there and back without a bit lost, and strangers' files are not believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import featstore
from featstore import Turn
from featstore.exchange import export_hdf5, import_hdf5
from featstore.store.reader import store_utterances
from tests.featstore.store.test_store import fill, spec, utterance


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    fill(tmp_path / "s", count=9, part_bytes=600)
    talk = utterance("talk/ü", speaker=None, turns=(Turn(0.1, 0.7, "a b"),), duration_s=0.1 + 0.2, split="dev")
    with featstore.writer(tmp_path / "s", spec("titanet", 4, hop=2)) as out:
        out.add(talk, np.full((3, 4), 1 / 3, np.float32))
    export_hdf5(tmp_path / "s", tmp_path / "s.h5")
    return tmp_path / "s.h5"


def test_there_and_back_is_lossless(tmp_path: Path, exported: Path) -> None:
    assert import_hdf5(exported, tmp_path / "back") == 10
    a, b = featstore.open(tmp_path / "s"), featstore.open(tmp_path / "back", verify=True)
    assert b.features == a.features
    assert {u.id: u for u in store_utterances(b)} == {u.id: u for u in store_utterances(a)}
    for name in a.features:
        for id in a.index(name).rows:
            assert b.frames(name, id).tobytes() == a.frames(name, id).tobytes()
            assert b.pooled(name, [id]).tobytes() == a.pooled(name, [id]).tobytes()
            assert b.pooled(name, [id], "std").tobytes() == a.pooled(name, [id], "std").tobytes()
    assert import_hdf5(exported, tmp_path / "back") == 0


def test_plain_h5py_reads_it(tmp_path: Path, exported: Path) -> None:
    store = featstore.open(tmp_path / "s")
    with h5py.File(exported) as file:
        group = file["features/mimi"]
        num = group["num_frames"][:]
        for id, first, count in zip(group["id"].asstr()[:], np.cumsum(num) - num, num, strict=True):
            np.testing.assert_array_equal(group["frames"][first : first + count], store.frames("mimi", id))
        assert len([json.loads(u) for u in file["utterances"].asstr()]) == 10


def test_an_existing_file_is_not_overwritten(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        export_hdf5(tmp_path / "s", exported)


def test_another_models_file_is_refused(tmp_path: Path, exported: Path) -> None:
    with featstore.writer(tmp_path / "other", spec(sha="c" * 64)) as out:
        out.add(utterance("x"), np.ones((1, 8)))
    with pytest.raises(featstore.FingerprintMismatch):
        import_hdf5(exported, tmp_path / "other")


@pytest.mark.parametrize("name", ["features", "features/mimi", "features/mimi/frames", "utterances"])
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_no_link_is_followed(tmp_path: Path, exported: Path, name: str, kind: str) -> None:
    shutil.copy(exported, tmp_path / "other.h5")
    with h5py.File(exported, "r+") as file:
        file.move(name, "elsewhere")
        file[name] = (
            h5py.ExternalLink(tmp_path / "other.h5", name) if kind == "external" else h5py.SoftLink("/elsewhere")
        )
    with pytest.raises(featstore.StoreError, match="is a link to somewhere else; not followed"):
        import_hdf5(exported, tmp_path / "t")
    assert not (tmp_path / "t").exists()


DAMAGES = ["no hdf5", "cut", "absent", "version", "spec", "count", "shape", "type", "counts' type", "order", "virtual"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_strangers_file_is_one_clear_line(tmp_path: Path, exported: Path, damage: str) -> None:
    if damage == "no hdf5":
        exported.write_bytes(b"not hdf5")
    elif damage == "cut":
        exported.write_bytes(exported.read_bytes()[:-2000])
    elif damage == "absent":
        exported.unlink()
    else:
        with h5py.File(exported, "r+") as file:
            group = file["features/mimi"]
            if damage == "version":
                file.attrs["whowhen_hdf5"] = 7
            elif damage == "spec":
                group.attrs["spec"] = json.dumps(spec(sha="d" * 64).to_json())
            elif damage == "count":
                group["num_frames"][0] = 10**12
            elif damage == "shape":
                del group["frames"]
                group.create_dataset("frames", data=np.ones((3, 5), np.float16))
            elif damage == "type":
                data = group["frames"][:]
                del group["frames"]
                group.create_dataset("frames", data=data.astype(np.float32))
            elif damage == "counts' type":
                data = group["num_frames"][:]
                del group["num_frames"]
                group.create_dataset("num_frames", data=data.astype(np.float64))
            elif damage == "order":
                data = group["num_frames"][:]
                del group["num_frames"]
                group.create_dataset("num_frames", data=data[None])
            else:  # a petabyte that is not there
                del group["frames"]
                group.create_dataset("frames", shape=(2**40, 8), dtype="f2", chunks=(1024, 8))
    with pytest.raises(featstore.StoreError) as error:
        import_hdf5(exported, tmp_path / "t")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "t" / "index").exists()


def test_what_is_there_already_is_stepped_over(tmp_path: Path, exported: Path) -> None:
    """Frames lie one behind another in the file: those of utterances that are skipped must be counted too."""
    a = featstore.open(tmp_path / "s")
    with featstore.writer(tmp_path / "half", spec()) as out:
        for id in ("u0", "u3", "u4"):
            out.add(utterance(id), a.frames("mimi", id))
    told: list[tuple[int, int]] = []
    assert import_hdf5(exported, tmp_path / "half", progress=lambda done, of: told.append((done, of))) == 7
    assert told == [(n, 10) for n in range(1, 11)]
    b = featstore.open(tmp_path / "half", verify=True)
    for name in a.features:
        for id in a.index(name).rows:
            assert b.frames(name, id).tobytes() == a.frames(name, id).tobytes(), id


def test_a_damaged_store_is_not_exported(tmp_path: Path, exported: Path) -> None:
    chunk = sorted((tmp_path / "s").glob("features.zarr/mimi/*/frames/c/0/0"))[0]
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.write_bytes(data)
    told: list[tuple[int, int]] = []
    with pytest.raises(featstore.StoreError, match="CRC32C"):
        export_hdf5(tmp_path / "s", tmp_path / "t.h5", progress=lambda done, of: told.append((done, of)))
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s.h5"}  # nothing half done is left
    data[0] ^= 1
    chunk.write_bytes(data)
    export_hdf5(tmp_path / "s", tmp_path / "t.h5", progress=lambda done, of: told.append((done, of)))
    assert told[-10:] == [(n, 10) for n in range(1, 11)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("doubled id", "feature 'mimi': id and num_frames do not fit each other"),
        ("one id less", "feature 'mimi': id and num_frames do not fit each other"),
        ("unknown id", "feature 'mimi': 'nobody' is no utterance of this file"),
        ("negative", "feature 'mimi': num_frames do not add up to"),
        ("one frame less", "feature 'mimi': num_frames do not add up to"),
        ("chunked", "feature 'mimi': frames are not stored whole"),
        ("somebody's file", "feature 'mimi': frames are not stored whole"),
        ("dataset for a group", "expected 'mimi' to be a Group"),
        ("group for a dataset", "expected 'num_frames' to be a Dataset"),
        ("texts of one length", "expected 'id' to be a stored list of texts"),
        ("a table of texts", "expected 'id' to be a stored list of texts"),
        ("no turns", "not as `featstore export` writes it"),
        ("no features", "not as `featstore export` writes it"),
        ("another dim", r"feature 'mimi': expected \(frames, 8\) float16, found"),
    ],
)
def test_what_an_export_never_holds(tmp_path: Path, exported: Path, damage: str, words: str) -> None:
    with h5py.File(exported, "r+") as file:
        group = file["features/mimi"]
        ids, num, frames = list(group["id"].asstr()[:]), group["num_frames"][:], group["frames"][:]

        def put(name: str, data: object, **more: object) -> None:
            del group[name]
            group.create_dataset(name, data=data, **more)

        texts = {"dtype": h5py.string_dtype()}
        if damage == "doubled id":
            put("id", [ids[1], *ids[1:]], **texts)
        elif damage == "one id less":
            put("id", ids[:-1], **texts)
        elif damage == "unknown id":
            put("id", ["nobody", *ids[1:]], **texts)
        elif damage == "negative":
            put("num_frames", [-1, num[0] + num[1] + 1, *num[2:]])
        elif damage == "one frame less":
            put("num_frames", [num[0] - 1, *num[1:]])
        elif damage == "chunked":
            put("frames", frames, chunks=(4, 8), compression="gzip")
        elif damage == "somebody's file":  # whose bytes would come out of the store as frames
            (tmp_path / "secret").write_bytes(frames.tobytes())
            del group["frames"]
            group.create_dataset("frames", frames.shape, "f2", external=[(tmp_path / "secret", 0, frames.nbytes)])
        elif damage == "dataset for a group":
            del file["features/mimi"]
            file["features/mimi"] = [1]
        elif damage == "group for a dataset":
            del group["num_frames"]
            group.create_group("num_frames")
        elif damage == "texts of one length":
            put("id", np.array(ids, "S4"))
        elif damage == "a table of texts":
            put("id", np.array([ids], object), **texts)
        elif damage == "no turns":
            rows = [json.loads(row) for row in file["utterances"].asstr()[:]]
            del file["utterances"]
            rows = [json.dumps({k: v for k, v in row.items() if k != "turns"}) for row in rows]
            file.create_dataset("utterances", data=rows, **texts)
        elif damage == "no features":
            del file["features"]
        else:
            put("frames", frames[:, :7])
    with pytest.raises(featstore.StoreError, match=words):
        import_hdf5(exported, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_store_without_anything_goes_there_and_back(tmp_path: Path) -> None:
    fill(tmp_path / "s", count=0)
    export_hdf5(tmp_path / "s", tmp_path / "s.h5")
    assert import_hdf5(tmp_path / "s.h5", tmp_path / "t") == 0
    back = featstore.open(tmp_path / "t")
    assert (back.ids, back.features) == ([], {"mimi": spec()})
