"""verify finds every damage and names whose data it is; repair and a second extraction bring it back."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import featstore
from cli.featstore import app
from featstore import files
from featstore.store import check as store_check
from featstore.store import layout, lock, metadata, part
from featstore.upkeep import compact, repair
from featstore.upkeep import verify as integrity
from tests.featstore.store.test_store import fill, spec, utterance


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("featstore.store.commit.CHUNK_BYTES", 20 * 16)
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


@pytest.mark.parametrize("damages", [240, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_damages_are_all_found(store: Path, damages: int) -> None:
    """Whatever happens to whatever file: it is found, and where it is a part's, the part and its utterances are named."""
    rng = np.random.default_rng(0)
    files = sorted(p for p in store.rglob("*") if p.is_file())
    whole = {p: p.read_bytes() for p in files}
    parts = {p.stem: set(pq.read_table(p)["id"].to_pylist()) for p in (store / "index" / "mimi").glob("*.parquet")}
    owner = {p: next((name for name in parts if name in p.as_posix()), "") for p in files}
    assert len(parts) >= 3
    kinds = ["flip", "cut", "grow", "zero", "noise", "swap", "remove", "folder"]
    done = 0
    while done < damages:
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
    assert {path for f in report.findings for path in f.paths} == {*strays, *leavings[:2], "incoming"}
    assert {(f.feature, f.part) for f in report.findings} == {("", "")}
    integrity.verify(store, repair=True)
    assert integrity.verify(store).findings == []
    assert all((store / "damaged" / name).read_bytes() == b"text" for name in strays)  # somebody put them there
    assert not any((store / name).exists() for name in leavings)
    assert len(featstore.open(store, verify=True)) == 4


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def chunks(store: Path) -> list[Path]:
    return sorted(store.glob("features.zarr/mimi/*/frames/c/0/0"))


def files_of(store: Path) -> dict[str, bytes]:
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def part_files(store: Path, name: str) -> dict[str, bytes]:
    return {path: data for path, data in files_of(store).items() if name in path}


@pytest.fixture
def one_part(tmp_path: Path) -> Path:
    fill(tmp_path / "s", count=3)
    return tmp_path / "s"


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout


class BadSector:
    """A file of which nothing can be read."""

    def read(self, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_bad_sector_is_an_error_and_a_finding(one_part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = part.check_chunk
    for module in (part, store_check):
        monkeypatch.setattr(module, "check_chunk", lambda file, *rest: check(BadSector(), *rest))
    with pytest.raises(featstore.StoreError, match="not readable .Input/output error."):
        featstore.open(one_part, verify=True).frames("mimi", "u0")
    (finding,) = integrity.verify(one_part).findings
    assert "not readable (Input/output error)" in finding.problem and len(finding.utterances) == 3
    assert finding.remedy == "move"


def test_a_verifying_reader_refuses_swapped_chunks(store: Path) -> None:
    names = ("features.zarr/mimi/*/frames/c/0/0", "features.zarr/mimi/*/mean/c/0/0")
    one, other = next(
        (a, b) for n in names for a in store.glob(n) for b in store.glob(n) if a.stat().st_size == b.stat().st_size and a != b
    )  # fmt: skip
    theirs = other.read_bytes()
    other.write_bytes(one.read_bytes())
    one.write_bytes(theirs)
    opened = featstore.open(store, verify=True)
    with pytest.raises(featstore.StoreError, match="not the chunk that was committed here"):
        for id in opened.ids:
            opened.frames("mimi", id)
            opened.pooled("mimi", [id])


def test_repair_refuses_while_something_writes(one_part: Path) -> None:
    with lock.hold(one_part), pytest.raises(featstore.StoreError, match="writing"):
        integrity.verify(one_part, repair=True)


@pytest.mark.parametrize("moment", ["facts", "seal", "index"])
def test_what_is_being_written_is_no_damage(one_part: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    real, seen = files.write_atomically, []

    def write(path: Path, data: bytes) -> None:
        kind = {"utterances": "facts", "mimi": "index"}.get(path.parent.name, "seal")
        if kind == moment:
            temporary = path.with_name(f".{path.name}.0.tmp")
            temporary.write_bytes(data)
            seen.append((integrity.verify(one_part), command("verify", one_part)))
            temporary.unlink()
        real(path, data)

    with lock.hold(one_part), featstore.writer(one_part, spec()) as out:
        out.add(utterance("late"), np.ones((3, 8)))
        monkeypatch.setattr(files, "write_atomically", write)
        out.commit()
    ((report, (code, text)),) = seen
    assert report.busy and report.findings and report.damaged == []
    assert code == 0 and "something is writing now" in text and "--repair" not in text
    assert integrity.verify(one_part).findings == []


def test_what_is_committed_while_verify_reads_is_checked(one_part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(one_part.glob("index/mimi/*")).name
    (one_part / "index" / "mimi" / name).rename(one_part / name)
    real = integrity._leftovers

    def leftovers(*arguments: object) -> Iterator[integrity.Finding]:
        (one_part / name).rename(one_part / "index" / "mimi" / name)
        yield from real(*arguments)

    monkeypatch.setattr(integrity, "_leftovers", leftovers)
    report = integrity.verify(one_part)
    assert (report.findings, report.utterances) == ([], 3)


def test_what_is_merged_while_verify_reads_is_no_damage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = integrity._examine, []

    def examine(*arguments: object) -> list[integrity.Finding]:
        calls.append(arguments)
        if len(calls) == 2:
            with monkeypatch.context() as patch:
                patch.setattr(integrity, "_examine", real)
                compact.compact(store)
        return real(*arguments)

    monkeypatch.setattr(integrity, "_examine", examine)
    assert integrity.verify(store).findings == []
    assert len(list(store.glob("index/mimi/*"))) == 1


def test_repair_leaves_what_was_committed_meanwhile(one_part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk without locks."""
    name, before = next(one_part.glob("index/mimi/*")).name, files_of(one_part)
    (one_part / "index" / "mimi" / name).rename(one_part / name)
    real = integrity.mend

    def mend(store: Path, finding: integrity.Finding) -> bool:
        (one_part / name).rename(one_part / "index" / "mimi" / name)
        return real(store, finding)

    monkeypatch.setattr(integrity, "mend", mend)
    assert integrity.verify(one_part, repair=True).repaired == []
    assert files_of(one_part) == before


@pytest.mark.parametrize("kind", ["flip", "remove", "folder", "noise", "grow"])
def test_a_damaged_root_is_written_again(one_part: Path, kind: str) -> None:
    root, before = one_part / "features.zarr" / "zarr.json", files_of(one_part)
    damage(kind, root, root, np.random.default_rng(2))
    code, text = command("verify", one_part)
    assert code == 2 and "features.zarr/zarr.json" in text
    code, text = command("verify", one_part, "--repair")
    assert code == 0 and "written anew" in text and "damaged parts" not in text
    assert files_of(one_part) == before


def test_what_is_no_store_or_another_version_is_not_repaired(one_part: Path, tmp_path: Path) -> None:
    root = one_part / "features.zarr" / "zarr.json"
    root.write_bytes(metadata.group_json({"whowhen_store": 99}))
    with pytest.raises(featstore.StoreError, match="version 99"):
        integrity.verify(one_part, repair=True)
    (tmp_path / "other" / "index").mkdir(parents=True)
    with pytest.raises(featstore.StoreError, match="not a store"):
        integrity.verify(tmp_path / "other", repair=True)


def test_a_damaged_spec_is_set_aside_and_written_again_by_its_extractor_only(one_part: Path) -> None:
    path = one_part / "features.zarr" / "mimi" / "zarr.json"
    before = files_of(one_part)
    flip(path)
    (finding,) = integrity.verify(one_part).findings
    assert "1 parts" in finding.problem and set(finding.utterances) == {"u0", "u1", "u2"}
    code, text = command("verify", one_part, "--repair")
    assert code == 0 and "featstore extract" in text and "1 damaged specs set aside" in text
    assert (one_part / "damaged" / "features.zarr" / "mimi" / "zarr.json").exists()
    with pytest.raises(featstore.StoreError, match="spec is missing; run the same `featstore extract`"):
        featstore.open(one_part)
    code, text = command("verify", one_part, "--repair")
    assert code == 2 and "set aside" not in text
    with pytest.raises(featstore.FingerprintMismatch, match="lost its spec"):
        featstore.writer(one_part, spec(sha="b" * 64))
    with featstore.writer(one_part, spec()) as out:
        assert out.missing([utterance("u0")]) == []
    assert {name: data for name, data in files_of(one_part).items() if "damaged" not in name} == before


def test_a_part_whose_index_is_lost_is_set_aside_not_deleted(one_part: Path) -> None:
    index = next(one_part.glob("index/mimi/*"))
    index.unlink()
    whole = part_files(one_part, index.stem)
    (finding,) = integrity.verify(one_part, repair=True).findings
    assert finding.leftover and "whole, but its index table is not there" in finding.problem
    assert {f"damaged/{name}": data for name, data in whole.items()} == part_files(one_part, index.stem)
    assert integrity.verify(one_part).findings == []


def test_only_a_part_without_a_seal_and_with_our_name_is_deleted(one_part: Path) -> None:
    ours = next(one_part.glob("index/mimi/*")).stem.replace("-00000", "-00001")
    for folder in (f"mimi/{ours}", "mimi/notes", "other/notes"):
        (one_part / "features.zarr" / folder).mkdir(parents=True)
        (one_part / "features.zarr" / folder / "thesis.txt").write_bytes(b"text")
    for name in (ours, "mine"):
        (one_part / "utterances" / f"{name}.parquet").write_bytes(b"text")
    assert not integrity.verify(one_part, repair=True).busy  # it is alone, and at work itself
    assert integrity.verify(one_part).findings == []
    assert sorted(name for name, data in files_of(one_part).items() if data == b"text") == [
        "damaged/features.zarr/mimi/notes/thesis.txt",
        "damaged/features.zarr/other/notes/thesis.txt",
        "damaged/utterances/mine.parquet",
    ]


def test_a_stray_file_in_a_part_is_all_that_moves(one_part: Path) -> None:
    before = files_of(one_part)
    folder = chunks(one_part)[0].parents[2].relative_to(one_part).as_posix()
    for name in (f"{folder}/.DS_Store", f"{folder}/c/._0"):
        (one_part / name).parent.mkdir(exist_ok=True)
        (one_part / name).write_bytes(b"text")
    report = integrity.verify(one_part, repair=True)
    assert {f.paths for f in report.findings} == {
        (f"{folder}/.DS_Store",),
        (f"{folder}/c/._0",),
    } and report.damaged == []
    assert {f.part for f in report.findings} == {""}
    strays = {f"damaged/{folder}/.DS_Store": b"text", f"damaged/{folder}/c/._0": b"text"}
    assert files_of(one_part) == before | strays


@pytest.mark.parametrize("moves", [0, 1, 2])
@pytest.mark.parametrize("damaged", ["zarr.json", "frames/c/0/0"])
def test_a_repair_killed_between_its_moves_loses_nothing(
    one_part: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, moves: int
) -> None:
    name = next(one_part.glob("index/mimi/*")).stem
    flip(one_part / "features.zarr" / "mimi" / name / damaged)
    before, real, calls = part_files(one_part, name), repair._move, []

    def move(store: Path, path: Path) -> None:
        calls.append(path)
        if len(calls) > moves:
            raise KeyboardInterrupt
        real(store, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(repair, "_move", move)
        integrity.verify(one_part, repair=True)
    integrity.verify(one_part, repair=True)
    assert part_files(one_part, name) == {f"damaged/{path}": data for path, data in before.items()}
    assert integrity.verify(one_part).findings == []


def test_the_same_part_is_set_aside_twice(one_part: Path, tmp_path: Path) -> None:
    shutil.copytree(one_part, tmp_path / "copy")
    for _ in range(3):
        flip(chunks(one_part)[0])
        integrity.verify(one_part, repair=True)
        assert integrity.verify(one_part).findings == []
        shutil.copytree(tmp_path / "copy", one_part, dirs_exist_ok=True)
    name = next(one_part.glob("index/mimi/*")).name
    kept = sorted(p.name for p in (one_part / "damaged" / "index" / "mimi").iterdir())
    assert kept == [name, f"{name}.1", f"{name}.2"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("where", ["index/mimi", "utterances", "frames/c/0", "mimi/zarr.json"])
def test_what_cannot_be_read_now_stays_where_it_is(
    one_part: Path, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    before = files_of(one_part)

    def refusing(real: object) -> object:
        def call(path: Path, *rest: object, **named: object) -> object:
            if where in str(path):
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *rest, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refusing(Path.read_bytes))
        patch.setattr(store_check, "open", refusing(open), raising=False)
        report = integrity.verify(one_part, repair=True)
        assert command("verify", one_part, "--repair")[0] == 2
    assert len(report.damaged) >= 1 and report.repaired == []
    assert all(
        "not readable now" in f.problem and f.part in ("", chunks(one_part)[0].parts[-5]) for f in report.findings
    )
    assert files_of(one_part) == before


@pytest.mark.parametrize("line", [b"[1]", b'{"id": "u0"}', b"\xff", b"{"])
def test_a_damaged_list_of_failures_is_put_away(one_part: Path, line: bytes) -> None:
    (one_part / "failures").mkdir()
    good = json.dumps({"feature": "mimi", "id": "u9", "source": "a.wav", "error": "no"}).encode()
    (one_part / "failures" / "a.jsonl").write_bytes(good + b"\n")
    (one_part / "failures" / "b.jsonl").write_bytes(good + b"\n" + line + b"\n")
    (finding,) = integrity.verify(one_part, repair=True).findings
    assert finding.leftover and finding.part == "" and finding.paths == ("failures/b.jsonl",)
    assert (one_part / "damaged" / "failures" / "b.jsonl").exists() and (one_part / "failures" / "a.jsonl").exists()
    assert integrity.verify(one_part).findings == []


def test_a_part_of_another_extractor_is_found(tmp_path: Path) -> None:
    """Whole in itself, in its place, named by its index: only its fingerprint says that its frames are another model's."""
    fill(tmp_path / "s", count=3)
    with featstore.writer(tmp_path / "other", spec(sha="b" * 64)) as out:
        for id in ("v0", "v1"):
            out.add(utterance(id), np.ones((4, 8)))
    name = next((tmp_path / "other" / "index" / "mimi").iterdir()).stem
    for path in (f"features.zarr/mimi/{name}", f"utterances/{name}.parquet", f"index/mimi/{name}.parquet"):
        source, target = tmp_path / "other" / path, tmp_path / "s" / path
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    report = integrity.verify(tmp_path / "s")
    (finding,) = report.findings
    assert finding.problem.endswith(f"written by another extractor ({spec(sha='b' * 64).fingerprint})")
    assert (finding.part, finding.utterances, finding.remedy) == (name, ("v0", "v1"), "move")
    integrity.verify(tmp_path / "s", repair=True)
    assert sorted(featstore.open(tmp_path / "s").ids) == ["u0", "u1", "u2"]


def reseal(store: Path, name: str) -> None:
    """Write a part's seal anew, as if its index had been committed as it is."""
    folder = store / "features.zarr" / "mimi" / name
    attributes = metadata.read_seal(folder)
    del attributes["seal"]
    index = (store / "index" / "mimi" / f"{name}.parquet").read_bytes()
    attributes["sha256"]["index"] = hashlib.sha256(index).hexdigest()
    (folder / "zarr.json").write_bytes(metadata.group_json(metadata.sealed(attributes)))


@pytest.mark.parametrize(
    ("rows", "problem", "whose"),
    [
        ([(0, 4), (5, 2)], "rows overlap or leave gaps", ("a", "b")),
        ([(0, 4), (3, 2)], "rows overlap or leave gaps", ("a", "b")),
        ([], "names no utterance", ()),
    ],
)
def test_an_index_that_was_wrong_from_the_start_is_found(
    tmp_path: Path, rows: list[tuple[int, int]], problem: str, whose: tuple[str, ...]
) -> None:
    with featstore.writer(tmp_path / "s", spec()) as out:
        for id, num in (("a", 4), ("b", 3)):
            out.add(utterance(id), np.ones((num, 8)))
    (table,) = (tmp_path / "s").glob("index/mimi/*")
    columns = [["a", "b"][: len(rows)], [first for first, _ in rows], [num for _, num in rows]]
    pq.write_table(pa.table(columns, schema=layout.INDEX_SCHEMA), table)
    reseal(tmp_path / "s", table.stem)
    (finding,) = integrity.verify(tmp_path / "s").findings
    assert problem in finding.problem and (finding.part, finding.utterances) == (table.stem, whose)


def test_what_was_read_is_counted(tmp_path: Path) -> None:
    """Bytes of all chunks with their sums: 5 frames of 16 bytes, means and deviations of 2 · 32."""
    with featstore.writer(tmp_path / "s", spec()) as out:
        for id, num in (("a", 4), ("b", 1)):
            out.add(utterance(id), np.ones((num, 8)))
        out.commit()
        out.add(utterance("c"), np.ones((2, 8)))
    told: list[tuple[int, int]] = []
    report = integrity.verify(tmp_path / "s", progress=lambda done, of: told.append((done, of)))
    assert (report.parts, report.utterances, told) == (2, 3, [(1, 2), (2, 2)])
    assert report.bytes == (5 * 16 + 4) + 2 * (2 * 32 + 4) + (2 * 16 + 4) + 2 * (32 + 4)


def test_what_is_damaged_again_is_kept_beside_what_was(tmp_path: Path) -> None:
    (tmp_path / "s" / "index").mkdir(parents=True)
    for text in ("first", "second", "third", "fourth"):
        (tmp_path / "s" / "index" / "x").write_text(text)
        repair._move(tmp_path / "s", tmp_path / "s" / "index" / "x")
    kept = {path.name: path.read_text() for path in (tmp_path / "s" / "damaged" / "index").iterdir()}
    assert kept == {"x": "first", "x.1": "second", "x.2": "third", "x.3": "fourth"}
    assert list((tmp_path / "s" / "index").iterdir()) == []
