"""The featstore command as a person meets it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner, Result

import featstore
import featstore.extractors
from cli.featstore import app
from featstore import FeatureSpec, FrameGrid, Turn, Utterance
from featstore.corpora.manifest import read_manifest
from featstore.jobs.batches import plan, share
from featstore.jobs.result import Result as Outcome
from featstore.simulation.outcome import SimulationReport
from tests.conftest import ROOT
from tests.fakes import FakeExtractor, tone


@pytest.fixture(autouse=True)
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    real = featstore.extractors.create

    def create(name: str, **settings: object) -> object:
        return FakeExtractor() if name == "fake" else real(name, **settings)

    monkeypatch.setattr("featstore.extractors.create", create)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = []
    for i in range(4):
        sf.write(tmp_path / f"{i}.wav", tone(1.0 + i / 4, hz=200 + 50 * i), 8000)
        lines.append({"audio_filepath": f"{i}.wav", "duration": 1.0 + i / 4, "speaker": f"s{i % 2}", "split": "train"})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def extract(manifest: Path, store: Path, *more: object) -> Result:
    return run("extract", manifest, "--store", store, "--feature", "fake", *more)


def is_one_error_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def test_extract_then_info_verify_export_import(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    done = extract(manifest, store)
    assert done.exit_code == 0, done.output
    assert "4 utterances added, 0 there already, 0 failed" in done.stdout
    assert "× real time" in done.stdout
    again = extract(manifest, store)
    assert "0 utterances added, 4 there already" in again.stdout
    shown = run("info", store)
    assert "4 utterances (train 4)" in shown.stdout
    facts = json.loads(run("info", store, "--json").stdout)
    assert facts["speakers"] == 2
    assert facts["features"]["fake"]["utterances"] == 4
    assert run("verify", store).exit_code == 0
    assert run("export", store, tmp_path / "s.h5").exit_code == 0
    back = run("import", tmp_path / "s.h5", "--store", tmp_path / "t")
    assert "4 utterances added" in back.stdout
    np.testing.assert_array_equal(
        featstore.open(store).frames("fake", "2"), featstore.open(tmp_path / "t").frames("fake", "2")
    )


def test_info_says_what_a_store_holds(tmp_path: Path) -> None:
    """Half an hour and an hour and a half, two splits and one without, names in turns counted as speakers."""
    spec = FeatureSpec("toy", 3, "float16", 16000, FrameGrid(0.1, 0.2), "net", "ab" * 32, {"weights": "random:0"})
    utterances = [
        Utterance("a", "a.wav", 0.0, 1800.0, "r1", "ann", "train"),
        Utterance("b", "b.wav", 0.0, 5400.0, "r1", None, "test", (Turn(0.0, 1.0, "bob"), Turn(1.0, 2.0, "ann"))),
        Utterance("c", "c.wav", 0.0, 36.0, "r2", None, "", (Turn(0.0, 1.0, "cy"),)),
    ]
    store = tmp_path / "s"
    with featstore.writer(store, spec, part_bytes=1) as writer:
        for frames, utterance in enumerate(utterances, 2):
            writer.add(utterance, np.ones((frames, 3)))
    (store / "failures.jsonl").write_text('{"id": "x"}\n{"id": "y"}\n')
    facts = json.loads(run("info", store, "--json").stdout)
    assert facts["hours"] == pytest.approx(2.01)
    assert facts["bytes"] == sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    counts = ("utterances", "speakers", "recordings", "failures", "splits")
    assert [facts[key] for key in counts] == [3, 3, 2, 2, {"train": 1, "test": 1, "": 1}]
    told = facts["features"]["toy"]
    assert [told[key] for key in ("utterances", "frames", "parts", "dim", "step_s")] == [3, 9, 3, 3, 0.2]
    assert told["fingerprint"] == spec.fingerprint
    text = run("info", store).stdout
    assert "3 utterances (train 1, test 1, (no split) 1), 2.01 h, 3 speakers, 2 recordings" in text
    assert "toy: 3-d float16 at 5 Hz, 3 utterances, 9 frames in 3 parts" in text
    assert "net, weights random:0 (sha256 abababababab)" in text and "UNTRAINED" in text
    assert f"2 failures, listed in {store / 'failures.jsonl'}" in text


def test_a_shard_is_its_own_share_of_the_batches(manifest: Path, tmp_path: Path) -> None:
    """Four utterances of 1 to 1.75 s, one a batch: the longest to share 0, the next two to 1, the rest to whoever has least."""
    kept = []
    for shard in ("0/2", "1/2"):
        store = tmp_path / shard[0]
        result = extract(manifest, store, "--shard", shard, "--batch-s", "0.5", "--json")
        assert json.loads(result.stdout)["done"] == 2
        kept.append(sorted(featstore.open(store).ids))
    utterances = read_manifest(manifest)
    assert (
        kept
        == [sorted(u.id for (u,) in share(plan(utterances, 0.5), i, 2)) for i in range(2)]
        == [["0", "3"], ["1", "2"]]
    )
    assert "2 utterances added" in extract(manifest, tmp_path / "0", "--shard", "1/2", "--batch-s", "0.5").stdout
    assert sorted(featstore.open(tmp_path / "0").ids) == ["0", "1", "2", "3"]
    for wrong in ("2/2", "-1/2", "0/0", "1", "a/b"):
        is_one_error_line(extract(manifest, tmp_path / "x", "--shard", wrong), "--shard")


def test_every_option_of_extract_reaches_the_extraction(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, object] = {}
    asked: dict[str, object] = {}

    def create(name: str, **settings: object) -> FakeExtractor:
        made.update(settings, name=name)
        return FakeExtractor()

    def extraction(utterances: list[Utterance], extractor: object, store: Path, **options: object) -> Outcome:
        asked.update(options, store=store, ids=[u.id for u in utterances], splits={u.split for u in utterances})
        return Outcome("fake")

    monkeypatch.setattr("featstore.extractors.create", create)
    monkeypatch.setattr("featstore.jobs.extract.extract", extraction)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "split"}) + "\n" for line in lines))
    done = extract(manifest, tmp_path / "s", "--weights", "random:3", "--device", "cpu", "--precision", "float32",
                   "--set", "hop=2", "--set", "name_of=x", "--split", "dev", "--workers", 3, "--batch-s", 7.5,
                   "--shard", "1/3", "--no-resume", "--audio-root", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert made == {
        "name": "fake",
        "weights": "random:3",
        "device": "cpu",
        "precision": "float32",
        "hop": 2,
        "name_of": "x",
    }
    assert asked.pop("progress") is not None
    assert asked == {"store": tmp_path / "s", "ids": ["0", "1", "2", "3"], "splits": {"dev"}, "workers": 3,
                     "batch_s": 7.5, "shard": (1, 3), "resume": False}  # fmt: skip
    extract(manifest, tmp_path / "s")
    assert (asked["shard"], asked["resume"], asked["batch_s"], asked["workers"]) == ((0, 1), True, None, os.cpu_count())
    (tmp_path / "elsewhere").mkdir()
    is_one_error_line(extract(manifest, tmp_path / "s", "--audio-root", tmp_path / "elsewhere"), "outside")


def test_every_option_of_simulate_reaches_the_simulation(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def simulation(utterances: list[Utterance], recipe: object, out: Path, **options: object) -> SimulationReport:
        asked.update(options, out=out, recipe=recipe.name, ids=[u.id for u in utterances])
        failures = [{"id": "x", "error": "y"}] if options["sessions"] == 9 else []
        return SimulationReport("tiny", str(out), 2, 1, 3, 0.5, 0.1, 0.125, 0.2, 0.25, 4, failures)

    monkeypatch.setattr("featstore.simulation.simulate.simulate", simulation)
    arguments = ["simulate", manifest, "--recipe", "tiny", "--out", tmp_path / "o"]
    done = run(*arguments, "--split", "dev", "--sessions", 9, "--seed", 7, "--workers", 3, "--json")
    assert (done.exit_code, json.loads(done.stdout)["got_overlap"]) == (1, 0.125)
    assert "failed: " in done.stderr
    assert asked.pop("progress") is not None
    assert asked == {"out": tmp_path / "o", "recipe": "tiny", "ids": ["0", "1", "2", "3"],
                     "split": "dev", "sessions": 9, "seed": 7, "workers": 3}  # fmt: skip
    done = run(*arguments)
    assert (done.exit_code, asked["seed"], asked["workers"], asked["split"]) == (0, 0, os.cpu_count(), None)
    assert done.stdout.splitlines() == [
        f"tiny: 2 sessions (1 made now), in {tmp_path / 'o'}",
        "  3 speakers, 0.50 h",
        "  overlap 0.125 (asked 0.100)",
        "  silence 0.250 (asked 0.200)",
        "  4 utterances left out: no speaker, or a speaker with too few",
    ]


def test_json_is_one_object_and_nothing_else(manifest: Path, tmp_path: Path) -> None:
    result = extract(manifest, tmp_path / "s", "--json")
    facts = json.loads(result.stdout)
    assert (facts["done"], facts["failures"]) == (4, [])
    assert facts["times_real_time"] > 0
    assert json.loads(run("verify", tmp_path / "s", "--json").stdout)["findings"] == []


def test_a_failed_utterance_is_listed_and_the_exit_code_is_1(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "1.wav").write_bytes(b"")
    result = extract(manifest, tmp_path / "s")
    assert result.exit_code == 1
    assert "3 utterances added" in result.stdout
    assert "failed: 1:" in result.stderr
    assert "the file is empty" in result.stderr
    (entry,) = [json.loads(line) for line in (tmp_path / "s" / "failures.jsonl").read_text().splitlines()]
    assert (entry["id"], entry["feature"]) == ("1", "fake")


def test_damage_is_exit_code_2_until_repaired(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    extract(manifest, store)
    chunk = next(store.glob("features.zarr/fake/*/frames/c/0/0"))
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.write_bytes(data)
    found = run("verify", store)
    assert found.exit_code == 2
    assert "DAMAGED fake/" in found.stdout
    assert "4 utterance(s)" in found.stdout
    assert run("verify", store, "--repair").exit_code == 0
    assert "4 utterances added" in extract(manifest, store).stdout
    assert run("verify", store).exit_code == 0


def test_mistakes_are_one_line_and_exit_code_2(manifest: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    is_one_error_line(extract(tmp_path / "no.jsonl", store), "no such manifest")
    is_one_error_line(run("extract", manifest, "--store", store, "--feature", "nothing"), "no extractor", "mimi")
    is_one_error_line(extract(manifest, store, "--shard", "3/2"), "--shard")
    is_one_error_line(extract(manifest, store, "--set", "hop"), "--set", "key=value")
    is_one_error_line(run("info", tmp_path / "none"), "no such folder", "featstore extract")
    is_one_error_line(run("import", tmp_path / "none.h5", "--store", store), "no such file")
    extract(manifest, store)
    is_one_error_line(extract(manifest, store, "--no-resume"), "already holds", "4")
    assert not (tmp_path / "none").exists()


def test_bad_lines_stop_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    good = manifest.read_bytes()
    for bad, words in {
        b'{"audio_filepath": "x.wav"': "not JSON",
        b'{"audio_filepath": "\xe4.wav"}': "not UTF-8",
        b'{"audio_filepath": "x.wav", "utt_id": "../x"}': "points outside its root",
        b'{"audio_filepath": "x.wav", "utt_id": "0"}': "stand for several utterances",
        b'{"audio_filepath": "x.wav", "durration": 3}': "did you mean 'duration'",
    }.items():
        manifest.write_bytes(good + bad + b"\n")
        is_one_error_line(extract(manifest, tmp_path / "s"), words, "m.jsonl")
    assert not (tmp_path / "s").exists()


def test_help_shows_examples() -> None:
    for command in ("extract", "info", "verify", "export", "import", "simulate"):
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert f"featstore {command}" in shown.stdout


@pytest.mark.parametrize("name", ["featstore", "trainers", "evaluation"])
def test_each_command_is_a_module_too(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"cli.{name}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Usage: python -m cli.{name} " in done.stdout
