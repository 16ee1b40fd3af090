"""The store: what is written is what is read, and damage never reads as data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import featstore
from featstore import FeatureSpec, Turn, Utterance
from featstore.store.ids import Ids


def spec(name: str = "mimi", dim: int = 8, sha: str = "a" * 64, **settings: object) -> FeatureSpec:
    return FeatureSpec(name, dim, "float16", 24000, featstore.MIMI_GRID, "test", sha, settings)


def utterance(id: str, **facts: object) -> Utterance:
    base = {"audio": f"{id}.wav", "start_s": 0.0, "duration_s": 1.0, "recording": id, "speaker": "s", "split": "train"}
    return Utterance(id=id, **{**base, **facts})


def fill(path: Path, count: int = 5, seed: int = 0, **settings: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    data = {f"u{i}": rng.normal(size=(int(rng.integers(1, 40)), 8)).astype(np.float16) for i in range(count)}
    with featstore.writer(path, spec(), **settings) as w:
        for id, frames in data.items():
            w.add(utterance(id), frames)
    return data


def test_reads_back_every_frame_and_any_crop(tmp_path: Path) -> None:
    data = fill(tmp_path / "s", count=20, part_bytes=500)
    store = featstore.open(tmp_path / "s", verify=True)
    assert len(store) == 20
    assert len(store.index("mimi").parts) > 3
    for id, frames in data.items():
        np.testing.assert_array_equal(store.frames("mimi", id), frames)
        np.testing.assert_array_equal(store.frames("mimi", id, 3, 9), frames[3:9])
        np.testing.assert_array_equal(store.frames("mimi", id, -2), frames[-2:])
        assert store.frames("mimi", id, 5, 2).shape == (0, 8)
        assert store.num_frames("mimi", id) == len(frames)
    np.testing.assert_allclose(
        store.pooled("mimi", ["u3", "u0"]), [data[i].astype(np.float64).mean(0) for i in ("u3", "u0")], rtol=1e-6
    )


def test_a_crop_across_chunks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.store.commit.CHUNK_BYTES", 7 * 16)  # 7 rows a chunk
    data = fill(tmp_path / "s", count=6)
    store = featstore.open(tmp_path / "s", verify=True)
    assert len(list((tmp_path / "s").glob("features.zarr/mimi/*/frames/c/*"))) > 5
    for id, frames in data.items():
        np.testing.assert_array_equal(store.frames("mimi", id), frames)
        for start in range(len(frames)):
            np.testing.assert_array_equal(store.frames("mimi", id, start, start + 9), frames[start : start + 9])


def test_frames_are_a_read_only_view(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    frames = featstore.open(tmp_path / "s").frames("mimi", "u0")
    assert not frames.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        frames[0] = 0


def test_zarr_python_reads_the_same_values(tmp_path: Path) -> None:
    fill(tmp_path / "s", count=12, part_bytes=900)
    store = featstore.open(tmp_path / "s")
    group = zarr.open_group(tmp_path / "s" / "features.zarr", mode="r")
    index = store.index("mimi")
    checked = 0
    for id, row in index.rows.items():
        part = group["mimi"][index.part_names[index.part[row]]]
        first, num = int(index.first[row]), int(index.num[row])
        np.testing.assert_array_equal(part["frames"][first : first + num], store.frames("mimi", id))
        np.testing.assert_array_equal(part["mean"][row - index.begin[index.part[row]]], store.pooled("mimi", [id])[0])
        np.testing.assert_array_equal(
            part["std"][row - index.begin[index.part[row]]], store.pooled("mimi", [id], "std")[0]
        )
        checked += 1
    assert checked == 12
    assert group["mimi"].attrs["fingerprint"] == spec().fingerprint
    assert {name for name, _ in group["mimi"].groups()} == set(index.part_names)


def test_utterances_keep_their_facts(tmp_path: Path) -> None:
    turns = (Turn(0.0, 0.25, "b"), Turn(0.1, 0.9, "a"))
    talk = utterance("talk/1", speaker=None, turns=turns, duration_s=1.5, start_s=3.25, split="dev", recording="r")
    with featstore.writer(tmp_path / "s", spec()) as w:
        w.add(talk, np.ones((3, 8)))
        w.add(utterance("solo"), np.ones((2, 8)))
    with featstore.writer(tmp_path / "s", spec("titanet", 4)) as w:
        w.add(talk, np.ones((3, 4)))
    store = featstore.open(tmp_path / "s")
    assert store.utterance("talk/1") == talk
    assert sorted(store.ids) == ["solo", "talk/1"]
    assert list(store.features) == ["mimi", "titanet"]
    dev = store.select(split="dev")
    assert (dev.ids, len(dev), "solo" in dev) == (["talk/1"], 1, False)
    assert store.select(speaker=None).ids == ["talk/1"]
    assert store.select(split=["train", "dev"], recording="r").ids == ["talk/1"]
    with pytest.raises(KeyError, match="has no feature 'titanet'"):
        store.frames("titanet", "solo")


def test_resume_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path / "s", count=3)
    with featstore.writer(tmp_path / "s", spec()) as w:
        assert [u.id for u in w.missing([utterance(f"u{i}") for i in range(5)])] == ["u3", "u4"]
        w.add(utterance("u3"), np.ones((1, 8)))
        assert [u.id for u in w.missing([utterance("u3"), utterance("u4")])] == ["u4"]


def test_two_writers_at_once(tmp_path: Path) -> None:
    with featstore.writer(tmp_path / "s", spec()) as a, featstore.writer(tmp_path / "s", spec()) as b:
        a.add(utterance("x"), np.full((2, 8), 1))
        b.add(utterance("y"), np.full((2, 8), 2))
        b.add(utterance("x"), np.full((2, 8), 1))
    store = featstore.open(tmp_path / "s")
    assert sorted(store.ids) == ["x", "y"]
    assert store.frames("mimi", "y")[0, 0] == 2


def test_another_model_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    with pytest.raises(featstore.FingerprintMismatch, match=r"holds weights aaaaaaaa…, this extractor has bbbbbbbb…"):
        featstore.writer(tmp_path / "s", spec(sha="b" * 64))
    with pytest.raises(featstore.FingerprintMismatch, match="settings"):
        featstore.writer(tmp_path / "s", spec(hop=2))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.ones((2, 7)), "expected frames of shape"),
        (np.ones((0, 8)), "expected frames of shape"),
        (np.full((2, 8), np.nan), "finite"),
        (np.full((2, 8), np.inf), "finite"),
        (np.full((2, 8), 70000.0), "65504"),
    ],
)
def test_bad_frames_are_refused_and_the_rest_is_kept(tmp_path: Path, frames: np.ndarray, words: str) -> None:
    with featstore.writer(tmp_path / "s", spec()) as w:
        w.add(utterance("good"), np.ones((2, 8)))
        with pytest.raises(ValueError, match=words):
            w.add(utterance("bad"), frames)
    assert featstore.open(tmp_path / "s").ids == ["good"]


@pytest.mark.parametrize(
    "other",
    [{"speaker": "someone else"}, {"recording": "r2"}, {"split": "test"}, {"turns": (Turn(0.0, 0.5, "s"),)}],
    ids=lambda other: next(iter(other)),
)
def test_one_id_means_one_utterance(tmp_path: Path, other: dict[str, object]) -> None:
    fill(tmp_path / "s")
    with (
        featstore.writer(tmp_path / "s", spec("titanet")) as w,
        pytest.raises(ValueError, match=f"already knows it with {next(iter(other))} "),
    ):
        w.add(utterance("u0", **other), np.ones((2, 8)))
    with featstore.writer(tmp_path / "s", spec("titanet")) as w:
        w.add(utterance("u0", audio="moved.wav"), np.ones((2, 8)))  # where the audio lies is no such fact
    with featstore.writer(tmp_path / "s", spec()) as w, pytest.raises(ValueError, match="can be added once"):
        w.add(utterance("u0"), np.ones((2, 8)))


@pytest.mark.parametrize("id", ["../up", "/abs", "a/../b", "", "tab\tin", "x" * 2000, "..\\win"])
def test_ids_cannot_leave_their_root(id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        utterance(id)


def test_what_is_no_store_or_another_version_says_so(tmp_path: Path) -> None:
    with pytest.raises(featstore.StoreError, match="no such folder"):
        featstore.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(featstore.StoreError, match="not a store"):
        featstore.open(tmp_path / "empty")
    fill(tmp_path / "s")
    root = tmp_path / "s" / "features.zarr" / "zarr.json"
    root.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"whowhen_store": 99}}))
    with pytest.raises(featstore.StoreError, match="version 99, this program reads version 1"):
        featstore.open(tmp_path / "s")
    with pytest.raises(featstore.StoreError, match="version 99"):
        featstore.writer(tmp_path / "s", spec())


def test_damage_never_reads_as_data(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (chunk,) = (tmp_path / "s").glob("features.zarr/mimi/*/frames/c/0/0")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-5])
    with pytest.raises(featstore.StoreError, match="expected .* bytes, found"):
        featstore.open(tmp_path / "s").frames("mimi", "u0")
    chunk.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(featstore.StoreError, match="CRC32C"):
        featstore.open(tmp_path / "s", verify=True).frames("mimi", "u0")
    chunk.unlink()
    with pytest.raises(featstore.StoreError, match="missing"):
        featstore.open(tmp_path / "s").frames("mimi", "u0")


def test_a_full_disk_loses_nothing_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fill(tmp_path / "s")
    real, calls = featstore.files.sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr("featstore.files.sync", full)
    with pytest.raises(OSError, match="No space"), featstore.writer(tmp_path / "s", spec()) as w:
        w.add(utterance("late"), np.ones((5, 8)))
        w.commit()
    monkeypatch.undo()
    store = featstore.open(tmp_path / "s", verify=True)
    assert sorted(store.ids) == sorted(data)
    assert len(list((tmp_path / "s").glob("features.zarr/mimi/*/zarr.json"))) == 1
    for id, frames in data.items():
        np.testing.assert_array_equal(store.frames("mimi", id), frames)


texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.integers(0, 99).map("utt-{:06d}".format)
)


@settings(derandomize=True, deadline=None)
@given(texts, texts, st.integers(0, 3))
def test_ids_are_looked_up_as_in_a_dict(ids: list[str], others: list[str], skip: int) -> None:
    expected: dict[str, int] = {}
    for row, id in enumerate(ids[skip:]):
        expected.setdefault(id, row)
    found = Ids(pa.array(ids, pa.string())[skip:])
    assert dict(found) == expected and len(found) == len(expected)
    assert [found.get(id) for id in others] == [expected.get(id) for id in others]
    assert found.get("\ud800") is None and 5 not in found
