"""The store: what is written is what is read, and damage never reads as data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import featstore
from featstore import FeatureSpec, Turn, Utterance
from featstore.store import layout, metadata
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
    with featstore.writer(tmp_path / "s", spec()) as w:
        for id in ("u0", "new"):  # there before, and added by this very writer
            if id == "new":
                w.add(utterance(id), np.ones((2, 8)))
            with pytest.raises(ValueError, match="can be added once"):
                w.add(utterance(id), np.ones((2, 8)))


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


def of_hand(path: Path, part_bytes: int | None = None, **lengths: int) -> dict[str, np.ndarray]:
    """A store of utterances of these lengths; frame k of the n-th holds 100 n + k in its first column, n in the rest."""
    data = {}
    with featstore.writer(path, spec(), part_bytes=part_bytes) as w:
        for n, (id, length) in enumerate(lengths.items()):
            data[id] = np.repeat([[n]], length, axis=0).repeat(8, axis=1).astype(np.float16)
            data[id][:, 0] = 100 * n + np.arange(length)
            w.add(utterance(id), data[id])
    return data


def test_crops_by_hand_at_the_edges_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 rows: a has rows 0–3, b 4–8, c 9–11. Every crop, also those past the end and the wrong way round."""
    monkeypatch.setattr("featstore.store.commit.CHUNK_BYTES", 4 * 16)
    data = of_hand(tmp_path / "s", a=4, b=5, c=3)
    (part,) = (tmp_path / "s").glob("features.zarr/mimi/*/frames")
    assert sorted(p.name for p in (part / "c").iterdir()) == ["0", "1", "2"]
    assert {p.stat().st_size for p in part.glob("c/*/0")} == {4 * 16 + 4}
    for verify in (False, True):
        store = featstore.open(tmp_path / "s", verify=verify)
        for id, frames in data.items():
            assert store.frames("mimi", id, 2).tolist() == frames[2:].tolist()
            assert store.frames("mimi", id, stop=2).tolist() == frames[:2].tolist()
            for start in (None, *range(-7, 8)):
                for stop in (None, *range(-7, 8)):
                    found = store.frames("mimi", id, start or 0, stop)
                    assert found.tolist() == frames[start or 0 : stop].tolist(), (id, start, stop)
                    assert found.shape[1] == 8
    # Where one chunk holds the crop it is a view on the map, also where it is the whole chunk.
    for id, start, stop in (("a", 0, 4), ("b", 0, 4), ("b", 4, 5), ("c", 0, 3)):
        assert not featstore.open(tmp_path / "s").frames("mimi", id, start, stop).flags.owndata


def test_means_and_deviations_by_hand(tmp_path: Path) -> None:
    """Over an utterance's own frames, divided by their number; of any ids, in any order, twice, over several parts."""
    frames = {"a": [[1.0], [3.0]], "b": [[5.0]], "c": [[0.0], [0.0], [6.0]], "d": [[2.0], [2.0]]}
    with featstore.writer(tmp_path / "s", spec(dim=1)) as w:
        for id, rows in frames.items():
            w.add(utterance(id), np.array(rows))
            if id in "bc":
                w.commit()
    store = featstore.open(tmp_path / "s")
    assert [len(p) for p in (store.index("mimi").parts, store.index("mimi").part_ids(0))] == [3, 2]
    ids = ["d", "b", "a", "c", "b"]
    mean, std = (store.pooled("mimi", ids, statistic) for statistic in ("mean", "std"))
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean[:, 0], [2, 5, 2, 2, 5], rtol=1e-6)
    np.testing.assert_allclose(std[:, 0], [0, 0, 1, 8**0.5, 0], rtol=1e-6)
    assert store.pooled("mimi").tolist() == store.pooled("mimi", ["a", "b", "c", "d"]).tolist()
    assert store.pooled("mimi", []).shape == (0, 1)
    view = store.select(recording=["b", "d"])
    assert view.pooled("mimi").tolist() == [[5], [2]] and view.select(recording="d").ids == ["d"]
    with pytest.raises(KeyError, match="no statistic 'max'"):
        store.pooled("mimi", ids, "max")
    with pytest.raises(KeyError, match="utterance 'x' has no feature"):
        store.pooled("mimi", ["x"])


def test_views_take_all_conditions_together(tmp_path: Path) -> None:
    of_hand(tmp_path / "s", a=1, b=1)
    with featstore.writer(tmp_path / "s", spec()) as w:
        w.add(utterance("c", speaker="t", split="dev"), np.ones((1, 8)))
        w.add(utterance("d", speaker="t"), np.ones((1, 8)))
    store = featstore.open(tmp_path / "s")
    assert store.select(speaker="t", split="train").ids == store.select(split="train", speaker="t").ids == ["d"]
    assert store.select(split="train").select(speaker="s").ids == ["a", "b"]
    assert sorted(store.select().ids) == ["a", "b", "c", "d"] and store.select(split=[]).ids == []
    assert store.select(split="dev").utterance("c").speaker == "t"
    with pytest.raises(KeyError, match="utterance 'a' is not in .* .1 utterances"):
        store.select(split="dev").utterance("a")
    with pytest.raises(KeyError, match="no column 'spilt'; there are id, recording"):
        store.select(spilt="dev")
    with pytest.raises(KeyError, match="no feature 'titanet' .there: mimi"):
        store.frames("titanet", "a")


def test_features_that_hold_other_ids_keep_their_own_rows(tmp_path: Path) -> None:
    """As many ids, but others or in another order: each feature finds its frames by its own index."""
    of_hand(tmp_path / "s", a=2, b=3)
    for name, ids in (("other", "ba"), ("third", "ac")):
        with featstore.writer(tmp_path / "s", spec(name, 1)) as w:
            for n, id in enumerate(ids):
                w.add(utterance(id), np.full((2, 1), n))
    store = featstore.open(tmp_path / "s")
    assert [store.frames(f, "a")[0, 0] for f in ("mimi", "other", "third")] == [0, 1, 0]
    assert store.frames("other", "b").tolist() == [[0], [0]] and store.frames("third", "c").tolist() == [[1], [1]]
    assert sorted(store.ids) == ["a", "b", "c"] and len(store) == 3
    with pytest.raises(KeyError):
        store.frames("third", "b")


def test_a_part_is_full_at_its_size_or_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 16 bytes. Age is that of the part's first utterance."""
    now = [0.0]
    monkeypatch.setattr("featstore.store.writer.time.monotonic", lambda: now[0])

    def parts() -> int:
        return len(list((tmp_path / "s").glob("index/mimi/*")))

    with featstore.writer(tmp_path / "s", spec(), part_bytes=64, part_seconds=10.0) as w:
        w.add(utterance("a"), np.ones((3, 8)))
        assert not w.due and parts() == 0
        w.add(utterance("b"), np.ones((1, 8)))
        assert parts() == 1
        now[0] = 100.0
        w.add(utterance("c"), np.ones((1, 8)))
        now[0] = 109.9
        w.add(utterance("d"), np.ones((1, 8)))
        assert parts() == 1
        now[0] = 110.0
        assert w.due
        w.add(utterance("e"), np.ones((1, 8)))
        assert parts() == 2 and not w.due
        w.commit()
        assert parts() == 2  # nothing was left
    assert [p.num_utterances for p in featstore.open(tmp_path / "s").index("mimi").parts] == [2, 3]
    names = featstore.open(tmp_path / "s").index("mimi").part_names
    assert [name[-6:] for name in names] == ["-00000", "-00001"]


@pytest.mark.parametrize(
    "facts", [{"recording": "r"}, {"speaker": None}, {"split": "dev"}, {"turns": (Turn(0.0, 0.5, "s"),)}]
)
def test_each_fact_of_an_id_must_stay(tmp_path: Path, facts: dict) -> None:
    of_hand(tmp_path / "s", a=1)
    (name,) = facts
    with (
        featstore.writer(tmp_path / "s", spec("titanet", 4)) as w,
        pytest.raises(ValueError, match=f"already knows it with {name} "),
    ):
        w.add(utterance("a", **facts), np.ones((1, 4)))
    assert "a" not in featstore.open(tmp_path / "s").index("titanet").rows
    with featstore.writer(tmp_path / "s", spec("titanet", 4)) as w:
        w.add(utterance("a", audio="elsewhere.wav", duration_s=2.0), np.ones((1, 4)))  # files may move


def test_what_fails_in_between_keeps_whole_utterances_unless_the_disk_failed(tmp_path: Path) -> None:
    for error, kept in ((RuntimeError("boom"), ["a"]), (OSError(28, "No space left on device"), [])):
        path = tmp_path / type(error).__name__
        with pytest.raises(type(error)), featstore.writer(path, spec()) as w:
            w.add(utterance("a"), np.ones((1, 8)))
            raise error
        assert featstore.open(path).ids == kept


def test_float32_keeps_what_float16_cannot(tmp_path: Path) -> None:
    wide = FeatureSpec("wide", 1, "float32", 24000, featstore.MIMI_GRID, "test", "a" * 64)
    with featstore.writer(tmp_path / "s", wide) as w:
        w.add(utterance("a"), [[70000.0], [1 / 3]])
    with featstore.writer(tmp_path / "s", spec(dim=1)) as w:
        w.add(utterance("a"), [[65504.0], [1 / 3]])
        with pytest.raises(ValueError, match="within ±65504"):
            w.add(utterance("b"), [[-65536.0]])
    store = featstore.open(tmp_path / "s")
    assert store.frames("wide", "a").tolist() == np.array([[70000.0], [1 / 3]], np.float32).tolist()
    assert store.frames("mimi", "a").tolist() == np.array([[65504.0], [1 / 3]], np.float16).tolist()


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (0, {"first_frame": 1}),  # a gap before the first
        (1, {"first_frame": 3}),  # overlaps the one before
        (1, {"first_frame": 5}),  # a gap
        (2, {"first_frame": -1}),
        (2, {"num_frames": 0}),
        (1, {"num_frames": -5}),
        (2, {"num_frames": (1 << 31) + 1}),
    ],
)
def test_rows_that_overlap_or_leave_gaps_are_refused(tmp_path: Path, row: int, change: dict[str, int]) -> None:
    """Frames would be another utterance's. The table that is wrong is named, also where it is not the first."""
    with featstore.writer(tmp_path / "s", spec()) as w:
        for part in ({"first": 2}, {"a": 4, "b": 5, "c": 3}, {"last": 2}):
            for id, num in part.items():
                w.add(utterance(id), np.ones((num, 8)))
            w.commit()
    table = sorted((tmp_path / "s").glob("index/mimi/*"))[1]
    rows = pq.read_table(table).to_pylist()
    assert [r["first_frame"] for r in rows] == [0, 4, 9]
    rows[row] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=layout.INDEX_SCHEMA), table)
    with pytest.raises(featstore.StoreError, match="rows overlap or leave gaps") as error:
        featstore.open(tmp_path / "s").frames("mimi", "a")
    assert table.name in str(error.value)
    with pytest.raises(featstore.StoreError, match="rows overlap or leave gaps"):
        featstore.writer(tmp_path / "s", spec())


def test_an_index_that_fits_another_number_of_frames_is_refused(tmp_path: Path) -> None:
    """Rows may lie one behind another and still be too many or too few for the part."""
    of_hand(tmp_path / "s", a=4, b=5)
    (table,) = (tmp_path / "s").glob("index/mimi/*")
    for num in (4, 6):
        rows = [{"id": "a", "first_frame": 0, "num_frames": 4}, {"id": "b", "first_frame": 4, "num_frames": num}]
        pq.write_table(pa.Table.from_pylist(rows, schema=layout.INDEX_SCHEMA), table)
        with pytest.raises(featstore.StoreError, match=rf"expected shape \[{4 + num}, 8\] in whole rows, found"):
            featstore.open(tmp_path / "s").frames("mimi", "a")


@pytest.mark.parametrize("chunks", [[0, 8], [10, 8], [9, 4], [9], [True, 8], [9.0, 8], "9"])
def test_chunks_that_no_writer_makes_are_refused(tmp_path: Path, chunks: object) -> None:
    of_hand(tmp_path / "s", a=4, b=5)
    (path,) = (tmp_path / "s").glob("features.zarr/mimi/*/frames/zarr.json")
    meta = json.loads(path.read_text())
    assert meta["chunk_grid"]["configuration"]["chunk_shape"] == [9, 8]
    meta["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    path.write_text(json.dumps(meta))
    with pytest.raises(featstore.StoreError, match=r"expected shape \[9, 8\] in whole rows"):
        featstore.open(tmp_path / "s").frames("mimi", "a")
    del meta["chunk_grid"]
    path.write_text(json.dumps(meta))
    with pytest.raises(featstore.StoreError, match="no Zarr v3 array metadata"):
        featstore.open(tmp_path / "s").frames("mimi", "a")


def test_a_chunk_that_has_grown_is_refused_and_one_that_lies_whole_elsewhere_too(tmp_path: Path) -> None:
    of_hand(tmp_path / "s", part_bytes=64, a=4, b=4)
    one, other = sorted((tmp_path / "s").glob("features.zarr/mimi/*/frames/c/0/0"))
    whole = one.read_bytes()
    one.write_bytes(whole + b"x")
    with pytest.raises(featstore.StoreError, match="expected 68 bytes, found 69"):
        featstore.open(tmp_path / "s").frames("mimi", "a")
    one.write_bytes(other.read_bytes())  # each is whole in itself
    featstore.open(tmp_path / "s").frames("mimi", "a")
    with pytest.raises(featstore.StoreError, match="not the chunk that was committed here"):
        featstore.open(tmp_path / "s", verify=True).frames("mimi", "a")


def test_parts_whose_spec_is_lost_take_frames_of_their_own_model_only(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    path = tmp_path / "s" / "features.zarr" / "mimi" / "zarr.json"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(featstore.StoreError, match="the feature's spec is missing"):
        featstore.open(tmp_path / "s")
    with pytest.raises(featstore.FingerprintMismatch, match="has lost its spec, and its parts hold fingerprint"):
        featstore.writer(tmp_path / "s", spec(sha="b" * 64))
    assert not path.exists()
    with featstore.writer(tmp_path / "s", spec()) as w:
        w.add(utterance("more"), np.ones((1, 8)))
    assert path.read_bytes() == whole and len(featstore.open(tmp_path / "s")) == 6


def test_a_spec_under_another_name_or_edited_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    path = tmp_path / "s" / "features.zarr" / "mimi" / "zarr.json"
    meta = json.loads(path.read_text())
    other = spec("titanet")
    for found, fingerprint in ((spec(sha="b" * 64), spec().fingerprint), (other, other.fingerprint)):
        meta["attributes"] = {"spec": found.to_json(), "fingerprint": fingerprint}
        path.write_text(json.dumps(meta))
        with pytest.raises(featstore.StoreError, match="the spec was edited.*; run: featstore verify"):
            featstore.open(tmp_path / "s")
    path.write_text(json.dumps(meta) + " " * metadata.MAX_JSON_BYTES)
    with pytest.raises(featstore.StoreError, match="larger than 1048576 bytes"):
        featstore.open(tmp_path / "s")


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_only_its_own_version_is_read(tmp_path: Path, version: object) -> None:
    fill(tmp_path / "s", count=1)
    root = tmp_path / "s" / "features.zarr" / "zarr.json"
    root.write_text(json.dumps({"attributes": {"whowhen_store": version}}))
    other = f"a store of version {version}, this program reads version 1"
    words = other if isinstance(version, int) else "features.zarr/zarr.json names no version; run: featstore verify"
    with pytest.raises(featstore.StoreError, match=words):
        featstore.open(tmp_path / "s")


def test_another_model_is_told_by_what_differs(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    for other, words in (
        (spec(hop=2), r"has settings = \{\}, this extractor \{'hop': 2\}; appending would mix"),
        (spec(dim=4), "has dim = 8, this extractor 4; appending would mix"),
        (spec(weights="file"), "has these very weights by the name None, here they are file; name them with --weights"),
        (spec(weights="file", hop=2), r"has settings = \{\}, this extractor \{"),
    ):
        with pytest.raises(featstore.FingerprintMismatch, match=words):
            featstore.writer(tmp_path / "s", other)


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
