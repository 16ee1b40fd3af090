"""Manifests of both kinds become the same Utterances; what is wrong is named by file and line."""

from __future__ import annotations

import json
import math
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from featstore import Turn, Utterance
from featstore.corpora.audio import load
from featstore.corpora.corrections import read_corrections
from featstore.corpora.hf import audio_bytes
from featstore.corpora.manifest import check_disjoint, ignored_keys, read_manifest
from featstore.simulation.recipe import read_recipe
from featstore.simulation.simulate import simulate
from tests.fakes import tone
from tests.sessions import meetings


def jsonl(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return path


def test_nemo_keys(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "m.jsonl",
        {"audio_filepath": "wav/a.wav", "offset": 1.5, "duration": 2, "label": "s1", "split": "dev"},
        {"audio_filepath": "/data/b.flac", "speaker": 7, "utt_id": "x/b", "session_id": "day1", "sex": "F"},
        {"audio_filepath": "../c.wav", "label": "infer"},
        {"audio_filepath": "wav/a.wav", "offset": 3.5, "duration": 2, "label": "s1"},
    )
    a, b, c, a2 = read_manifest(path, split="train")
    assert (a.id, a.audio, a.start_s, a.duration_s, a.speaker, a.split, a.recording) == (
        "wav/a@1.5", str(tmp_path / "wav/a.wav"), 1.5, 2.0, "s1", "dev", "wav/a",
    )  # fmt: skip
    assert (b.id, b.audio, b.speaker, b.recording, b.split) == ("x/b", "/data/b.flac", "7", "day1", "train")
    assert math.isnan(b.duration_s)
    assert (c.id, c.speaker) == ("c", None)
    assert a2.id == "wav/a@3.5"
    assert ignored_keys(path) == ["sex"]


def test_a_strangers_manifest_keeps_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "link").parent.mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    fine = jsonl(tmp_path / "fine.jsonl", {"audio_filepath": "in/../in/a.wav"})
    assert [u.id for u in read_manifest(fine, audio_root=tmp_path / "in")] == ["in/in/a"]
    for key, name in (("audio_filepath", "b.wav"), ("audio_filepath", "/etc/x.wav"), ("rttm_filepath", "in/../b.rttm")):
        path = jsonl(tmp_path / "m.jsonl", {"audio_filepath": "in/a.wav", key: name})
        with pytest.raises(ValueError, match=f"m.jsonl:1: {key} .* is outside of the audio root"):
            read_manifest(path, audio_root=tmp_path / "in")
    with pytest.raises(ValueError, match="outside"):
        read_manifest(jsonl(tmp_path / "m.jsonl", {"audio_filepath": "in/link/b.wav"}), audio_root=tmp_path / "in")
    with pytest.raises(ValueError, match="a dataset brings its own audio"):
        read_manifest("hf:some/corpus", audio_root=tmp_path)


def test_a_text_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "speaker": "x" * 1025})
    with pytest.raises(ValueError, match="m.jsonl:1: .*speaker has 1025 characters, at most 1024"):
        read_manifest(path)


def test_turns_come_from_rttm_cut_to_the_utterance(tmp_path: Path) -> None:
    (tmp_path / "r.rttm").write_text(
        "SPEAKER mtg 1 0.0 2.0 <NA> <NA> a <NA> <NA>\nSPEAKER mtg 1 4.0 3.0 <NA> <NA> b <NA> <NA>\n"
    )
    path = jsonl(
        tmp_path / "m.jsonl",
        {"audio_filepath": "mtg.wav", "offset": 1.0, "duration": 4.0, "rttm_filepath": "r.rttm", "speaker": "a"},
    )
    (u,) = read_manifest(path)
    assert u.turns == (Turn(0.0, 1.0, "a"), Turn(3.0, 4.0, "b"))
    assert u.speaker is None


def test_the_first_of_several_keys_counts(tmp_path: Path) -> None:
    everything = {"audio_filepath": "w/a.b.wav", "utt_id": "1", "id": "2", "uniq_id": "3", "speaker": "s", "label": "t"}
    everything |= {"recording": "r", "session_id": "q", "text": "x", "num_speakers": 2, "duration": 0.5, "offset": 0}
    rows = []
    for without in (
        (),
        ("utt_id", "speaker", "recording"),
        ("utt_id", "id"),
        ("utt_id", "id", "uniq_id", "session_id", "recording"),
    ):
        rows.append({key: value for key, value in everything.items() if key not in without})
    a, b, c, d = read_manifest(jsonl(tmp_path / "m.jsonl", *rows))
    assert [(u.id, u.speaker, u.recording) for u in (a, b, c, d)] == [
        *(("1", "s", "r"), ("2", "t", "q"), ("3", "s", "r"), ("w/a.b@0", "s", "w/a.b")),
    ]
    assert (a.start_s, a.duration_s, a.split) == (0.0, 0.5, "")
    rows = [{"audio_filepath": f"{k}.wav", "label": label} for k, label in enumerate(("infer", "-", "", "x", None))]
    assert [u.speaker for u in read_manifest(jsonl(tmp_path / "m.jsonl", *rows))] == [None, None, None, "x", None]
    rows = [
        {"audio_filepath": f"{k}.wav", **({"split": split} if split is not None else {})}
        for k, split in enumerate(("dev", "", None))
    ]
    path = jsonl(tmp_path / "m.jsonl", *rows)
    assert [u.split for u in read_manifest(path)] == ["dev", "", ""]
    assert [u.split for u in read_manifest(path, split="test")] == ["dev", "test", "test"]
    assert ignored_keys(jsonl(tmp_path / "m.jsonl", everything | {"sex": 1, "age": 2})) == ["age", "sex"]


def test_which_turns_of_an_rttm_are_an_utterances(tmp_path: Path) -> None:
    """Those of the recording by the audio's name, the id or the recording; of the only one in a file called as the audio."""
    lines = "".join(
        f"SPEAKER {name} 1 {start} {length} <NA> <NA> {speaker} <NA> <NA>\n"
        for name, start, length, speaker in (("m", 0, 2, "a"), ("m", 2, 1, "b"), ("m", 5, 3, "c"), ("n", 2, 2, "z"))
    )
    (tmp_path / "both.rttm").write_text(lines)
    one = tmp_path / "x.rttm"
    one.write_text("".join(line + "\n" for line in lines.splitlines() if " m " in line))

    def turns(name: str, **facts: object) -> tuple[Turn, ...]:
        entry = {"audio_filepath": "x.wav", "rttm_filepath": name, **facts}
        return read_manifest(jsonl(tmp_path / "m.jsonl", entry))[0].turns

    cut = {"offset": 2.0, "duration": 3.0}  # a ends where it begins, c begins where it ends
    assert turns("both.rttm", audio_filepath="d/m.wav", **cut) == (Turn(0.0, 1.0, "b"),)
    assert turns("both.rttm", utt_id="n", **cut) == (Turn(0.0, 2.0, "z"),)
    assert turns("both.rttm", recording="m", offset=2.5, duration=3.0) == (Turn(0.0, 0.5, "b"), Turn(2.5, 3.0, "c"))
    assert turns("x.rttm", offset=1.0) == (Turn(0.0, 1.0, "a"), Turn(1.0, 2.0, "b"), Turn(4.0, 7.0, "c"))
    with pytest.raises(ValueError, match="has no recording named x"):
        turns("both.rttm")
    (tmp_path / "empty.rttm").write_text("")
    with pytest.raises(ValueError, match="m.jsonl:1: .*empty.rttm holds no turn; leave rttm_filepath out"):
        turns("empty.rttm", speaker="s")
    # A file that has changed since is read again.
    one.write_text("SPEAKER m 1 0 1 <NA> <NA> new <NA> <NA>\n")
    os.utime(one, ns=(1, 1))
    assert turns("x.rttm") == (Turn(0.0, 1.0, "new"),)


def test_labels_that_cannot_be_right(tmp_path: Path) -> None:
    """The RTTM of another recording, or one that goes on beyond the audio's end; the near name is said."""
    sf.write(tmp_path / "ES2004a.Mix.wav", np.zeros(80000, np.float32), 8000)

    def read(rttm: str, name: str = "r.rttm", **facts: object) -> Utterance:
        rows = (line.split() for line in rttm.splitlines())
        text = "".join(f"SPEAKER {r} 1 {at} {long} <NA> <NA> {who} <NA> <NA>\n" for r, at, long, who in rows)
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, ns=(1, zlib.crc32(text.encode())))
        entry = {"audio_filepath": "ES2004a.Mix.wav", "rttm_filepath": name, **facts}
        return read_manifest(jsonl(tmp_path / "m.jsonl", entry))[0]

    assert read("ES2004a 1 2 a").turns == (Turn(1.0, 3.0, "a"),)
    assert read("meeting 1 2 a", "ES2004a.rttm").turns == (Turn(1.0, 3.0, "a"),)
    assert read("other 1 2.5 a", session_id="other").turns == (Turn(1.0, 3.5, "a"),)
    assert read("ES2004a 9 1.25 abc").turns == (Turn(9.0, 10.0, "abc"),)  # marked to the second, cut to the audio
    with pytest.raises(ValueError, match=r"r.rttm has no recording named .*, but 'ES2004b'; if it is the right one"):
        read("ES2004b 1 2 a")
    with pytest.raises(ValueError, match="has no recording named"):
        read("ES2004 1 2 a")
    many = "".join(f"EN{k} 1 2 a\n" for k in range(5)) + "ES2O04a 1 2 a"
    with pytest.raises(ValueError, match="but 'EN0', 'EN1', 'EN2', …; did you mean 'ES2O04a'"):
        read(many)
    with pytest.raises(
        ValueError, match=r"1 turn\(s\) lie beyond the end of .*, which has 10.0 s, the first from 9.0 to 11.5"
    ):
        read("ES2004a 1 2 a\nES2004a 9 2.5 ab")


def test_what_may_be_a_mistake_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.rttm").write_text("SPEAKER a 1 0 1 <NA> <NA> x <NA> <NA>\n")
    base = {"audio_filepath": "a.wav", "rttm_filepath": "a.rttm", "duration": 5, "split": "validation"}
    path, told = jsonl(tmp_path / "m.jsonl", base, {**base, "offset": 5}), []
    read_manifest(path, note=told.append)
    assert told == [
        f"{path}: split 'validation' is a name of your own; if 'dev' is meant, write that",
        f"{path}: 1 of 2 utterances have neither a speaker nor turns, the first is 'a@5'",
    ]
    told.clear()
    read_manifest(jsonl(path, {**base, "split": "dev"}, {"audio_filepath": "b.wav", "speaker": "s"}), note=told.append)
    read_manifest(jsonl(path, {"audio_filepath": "b.wav"}), note=told.append)
    assert told == []
    with pytest.raises(ValueError, match="--split: split 'Test'; did you mean 'test'"):
        read_manifest(path, split="Test")


def test_a_key_near_a_known_one_that_is_there_is_somebodys_own(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "speaker": "s", "speakers": 3})
    assert [u.speaker for u in read_manifest(path)] == ["s"]
    assert ignored_keys(path) == ["speakers"]
    with pytest.raises(ValueError, match="m.jsonl:1: unknown key 'speakers'; did you mean 'speaker'"):
        read_manifest(jsonl(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "speakers": 3}))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"audio_filepath": "a.wav", "split": "Train"}', "m.jsonl:2: split 'Train'; did you mean 'train'"),
        (b'{"audio_filepath": "a.wav", "split": "tset "}', "did you mean 'test'"),
        (b'{"audio_filepath": "a.wav", "spilt": "test"}', "unknown key 'spilt'; did you mean 'split'"),
        (b'{"audio_filepath": "a.wav", "Speaker": "a"}', "unknown key 'Speaker'; did you mean 'speaker'"),
        (b'{"audio_filepath": "a.wav"', "not JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b'{"audio_filepath": "\xff.wav"}', "not UTF-8"),
        (b'{"duration": 2}', "no 'audio_filepath' in it, only duration"),
        (b'{"audio_filepath": "a.wav", "ofset": 2}', "did you mean 'offset'"),
        (b'{"audio_filepath": "a.wav", "duration": 0}', "duration must be more than 0"),
        (b'{"audio_filepath": "a.wav", "duration": "long"}', "expected 'duration' in seconds"),
        (b'{"audio_filepath": "a.wav", "duration": NaN}', "expected 'duration' in seconds"),
        (b'{"audio_filepath": "a.wav", "offset": -1}', "offset must be 0 or more"),
        (b'{"audio_filepath": "a.wav", "utt_id": "../../etc/x"}', "points outside its root"),
        (b'{"audio_filepath": "a.wav", "rttm_filepath": "no.rttm"}', "no such file"),
        (b"[" * 100000, "not JSON"),
        (b'{"audio_filepath": "a.wav", "speaker": ["a", "b"]}', "expected 'speaker' to be a text or a number"),
        (b'{"audio_filepath": "a.wav", "label": {"id": 1}}', "expected 'label' to be a text or a number"),
        (b'{"audio_filepath": "a.wav", "split": ["train"]}', "expected 'split' to be a text or a number"),
        (b'{"audio_filepath": "a.wav", "speaker": "Ren\\udce9"}', r"speaker 'Ren\\udce9' holds half a surrogate"),
        (b'{"audio_filepath": "a.wav", "split": "\\udce9"}', "split .* holds half a surrogate"),
        (b'{"audio_filepath": "Ren\\udce9.wav", "utt_id": "a"}', "audio .* holds half a surrogate"),
        (b'{"audio_filepath": "Ren\\udce9.wav"}', "id .* holds a control character or half a surrogate"),
        (b'{"audio_filepath": "a.wav", "recording": "Ren\\udce9"}', "recording .* holds half a surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"audio_filepath": "good.wav", "utt_id": "good"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=words) as error:
        read_manifest(path)
    assert f"{path}:2:" in str(error.value)


def test_a_turns_speaker_fits_into_a_table() -> None:
    with pytest.raises(ValueError, match="speaker of a turn .* holds half a surrogate"):
        Utterance("a", "a.wav", 0.0, 1.0, "r", turns=(Turn(0.0, 1.0, "Ren\udce9"),))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "sex": "F"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ([u.id for u in read_manifest(path)], ignored_keys(path)) == (["a"], ["sex"])


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", *[{"audio_filepath": f"{i}.wav", "utt_id": "same"} for i in range(2)])
    with pytest.raises(ValueError, match="stand for several utterances, the first is 'same'"):
        read_manifest(path)


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such manifest"):
        read_manifest(tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match="no utterance"):
        read_manifest(jsonl(tmp_path / "m.jsonl"))


def test_huggingface_dataset_gives_the_same_utterances(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    wave = tone(0.5, 16000)
    sf.write(tmp_path / "a.wav", wave, 16000)
    data = (tmp_path / "a.wav").read_bytes()
    rows = {
        "id": ["id1/v/1.wav", "id2/v/1.wav"],
        "audio": [{"bytes": data, "path": None}, {"bytes": None, "path": str(tmp_path / "a.wav")}],
        "speaker": ["id1", "id2"],
    }
    plain = datasets.Dataset.from_dict(rows)  # encoding through datasets.Audio would need torchcodec
    both = datasets.DatasetDict({"test": plain.cast_column("audio", datasets.Audio(decode=False))})
    both.save_to_disk(tmp_path / "hf")
    utterances = read_manifest(tmp_path / "hf")
    assert [(u.id, u.speaker, u.split) for u in utterances] == [
        ("id1/v/1.wav", "id1", "test"),
        ("id2/v/1.wav", "id2", "test"),
    ]
    for u in utterances:
        np.testing.assert_allclose(load(u, 16000), wave, atol=1e-4)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be had"):
        read_manifest(tmp_path / "broken")


def test_a_dataset_gives_no_file_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "hf" / "in").mkdir(parents=True)
    for name in ("hf/in/a.wav", "secret.wav"):
        sf.write(tmp_path / name, tone(0.5, 16000), 16000)
    (tmp_path / "hf" / "link.wav").symlink_to(tmp_path / "secret.wav")
    paths = ["in/a.wav", str(tmp_path / "hf/in/a.wav"), str(tmp_path / "secret.wav"), "../secret.wav", "link.wav", "no"]
    # Without the feature Audio, nothing is embedded when it is saved.
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    audio = [None, *({"bytes": None, "path": path} for path in paths)]
    datasets.Dataset.from_dict({"audio": audio}, features=datasets.Features({"audio": kind})).save_to_disk(
        tmp_path / "hf"
    )
    none, *own, far, up, link, gone = read_manifest(tmp_path / "hf")
    for u, words in {none: "row 0: holds no audio", gone: "row 6: its audio no is not there"}.items():
        with pytest.raises(ValueError, match=words):
            load(u, 16000)
    for u in own:
        assert len(load(u, 16000)) == 8000
    for u in (far, up, link):
        with pytest.raises(ValueError, match="is outside of .*hf; not read"):
            load(u, 16000)
    # What comes from the Hub lies where the library puts its downloads.
    downloaded = datasets.load_from_disk(tmp_path / "hf").cast_column("audio", datasets.Audio(decode=False))
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **more: downloaded)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    hub = read_manifest("hf:some/corpus")
    assert len(load(hub[2], 16000)) == 8000
    with pytest.raises(ValueError, match="is outside of"):
        load(hub[3], 16000)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    entries = [{"audio_filepath": f"{i}.wav", "speaker": "a", "split": s} for i, s in enumerate(("train", "test", ""))]
    utterances = read_manifest(jsonl(tmp_path / "m.jsonl", *entries))
    with pytest.raises(ValueError, match="no utterance is of split 'tset'; the manifest has '', 'test', 'train'"):
        simulate(utterances, read_recipe("tiny"), tmp_path / "out", split="tset")


def test_splits_must_not_share_recordings_or_speakers(tmp_path: Path) -> None:
    entries = [
        {"audio_filepath": f"{i}.wav", "speaker": s, "split": p, "recording": r}
        for i, (s, p, r) in enumerate([("a", "train", "r1"), ("a", "test", "r2"), ("b", "test", "r2")])
    ]
    utterances = read_manifest(jsonl(tmp_path / "m.jsonl", *entries))
    check_disjoint(utterances, "recording")
    with pytest.raises(ValueError, match="1 speaker.* 'a' in test, train"):
        check_disjoint(utterances, "speaker")
    check_disjoint([replace(u, speaker=None) for u in utterances], "speaker")  # nobody is no speaker they share


def test_manifests_of_made_up_corpora_read(tmp_path: Path) -> None:
    """Read speech with a speaker each, words spoken alone, and clips of 30 s out of meetings with RTTM."""
    read = [
        {
            "audio_filepath": f"s{k % 7}/{k}.flac",
            "duration": 1.5 + k,
            "speaker": f"s{k % 7}",
            "split": "train" if k % 7 < 4 else "test",
        }
        for k in range(30)
    ]
    utterances = read_manifest(jsonl(tmp_path / "manifest.jsonl", *read))
    assert (len(utterances), len({u.speaker for u in utterances})) == (30, 7)
    check_disjoint(utterances, "speaker")
    assert [u.duration_s for u in utterances] == [1.5 + k for k in range(30)]
    with pytest.raises(ValueError, match="stand in more than one split"):
        check_disjoint(
            read_manifest(jsonl(tmp_path / "m.jsonl", *read, {**read[0], "utt_id": "x", "split": "dev"})), "speaker"
        )
    rows = [
        f"SPEAKER {name} 1 {turn.start_s:.3f} {turn.end_s - turn.start_s:.3f} <NA> <NA> {turn.speaker} <NA> <NA>\n"
        for name, turns in meetings().items()
        for turn in turns
    ]
    (tmp_path / "all.rttm").write_text("".join(rows))
    base = {"audio_filepath": "m2.wav", "duration": 30.0, "rttm_filepath": "all.rttm", "label": "infer"}
    clips = read_manifest(jsonl(tmp_path / "c.jsonl", *[{**base, "offset": 30.0 * k} for k in range(4)]), split="test")
    whole = meetings()["m2"]
    for k, clip in enumerate(clips):
        begin, end = 30.0 * k, 30.0 * (k + 1)
        assert (clip.id, clip.recording, clip.split, clip.speaker) == (f"m2@{30 * k}", "m2", "test", None)
        inside = [t for t in whole if t.end_s > begin and t.start_s < end]
        assert [t.speaker for t in clip.turns] == [t.speaker for t in inside] and len(inside) > 3
        found = [time for t in clip.turns for time in (t.start_s, t.end_s)]
        assert found == pytest.approx(
            [time for t in inside for time in (max(t.start_s, begin) - begin, min(t.end_s, end) - begin)], abs=2e-3
        )


def test_real_manifests_read(speech_dir: Path) -> None:
    utterances = read_manifest(speech_dir / "manifest.jsonl")
    assert (len(utterances), len({u.speaker for u in utterances})) == (351, 261)
    check_disjoint(utterances, "speaker")
    assert len(read_manifest(speech_dir / "fsdd" / "manifest.jsonl")) == 600
    clips = read_manifest(speech_dir / "ami_clips" / "manifest.jsonl", split="test")
    assert len(clips) == 6
    assert all(u.turns and max(t.end_s for t in u.turns) <= 30.0 for u in clips)


def test_columns_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several columns counts; a row without an id is called by its split and number."""
    datasets = pytest.importorskip("datasets")
    asked: list[tuple] = []
    held: dict[str, object] = {}

    def load_dataset(name: str, config: str | None, split: str | None) -> object:
        asked.append((name, config, split))
        return held["data"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sound = [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}]
    everything = {
        "audio": sound,
        "id": ["i0", "i1"],
        "utt_id": ["u0", "u1"],
        "file": ["f0", "f1"],
        "speaker_id": [7, 8],
    }
    everything |= {"label": ["l0", "l1"], "session_id": ["m0", None], "chapter_id": [3, 4], "text": ["x", "y"]}
    for number, (without, ids, speakers, recordings) in enumerate(
        (
            ((), ["i0", "i1"], ["7", "8"], ["m0", "i1"]),
            (("id", "session_id"), ["u0", "u1"], ["7", "8"], ["3", "4"]),
            (("id", "utt_id", "speaker_id"), ["f0", "f1"], ["l0", "l1"], ["m0", "f1"]),
            (
                ("id", "utt_id", "file", "speaker_id", "label", "session_id", "chapter_id"),
                ["dev/00000000", "dev/00000001"],
                [None, None],
                ["dev/00000000", "dev/00000001"],
            ),
        )
    ):
        rows = datasets.Dataset.from_dict({key: value for key, value in everything.items() if key not in without})
        held["data"] = datasets.DatasetDict({"dev": rows})
        found = read_manifest(f"hf:lab/talk{number}:small")
        assert [(u.id, u.speaker, u.recording) for u in found] == list(zip(ids, speakers, recordings, strict=True))
        assert {(u.split, u.start_s, u.turns) for u in found} == {("dev", 0.0, ())} and math.isnan(found[0].duration_s)
        assert [audio_bytes(u.audio) for u in found] == [b"1", b"2"]
    held["data"] = datasets.Dataset.from_dict(everything)
    assert {u.split for u in read_manifest("hf:lab/one@validation[:5%]")} == {"dev"}
    assert {u.split for u in read_manifest("hf:lab/two words@train")} == {"train"}
    asked_once = [(f"lab/talk{n}", "small", None) for n in range(4)]
    assert asked == [*asked_once, ("lab/one", None, "validation[:5%]"), ("lab/two words", None, "train")]
    assert audio_bytes(read_manifest("hf:lab/two words@train")[1].audio) == b"2"
    held["data"] = datasets.Dataset.from_dict({"sound": [1], "id": ["a"]})
    with pytest.raises(ValueError, match="hf:lab/none: expected a column 'audio', found sound, id"):
        read_manifest("hf:lab/none")
    with pytest.raises(ValueError, match="hf: names no data set"):
        read_manifest("hf:")


def test_a_dataset_corrects_what_it_names(tmp_path: Path) -> None:
    """Of a data set, what has no speaker says nothing of the speaker; of JSONL, what names none says that it is nobody."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "audio": [{"bytes": b"1", "path": None}] * 2,
        "id": ["a", "b"],
        "speaker": ["s", None],
        "recording": ["r", None],
    }
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "hf")
    a, b = read_corrections(tmp_path / "hf")
    audio = [u.audio for u in read_manifest(tmp_path / "hf")]
    assert (a.id, a.where, a.start_s, a.duration_s) == ("a", str(tmp_path / "hf"), None, None)
    assert a.labels == {"split": "test", "speaker": "s", "recording": "r", "audio": audio[0]}
    assert b.labels == {"split": "test", "recording": "b", "audio": audio[1]}
    lines = [
        {"utt_id": "a", "label": "infer"},
        {"id": "b", "speaker": "s", "offset": 1.5, "duration": 2.5},
        {"audio_filepath": "d/c.wav", "split": ""},
        {"audio_filepath": "d/e.wav", "offset": 0.5, "recording": "x"},
        {"audio_filepath": "d/e.wav", "offset": 2},
    ]
    found = read_corrections(jsonl(tmp_path / "m.jsonl", *lines))
    assert [(c.id, c.where, c.start_s, c.duration_s) for c in found] == [
        *(("a", f"{tmp_path}/m.jsonl:1", None, None), ("b", f"{tmp_path}/m.jsonl:2", 1.5, 2.5)),
        *(("d/c", f"{tmp_path}/m.jsonl:3", None, None), ("d/e@0.5", f"{tmp_path}/m.jsonl:4", 0.5, None)),
        ("d/e@2", f"{tmp_path}/m.jsonl:5", 2.0, None),
    ]
    assert [c.labels for c in found] == [
        {"speaker": None},
        {"speaker": "s", "turns": ()},
        {"split": "", "audio": str(tmp_path / "d/c.wav")},
        {"recording": "x", "audio": str(tmp_path / "d/e.wav")},
        {"audio": str(tmp_path / "d/e.wav")},
    ]


def test_audio_and_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "store" / "features.zarr").mkdir(parents=True)
    with pytest.raises(ValueError, match="store: is a store, and no manifest; are the two swapped"):
        read_manifest(tmp_path / "store")
    (tmp_path / "one" / "features.zarr").mkdir(
        parents=True
    )  # of an extraction of this folder into itself, gone on with
    sf.write(tmp_path / "one" / "a.b.wav", tone(0.1), 8000)
    for given in (tmp_path / "one", tmp_path / "one" / "a.b.wav"):
        (u,) = read_manifest(given)
        assert (u.id, u.recording, u.audio, u.split) == ("a.b", "a.b", str(tmp_path / "one" / "a.b.wav"), "")
    path = jsonl(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "sex": 1})
    path.write_text("\n" + path.read_text() + "\n \n")
    assert ignored_keys(path) == ["sex"] and len(read_manifest(path)) == 1
    assert ignored_keys("hf:x/y") == ignored_keys(tmp_path) == ignored_keys(tmp_path / "one" / "a.b.wav") == []
    for value, words in (
        (7, None),
        (True, "expected 'utt_id' to be a text, found True"),
        ("a\0", "'utt_id' holds a zero byte"),
    ):
        path = jsonl(tmp_path / "m.jsonl", {"audio_filepath": "a.wav", "utt_id": value})
        if words is None:
            assert read_manifest(path)[0].id == "7"
        else:
            with pytest.raises(ValueError, match=f"m.jsonl:1: {words}"):
                read_manifest(path)


def test_a_split_of_another_name_beside_the_usual_one_is_meant(tmp_path: Path) -> None:
    told: list[str] = []
    rows = [
        {"audio_filepath": f"{k}.wav", "speaker": "s", "split": split}
        for k, split in enumerate(("dev", "validation", "eval"))
    ]
    path = jsonl(tmp_path / "m.jsonl", *rows)
    read_manifest(path, note=told.append)
    assert told == [f"{path}: split 'eval' is a name of your own; if 'test' is meant, write that"]
