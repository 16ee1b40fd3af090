"""verify finds every damage and names whose data it is; repair and a second extraction bring it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import featstore
from cli.featstore import app
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


def damage(kind: str, path: Path, other: Path, rng: np.random.Generator) -> None:
    """Damage `path` (and `other`, where two files are swapped)."""
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[int(rng.integers(len(data))) :]
    elif kind == "grow":
        data += rng.bytes(int(rng.integers(1, 9)))
    elif kind == "zero":
        data = bytearray(len(data))
    elif kind == "noise":
        data = bytearray(rng.bytes(len(data)))
    elif kind == "swap":
        theirs = other.read_bytes()
        other.write_bytes(data)
        data = bytearray(theirs)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "remove":
        path.write_bytes(data)


def test_a_thousand_random_damages_are_all_found(store: Path) -> None:
    """Whatever happens to whatever file: it is found, and where it is a part's, the part and its utterances are named."""
    rng = np.random.default_rng(0)
    files = sorted(p for p in store.rglob("*") if p.is_file())
    whole = {p: p.read_bytes() for p in files}
    parts = {p.stem: set(pq.read_table(p)["id"].to_pylist()) for p in (store / "index" / "mimi").glob("*.parquet")}
    owner = {p: next((name for name in parts if name in p.as_posix()), "") for p in files}
    assert len(parts) >= 3
    kinds = ["flip", "cut", "grow", "zero", "noise", "swap", "remove", "folder"]
    done = 0
    while done < 1000:
        kind = kinds[done % len(kinds)]
        path, other = (files[i] for i in rng.choice(len(files), 2, replace=False))
        if kind == "swap":  # of one kind, so that each is whole in itself
            alike = [p for p in files if p.name == path.name and p.parts[-4:-1] == path.parts[-4:-1] and p != path]
            alike = alike or [p for p in files if p.suffix == path.suffix and p != path]
            other = alike[int(rng.integers(len(alike)))]
        if kind == "swap" and whole[path] == whole[other]:
            continue  # nothing would be damaged
        damage(kind, path, other, rng)
        what = f"{done}: {kind} {path.relative_to(store)}"
        try:
            findings = integrity.verify(store).findings
            assert findings, what
            for changed in {path, other} if kind == "swap" else {path}:
                if not owner[changed]:
                    continue
                (finding,) = [f for f in findings if f.part == owner[changed]]
                gone = changed.parent.name == "mimi" and kind == "remove"  # as if it had never been committed
                assert gone or set(finding.utterances) == parts[owner[changed]], (what, finding)
        except featstore.StoreError as error:
            assert store / "features.zarr" / "zarr.json" in (path, other), (what, error)
        for changed in (path, other):
            if changed.is_dir():
                changed.rmdir()
            changed.write_bytes(whole[changed])
        done += 1
    assert integrity.verify(store).findings == []


def test_the_command_names_the_damage_and_exits_2(store: Path) -> None:
    for name in ("features.zarr/mimi/*/frames/c/0/0", "index/mimi/*", "utterances/*", "features.zarr/mimi/zarr.json"):
        path = sorted(store.glob(name))[0]
        data = path.read_bytes()
        path.write_bytes(data.replace(data[8:12], b"DMGD", 1))
        result = CliRunner().invoke(app, ["verify", str(store)])
        assert result.exit_code == 2 and "DAMAGED mimi" in result.stdout, (name, result.output)
        path.write_bytes(data)
    assert CliRunner().invoke(app, ["verify", str(store)]).exit_code == 0


@pytest.mark.parametrize("kind", ["flip", "cut", "grow", "zero", "noise", "remove", "folder"])
def test_a_reader_never_takes_a_damaged_chunk_for_frames(store: Path, kind: str) -> None:
    """Whole-file damage is seen at once; a changed byte, where the reader was asked to verify."""
    rng = np.random.default_rng(1)
    chunk = sorted(store.glob("features.zarr/mimi/*/frames/c/0/0"))[0]
    part = chunk.parts[-5]
    (id, *_) = pq.read_table(store / "index" / "mimi" / f"{part}.parquet")["id"].to_pylist()
    damage(kind, chunk, chunk, rng)
    with pytest.raises(featstore.StoreError):
        featstore.open(store, verify=True).frames("mimi", id)
    if kind not in ("flip", "zero", "noise"):
        with pytest.raises(featstore.StoreError):
            featstore.open(store).frames("mimi", id)


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


def test_what_belongs_to_no_part_is_named_and_put_away(tmp_path: Path) -> None:
    store = tmp_path / "s"
    fill(store, count=4)
    strays = ["index/mimi/notes.txt", "features.zarr/mimi/x", "features.zarr/y", "utterances/z.json"]
    leavings = ["failures/.a.jsonl.0.tmp", "index/mimi/.b.parquet.1.tmp", "incoming/utterances/c.parquet"]
    for name in (*strays, *leavings):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"text")
    report = integrity.verify(store)
    assert report.damaged == []
    assert {f.part for f in report.findings} == {*strays, *leavings[:2], "incoming/"}
    integrity.verify(store, repair=True)
    assert integrity.verify(store).findings == []
    assert all((store / "damaged" / name).read_bytes() == b"text" for name in strays)  # somebody put them there
    assert not any((store / name).exists() for name in leavings)
    assert len(featstore.open(store, verify=True)) == 4
