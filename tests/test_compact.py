"""compact: fewer parts, the same bytes in the same order, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import featstore
from cli.featstore import app
from featstore import MIMI_GRID, FeatureSpec, StoreError, Turn, Utterance, compact, layout
from featstore.integrity import verify

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
    assert (report.findings, report.parts, report.utterances) == ([], done.parts_after, 80)
    assert done.parts_after < 8
    again = compact.compact(store, part_bytes=6000)
    assert again.parts_before == again.parts_after == done.parts_after
    folders = [p for name in NAMES for p in layout.feature_dir(store, name).iterdir() if p.is_dir()]
    assert len(folders) == len(list(layout.utterances_dir(store).iterdir())) == done.parts_after


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

    for module, name in ((layout.os, "replace"), (Path, "unlink"), (shutil, "rmtree")):

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


def test_a_damaged_part_is_refused_and_kept(store: Path) -> None:
    chunk = sorted(layout.feature_dir(store, "mimi").glob("*/frames/c/0/0"))[3]
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged \(CRC32C differs\); run: featstore verify"):
        compact.compact(store, part_bytes=6000)
    assert chunk.read_bytes() == data


def test_two_writers_copies_are_dropped(store: Path) -> None:
    spec = featstore.open(store).features["mimi"]
    before = content(store)
    other = featstore.writer(store, spec)
    other.add(utterance(90), np.ones((3, 7)))  # not committed yet: the next writer does not know of it
    with featstore.writer(store, spec) as out:
        out.add(utterance(90), np.ones((3, 7)))
    other.commit()
    compact.compact(store, part_bytes=1 << 20)
    assert verify(store).utterances == 81
    assert [row["id"] for row in content_of(store, "mimi")] == [row["id"] for row in before["facts"]] + ["u090"]


def content_of(path: Path, name: str) -> list[dict[str, object]]:
    store = featstore.open(path)
    return [row for row in store.utterances.to_pylist() if row["id"] in store.index(name).rows]


def test_command(store: Path) -> None:
    result = CliRunner().invoke(app, ["compact", str(store), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parts_after"] == 2
