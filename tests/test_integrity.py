"""verify finds every damage and names whose data it is; repair and a second extraction bring it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import featstore
from featstore import integrity
from tests.test_store import fill, spec, utterance


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("featstore.commit.CHUNK_BYTES", 20 * 16)
    fill(tmp_path / "s", count=12, part_bytes=1200)
    return tmp_path / "s"


def test_a_whole_store_has_no_findings(store: Path) -> None:
    report = integrity.verify(store)
    assert report.findings == []
    assert report.utterances == 12
    assert report.parts >= 2


def test_random_damages_are_all_found(store: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(p.relative_to(store) for p in store.rglob("*") if p.is_file())
    chunks = [p for p in files if p.name == "0" and "frames" in p.parts]
    for trial in range(150):
        broken = tmp_path / "broken"
        shutil.copytree(store, broken)
        kind = rng.choice(["flip", "cut", "remove", "swap"])
        path = broken / files[rng.integers(len(files))]
        data = bytearray(path.read_bytes())
        if kind == "flip":
            at = int(rng.integers(len(data)))
            data[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
        elif kind == "cut":
            path.write_bytes(data[: int(rng.integers(len(data)))])
        elif kind == "remove":
            path.unlink()
        else:
            a, b = (broken / p for p in rng.choice(np.array(chunks, dtype=object), 2, replace=False))
            if a.read_bytes() == b.read_bytes():
                shutil.rmtree(broken)
                continue
            a_bytes = a.read_bytes()
            a.write_bytes(b.read_bytes())
            b.write_bytes(a_bytes)
        what = f"trial {trial}: {kind} {path.relative_to(broken)}"
        try:
            assert integrity.verify(broken).findings, what
        except featstore.StoreError as error:
            assert "zarr.json" in str(error), what  # the store's own root
        shutil.rmtree(broken)


def test_an_edited_table_is_found(store: Path) -> None:
    path = next((store / "utterances").glob("*.parquet"))
    table = pq.read_table(path)
    speaker = ["other", *table["speaker"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("speaker"), "speaker", [speaker]), path)
    (finding,) = integrity.verify(store).findings
    assert "not the file that was committed" in finding.problem
    assert set(finding.utterances) == set(table["id"].to_pylist())


def test_repair_sets_damage_aside_and_extracting_again_heals(store: Path) -> None:
    before = featstore.open(store)
    data = {id: before.frames("mimi", id).copy() for id in before.ids}
    chunk = sorted(store.glob("features.zarr/mimi/*/frames/c/1/0"))[0]
    damaged = bytearray(chunk.read_bytes())
    damaged[3] ^= 4
    chunk.write_bytes(damaged)
    (finding,) = integrity.verify(store, repair=True).damaged
    assert finding.part == chunk.parts[-5]
    assert 0 < len(finding.utterances) < 12
    assert (store / "damaged" / "features.zarr" / "mimi" / finding.part).is_dir()
    after = featstore.open(store, verify=True)
    assert set(after.ids) == set(data) - set(finding.utterances)
    with featstore.writer(store, spec()) as out:
        missing = out.missing([utterance(id) for id in data])
        assert {u.id for u in missing} == set(finding.utterances)
        for u in missing:
            out.add(u, data[u.id])
    assert integrity.verify(store).findings == []
    healed = featstore.open(store, verify=True)
    for id, frames in data.items():
        np.testing.assert_array_equal(healed.frames("mimi", id), frames)


def test_what_an_interrupted_write_leaves_is_cleaned(store: Path) -> None:
    part = next(p for p in (store / "features.zarr" / "mimi").iterdir() if p.is_dir())
    shutil.copytree(part, part.with_name("half-written"))
    (store / "utterances" / "half-written.parquet").write_bytes(b"half")
    (store / "index" / "mimi" / ".x.parquet.1.tmp").write_bytes(b"h")
    report = integrity.verify(store, repair=True)
    assert len(report.findings) >= 2
    assert report.damaged == []
    assert integrity.verify(store).findings == []
    assert len(featstore.open(store)) == 12
