"""Manifests of both kinds become the same Utterances; what is wrong is named by file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from featstore import Turn, Utterance
from featstore.corpora.audio import load
from featstore.corpora.manifest import check_disjoint, ignored_keys, read_manifest
from featstore.simulation.recipe import read_recipe
from featstore.simulation.simulate import simulate
from tests.fakes import tone


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
        tmp_path / "m.jsonl", {"audio_filepath": "mtg.wav", "offset": 1.0, "duration": 4.0, "rttm_filepath": "r.rttm"}
    )
    (u,) = read_manifest(path)
    assert u.turns == (Turn(0.0, 1.0, "a"), Turn(3.0, 4.0, "b"))
    assert u.speaker is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"audio_filepath": "a.wav"', "not JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b'{"audio_filepath": "\xff.wav"}', "not UTF-8"),
        (b'{"duration": 2}', "expected 'audio_filepath' to be a text"),
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
    with pytest.raises(ValueError, match="cannot be had"):
        read_manifest(tmp_path)


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


def test_a_corpus_of_clips_reads_as_it_was_written(tmp_path: Path) -> None:
    """Sixty clips of 30 s out of three meetings with a turn every 7 s, and sixty utterances of twenty speakers."""
    for m in range(3):
        turns = "".join(f"SPEAKER m{m} 1 {7 * k} 5 <NA> <NA> s{k % 4} <NA> <NA>\n" for k in range(90))
        (tmp_path / f"m{m}.rttm").write_text(turns)
    clips = [
        {"audio_filepath": f"m{m}.wav", "offset": 30.0 * k, "duration": 30.0, "rttm_filepath": f"m{m}.rttm",
         "recording": f"m{m}", "utt_id": f"m{m}-{k}", "split": ("train", "dev", "test")[m]}
        for m in range(3) for k in range(20)
    ]  # fmt: skip
    found = read_manifest(jsonl(tmp_path / "clips.jsonl", *clips))
    assert [(u.id, u.recording, u.start_s, u.duration_s, u.split) for u in found] == [
        (c["utt_id"], c["recording"], c["offset"], 30.0, c["split"]) for c in clips
    ]
    check_disjoint(found, "recording")
    for u in found:
        expected = [
            (max(7.0 * k - u.start_s, 0), min(7.0 * k + 5 - u.start_s, 30.0), f"s{k % 4}")
            for k in range(90)
            if 7 * k < u.start_s + 30 and 7 * k + 5 > u.start_s
        ]
        assert [(t.start_s, t.end_s, t.speaker) for t in u.turns] == expected
    words = [{"audio_filepath": f"{i}.wav", "duration": 2.0, "speaker": f"s{i % 20}"} for i in range(60)]
    utterances = read_manifest(jsonl(tmp_path / "words.jsonl", *words), split="test")
    assert (len(utterances), len({u.speaker for u in utterances}), {u.split for u in utterances}) == (60, 20, {"test"})
    check_disjoint(utterances, "speaker")


def test_real_manifests_read(speech_dir: Path) -> None:
    utterances = read_manifest(speech_dir / "manifest.jsonl")
    assert (len(utterances), len({u.speaker for u in utterances})) == (351, 261)
    check_disjoint(utterances, "speaker")
    assert len(read_manifest(speech_dir / "fsdd" / "manifest.jsonl")) == 600
    clips = read_manifest(speech_dir / "ami_clips" / "manifest.jsonl", split="test")
    assert len(clips) == 6
    assert all(u.turns and max(t.end_s for t in u.turns) <= 30.0 for u in clips)
