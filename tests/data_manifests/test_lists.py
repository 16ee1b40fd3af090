"""What stands in data_manifests: lists as published, the demo corpus whole and disjoint, the scripts."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from featstore.corpora import audio
from featstore.corpora.manifest import check_disjoint, ignored_keys, read_manifest
from featstore.simulation.recipe import read_recipe
from featstore.simulation.session import speech_and_overlap_s
from featstore.simulation.simulate import simulate
from featstore.types import Utterance
from tests.conftest import ROOT

FOLDER = ROOT / "data_manifests"
DEMO = FOLDER / "demo"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    return read_manifest(DEMO / "manifest.jsonl")


# --- lists of others ---------------------------------------------------------------------------------------------


def test_voxceleb1_o_cleaned() -> None:
    packed = (FOLDER / "voxceleb1_o_cleaned.txt.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # neither name nor time: packing it again gives the same file
    text = gzip.decompress(packed)
    assert hashlib.md5(text).hexdigest() == "b73110731c9223c1461fe49cb48dddfc"
    trials = [line.split() for line in text.decode().splitlines()]
    assert len(trials) == 37_611 and Counter(t[0] for t in trials) == {"1": 18_802, "0": 18_809}
    names = {name for t in trials for name in t[1:]}
    assert len(names) == 4_708 and len({name.split("/")[0] for name in names}) == 40
    assert all((a.split("/")[0] == b.split("/")[0]) == (label == "1") for label, a, b in trials)


def test_ami_split() -> None:
    lists = {
        split: (FOLDER / "ami" / f"{split}.meetings.txt").read_text().split() for split in ("train", "dev", "test")
    }
    assert {split: len(meetings) for split, meetings in lists.items()} == {"train": 136, "dev": 18, "test": 16}
    every = [meeting for meetings in lists.values() for meeting in meetings]
    assert len(set(every)) == 170
    # The four meetings of one group of people (ES2004a to d) stay together, so that no speaker is in two splits.
    groups = {split: {meeting[:6] for meeting in meetings} for split, meetings in lists.items()}
    assert all(not groups[a] & groups[b] for a, b in combinations(groups, 2))


# --- the demo ----------------------------------------------------------------------------------------------------


def test_demo_is_small_and_holds_what_its_manifest_names(utterances: list[Utterance]) -> None:
    assert ignored_keys(DEMO / "manifest.jsonl") == []
    files = {path for path in DEMO.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert {path for path in files if path.parent != DEMO} == {Path(u.audio) for u in utterances}


def test_demo_speakers(utterances: list[Utterance]) -> None:
    check_disjoint(utterances, by="speaker")
    check_disjoint(utterances, by="recording")
    speakers = {split: {u.speaker for u in utterances if u.split == split} for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in speakers.items()} == {"train": 28, "dev": 6, "test": 10}
    assert Counter(u.split for u in utterances) == {"train": 224, "dev": 48, "test": 100}
    rows = [json.loads(line) for line in (DEMO / "speakers.jsonl").read_text().splitlines()]
    assert {(r["speaker"], r["split"]) for r in rows} == {(u.speaker, u.split) for u in utterances}
    voices = {split: {r["voice"].split("+")[1] for r in rows if r["split"] == split} for split in speakers}
    assert all(not voices[a] & voices[b] for a, b in combinations(voices, 2))


def test_demo_durations_are_those_of_the_files(utterances: list[Utterance]) -> None:
    for u in utterances:
        info = soundfile.info(u.audio)
        assert (info.samplerate, info.channels) == (16_000, 1)
        assert info.duration == pytest.approx(u.duration_s, abs=1e-5)


def test_demo_audio_decodes(utterances: list[Utterance]) -> None:
    for u in utterances[::23]:
        wave = audio.load(u, 16_000)
        assert len(wave) == round(u.duration_s * 16_000)
        assert -40 < 20 * np.log10(np.std(wave)) < -10


def test_demo_trials(utterances: list[Utterance]) -> None:
    speaker = {str(Path(u.audio).relative_to(DEMO)): u.speaker for u in utterances if u.split == "test"}
    trials = [line.split() for line in (DEMO / "trials.txt").read_text().splitlines()]
    assert Counter(t[0] for t in trials) == {"1": 450, "0": 450}
    assert all((speaker[a] == speaker[b]) == (label == "1") for label, a, b in trials)
    assert len({frozenset(t[1:]) for t in trials}) == 900
    assert set(Counter(name for t in trials for name in t[1:]).values()) == {18}  # every utterance equally often


def test_sessions_can_be_made_of_the_demo(utterances: list[Utterance], tmp_path: Path) -> None:
    """As `make demo` makes them, but few: every speaker stays in one split, overlap is what the recipe asks."""
    recipe = replace(read_recipe("demo"), sessions={"train": 3, "dev": 2, "test": 3})
    assert not simulate(utterances, recipe, tmp_path, workers=1).failures
    sessions = read_manifest(tmp_path / "manifest.jsonl")
    assert Counter(s.split for s in sessions) == recipe.sessions
    check_disjoint(sessions, by="speaker")
    speech = overlap = 0.0
    for session in sessions:
        talking = {turn.speaker for turn in session.turns}
        assert 2 <= len(talking) <= 4
        assert talking <= {u.speaker for u in utterances if u.split == session.split}
        speech, overlap = np.add((speech, overlap), speech_and_overlap_s(session.turns))
    assert recipe.overlap[0] < overlap / speech < recipe.overlap[1]


def test_the_demo_script_still_speaks_like_this(tmp_path: Path, utterances: list[Utterance]) -> None:
    """Where eSpeak NG 1.51 is installed, an utterance made now is the committed one, but for the coding."""
    try:
        library = ctypes.CDLL("libespeak-ng.so.1")
    except OSError:
        pytest.skip("libespeak-ng is not installed")
    library.espeak_Info.restype = ctypes.c_char_p
    if not library.espeak_Info(None).startswith(b"1.51"):
        pytest.skip("another version of eSpeak NG")
    # In a process of its own, as the script does it.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import make_demo_corpus as m; from pathlib import Path\n"
        "print(m._make_utterance((m.speakers()[34], 0, Path(sys.argv[2])))['audio_filepath'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER), str(tmp_path)],
        cwd=FOLDER.parent,
        env={"PYTHONPATH": str(FOLDER.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    made, _ = soundfile.read(tmp_path / done.stdout.strip())
    held, _ = soundfile.read(DEMO / done.stdout.strip())
    assert len(made) == len(held)
    assert np.corrcoef(made, held)[0, 1] > 0.99


# --- make_manifest -----------------------------------------------------------------------------------------------


def _wav(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * 8_000), 0.1), 8_000)


def run_script(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "make_manifest.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_manifest_of_a_voxceleb_tree(tmp_path: Path) -> None:
    for name, seconds in (("id10270/5r0dWxy17C8/00001", 4.0), ("id10270/x6uYqmx31kE/00001", 5.5), ("id10271/a/1", 1.0)):
        _wav(tmp_path / "wav" / f"{name}.wav", seconds)
    done = run_script("speakers", tmp_path / "wav", "--split", "test", "--out", tmp_path / "m.jsonl")
    assert done.returncode == 0, done.stderr
    found = read_manifest(tmp_path / "m.jsonl")
    assert [(u.id, u.speaker, u.split, u.duration_s) for u in found] == [
        ("id10270/5r0dWxy17C8/00001", "id10270", "test", 4.0),
        ("id10270/x6uYqmx31kE/00001", "id10270", "test", 5.5),
        ("id10271/a/1", "id10271", "test", 1.0),
    ]
    assert len({u.recording for u in found}) == 3
    (tmp_path / "wav" / "id10271" / "a" / "2.wav").write_bytes(b"not audio")
    done = run_script("speakers", tmp_path / "wav", "--out", tmp_path / "m.jsonl")
    assert done.returncode == 1 and "left out: " in done.stderr and "2.wav" in done.stderr
    done = run_script("speakers", tmp_path / "wav" / "id10271", "--out", tmp_path / "n.jsonl")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not (tmp_path / "n.jsonl").exists()


def test_manifest_of_the_ami_tree(tmp_path: Path) -> None:
    for split, meeting in (("test", "ES2004a"), ("dev", "IS1008a")):
        _wav(tmp_path / "amicorpus" / meeting / "audio" / f"{meeting}.Mix-Headset.wav", 3.0)
        rttm = tmp_path / "rttms" / split / f"{meeting}.rttm"
        rttm.parent.mkdir(parents=True)
        rttm.write_text(f"SPEAKER {meeting} 1 0.50 1.25 <NA> <NA> FEE013 <NA> <NA>\n")
    out = tmp_path / "manifests" / "ami.jsonl"
    out.parent.mkdir()
    done = run_script("ami", tmp_path / "amicorpus", "--rttms", tmp_path / "rttms", "--out", out)
    assert done.returncode == 1 and "168 left out" in done.stdout
    assert [(u.id, u.split, u.recording, u.turns[0].end_s) for u in read_manifest(out)] == [
        ("IS1008a", "dev", "IS1008a", 1.75),
        ("ES2004a", "test", "ES2004a", 1.75),
    ]


def test_texts_of_the_demo_are_varied() -> None:
    module = script("make_demo_corpus")
    rng = np.random.default_rng(0)
    assert len({module.text(rng) for _ in range(200)}) > 190
    assert len({s.name for s in module.speakers()}) == 44
