"""What the store is made of, piece by piece: files, locks, tables, failures, changes, what it shows."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import featstore
from featstore import StoreError, Turn, files
from featstore.facts import facts_of
from featstore.store import changes, codebooks, commit, footer, layout, lock, metadata, tables
from featstore.store.failures import Failures, settle
from featstore.store.ids import Ids
from featstore.store.labels import label_digests
from featstore.store.tables import parquet_bytes, read_table, utterance_table
from featstore.upkeep.compact import MERGED_BYTES
from featstore.upkeep.merge import merge
from tests import codes
from tests.conftest import ROOT
from tests.featstore.store.test_store import fill, spec, utterance


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.write_once(path, b"first")
    files.write_once(path, b"second")
    assert path.read_bytes() == b"first"
    files.write_atomically(path, b"third")
    assert path.read_bytes() == b"third" and os.listdir(tmp_path) == ["a"]
    monkeypatch.setattr(Path, "exists", lambda self: False)  # somebody else is quicker
    files.write_once(path, b"fourth")
    assert path.read_bytes() == b"third" and os.listdir(tmp_path) == ["a"]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (files.write_atomically, files.write_once):
        with pytest.raises(OSError, match="No space") as found:
            write(tmp_path / "b", b"x")
        assert str(tmp_path) in found.value.filename and os.listdir(tmp_path) == ["a"]
    with pytest.raises(FileNotFoundError) as found, files.naming(tmp_path):
        (tmp_path / "none").read_bytes()
    assert found.value.filename == str(tmp_path / "none")  # which it names already
    with pytest.raises(OSError, match="^no number$") as found, files.naming(tmp_path):
        raise OSError("no number")
    assert found.value.filename is None


def test_who_keeps_whom_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "s")
    waits: list[float] = []
    monkeypatch.setattr(lock.time, "sleep", waits.append)
    now = iter(np.arange(0.0, 100.0, 0.1))
    monkeypatch.setattr(lock.time, "monotonic", lambda: float(next(now)))
    with lock.hold(tmp_path / "s"), lock.hold(tmp_path / "s"):  # writers do not mind each other
        assert waits == []
        with (
            pytest.raises(StoreError, match="s: something else is writing to it or repairing it; run this again"),
            lock.hold(tmp_path / "s", alone=True),
        ):
            pass
    assert 3 <= len(waits) <= 5  # half a second
    with lock.hold(tmp_path / "s", alone=True):
        for alone, who in (
            (False, "it is being repaired or compacted"),
            (True, "something else is writing to it or rep"),
        ):
            with pytest.raises(StoreError, match=who), lock.hold(tmp_path / "s", alone=alone):
                pass

    def unlockable(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", unlockable)
        with lock.hold(tmp_path / "s", alone=True), lock.hold(tmp_path / "s", alone=True):  # a disk without locks
            pass
    for number, fine in ((errno.EROFS, True), (errno.EACCES, True), (errno.EPERM, True), (errno.EIO, False)):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", refuse)
            entered = []
            try:
                with lock.hold(tmp_path / "s"):
                    entered.append(number)
            except OSError as error:
                assert error.errno == errno.EIO
        assert bool(entered) == fine


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"id": ""}, "a row without an id"),
        ({"id": None}, "id: a row without a value"),
        ({"recording": None}, "recording: a row without a value"),
        ({"duration": None}, "duration: a row without a value"),
        ({"source": "x" * 4097}, "source: a text of 4097 bytes; up to 4096 are taken"),
        ({"speaker": "ü" * 2049}, "speaker: a text of 4098 bytes"),
        ({"turns": [{"start": 0.0, "end": 1.0, "speaker": "x" * 4097}]}, "turns: a text of 4097 bytes"),
        ({"turns": [{"start": 0.0, "end": None, "speaker": "x"}]}, "a turn without a value"),
        ({"turns": [{"start": 0.0, "end": 1.0, "speaker": None}]}, "a turn without a value"),
        ({"source": "x" * 4096, "speaker": None, "turns": None, "split": ""}, None),
    ],
)
def test_a_row_that_no_writer_makes(tmp_path: Path, facts: dict, words: str | None) -> None:
    table = utterance_table([utterance("a"), utterance("b", turns=(Turn(0, 1, "s"),))])
    rows = [table.to_pylist()[0], {**table.to_pylist()[1], **facts}]
    schema = layout.UTTERANCE_SCHEMA
    (tmp_path / "t.parquet").write_bytes(parquet_bytes(type(table).from_pylist(rows, schema=schema)))
    if words is None:
        assert read_table(tmp_path / "t.parquet", schema).to_pylist() == rows
    else:
        with pytest.raises(StoreError, match=rf"t.parquet: not readable \({words}.*\); run: featstore verify"):
            read_table(tmp_path / "t.parquet", schema)


def test_failures_are_of_a_feature_and_an_id(tmp_path: Path) -> None:
    """One that is noted twice counts once, the newest counts; what a feature holds by now settles its own alone."""
    fill(tmp_path / "s")
    logs = {name: Failures(tmp_path / "s", name) for name in ("mimi", "titanet")}

    def listed() -> list[tuple[str, str, str]]:
        lines = (tmp_path / "s" / "failures.jsonl").read_text().splitlines()
        return [(e["feature"], e["id"], e["error"]) for e in map(json.loads, lines)]

    for name, log in logs.items():
        for id in ("u0", "x"):
            entry = log.add(utterance(id), ValueError(f"{name} {id}"))
            assert entry == {"feature": name, "id": id, "source": f"{id}.wav", "error": f"{name} {id}"}
    assert logs["mimi"].add(utterance("x"), "again") is None and not logs["mimi"].keep({"feature": "mimi", "id": "x"})
    assert logs["mimi"].keep({"feature": "mimi", "id": "other", "source": "o.wav", "error": "told"})
    assert not (tmp_path / "s" / "failures.jsonl").exists()
    for log in logs.values():
        log.flush()
        log.flush()
    assert len(list((tmp_path / "s" / "failures").iterdir())) == 2
    all_of_them = [("mimi", "u0", "mimi u0"), ("mimi", "x", "mimi x"), ("mimi", "other", "told")]
    all_of_them += [("titanet", "u0", "titanet u0"), ("titanet", "x", "titanet x")]
    assert listed() == all_of_them
    later = Failures(tmp_path / "s", "mimi")
    later.add(utterance("x"), "newest")
    later.flush()
    settle(tmp_path / "s", "mimi", {"u0", "u1"})
    expected = [("mimi", "x", "newest"), *all_of_them[2:]]
    assert listed() == expected and len(list((tmp_path / "s" / "failures").iterdir())) == 1
    assert facts_of(tmp_path / "s")["failures"] == 4
    settle(tmp_path / "s", "mimi", {"x", "other"})
    settle(tmp_path / "s", "titanet", {"x", "u0"})
    assert not (tmp_path / "s" / "failures.jsonl").exists() and not list((tmp_path / "s" / "failures").iterdir())
    settle(tmp_path / "s", "mimi", {"x"})  # nothing to do
    assert facts_of(tmp_path / "s")["failures"] == 0


def test_a_change_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    name = changes.commit_change(tmp_path / "s", layout.CHANGE_SCHEMA.empty_table())
    with pytest.raises(StoreError, match=rf"{name}.parquet: changes nothing; run: featstore verify STORE --repair"):
        featstore.open(tmp_path / "s")
    assert metadata.CHANGE.fullmatch(name) and metadata.check_version(tmp_path / "s") == (name,)
    path = tmp_path / "s" / layout.change_path(name)
    assert name.endswith(hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def test_the_latest_of_several_changes_counts(tmp_path: Path) -> None:
    """Of several parts, of several ids; what was removed and not added again stays so."""
    with featstore.writer(tmp_path / "s", spec(), part_bytes=1) as out:
        for id in "abc":
            out.add(utterance(id), np.ones((2, 8)))
    parts = featstore.open(tmp_path / "s").part_ids()

    def change(removed: bool, **splits: str) -> None:
        some = utterance_table([utterance(id, split=split) for id, split in splits.items()])
        changes.commit_change(tmp_path / "s", changes.changed_rows(parts, some, removed=removed))

    def splits() -> dict[str, str]:
        return {u["id"]: u["split"] for u in featstore.open(tmp_path / "s").utterances.to_pylist()}

    change(False, a="one", c="one", unknown="one")
    assert splits() == {"a": "one", "b": "train", "c": "one"}
    change(False, c="two", b="two")
    assert splits() == {"a": "one", "b": "two", "c": "two"}
    change(True, b="")
    store = featstore.open(tmp_path / "s")
    assert splits() == {"a": "one", "c": "two"} and store.ids == ["a", "c"] and len(store.changes.names) == 3
    assert list(store.changes.names) == sorted(store.changes.names)
    assert [ids.to_pylist() for _, ids in store.part_ids()] == [["a"], [], ["c"]]
    assert facts_of(tmp_path / "s")["changes"] == 3
    changes.drop_changes(tmp_path / "s", store.changes.names[2:])
    assert splits() == {"a": "one", "b": "two", "c": "two"} and len(list((tmp_path / "s" / "changes").iterdir())) == 2
    changes.drop_changes(tmp_path / "s", store.changes.names)
    assert set(splits().values()) == {"train"} and not (tmp_path / "s" / "changes").exists()


def test_ids_that_are_gone() -> None:
    import pickle

    import pyarrow as pa

    ids = pa.array(["a", "b", "a", "c"])
    found = Ids(ids, np.array([True, False, False, True]))
    assert dict(found) == {"b": 1, "a": 2} and len(found) == 2 and "c" not in found and found.get("c", 7) == 7
    assert dict(pickle.loads(pickle.dumps(found))) == dict(found)
    with pytest.raises(KeyError, match="'c'"):
        found["c"]
    gone = np.array([True, False, False, True])
    assert found.same(ids, gone) and not found.same(ids, None) and not found.same(ids, ~gone)
    assert not found.same(pa.array(["a", "b", "a", "d"]), gone)
    plain = Ids(ids)
    assert plain.same(ids, None) and not plain.same(ids, gone) and not plain.same(ids[1:], None)


def test_codebooks_that_are_no_codebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = codes.make_store(tmp_path / "s", {"train": 1})
    with pytest.raises(ValueError, match="feature 'mimi': codebooks, but no settings\\['codebooks_sha256'\\]"):
        featstore.writer(tmp_path / "t", spec(), codebooks=codes.codebooks())
    size = (tmp_path / "s/codebooks/mimi-codes.safetensors").stat().st_size
    monkeypatch.setattr(codebooks, "MAX_BYTES", size)
    assert store.codebooks("mimi-codes").sha256 == codes.codebooks().sha256
    monkeypatch.setattr(codebooks, "MAX_BYTES", size - 1)
    with pytest.raises(StoreError, match=f"larger than {size - 1} bytes, so no codebooks; not read"):
        store.codebooks("mimi-codes")


def test_a_part_says_who_wrote_it_and_what_its_files_are(tmp_path: Path) -> None:
    """For readers in other languages: digests of tables and metadata, CRCs as the chunks end, a seal over all of it."""
    from importlib.metadata import version

    import google_crc32c

    fill(tmp_path / "s")
    (folder,) = (p.parent for p in (tmp_path / "s").glob("features.zarr/mimi/*/zarr.json"))
    attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
    seal = attributes.pop("seal")
    assert seal == hashlib.sha256((json.dumps(attributes, sort_keys=True, indent=2) + "\n").encode()).hexdigest()
    assert (attributes["whowhen_store"], attributes["release"]) == (1, version("whowhen"))
    assert attributes["fingerprint"] == spec().fingerprint
    tables = {"index": f"index/mimi/{folder.name}.parquet", "utterances": f"utterances/{folder.name}.parquet"}
    arrays = {name: f"features.zarr/mimi/{folder.name}/{name}/zarr.json" for name in ("frames", "mean", "std")}
    assert attributes["sha256"] == {
        name: hashlib.sha256((tmp_path / "s" / path).read_bytes()).hexdigest()
        for name, path in {**tables, **arrays}.items()
    }
    crcs = {}
    for path in folder.rglob("c/*/0"):
        data = path.read_bytes()
        crcs[path.relative_to(folder).as_posix()] = google_crc32c.value(data[:-4])
        assert int.from_bytes(data[-4:], "little") == google_crc32c.value(data[:-4])
    assert attributes["chunk_crc32c"] == crcs and set(crcs) == {f"{name}/c/0/0" for name in ("frames", "mean", "std")}
    index = pq.read_table(tmp_path / "s" / tables["index"]).to_pylist()
    ends = np.cumsum([row["num_frames"] for row in index])
    assert [row["first_frame"] for row in index] == [0, *ends[:-1]] and [row["id"] for row in index] == [
        f"u{k}" for k in range(5)
    ]


def test_what_a_store_holds_in_numbers_and_in_a_notebook(tmp_path: Path) -> None:
    """Speakers are those of turns too, nobody is none of them; of a view, its own."""
    talk = (Turn(0.0, 1.0, "ann"), Turn(1.0, 2.0, "<b>"))
    some = [
        utterance("a", duration_s=1800.0, speaker="ann", recording="r1"),
        utterance("b", duration_s=1800.0, speaker=None, recording="r1", turns=talk, split="dev"),
        utterance("c", duration_s=3600.0, speaker="cy", recording="r2", split=""),
    ]
    for name, dim, ids in (("mimi", 8, "abc"), ("titanet", 4, "b")):
        with featstore.writer(tmp_path / "s", replace(spec(name, dim), settings={"weights": "demo"})) as out:
            for u in some:
                if u.id in ids:
                    out.add(u, np.ones((5, dim)))
    store = featstore.open(tmp_path / "s")
    facts = facts_of(tmp_path / "s")
    shown = [facts[key] for key in ("store", "utterances", "hours", "speakers", "recordings", "splits")]
    assert shown == [str(tmp_path / "s"), 3, 2.0, 3, 2, {"train": 1, "dev": 1, "": 1}]
    told = {
        name: [feature[key] for key in ("utterances", "frames", "parts", "dim", "weights")]
        for name, feature in facts["features"].items()
    }
    assert told == {"mimi": [3, 15, 1, 8, "demo"], "titanet": [1, 5, 1, 4, "demo"]}
    assert facts["features"]["mimi"]["warning"] == store.features["mimi"].warning
    warned = "small demo weights: its numbers say nothing about the published test"
    assert repr(store.select(split=["dev", ""])) == (
        f"Store({str(tmp_path / 's')!r}): 2 utterances (dev 1, (no split) 1), 1.50 h, 3 speakers, 2 recordings\n"
        f"  mimi: 8-d float16 at 12.5 Hz, 2 utterances; test, {warned}\n"
        f"  titanet: 4-d float16 at 12.5 Hz, 1 utterance; test, {warned}"
    )
    assert (
        repr(store.select(split=[])).splitlines()[0].endswith(": 0 utterances (none), 0.00 h, 0 speakers, 0 recordings")
    )
    html = store.select(split="dev")._repr_html_()
    assert html.startswith(
        f"<b>{tmp_path / 's'}</b>: 1 utterance (dev 1), 0.50 h, 2 speakers, 1 recording<table><tr><td>mimi<"
    )
    assert (
        f"<tr><td>titanet</td><td>titanet: 4-d float16 at 12.5 Hz, 1 utterance; test, {warned}</td></tr></table>"
        in html
    )
    with featstore.writer(tmp_path / "t", replace(spec(), model="<i>", settings={})) as out:
        out.add(utterance("a"), np.ones((1, 8)))
    html = featstore.open(tmp_path / "t")._repr_html_()
    assert "&lt;i&gt;, weights ?</td>" in html and "<i>" not in html


def test_a_split_is_not_mixed_with_another_in_digests(tmp_path: Path) -> None:
    """The digest is of id, recording, speaker, duration and turns, column by column, as this does by hand."""
    some = [
        utterance("b", speaker=None, turns=(Turn(0.25, 1.5, "x"), Turn(1.0, 2.0, "yy"))),
        utterance("a", duration_s=2.5),
    ]
    some.append(utterance("c", split="dev"))
    with featstore.writer(tmp_path / "s", spec()) as out:
        for u in some:
            out.add(u, np.ones((1, 8)))

    def texts(*values: str | None) -> bytes:
        here = np.array([value is not None for value in values], np.int8).tobytes()
        return (
            here
            + np.array([len(v or "") for v in values], np.int32).tobytes()
            + "".join(v or "" for v in values).encode()
        )

    def numbers(*values: float) -> bytes:
        return np.ones(len(values), np.int8).tobytes() + np.array(values).tobytes()

    data = texts("a", "b") + texts("a", "b") + texts("s", None) + numbers(2.5, 1.0)
    data += np.ones(2, np.int8).tobytes() + np.array([0, 2], np.int32).tobytes()
    data += numbers(0.25, 1.0) + numbers(1.5, 2.0) + texts("x", "yy")
    found = label_digests(featstore.open(tmp_path / "s"))
    assert found["train"] == {"utterances": 2, "sha256": hashlib.sha256(data).hexdigest()[:16]}
    assert list(found) == ["dev", "train"] and found["dev"]["utterances"] == 1


def test_a_view_finds_no_more_than_it_shows(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    store = featstore.open(tmp_path / "s")
    view = store.select(id=["u1", "u3"])
    assert view.selected == ({"id": ["u1", "u3"]},) and store.selected == ()
    assert [u.id for u in featstore.store.reader.store_utterances(view)] == ["u1", "u3"]
    assert "u0" in store and "u0" not in view and len(view.pooled("mimi")) == 2
    assert view.frames("mimi", "u0").shape == store.frames("mimi", "u0").shape  # frames are not bounded by it
    assert view.utterance("u3") == store.utterance("u3")
    with pytest.raises(KeyError, match="'u0' is not in"):
        view.utterance("u0")


def test_sizes_and_times_that_the_format_s_document_promises(tmp_path: Path) -> None:
    told = (ROOT / "docs/store-format.md").read_text("utf-8")
    with featstore.writer(tmp_path / "s", spec()) as out:
        assert f"at most {out._part_bytes >> 20} MiB or half a minute" in told and out._part_seconds == 30.0
    assert f"unless it is larger than {commit.CHUNK_BYTES >> 20} MiB" in told
    assert f"neighbours up to {MERGED_BYTES >> 20} MiB each" in told


def test_in_which_order_a_part_comes_and_goes() -> None:
    """Its index last of all when it comes, its facts and seal before; the index first when it goes."""
    part = layout.PartFiles("mimi", "p")
    inside = [
        f"{part.folder}/{name}"
        for name in ("zarr.json", "std/zarr.json", "frames/c/1/0", "mean/c/0/0", "frames/zarr.json")
    ]
    inside += [f"{part.folder}/frames/c/0/0"]
    assert part.in_order(inside) == [
        *(f"features.zarr/mimi/p/{name}" for name in ("frames/c/0/0", "frames/c/1/0", "mean/c/0/0")),
        *("features.zarr/mimi/p/frames/zarr.json", "features.zarr/mimi/p/std/zarr.json"),
        *("utterances/p.parquet", "features.zarr/mimi/p/zarr.json", "index/mimi/p.parquet"),
    ]
    assert part.removal == ("index/mimi/p.parquet", "utterances/p.parquet", "features.zarr/mimi/p")


def test_what_a_listing_shows_as_committed() -> None:
    """What an index names, in order of names; a feature may have no part, a part may lack files."""
    names = [
        *(
            "features.zarr/zarr.json",
            "features.zarr/b/zarr.json",
            "features.zarr/a/zarr.json",
            "features.zarr/a/p2/zarr.json",
        ),
        *(
            "features.zarr/a/p2/frames/c/0/0",
            "features.zarr/a/p9/frames/c/0/0",
            "index/a/p2.parquet",
            "index/a/p1.parquet",
        ),
        *(
            "index/a/.p3.parquet",
            "index/a/p4.tmp",
            "index/deep/a/p5.parquet",
            "utterances/p2.parquet",
            "utterances/p7.parquet",
        ),
        *("codebooks/a.safetensors", "changes/c.parquet", "features.zarr/a/README"),
    ]
    listing = {name: size for size, name in enumerate(names, 10)}
    assert layout.committed_in(listing) == {
        "a": {
            "p1": {"index/a/p1.parquet": 17},
            "p2": {
                **{
                    "features.zarr/a/p2/frames/c/0/0": 14,
                    "utterances/p2.parquet": 21,
                    "features.zarr/a/p2/zarr.json": 13,
                },
                "index/a/p2.parquet": 16,
            },
        },
        "b": {},
    }
    found = layout.committed_in(listing)["a"]
    assert list(found) == ["p1", "p2"] and list(found["p2"])[-1] == "index/a/p2.parquet"


def test_footers_are_read_as_pyarrow_reads_them(tmp_path: Path) -> None:
    """Values and bytes of every column of every row group, and whether it has a dictionary."""
    some = [utterance(f"u{k}", turns=tuple(Turn(i, i + 1, f"s{i}") for i in range(k % 4))) for k in range(40)]
    table = utterance_table(some)
    for dictionary in (True, False, ["speaker"]):
        pq.write_table(table, tmp_path / "t", row_group_size=15, use_dictionary=dictionary, compression="zstd")
        meta = pq.ParquetFile(tmp_path / "t").metadata
        expected = []
        for group in range(meta.num_row_groups):
            for at in range(meta.num_columns):
                c = meta.row_group(group).column(at)
                has = c.has_dictionary_page
                expected.append(footer.Column(c.path_in_schema, c.num_values, c.total_uncompressed_size, has))
        assert footer.read_columns((tmp_path / "t").read_bytes()) == expected and len(expected) == 3 * 10
    data = (tmp_path / "t").read_bytes()
    for bad in (b"", b"PAR1", data[:-1], data[:-4] + b"PAR2", data[:-8] + (len(data)).to_bytes(4, "little") + b"PAR1"):
        with pytest.raises(ValueError, match="no Parquet file, or cut short"):
            footer.read_columns(bad)
    with pytest.raises(ValueError, match="its footer is damaged"):
        footer.read_columns(data[:-60] + bytes([255]) * 52 + data[-8:])


def test_claims_that_no_file_of_that_size_holds() -> None:
    """64 values a byte at most, but 65,536 of any file; a gigabyte a column; row groups add up."""

    def claim(*columns: tuple[str, int, int], size: int = 100) -> None:
        tables._check_claims([footer.Column(*c, dictionary=False) for c in columns], size)

    claim(("id", 65536, 1 << 30), ("split", 65536, 1))
    claim(("id", 640_000, 1), size=10_000)
    for columns, size in (
        ([("id", 65537, 1)], 100),
        ([("id", 640_001, 1)], 10_000),
        ([("id", 1, (1 << 30) + 1)], 100),
        ([("id", 40000, 1), ("id", 40000, 1)], 100),
        ([("id", 1, 1 << 29), ("x", 1, 1), ("id", 1, (1 << 29) + 1)], 100),
        ([("id", -1, 1)], 100),
        ([("id", 1, -1)], 100),
    ):
        with pytest.raises(ValueError, match=f"{size} bytes that claim .* in 'id'"):
            claim(*columns, size=size)


def test_deviations_are_computed_in_double(tmp_path: Path) -> None:
    """Around a million, float32 is a sixteenth apart: its own mean would make 0.036 of this deviation."""
    wide = replace(spec(dim=1), dtype="float32")
    values = [1e6, 1e6 + 0.0625, 1e6 + 0.0625]
    with featstore.writer(tmp_path / "s", wide) as out:
        out.add(utterance("a"), np.array(values)[:, None])
    store = featstore.open(tmp_path / "s")
    assert store.pooled("mimi", ["a"], "std")[0, 0] == pytest.approx(statistics.pstdev(values), rel=1e-5)
    assert store.pooled("mimi", ["a"])[0, 0] == np.float32(statistics.fmean(values))


def test_a_store_of_another_version_is_left_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path / "s", count=1)
    (tmp_path / "s" / layout.ROOT).write_bytes(metadata.group_json({"whowhen_store": 99}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(metadata.OtherVersion, match="version 99"):
        featstore.writer(tmp_path / "s", spec("titanet", 4))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match="expected a store's folder, found a file"):
        featstore.writer(tmp_path / "file", spec())


def test_a_part_that_is_moved_in_is_committed_by_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index comes last; a folder that a kill has left in the way makes room."""
    fill(tmp_path / "s", part_bytes=600)
    moved: list[str] = []
    real = os.replace

    def log(source: Path, target: Path) -> None:
        real(source, target)
        moved.append(Path(target).relative_to(tmp_path / "out").as_posix())

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", log)
        merge([tmp_path / "s"], tmp_path / "out")
    parts = featstore.open(tmp_path / "s").index("mimi").part_names
    expected = []
    for part in parts:
        expected += [f"features.zarr/mimi/{part}", f"utterances/{part}.parquet", f"index/mimi/{part}.parquet"]
    assert len(parts) > 1 and [name for name in moved if name.split("/")[-1].startswith(tuple(parts))] == expected
    (tmp_path / "out" / expected[-1]).unlink()
    (tmp_path / "out" / expected[-3] / "frames" / "c" / "0" / "0").unlink()
    assert merge([tmp_path / "s"], tmp_path / "out").parts == 1
    out = featstore.open(tmp_path / "out", verify=True)
    assert [out.frames("mimi", id).tolist() for id in out.ids] == [
        featstore.open(tmp_path / "s").frames("mimi", id).tolist() for id in out.ids
    ]


def test_what_a_part_lacks_is_seen_without_reading_it(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (part,) = featstore.open(tmp_path / "s").index("mimi").parts
    (folder,) = (p.parent for p in (tmp_path / "s").glob("features.zarr/mimi/*/frames"))
    assert part.lacking() == []
    data = (folder / "mean/c/0/0").read_bytes()
    (folder / "mean/c/0/0").write_bytes(data[:-1])
    (folder / "std/c/0/0").write_bytes(data + b"x")
    assert part.lacking() == ["mean/c/0/0", "std/c/0/0"]
    (folder / "mean/c/0/0").write_bytes(bytes(len(data)))
    (folder / "std/c/0/0").write_bytes(data)
    (folder / "frames/c/0/0").unlink()
    assert part.lacking() == ["frames/c/0/0"]
