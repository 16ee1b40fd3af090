"""The featstore command as a person meets it: what it prints, where, and how it ends."""

from __future__ import annotations

import json
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
