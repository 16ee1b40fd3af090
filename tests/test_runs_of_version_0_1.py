"""Runs that version 0.1 wrote, with every kind's settings in each, open and go on."""

from __future__ import annotations

import json
import shutil
import tarfile

import pytest
from typer.testing import CliRunner

from cli.trainers import app
from tests.conftest import ROOT
from trainers.config import FitConfig
from trainers.runs import Run, RunError

SETTINGS = {
    "probe": ("trials=trials.txt", "epochs=3"),
    "adapter": (
        "width=8",
        "layers=1",
        "heads=2",
        "ffn=8",
        "crop_s=5",
        "crops_per_epoch=8",
        "warmup_steps=2",
        "epochs=2",
    ),
}
SETTINGS["fusion"] = SETTINGS["adapter"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ROOT / "tests" / "data" / "version-0.1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "version-0.1"


@pytest.fixture
def old(unpacked, tmp_path, monkeypatch):
    shutil.copytree(unpacked, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def resume(kind, *settings):
    words = [word for s in (*SETTINGS[kind], "device=cpu", *settings) for word in ("--set", s)]
    command = ["fit", kind, "--store", "store", "--out", f"runs/{kind}", "--resume", "--json", *words]
    out = CliRunner().invoke(app, command)
    assert out.exit_code == 0, out.output
    return json.loads(out.stdout)


@pytest.mark.parametrize("kind", ["probe", "adapter", "fusion"])
def test_what_a_kind_does_not_read_is_dropped(old, kind):
    config = Run.open(old / "runs" / kind).config
    written = json.loads((old / "runs" / kind / "config.json").read_text())["config"]
    written |= {"thresholds": (*written["thresholds"],), "medians": (1, 5, 11)}
    later = {
        key: value for key, value in FitConfig.make(kind).to_json().items() if key not in written
    }  # as it was then
    assert config.to_json().items() <= (written | later).items()
    assert config.kind == kind
    assert ("trials" in config.to_json()) is (kind == "probe")
    assert "mimi_lr" not in config.to_json()


def test_a_key_that_no_kind_knows_is_not_dropped(old):
    path = old / "runs" / "adapter" / "config.json"
    path.write_text(path.read_text().replace('"warmup_steps"', '"warmth"'))
    with pytest.raises(RunError, match=r"config\.json: damaged or of another version: no setting is called 'warmth'"):
        Run.open(path.parent)


@pytest.mark.parametrize("kind", ["probe", "adapter", "fusion"])
def test_a_finished_one_stays_as_it_is(old, kind):
    before = {path: path.read_bytes() for path in (old / "runs" / kind).rglob("*") if path.is_file()}
    assert any("nothing was left to do" in note for note in resume(kind)["notes"])
    assert all(path.read_bytes() == content for path, content in before.items())


def test_it_goes_on_with_what_it_had_cost(old):
    before = json.loads((old / "runs" / "adapter" / "result.json").read_text())
    after = resume("adapter", "epochs=3")
    assert (after["epochs"], after["steps"]) == (3, 6)
    assert after["seconds"] > before["seconds"]
    assert after["step_seconds"] * 6 > before["step_seconds"] * 4
    assert after["peak_memory_bytes"] >= before["peak_memory_bytes"]
    assert "mimi_lr" not in json.loads((old / "runs" / "adapter" / "config.json").read_text())["config"]


def test_another_kind_does_not_go_on_with_it(old):
    words = [word for s in (*SETTINGS["fusion"], "device=cpu") for word in ("--set", s)]
    command = ["fit", "unfreeze", "--store", "store", "--out", "runs/adapter", "--resume", *words]
    out = CliRunner().invoke(app, command)
    assert out.exit_code == 2
    assert "cannot resume with other settings: kind (was 'adapter', now 'unfreeze')" in out.stderr
