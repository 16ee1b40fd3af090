"""Labels put right and utterances removed: frames untouched, all or nothing, known to whatever reads or copies a store."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

import featstore
from cli.featstore import app
from featstore import FeatureSpec, StoreError, Turn, Utterance, files
from featstore.corpora.corrections import Correction, read_corrections
from featstore.exchange import export_hdf5, import_hdf5
from featstore.store import changes, layout, lock, metadata
from featstore.upkeep.compact import compact
from featstore.upkeep.merge import merge
from featstore.upkeep.relabel import move_audio, relabel, remove
from featstore.upkeep.verify import verify

NAMES = ("mimi", "titanet")


def spec(name: str, sha: str = "0") -> FeatureSpec:
    return FeatureSpec(name, 4, "float16", 24000, featstore.MIMI_GRID, name, sha * 64, {"weights": "file"})


def fill(path: Path, first: int = 0, count: int = 12, names: tuple[str, ...] = NAMES, sha: str = "0") -> Path:
    for name in names:
        with featstore.writer(path, spec(name, sha), part_bytes=200) as out:
            for i in range(first, first + count):
                u = Utterance(f"u{i:02d}", f"/audio/{i}.wav", 0.0, 0.8, f"r{i}", "s", "train" if i % 2 else "test")
                out.add(u, np.full((10, 4), i, np.float16))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return fill(tmp_path / "s")


def frames(path: Path | str) -> dict[str, list[float]]:
    opened = featstore.open(path, verify=True)
    return {name: [float(opened.frames(name, id)[0, 0]) for id in opened.ids] for name in NAMES}


def correct(id: str, **labels: object) -> Correction:
    return Correction(id, "here", labels)


def test_labels_are_put_right_in_every_feature_and_frames_stay(store: Path) -> None:
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file() and p.name != "zarr.json"}
    shown = frames(store)
    turns = (Turn(0.1, 0.5, "a"), Turn(0.4, 0.8, "b"))
    done = relabel(store, [correct("u03", split="dev", speaker="t"), correct("u04", turns=turns, speaker=None)])
    assert (done.changed, dict(done.by_label)) == (2, {"split": 1, "speaker": 2, "turns": 1})
    assert all(path.read_bytes() == data for path, data in before.items())
    now = featstore.open(store)
    assert frames(store) == shown and now.ids == [f"u{i:02d}" for i in range(12)]
    assert (now.utterance("u03").split, now.utterance("u03").speaker) == ("dev", "t")
    assert now.utterance("u04").turns == turns and now.select(split="dev").ids == ["u03"]
    assert pickle.loads(pickle.dumps(now)).utterance("u03").split == "dev"
    assert verify(store).findings == []
    relabel(store, [correct("u03", split="test")])  # the later one counts
    assert featstore.open(store).utterance("u03").split == "test"
    assert relabel(store, [correct("u03", split="test")]).changed == 0
    assert len(metadata.check_version(store)) == 2


def test_turns_end_with_their_utterance(store: Path) -> None:
    """An RTTM of the whole file says more than the 0.8 s that the utterance has."""
    turns = (Turn(0.1, 0.5, "a"), Turn(0.6, 1.5, "b"), Turn(0.8, 1.0, "c"))
    relabel(store, [correct("u05", turns=turns, speaker=None)])
    assert featstore.open(store).utterance("u05").turns == (Turn(0.1, 0.5, "a"), Turn(0.6, 0.8, "b"))


def test_what_is_removed_is_nowhere_and_comes_back_by_a_new_extraction(store: Path) -> None:
    done = remove(store, ["u03"], split="test")
    assert (done.utterances, done.left, done.bytes) == (7, 5, 7 * 10 * 4 * 2 * 2)
    opened = featstore.open(store)
    assert opened.ids == ["u01", "u05", "u07", "u09", "u11"] == list(opened.index("mimi").rows)
    assert (len(opened), len(opened.index("mimi").rows), "u03" in opened) == (5, 5, False)
    with pytest.raises(KeyError, match="has no feature"):
        opened.frames("mimi", "u03")
    assert verify(store).findings == []
    again = Utterance("u03", "/audio/new.wav", 0.0, 0.8, "other", "t", "train")
    with featstore.writer(store, spec("mimi")) as out:
        assert out.missing([again]) == [again]
        out.add(again, np.full((3, 4), 77, np.float16))
    now = featstore.open(store)
    assert now.utterance("u03") == again and now.frames("mimi", "u03")[0, 0] == 77
    assert verify(store, repair=True).findings == []  # the new part is no copy of the old
    compact(store)
    now = featstore.open(store)
    assert now.utterance("u03") == again and now.frames("mimi", "u03")[0, 0] == 77
    assert "u03" not in now.index("titanet").rows


def test_what_was_added_again_is_no_copy_where_the_change_is_damaged(store: Path) -> None:
    remove(store, ["u03"])
    with featstore.writer(store, spec("mimi")) as out:
        out.add(Utterance("u03", "/audio/new.wav", 0.0, 0.8, "r3", "s", "train"), np.full((3, 4), 77, np.float16))
    (change,) = metadata.check_version(store)
    (store / layout.change_path(change)).write_bytes(b"damaged")
    parts = sorted(store.glob("index/mimi/*"))
    (finding,) = verify(store, repair=True).findings
    assert finding.remedy == "forget" and sorted(store.glob("index/mimi/*")) == parts


def test_compact_takes_changes_over_and_the_store_is_of_version_1_again(store: Path) -> None:
    relabel(store, [correct("u03", split="dev")])
    remove(store, ["u04", "u05"])
    shown, facts = frames(store), featstore.open(store).utterances.to_pylist()
    size = sum(p.stat().st_size for p in store.rglob("c/0/0"))
    assert json.loads((store / layout.ROOT).read_bytes())["attributes"]["whowhen_store"] == 2
    compact(store, part_bytes=1)  # merges nothing: only parts with changes are written anew
    assert (store / layout.ROOT).read_bytes() == metadata.root_json(()) and not (store / "changes").exists()
    assert frames(store) == shown and featstore.open(store).utterances.to_pylist() == facts
    assert sum(p.stat().st_size for p in store.rglob("c/0/0")) < size
    assert verify(store).findings == []


def test_a_reader_of_version_1_refuses_a_store_with_changes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relabel(store, [correct("u03", split="dev")])
    monkeypatch.setattr(metadata, "VERSION_WITH_CHANGES", 1)  # all that it knew
    with pytest.raises(
        StoreError, match="a store of version 2, this program reads version 1 .* use the whowhen release"
    ):
        featstore.open(store)


@pytest.mark.parametrize("kill", ["file", "root", "after"])
def test_a_kill_leaves_the_labels_before_or_after(store: Path, monkeypatch: pytest.MonkeyPatch, kill: str) -> None:
    real, calls = files.write_atomically, []

    def write(path: Path, data: bytes) -> None:
        calls.append(path)
        if kill != "after" and (path.name == "zarr.json") == (kill == "root"):
            raise KeyboardInterrupt
        real(path, data)
        if kill == "after" and path.name == "zarr.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_atomically", write)
    with pytest.raises(KeyboardInterrupt):
        relabel(store, [correct("u03", split="dev")])
    monkeypatch.undo()
    assert featstore.open(store).utterance("u03").split == ("dev" if kill == "after" else "train")
    assert verify(store).findings == []


def test_damage_to_changes_is_found_and_repaired(store: Path) -> None:
    relabel(store, [correct("u03", split="dev")])
    relabel(store, [correct("u05", split="dev")])
    first, second = (store / layout.change_path(name) for name in metadata.check_version(store))
    whole, root = first.read_bytes(), store / layout.ROOT
    first.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(StoreError, match="not the change that was committed; run: featstore verify STORE --repair"):
        featstore.open(store)
    (finding,) = verify(store).damaged
    assert "relabel again" in finding.problem
    first.write_bytes(whole)
    data = root.read_bytes()
    name = second.stem
    root.write_bytes(data.replace(name.encode(), name.replace(name[-1], "0" if name[-1] != "0" else "1").encode(), 1))
    assert verify(store, repair=True).findings and verify(store).findings == []  # the root names both again
    assert featstore.open(store).select(split="dev").ids == ["u03", "u05"]
    first.unlink()
    assert verify(store).damaged and verify(store, repair=True).repaired and verify(store).findings == []
    assert featstore.open(store).select(split="dev").ids == ["u05"]
    (store / "changes" / f"20300101T000000000000-{'0' * 16}.parquet").write_bytes(b"left by a kill")
    assert [f.leftover for f in verify(store, repair=True).findings] == [True] and verify(store).findings == []


def test_who_waited_for_the_lock_locks_the_new_root(store: Path) -> None:
    old = os.open(store / layout.ROOT, os.O_RDWR)  # as somebody has it open who waits
    with lock.hold(store, alone=True):
        opened = featstore.open(store)
        rows = changes.changed_rows(opened.part_ids(), opened.utterances.slice(0, 1), removed=True)
        changes.commit_change(store, rows)
        assert not os.path.samestat(os.fstat(old), os.stat(store / layout.ROOT))
    fcntl.flock(old, fcntl.LOCK_EX)  # the file without a name keeps nobody out
    with lock.hold(store, alone=True), pytest.raises(StoreError, match="run this again"), lock.hold(store):
        raise AssertionError("two at work")
    os.close(old)


def test_a_root_replaced_while_waiting_is_opened_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = lock._lock, []

    def replaced_meanwhile(file: BinaryIO, path: Path, alone: bool) -> None:
        if not calls:
            files.write_atomically(path / layout.ROOT, (path / layout.ROOT).read_bytes())
        calls.append(file)
        real(file, path, alone)

    monkeypatch.setattr(lock, "_lock", replaced_meanwhile)
    with lock.hold(store, alone=True):
        assert len(calls) == 2 and calls[0].closed
        assert os.path.samestat(os.fstat(calls[1].fileno()), os.stat(store / layout.ROOT))


def test_a_manifest_names_only_what_is_another(store: Path, tmp_path: Path) -> None:
    sf.write(tmp_path / "talk.wav", np.zeros(8000, np.float32), 10000)
    (tmp_path / "talk.rttm").write_text("SPEAKER talk 1 0.1 0.3 <NA> <NA> a <NA> <NA>\n")
    lines = [
        {"utt_id": "u01", "split": "dev"},
        {"id": "u02", "speaker": 7, "session_id": "q"},
        {"utt_id": "u03", "audio_filepath": "talk.wav", "duration": 0.8, "rttm_filepath": "talk.rttm"},
        {"utt_id": "x99", "split": "dev"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = featstore.open(store)
    result = CliRunner().invoke(app, ["relabel", str(store), str(tmp_path / "m.jsonl")])
    assert result.exit_code == 0, result.output
    assert "3 of 12 utterances changed, frames as they were" in result.stdout
    assert (
        "split: 1 (train → dev 1)" in result.stdout
        and "turns: 1 (u03: 0 turns of 0 speakers → 1 turn of 1 speaker" in result.stdout
    )
    assert "warning: 1 id(s)" in result.stderr and "x99" in result.stderr
    now = featstore.open(store)
    assert (now.utterance("u01").split, now.utterance("u01").audio) == ("dev", before.utterance("u01").audio)
    assert (now.utterance("u02").speaker, now.utterance("u02").recording, now.utterance("u02").split) == (
        "7",
        "q",
        "test",
    )
    talk = now.utterance("u03")
    assert (talk.turns, talk.speaker, talk.audio) == ((Turn(0.1, 0.4, "a"),), None, str(tmp_path / "talk.wav"))


def test_corrections_that_cannot_be_right_change_nothing(store: Path, tmp_path: Path) -> None:
    root = (store / layout.ROOT).read_bytes()
    for corrections, expected in (
        ([correct("U03", split="dev")], "none of the 1 ids is in it, the first is 'U03'; did you mean 'u03'?"),
        (
            [Correction("u03", "m:1", {}, 0.0, 2.0)],
            "m:1: utterance 'u03' is 2 s from 0 s on .* frames in .* 0.8 s from 0",
        ),
        ([correct("u01", split="dev"), Correction("u03", "m:1", {}, 0.4)], "give it another utt_id and extract it"),
    ):
        with pytest.raises(StoreError, match=expected):
            relabel(store, corrections)
    for text, expected in (
        ('{"split": "dev"}', "expected utt_id"),
        ('{"utt_id": "u01", "split": "Dev"}', "did you mean 'dev'"),
        ('{"utt_id": "u01", "spilt": "dev"}', "unknown key 'spilt'; did you mean 'split'"),
        ('{"utt_id": "u01"}\n{"utt_id": "u01"}', "stand for several"),
    ):
        (tmp_path / "m.jsonl").write_text(text)
        with pytest.raises(ValueError, match=expected):
            read_corrections(tmp_path / "m.jsonl")
    (tmp_path / "u01.wav").touch()
    for arguments, expected in (
        (["relabel", str(store), str(tmp_path / "u01.wav")], "audio says nothing of labels"),
        (["remove", str(store), "u1"], "'u1' is not in it; did you mean 'u1"),
        (["remove", str(store), "--split", "tset"], "no utterance of split 'tset'; there are: test 6, train 6"),
        (["remove", str(store)], "say which utterances"),
        (["relabel", str(store)], "one of the two"),
        (["relabel", str(store), "--audio-root", "/x"], "expected OLD=NEW"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and expected in result.stderr, result.output
    assert (store / layout.ROOT).read_bytes() == root
    with featstore.writer(store, spec("mimi")), pytest.raises(StoreError, match="something else is writing"):
        remove(store, ["u01"])


def test_a_stretch_of_other_audio_is_taken_over_whole(store: Path) -> None:
    """The same sound cut out of another file begins elsewhere in it; in its own file it cannot."""
    done = relabel(store, [Correction("u03", "m:1", {"audio": "/long.wav"}, 12.5, 0.8)])
    now = featstore.open(store).utterance("u03")
    assert (now.audio, now.start_s, now.duration_s) == ("/long.wav", 12.5, 0.8)
    assert done.by_label == {"audio": 1, "start_s": 1} and done.first["start_s"] == ("u03", 0.0, 12.5)
    turns = {"turns": (Turn(0.1, 0.5, "a"),), "speaker": None}
    with pytest.raises(
        StoreError, match=r"m:2: utterance 'u03' begins at 12.5 s of its audio: rttm_filepath needs the"
    ):
        relabel(store, [Correction("u03", "m:2", turns)])
    relabel(store, [Correction("u03", "m:2", turns, 12.5)])
    assert featstore.open(store).utterance("u03").turns == turns["turns"]
    with pytest.raises(StoreError, match=r"m:3: utterance 'u05' is 0.9 s from 0 s on"):
        relabel(store, [Correction("u05", "m:3", {"split": "dev"}, None, 0.9)])
    assert relabel(store, [Correction("u05", "m:3", {"split": "dev"}, None, 0.8 + 1e-4)]).changed == 1


def test_what_a_relabel_tells(store: Path) -> None:
    done = relabel(
        store, [*(correct(f"u0{i}", split="dev") for i in (1, 2, 3)), correct("u05", speaker="s"), correct("x")]
    )
    assert done.to_json() == {
        **{"utterances": 12, "changed": 3, "by_label": {"split": 3}, "unknown": ["x"]},
        "splits": [
            {"before": "train", "after": "dev", "utterances": 2}, {"before": "test", "after": "dev", "utterances": 1}
        ],
    }  # fmt: skip
    assert done.first == {"split": ("u01", "train", "dev")}


def test_what_a_removal_tells(store: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("u01\n\n u02 \nu01\n")
    command = ["remove", str(store), "u03", "--from", str(tmp_path / "ids.txt"), "--json"]
    told = json.loads(CliRunner().invoke(app, command).stdout)
    assert told == {
        **{"store": str(store), "utterances": 3, "left": 9, "seconds": pytest.approx(2.4)},
        "bytes": 3 * 10 * 4 * 2 * 2,
    }
    with pytest.raises(StoreError, match=r"'u02' is not in it, nor is '.*'; nothing was removed"):
        remove(store, ["u02", "u03", "u04"])
    assert len(featstore.open(store)) == 9


def test_audio_that_moved(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"12 audio file\(s\) of it are not in .*; nothing was changed"):
        move_audio(store, "/audio", str(tmp_path))
    with pytest.raises(StoreError, match="no audio of it is in /audi; the first utterance's is /audio/0.wav"):
        move_audio(store, "/audi", str(tmp_path))
    for i in range(12):
        (tmp_path / f"{i}.wav").touch()
    result = CliRunner().invoke(app, ["relabel", str(store), "--audio-root", f"/audio/={tmp_path}", "--json"])
    assert json.loads(result.stdout)["by_label"] == {"audio": 12}
    assert featstore.open(store).utterance("u07").audio == str(tmp_path / "7.wav")
    (tmp_path / "deep").mkdir()
    for i in range(12):
        (tmp_path / "deep" / f"{i}.wav").touch()
    moved = move_audio(store, f"{tmp_path}//", f"{tmp_path}/deep/")
    assert (moved.changed, dict(moved.by_label)) == (12, {"audio": 12})
    assert featstore.open(store).utterance("u07").audio == str(tmp_path / "deep" / "7.wav")
    with pytest.raises(StoreError, match=r"12 audio file\(s\) of it are not in /, the first is /"):
        move_audio(store, str(tmp_path), "/")


def test_copies_carry_what_was_put_right(store: Path, tmp_path: Path) -> None:
    relabel(store, [correct("u03", split="dev")])
    remove(store, ["u04"])
    there, shown = featstore.open(store).utterances.to_pylist(), frames(store)

    def same(path: Path | str) -> bool:
        return featstore.open(path).utterances.to_pylist() == there and frames(path) == shown

    export_hdf5(store, tmp_path / "s.h5")
    import_hdf5(tmp_path / "s.h5", tmp_path / "imported")
    assert same(tmp_path / "imported")
    pytest.importorskip("obstore")
    from featstore.remote.transfer import pull, push

    url = f"file://{tmp_path}/far"
    push(store, url)
    assert same(url)
    pull(url, tmp_path / "pulled")
    assert same(tmp_path / "pulled") and verify(tmp_path / "pulled").findings == []
    relabel(tmp_path / "pulled", [correct("u05", split="dev")])  # on both sides: all of it counts
    relabel(store, [correct("u07", split="dev")])
    push(store, url)
    pull(url, tmp_path / "pulled")
    push(tmp_path / "pulled", url)
    assert featstore.open(url).select(split="dev").ids == ["u03", "u05", "u07"]
    assert featstore.open(tmp_path / "pulled").select(split="dev").ids == ["u03", "u05", "u07"]


def test_stores_are_merged(store: Path, tmp_path: Path) -> None:
    remove(store, ["u04"])
    other = fill(tmp_path / "other", first=12, count=3)
    relabel(other, [correct("u13", split="dev")])
    result = CliRunner().invoke(app, ["merge", str(store), str(other), "--out", str(tmp_path / "all")])
    assert result.exit_code == 0 and "14 utterances" in result.stdout, result.output
    merged = featstore.open(tmp_path / "all")
    assert sorted(merged.ids) == sorted(set(featstore.open(store).ids) | {"u12", "u13", "u14"})
    assert merged.utterance("u13").split == "dev" and merged.frames("titanet", "u14")[0, 0] == 14
    assert verify(tmp_path / "all").findings == []
    done = merge([store, other], tmp_path / "all")
    assert (done.parts, done.parts_there > 0, done.utterances) == (0, True, 14)


def test_a_merge_tells_what_it_copied_and_one_that_was_stopped_goes_on(store: Path, tmp_path: Path) -> None:
    other, told = fill(tmp_path / "other", first=12, count=3), []
    parts = verify(store).parts + verify(other).parts

    def stop(done: int, of: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge([store, other], tmp_path / "all", progress=stop)
    begun = merge([store, other], tmp_path / "all", progress=lambda *of: told.append(of))
    assert (begun.parts, begun.parts_there, begun.utterances) == (parts - 3, 3, 15)
    assert told == [(k, parts) for k in range(parts + 1)]
    fresh = merge([store, other], tmp_path / "fresh")
    size = {p: p.stat().st_size for p in (tmp_path / "fresh").rglob("*") if p.is_file()}
    specs = [
        *(tmp_path / "fresh").glob("features.zarr/zarr.json"),
        *(tmp_path / "fresh").glob("features.zarr/*/zarr.json"),
    ]
    assert fresh.bytes == sum(size.values()) - sum(size[path] for path in specs) > begun.bytes
    assert verify(tmp_path / "all").findings == [] and not (tmp_path / "all" / "incoming").exists()
    assert merge([tmp_path / "all", store], tmp_path / "all").parts == 0  # into itself: nothing


def test_a_merge_goes_on_where_a_part_s_index_had_not_come(store: Path, tmp_path: Path) -> None:
    """The index comes last and commits a part: one whose facts and frames lie there without it is not there yet."""
    merge([store], tmp_path / "all")
    last = sorted((tmp_path / "all").glob("index/mimi/*"))[-1]
    last.unlink()
    done = merge([store], tmp_path / "all")
    assert (done.parts, done.utterances) == (1, 12) and last.exists()
    assert frames(tmp_path / "all") == frames(store)


def test_a_damaged_part_is_not_merged_nor_a_store_that_something_compacts(store: Path, tmp_path: Path) -> None:
    with lock.hold(store, alone=True), pytest.raises(StoreError, match="run this again"):
        merge([store], tmp_path / "all")
    chunk = sorted(store.glob("features.zarr/mimi/*/frames/c/0/0"))[0]
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(StoreError, match=r"CRC32C differs.*run: featstore verify .*s --repair"):
        merge([store], tmp_path / "all")
    assert not list((tmp_path / "all").glob("index/mimi/*"))


def test_stores_that_contradict_each_other_are_not_merged(store: Path, tmp_path: Path) -> None:
    fill(tmp_path / "b", first=20, sha="1")
    with pytest.raises(
        featstore.FingerprintMismatch, match=r"feature 'mimi' in .* holds weights 00000000…, .*b has 11111111…"
    ):
        merge([store, tmp_path / "b"], tmp_path / "all")
    fill(tmp_path / "c", first=10, names=("mimi",))
    relabel(tmp_path / "c", [correct("u11", speaker="z")])
    with pytest.raises(StoreError, match=r"utterance 'u11' has speaker 's' in .* and 'z' in .*featstore relabel"):
        merge([store, tmp_path / "c"], tmp_path / "all")
    relabel(tmp_path / "c", [correct("u11", speaker=None)])  # somebody and nobody are two as well
    with pytest.raises(StoreError, match=r"utterance 'u11' has speaker 's' in .* and 'None' in"):
        merge([store, tmp_path / "c"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_nobody_changes_a_store_that_something_writes_to(store: Path, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.wav").touch()
    fill(tmp_path / "all", first=30, count=1)
    works = (
        lambda: relabel(store, [correct("u03", split="dev")]),
        lambda: move_audio(store, "/audio", str(tmp_path)),
        lambda: remove(store, ["u03"]),
        lambda: merge([tmp_path / "all"], store),
    )
    root = (store / layout.ROOT).read_bytes()
    with featstore.writer(store, spec("mimi")):
        for work in works:
            with pytest.raises(StoreError, match="something else is writing to it or repairing it"):
                work()
        assert merge([store], tmp_path / "copy").utterances == 12  # to be copied is no change
    assert (store / layout.ROOT).read_bytes() == root and len(featstore.open(store)) == 12
    for work in works:
        work()
    now = featstore.open(store)
    assert (len(now), now.utterance("u05").audio, "u03" in now) == (12, str(tmp_path / "5.wav"), False)


def test_a_store_by_another_name_is_the_same_store(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    parts = verify(store).parts
    for name in (tmp_path / "link", Path("s"), tmp_path / "x" / ".." / "s"):
        (tmp_path / "x").mkdir(exist_ok=True)
        done = merge([name], store)
        assert (done.parts, done.parts_there, done.bytes, done.utterances) == (0, 0, 0, 12)
    assert verify(store).parts == parts


def test_each_of_many_stores_is_held_against_all_others(store: Path, tmp_path: Path) -> None:
    """The first and the third contradict each other, of whom the second knows nothing; and one that is there already."""
    fill(tmp_path / "b", first=20, count=2)
    fill(tmp_path / "c", first=11, count=2)
    relabel(tmp_path / "c", [correct("u11", recording="z")])
    with pytest.raises(
        StoreError, match=r"utterance 'u11' has recording 'r11' in .*/s and 'z' in .*/c; one id must mean one"
    ):
        merge([store, tmp_path / "b", tmp_path / "c"], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    merge([store, tmp_path / "b"], tmp_path / "all")
    with pytest.raises(StoreError, match=r"'u11' has recording 'r11' in .*/all and 'z' in .*/c"):
        merge([tmp_path / "c"], tmp_path / "all")
    for name in ("b", "c"):
        other = tmp_path / f"other-{name}"
        with featstore.writer(
            other, FeatureSpec("third", 2, "float32", 16000, featstore.MIMI_GRID, name, name * 64)
        ) as out:
            out.add(Utterance(f"only-{name}", "x.wav", 0.0, 0.8, "r"), np.ones((2, 2)))
    with pytest.raises(featstore.FingerprintMismatch, match=r"feature 'third' in .*/other-b holds weights bbbbbbbb…"):
        merge([tmp_path / "other-b", store, tmp_path / "other-c"], tmp_path / "new")
    assert merge([tmp_path / "other-b", store], tmp_path / "new").utterances == 13


def test_a_change_that_is_damaged_is_not_merged(store: Path, tmp_path: Path) -> None:
    relabel(store, [correct("u03", split="dev")])
    opened = (store / layout.change_path(metadata.check_version(store)[0])).read_bytes()
    fill(tmp_path / "b", first=20, count=1)
    (name,) = metadata.check_version(store)
    path = store / layout.change_path(name)
    path.write_bytes(opened[:50] + bytes([opened[50] ^ 1]) + opened[51:])
    with pytest.raises(StoreError, match="not the change that was committed"):
        merge([tmp_path / "b", store], tmp_path / "all")
    path.write_bytes(opened)
    assert merge([tmp_path / "b", store], tmp_path / "all").utterances == 13
    assert metadata.check_version(tmp_path / "all") == (name,)
    assert (tmp_path / "all" / layout.change_path(name)).read_bytes() == opened


def test_no_name_and_an_empty_one_are_the_same_nobody(tmp_path: Path) -> None:
    for name, speaker in (("a", None), ("b", "")):
        with featstore.writer(tmp_path / name, spec("mimi" if name == "a" else "titanet")) as out:
            out.add(Utterance("u", "u.wav", 0.0, 0.8, "r", speaker), np.ones((2, 4)))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all").utterances == 1
    assert sorted(featstore.open(tmp_path / "all").features) == ["mimi", "titanet"]
