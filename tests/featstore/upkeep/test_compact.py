"""compact: fewer parts, the same bytes in the same order, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import featstore
from cli.featstore import app
from featstore import MIMI_GRID, FeatureSpec, StoreError, Turn, Utterance
from featstore.store import layout, lock, metadata
from featstore.store.commit import commit_part
from featstore.store.tables import parquet_bytes, read_table, utterance_table
from featstore.upkeep import compact
from featstore.upkeep.verify import verify

NAMES = ("mimi", "titanet")


def utterance(i: int) -> Utterance:
    turns = (Turn(0.0, 0.4, "a"), Turn(0.3, 0.5, "b")) if i % 3 == 0 else ()
    return Utterance(f"u{i:03d}", f"{i}.wav", 0.0, 0.8, f"r{i}", None if turns else "s", "train", turns)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for dim, name in enumerate(NAMES, start=7):
        spec = FeatureSpec(name, dim, "float16", 24000, MIMI_GRID, name, "0" * 64, {"weights": "file"})
        with featstore.writer(tmp_path / "s", spec, part_bytes=500) as out:
            for i in range(40):
                out.add(utterance(i), rng.normal(size=(int(rng.integers(1, 30)), dim)))
    return tmp_path / "s"


def content(path: Path) -> dict[str, list[object]]:
    store = featstore.open(path, verify=True)
    return {
        "facts": store.utterances.to_pylist(),
        **{name: [store.frames(name, id).tobytes() for id in store.ids] for name in NAMES},
        **{f"{name} pooled": store.pooled(name).tobytes() for name in NAMES},
    }


def test_parts_become_few_and_nothing_else_changes(store: Path) -> None:
    before, parts = content(store), verify(store).parts
    done = compact.compact(store, part_bytes=6000)
    assert parts == done.parts_before > 20
    assert content(store) == before
    report = verify(store)
    assert (report.findings, report.parts, report.utterances) == ([], done.parts_after, 40)
    assert done.parts_after < 8
    again = compact.compact(store, part_bytes=6000)
    assert again.parts_before == again.parts_after == done.parts_after
    folders = [p for name in NAMES for p in layout.feature_dir(store, name).iterdir() if p.is_dir()]
    assert len(folders) == len(list(layout.utterances_dir(store).iterdir())) == done.parts_after


def test_a_merged_part_holds_what_it_is_given_and_no_more(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    frames = {name: featstore.open(store).index(name).num.sum() for name in NAMES}
    whole = int(frames["titanet"]) * 8 * 2  # dim and bytes of a value
    assert whole > int(frames["mimi"]) * 7 * 2
    assert compact.compact(store, part_bytes=whole).parts_after == 2
    assert compact.compact(tmp_path / "copy", part_bytes=whole - 1).parts_after == 3


@pytest.mark.parametrize("kill_at", range(0, 60, 4))
def test_a_stop_anywhere_loses_nothing_and_is_finished_by_the_same_call(
    store: Path, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = content(store), 0

    def stop() -> None:
        nonlocal calls
        if threading.current_thread() is not threading.main_thread():
            return  # zarr's own
        calls += 1
        if calls > kill_at:
            raise KeyboardInterrupt

    for module, name in ((os, "replace"), (Path, "unlink"), (shutil, "rmtree")):

        def stopping(*args: object, real: object = getattr(module, name), **kwargs: object) -> object:
            stop()
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        compact.compact(store, part_bytes=6000)
    monkeypatch.undo()
    after = content(store)
    assert sorted(map(str, after["facts"])) == sorted(map(str, before["facts"]))
    lookup = dict(zip(featstore.open(store).ids, after["mimi"], strict=True))
    assert [lookup[row["id"]] for row in before["facts"]] == before["mimi"]
    verify(store, repair=True)
    compact.compact(store, part_bytes=6000)
    assert content(store) == before
    assert verify(store).findings == []
    assert verify(store).parts < 8


def flip(store: Path, part: int) -> bytes:
    """One bit of a part of mimi's frames; returns the damaged chunk."""
    chunk = sorted(layout.feature_dir(store, "mimi").glob("*/frames/c/0/0"))[part]
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    return bytes(data)


def files(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_damaged_part_is_refused_and_kept(store: Path) -> None:
    damaged = flip(store, 3)
    with pytest.raises(StoreError, match=r"damaged \(CRC32C differs\); run: featstore verify"):
        compact.compact(store, part_bytes=6000)
    assert damaged in files(store).values()


def two_writers(store: Path, count: int) -> None:
    """Some more utterances twice, as the last two parts: of two writers that did not know of each other."""
    spec, more = featstore.open(store).features["mimi"], [utterance(i) for i in range(90, 90 + count)]
    for name in ("y", "z"):
        commit_part(store, spec, name, more, [np.ones((3, 7), "<f2")] * count)


@pytest.mark.parametrize("lost", ["gone", "cut"])
def test_a_part_that_is_not_merged_may_lack_no_chunk_either(store: Path, lost: str) -> None:
    compact.compact(store)
    (part,) = (store / "features.zarr" / "mimi").glob("2*")
    chunk = part / "mean" / "c" / "0" / "0"
    chunk.unlink() if lost == "gone" else chunk.write_bytes(chunk.read_bytes()[:-1])
    kept = files(store)
    with pytest.raises(
        StoreError, match=r"mean/c/0/0: the chunk is missing or cut short; run: featstore verify .* --repair$"
    ):
        compact.compact(store)
    assert files(store) == kept


def test_two_writers_copies_are_dropped(store: Path) -> None:
    before = content(store)
    two_writers(store, 1)
    compact.compact(store, part_bytes=1 << 20)
    report = verify(store)
    assert (report.findings, report.utterances) == ([], 41)
    assert [row["id"] for row in content_of(store, "mimi")] == [row["id"] for row in before["facts"]] + ["u090"]


@pytest.mark.parametrize("damaged", [-1, -2])
def test_of_two_copies_the_good_one_is_kept(store: Path, damaged: int) -> None:
    two_writers(store, 2)
    flip(store, damaged)
    before = files(store)
    with pytest.raises(StoreError, match="CRC32C differs"):
        compact.compact(store, part_bytes=1)
    assert files(store) == before
    verify(store, repair=True)
    compact.compact(store, part_bytes=1)
    assert featstore.open(store, verify=True).frames("mimi", "u091").tolist() == [[1.0] * 7] * 3


def test_a_stopped_compaction_s_damaged_part_does_not_cost_the_originals(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(compact, "remove_part", stop)
        compact.compact(store, part_bytes=6000)
    (merged,) = (p for p, name in enumerate(part_names(store)) if "-m" in name)
    flip(store, merged)
    before = files(store)
    with pytest.raises(StoreError, match="CRC32C differs"):
        compact.compact(store, part_bytes=6000)
    assert files(store) == before


def part_names(store: Path) -> list[str]:
    return sorted(p.name for p in layout.feature_dir(store, "mimi").iterdir() if p.is_dir())


def test_an_id_twice_in_one_part_is_no_copy(store: Path) -> None:
    spec = featstore.open(store).features["mimi"]
    frames = [np.ones((3, 7), "<f2")] * 2
    commit_part(store, spec, "crafted", [utterance(95)] * 2, frames)
    two_writers(store, 1)  # something to drop
    compact.compact(store, part_bytes=1)
    assert "u095" in featstore.open(store).index("mimi").rows


def test_names_do_not_grow_with_merges(tmp_path: Path) -> None:
    spec = FeatureSpec("mimi", 1, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {})
    metadata.create(tmp_path / "s", spec)
    lengths = set()
    for i in range(30):
        name = f"20260101T000000-00c0ffee-{i:05d}"
        commit_part(tmp_path / "s", spec, name, [utterance(i)], [np.ones((1, 1), "<f2")])
        compact.compact(tmp_path / "s")
        lengths |= {len(name) for name in part_names(tmp_path / "s")}
    assert len(lengths) == 2  # as written, and as merged
    assert featstore.open(tmp_path / "s").ids == [utterance(i).id for i in range(30)]


def test_all_agree_on_which_copy_counts(tmp_path: Path) -> None:
    """`A-x.parquet` sorts before `A.parquet`, but part `A` before `A-x`."""
    spec = FeatureSpec("mimi", 1, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {})
    metadata.create(tmp_path / "s", spec)
    for name, value, speaker in (("A-x", 2, "second"), ("A", 1, "first")):
        twice = replace(utterance(1), speaker=speaker)
        commit_part(tmp_path / "s", spec, name, [twice], [np.full((1, 1), value, "<f2")])
    store = featstore.open(tmp_path / "s")
    assert store.index("mimi").part_names == ["A", "A-x"]
    assert store.frames("mimi", "u001") == 1
    assert store.utterance("u001").speaker == "first"
    assert [finding.part for finding in verify(tmp_path / "s").findings] == ["A-x"]


def test_facts_and_frames_of_a_merged_part_are_of_one_copy(tmp_path: Path) -> None:
    """Two parts share one utterance and hold one of their own each, so that neither can be dropped."""
    spec = FeatureSpec("mimi", 1, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {})
    metadata.create(tmp_path / "s", spec)
    for value, name, numbers in ((1, "A", (1, 2)), (2, "B", (2, 3))):
        some = [replace(utterance(i), audio=f"{name}.wav") for i in numbers]
        commit_part(tmp_path / "s", spec, name, some, [np.full((1, 1), value, "<f2")] * 2)
    assert compact.compact(tmp_path / "s").parts_after == 1
    store = featstore.open(tmp_path / "s")
    assert {id: (store.utterance(id).audio, store.frames("mimi", id).item()) for id in store.ids} == {
        **{"u001": ("A.wav", 1.0), "u002": ("A.wav", 1.0), "u003": ("B.wav", 2.0)},
    }


def test_refused_while_something_writes(store: Path) -> None:
    before = files(store)
    with lock.hold(store), pytest.raises(StoreError, match="is writing to it"):
        compact.compact(store, part_bytes=6000)
    assert files(store) == before
    compact.compact(store, part_bytes=6000)


def test_nobody_writes_while_it_runs(store: Path) -> None:
    parts, told, refused = len(featstore.open(store).index("mimi").part_names), [], 0

    def write(done: int, of: int) -> None:
        nonlocal refused
        told.append((done, of))
        if done < of:
            with pytest.raises(StoreError, match="compacted"), lock.hold(store):
                pass
            refused += 1

    before = compact.compact(store, part_bytes=6000, progress=write).parts_before
    assert told == sorted(told) and told[-1] == (before, before) and before > parts > 10
    assert refused >= 3
    with lock.hold(store):  # and afterwards one may again
        pass


def content_of(path: Path, name: str) -> list[dict[str, object]]:
    store = featstore.open(path)
    return [row for row in store.utterances.to_pylist() if row["id"] in store.index(name).rows]


def run(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["compact", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_command(store: Path) -> None:
    before = verify(store).parts
    assert run(store) == {"store": str(store), "parts_before": before, "parts_after": 2}
    result = CliRunner().invoke(app, ["compact", str(store)])
    assert result.stdout == f"{store}: 2 parts, now 2\n"


def test_the_command_makes_parts_of_the_size_it_is_given(tmp_path: Path) -> None:
    """Four parts of 0.6 MB: one fits into 1 MiB, three fit into 2 MiB, all into the usual size."""
    spec = FeatureSpec("mimi", 600, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {})
    with featstore.writer(tmp_path / "s", spec, part_bytes=1) as out:
        for i in range(4):
            out.add(utterance(i), np.full((500, 600), i))
    for size, parts in ((1, 4), (2, 2), (None, 1)):
        found = run(tmp_path / "s", *(() if size is None else ("--part-mb", size)))
        assert found["parts_after"] == parts
    assert [int(featstore.open(tmp_path / "s").frames("mimi", f"u{i:03d}")[0, 0]) for i in range(4)] == [0, 1, 2, 3]


def test_facts_come_from_the_parts_that_were_checked(tmp_path: Path) -> None:
    for part, name in (("a", "titanet"), ("b", "mimi"), ("c", "mimi")):  # the store's own table reads a's facts
        spec = FeatureSpec(name, 4, "float16", 24000, MIMI_GRID, name, "0" * 64, {"weights": "file"})
        metadata.create(tmp_path, spec)
        some = [utterance(i) for i in range(4) if part == "a" or i // 2 == "bc".index(part)]
        commit_part(tmp_path, spec, part, some, [np.ones((3, 4), np.float16)] * len(some))
    wrong = utterance_table(replace(utterance(i), recording="wrong") for i in range(4))
    (layout.utterances_dir(tmp_path) / "a.parquet").write_bytes(parquet_bytes(wrong))
    compact.compact(tmp_path)  # one part of titanet: nothing to merge there
    (merged,) = layout.committed(tmp_path, "mimi")
    facts = read_table(layout.utterances_dir(tmp_path) / f"{merged}.parquet", layout.UTTERANCE_SCHEMA)
    assert facts["recording"].to_pylist() == [f"r{i}" for i in range(4)]


def test_of_copies_the_small_parts_go(tmp_path: Path) -> None:
    spec = FeatureSpec("mimi", 1, "float16", 24000, MIMI_GRID, "mimi", "0" * 64, {})
    metadata.create(tmp_path / "s", spec)
    for part, numbers in (("A", (1,)), ("B", (1, 2)), ("C", (2,))):
        commit_part(
            tmp_path / "s", spec, part, [utterance(i) for i in numbers], [np.ones((1, 1), "<f2")] * len(numbers)
        )
    assert compact.compact(tmp_path / "s", part_bytes=1).parts_after == 1
    assert part_names(tmp_path / "s") == ["B"] and featstore.open(tmp_path / "s").ids == ["u001", "u002"]
