"""`whowhen diarize`: what it writes, that it goes on where it was, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

from cli.evaluation import app as evaluation
from cli.whowhen import app
from diarizer import jobs
from diarizer.heads import CascadeHead
from diarizer.inputs import recordings_of
from evaluation.rttm import read_rttm
from featstore import Turn
from featstore.corpora.rttm import write_rttm
from tests.tones import RATE_HZ, sound_of, turns_of, voice, write

pytestmark = pytest.mark.usefixtures("knows_fakes")
SECONDS = 30.0


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, stdin: bytes | None = None):
    return CliRunner().invoke(app, ["diarize", *map(str, args)], input=stdin)


def meeting(path: Path, seed: int = 7) -> tuple[Turn, ...]:
    turns = turns_of(seed, SECONDS)
    write(path, sound_of(turns, SECONDS, seed))
    return turns


def test_files_of_a_recording(folder, tone_run):
    turns = meeting(folder / "meeting one.wav")
    done = run("meeting one.wav", "--run", tone_run, "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert sorted(p.name for p in Path("out").iterdir()) == [f"meeting one.{end}" for end in ("html", "json", "rttm")]
    told = json.loads(Path("out/meeting one.json").read_text())
    length = {
        n: sum(t["end_s"] - t["start_s"] for t in told["turns"] if t["speaker"] == f"speaker{n}") for n in (1, 2, 3)
    }
    people = ", ".join(f"speaker{n} {length[n] / sum(length.values()):.0%}" for n in length)
    first, second = done.stdout.splitlines()
    assert first == f"out/meeting one.html: 3 speakers: {people}"
    seconds, speed = re.fullmatch(r"30 s of audio in (\d+\.\d) s, (\d+\.\d) × real time", second).groups()
    assert 30 / (float(seconds) + 0.05) - 0.1 < float(speed) < 30 / max(float(seconds) - 0.05, 1e-3) + 0.1
    again = run("meeting one.wav", "--run", tone_run, "--out", "out")
    assert again.stdout == f"{first} (there already)\n"
    assert json.loads(run("meeting one.wav", "--run", tone_run, "--out", "out", "--json").stdout)["speed"] == 0
    assert [t["speaker"] for t in told["turns"]] == [t.speaker for t in read_rttm("out")["meeting_one"]]
    write_rttm("ref.rttm", {"meeting_one": turns})
    scored = CliRunner().invoke(evaluation, ["der", "--ref", "ref.rttm", "--hyp", "out", "--json"])
    assert json.loads(scored.stdout)["corpus"]["der"] < 0.1
    page = Path("out/meeting one.html").read_text()
    assert "data:audio/mpeg;base64," in page
    assert not re.search(r"(src|href)=.?https?:", page)


def test_folders_patterns_manifests_and_stdin(folder, tone_run):
    (folder / "in" / "deep").mkdir(parents=True)
    meeting(folder / "in" / "a.wav")
    meeting(folder / "in" / "deep" / "a.flac", 8)
    Path("in/notes.txt").write_text("no audio")
    Path("m.jsonl").write_text(
        json.dumps({"audio_filepath": "in/a.wav", "offset": 5.0, "duration": 10.0, "utt_id": "part"}) + "\n"
    )
    done = run("in", "in/*.wav", "m.jsonl", "--run", tone_run, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [r["recording"] for r in told["recordings"]] == ["a", "deep-a", "part"]  # each once
    assert told["recordings"][2]["duration_s"] == 10.0
    assert sorted(p.name for p in Path("whowhen-out").glob("*.rttm")) == ["a.rttm", "deep-a.rttm", "part.rttm"]
    piped = run("-", "--run", tone_run, "--json", stdin=Path("in/a.wav").read_bytes())
    assert json.loads(piped.stdout)["recordings"][0]["turns"] == told["recordings"][0]["turns"]


def test_it_goes_on_where_it_was_and_a_broken_file_costs_only_itself(folder, tone_run):
    meeting(folder / "a.wav")
    Path("b.wav").write_bytes(b"RIFF no audio")
    meeting(folder / "c.wav", 9)
    done = run("a.wav", "b.wav", "c.wav", "--run", tone_run, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [r["recording"] for r in told["recordings"]] == ["a", "c"]
    assert list(told["failed"]) == ["b"]
    assert "failed: b: b.wav: not audio" in done.stderr
    before = {p: p.stat().st_mtime_ns for p in Path("whowhen-out").iterdir()}
    Path("whowhen-out/c.html").unlink()
    meeting(folder / "b.wav", 10)
    again = json.loads(run("a.wav", "b.wav", "c.wav", "--run", tone_run, "--json").stdout)
    assert again["there"] == ["a"]
    assert [r["recording"] for r in again["recordings"]] == ["a", "b", "c"]
    after = {p: p.stat().st_mtime_ns for p in Path("whowhen-out").iterdir()}
    assert {p.stem for p in before if after[p] == before[p]} == {"a"}
    # other sound, or another question, is not what is there
    meeting(folder / "a.wav", 11)
    assert json.loads(run("a.wav", "c.wav", "--run", tone_run, "--json").stdout)["there"] == ["c"]
    assert json.loads(run("c.wav", "--run", tone_run, "--json", "--speakers", 2).stdout)["there"] == []


def test_stopped_from_outside(folder, tone_run, monkeypatch):
    meeting(folder / "a.wav")
    meeting(folder / "b.wav", 8)
    written = jobs.write_page

    def write_page(path, *more):
        if path.stem == "b":
            signal.raise_signal(signal.SIGTERM)
        written(path, *more)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(jobs, "write_page", write_page)
            done = run("a.wav", "b.wav", "--run", tone_run)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.exit_code == 130
    assert done.stderr.endswith("interrupted: what was finished stays; the same command goes on\n")
    assert json.loads(run("a.wav", "b.wav", "--run", tone_run, "--json").stdout)["there"] == ["a"]


def test_known_voices(folder, tone_run):
    turns = (Turn(0.5, 9.0, "s0"), Turn(10.0, 20.0, "s3"), Turn(21.0, 29.0, "s1"))
    write(folder / "x.wav", sound_of(turns, SECONDS))
    write(folder / "ann.wav", voice(3))
    assert "ann.html: 1 speaker: speaker1 100%\n" in run("ann.wav", "--run", tone_run).stdout
    done = run("x.wav", "--run", tone_run, "--enrol", "Ann Lee=ann.wav", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["recordings"][0]
    assert [s["name"] for s in told["speakers"]] == ["speaker1", "Ann Lee", "speaker2"]
    assert [s["enrolled"] for s in told["speakers"]] == [False, True, False]
    assert read_rttm("whowhen-out")["x"].speakers == ("speaker1", "Ann_Lee", "speaker2")


def test_options_reach_the_answer_and_warnings_are_told(folder, tone_run):
    write(folder / "a.wav", sound_of((Turn(0.5, 3, "s0"), Turn(3.5, 6, "s2"), Turn(6.5, 9, "s4")), 9.5))
    many = {}
    for words in (
        ("--max-speakers", 1),
        ("--speakers", 2),
        ("--min-speakers", 3, "--max-speakers", 3, "--device", "cpu"),
    ):
        done = run("a.wav", "--run", tone_run, "--json", "--out", "o", *words)
        told = json.loads(done.stdout)
        many[words[0]] = len(told["recordings"][0]["speakers"])
        assert (told["run"], told["out"], told["failed"]) == (str(tone_run), "o", {}) and told["speed"] > 0
    assert many == {"--max-speakers": 1, "--speakers": 2, "--min-speakers": 3}
    config = json.loads((tone_run / "config.json").read_text())
    spec = config["features"]["fake"]["spec"]
    spec["settings"]["weights"] = "random:0"
    shutil.copytree(tone_run, "other")
    Path("other/config.json").write_text(json.dumps(config))
    done = run("a.wav", "--run", "other")
    assert done.stderr.startswith("warning: fake: UNTRAINED weights (random:0)")
    told = json.loads(run("a.wav", "--run", "other", "--json", "--out", "o2").stdout)
    (warning,) = told["warnings"]
    assert warning.startswith("fake: UNTRAINED weights") and told["recordings"][0]["warnings"] == [warning]
    assert "fake: UNTRAINED weights" in Path("o2/a.html").read_text()
    seconds = told["recordings"][0]["seconds"]
    assert told["speed"] <= 9.5 / seconds + 0.01 and told["run"] == "other"


def test_what_is_to_be_said_of_one_recording_is_said_of_it(folder, tone_run, monkeypatch):
    tell = CascadeHead.tell
    monkeypatch.setattr(CascadeHead, "tell", lambda *given: tell(*given)._replace(notes=("not as asked",)))
    meeting(folder / "a.wav")
    done = run("a.wav", "--run", tone_run)
    assert "warning: a: not as asked\n" in done.stderr and done.stderr.count("not as asked") == 1
    assert json.loads(Path("whowhen-out/a.json").read_text())["warnings"][-1] == "not as asked"


def test_features_of_a_store(folder, tone_run, tone_store):
    done = run("test/*", "--store", tone_store.path, "--run", tone_run, "--json")
    assert done.exit_code == 0, done.stderr
    assert [r["recording"] for r in json.loads(done.stdout)["recordings"]] == ["test-0", "test-1"]
    assert "No sound" in Path("whowhen-out/test-0.html").read_text()
    one = json.loads(run("test/1", "--store", tone_store.path, "--run", tone_run, "--max-speakers", 1, "--json").stdout)
    assert len(one["recordings"]) == len(one["recordings"][0]["speakers"]) == 1 and one["there"] == []
    every = json.loads(run("--store", tone_store.path, "--run", tone_run, "--json").stdout)
    assert sorted(r["recording"] for r in every["recordings"]) == sorted(id.replace("/", "-") for id in tone_store.ids)
    assert every["there"] == ["test-0"]  # the other was asked with a limit since


def bad_inputs(tone_run: Path, tone_store: Path) -> dict[str, tuple[list, int, str]]:
    """What is asked, the exit code, and what the one line has to say."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ * 2).astype(np.float32)
    sf.write("good.wav", sound_of(turns_of(7, 10.0), 10.0), RATE_HZ)
    sf.write("short.wav", noise[:800], RATE_HZ)
    sf.write("none.wav", noise[:0], RATE_HZ)
    sf.write("silent.wav", np.zeros(RATE_HZ * 5), RATE_HZ)
    sf.write("nan.wav", np.where(np.arange(len(noise)) == 99, np.nan, noise), RATE_HZ, "FLOAT")
    sf.write("two.wav", sound_of((Turn(0, 4, "s1"), Turn(4, 8, "s3")), 8.0), RATE_HZ)
    sf.write("ann.wav", voice(2), RATE_HZ)
    sf.write("word.wav", voice(2, 2.0), RATE_HZ)
    Path("empty.wav").touch()
    Path("text.wav").write_text("hello")
    Path("cut.wav").write_bytes(Path("good.wav").read_bytes()[:20000])
    Path("bad.jsonl").write_text("{")
    Path("gone.jsonl").write_text('{"audio_filepath": "gone.wav"}\n')
    Path("late.jsonl").write_text('{"audio_filepath": "good.wav", "offset": 60, "duration": 5}\n')
    Path("folder").mkdir()
    Path("file").write_text("x")
    Path("a-store/features.zarr").mkdir(parents=True)
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{}")
    return {
        "nothing": ([], 2, "nothing to diarize: name audio"),
        "no such file": (["gone.wav"], 2, "gone.wav: no such file, folder or pattern"),
        "no match": (["*.mp3"], 2, r"\*.mp3: no file matches"),
        "empty folder": (["folder"], 2, "folder: no audio in this folder"),
        "store": (["a-store"], 2, "a-store: is a store; take features from it with --store a-store"),
        "bad manifest": (["bad.jsonl"], 2, "bad.jsonl:1: not JSON"),
        "manifest of nothing": (["gone.jsonl"], 1, "gone.wav: no such file"),
        "part behind the end": (["late.jsonl"], 1, "the manifest says 60 s"),
        "empty": (["empty.wav"], 1, r"empty.wav: the file is empty \(0 bytes\)"),
        "text": (["text.wav"], 1, "text.wav: not audio"),
        "cut short": (["cut.wav"], 1, "cut.wav: cut short"),
        "no samples": (["none.wav"], 1, "none.wav: (no samples|too short)"),
        "too short": (["short.wav"], 1, "short.wav: too short: 0.10 s, expected 0.5 s"),
        "silent": (["silent.wav"], 1, "silent.wav: silent"),
        "NaN": (["nan.wav"], 1, "nan.wav: a sample is NaN"),
        "no run": (["good.wav", "--run", "folder"], 2, "folder: not a run"),
        "broken run": (["good.wav", "--run", "broken"], 2, "config.json: damaged"),
        "speakers": (["good.wav", "--speakers", 0], 2, "--speakers: expected 1 to 100, found 0"),
        "limits": (["good.wav", "--min-speakers", 3, "--max-speakers", 2], 2, "--min-speakers 3 is more than --max-speakers 2"),
        "twice said": (["good.wav", "--speakers", 3, "--max-speakers", 2], 2, "leave out --min-speakers and --max"),
        "out is a file": (["good.wav", "--out", "file"], 2, "file: cannot be written into"),
        "enrol without a name": (["good.wav", "--enrol", "ann.wav"], 2, "--enrol: expected NAME=AUDIO, found 'ann.wav'"),
        "enrol without a file": (["good.wav", "--enrol", "Ann=gone.wav"], 2, "gone.wav: no such file"),
        "enrol too short": (["good.wav", "--enrol", "Ann=word.wav"], 2, r"voice of 'Ann' \(word.wav\): too short: \d"),
        "enrol silent": (["good.wav", "--enrol", "Ann=silent.wav"], 2, "silent.wav: silent"),
        "enrol two": (["good.wav", "--enrol", "Ann=two.wav"], 2, r"voice of 'Ann' \(two.wav\): two people speak"),
        "enrolled twice": (["good.wav", "--enrol", "Ann=ann.wav", "--enrol", "Ann=ann.wav"], 2, "--enrol: 'Ann' is named twice"),
        "weights without a feature": (["good.wav", "--weights", "x.safetensors"], 2, "--weights: expected FEATURE=PATH"),
        "weights of another feature": (["good.wav", "--weights", "mimi=x"], 2, "was trained on fake"),
        "no store": (["--store", "folder"], 2, "folder"),
        "not in the store": (["nobody", "--store", tone_store], 2, "no utterance 'nobody'"),
        "device": (["good.wav", "--device", "abacus"], 2, "device must be auto, cpu"),
        "same names": (["good.wav", "./here/../good.wav"], 2, "no such file"),
    }  # fmt: skip


def test_everything_wrong_gets_one_clear_line(folder, tone_run, tone_store):
    cases = bad_inputs(tone_run, tone_store.path)
    assert len(cases) >= 25
    for name, (args, code, line) in cases.items():
        done = run(*args, *([] if "--run" in args else ["--run", tone_run]), "--device", "cpu") if "--device" not in args else run(*args, "--run", tone_run)  # fmt: skip
        lines = done.stderr.strip().splitlines()
        assert done.exit_code == code, f"{name}: {done.exit_code} {done.stderr} {done.exception}"
        assert len(lines) == 1, f"{name}: {done.stderr}"
        assert re.match("error: " if code == 2 else "failed: ", lines[0]), f"{name}: {lines[0]}"
        assert re.search(line, lines[0]), f"{name}: {lines[0]}"


def test_a_terminal_is_no_recording(folder, tone_run, monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(ValueError, match="standard input is a terminal"):
        recordings_of(["-"], folder)


def test_recordings_of_one_name_are_told_apart(folder, tone_run):
    for name in ("monday", "tuesday"):
        Path(name).mkdir()
        meeting(folder / name / "talk.wav")
    told = json.loads(run("monday/talk.wav", "tuesday/talk.wav", "--run", tone_run, "--json").stdout)
    assert [r["recording"] for r in told["recordings"]] == ["monday-talk", "tuesday-talk"]


def test_names_that_differ_in_case_are_one_file_on_some_disks(folder):
    for name in ("monday/talk.wav", "tuesday/Talk.wav", "tuesday/talk.flac"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    named = [r.name for r in recordings_of(["monday", "tuesday/Talk.wav"], folder)]
    assert named == ["monday-talk", "tuesday-Talk"]
    with pytest.raises(ValueError, match="2 recordings would be written as 'tuesday-talk'"):
        recordings_of(["tuesday"], folder)
