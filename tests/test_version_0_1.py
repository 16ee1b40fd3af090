"""A store, an HDF5 export and three runs made by version 0.1 must always open, and give the same numbers."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import featstore
from cli import evaluation, trainers
from featstore.exchange import import_hdf5
from featstore.store.reader import Store
from featstore.upkeep.compact import compact
from featstore.upkeep.verify import verify
from tests.conftest import ROOT

IDS = [f"session{i}" for i in range(6)] + [f"u{speaker}-{i}" for speaker in range(6) for i in range(4)]
#: As version 0.1 read them: fingerprint, SHA-256 of all frames in the order of IDS, sums of the means and deviations.
FEATURES = {
    "mimi": ("cf54255e3e797d1f", "d5aa376745b438162fee16f6c0cea040367aa6e12c962e0f027b44283a41195c", 21.932429, 69.464323),
    "titanet": (
        "6148a3ae76194caa", "844459d4b15ac64a98e4d3749b21c2e59fbd24318527f5dbbb5e6f24463b2a8c", 0.855974, 34.965885,
    ),
}  # fmt: skip


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of 0.1's work, which is the working folder: its runs name their store by a relative path."""
    with tarfile.open(ROOT / "tests" / "data" / "version-0.1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "version-0.1")
    return tmp_path / "version-0.1"


def is_as_it_was(store: Store) -> None:
    for name, (fingerprint, sha256, mean, std) in FEATURES.items():
        assert store.features[name].fingerprint == fingerprint
        frames = [store.frames(name, id) for id in IDS]
        assert sum(map(len, frames)) == 2100
        assert hashlib.sha256(b"".join(f.tobytes() for f in frames)).hexdigest() == sha256
        assert store.pooled(name, IDS).sum(dtype=np.float64) == pytest.approx(mean, abs=1e-5)
        assert store.pooled(name, IDS, "std").sum(dtype=np.float64) == pytest.approx(std, abs=1e-5)
    found = [store.utterance(id) for id in IDS]
    assert [len(u.turns) for u in found] == [6] * 6 + [0] * 24
    assert sum(turn.end_s - turn.start_s for u in found for turn in u.turns) == pytest.approx(73.601)
    assert sum(u.duration_s for u in found) == 168.0
    assert [found[0].recording, found[0].speaker, found[0].split] == ["session0", None, "train"]
    assert [found[-1].recording, found[-1].speaker, found[-1].split] == ["r5-3", "p5", "test"]


def test_its_store_reads_the_same(old: Path) -> None:
    store = featstore.open("store", verify=True)
    assert store.ids == IDS
    assert {split: len(store.select(split=split)) for split in ("train", "dev", "test")} == {
        "train": 15,
        "dev": 1,
        "test": 14,
    }
    is_as_it_was(store)
    report = verify("store")
    assert (report.findings, report.parts, report.utterances) == ([], 2, 30)


def test_its_store_takes_more_and_is_compacted(old: Path) -> None:
    for name, spec in featstore.open("store").features.items():
        new = featstore.Utterance("new", "new.wav", 0.0, 0.8, "new", "p9", "train")
        with featstore.writer("store", spec) as writer:
            writer.add(new, np.full((10, spec.dim), 0.5, np.float32))
        assert featstore.open("store").ids == [*IDS, "new"], name
    done = compact("store")
    assert (done.parts_before, done.parts_after) == (4, 2)
    store = featstore.open("store", verify=True)
    assert store.ids == [*IDS, "new"]
    is_as_it_was(store)
    assert store.frames("mimi", "new").tolist() == [[0.5] * 8] * 10
    assert verify("store").findings == []


def test_its_export_is_imported(old: Path) -> None:
    assert import_hdf5("store.h5", "new") == 60
    assert featstore.open("new").ids == IDS
    is_as_it_was(featstore.open("new"))


def run(command: object, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_its_runs_are_audited_and_reported(old: Path) -> None:
    runs = ("runs/probe", "runs/adapter", "runs/fusion")
    checked = run(evaluation.app, "doctor", "--store", "store", *runs, "--json")
    assert checked.exit_code == 0, checked.output
    again = {c["name"]: c["found"] for c in json.loads(checked.stdout)["checks"] if c["level"] == "ok"}
    assert again["runs/adapter: DER, taken again from ref.rttm and hyp.rttm"] == "109.89 %"
    assert again["runs/fusion: DER, taken again from ref.rttm and hyp.rttm"] == "92.73 %"
    assert again["runs/probe: EER of probe, from scores.parquet"] == "0.00 %"
    assert again["runs/fusion: titanet in store"] == FEATURES["titanet"][0]
    made = run(evaluation.app, "report", *runs, "--out", "report", "--bootstrap", "20")
    assert made.exit_code == 0, made.output
    assert "DER against the adapter on Mimi \N{MINUS SIGN}17.2 points" in made.stdout
    for run_path in runs:
        outputs = featstore.open(f"{run_path}/outputs", verify=True)
        assert len(outputs) and verify(f"{run_path}/outputs").findings == []


def test_its_unfinished_run_goes_on(old: Path) -> None:
    # What the end of a run writes is taken away: the folder is that of a run stopped after its second epoch.
    for name in ("result.json", "hyp.rttm", "ref.rttm", "windows.uem"):
        (old / "runs" / "adapter" / name).unlink()
    (old / "runs" / "adapter" / "outputs").rename(old / "outputs")
    before = (old / "runs" / "adapter" / "history.csv").read_text()
    settings = "device=cpu warmup_steps=2 width=8 layers=1 heads=2 ffn=8 crop_s=5 crops_per_epoch=8 epochs=3".split()
    more = [word for setting in settings for word in ("--set", setting)]
    done = run(trainers.app, "fit", "adapter", "--store", "store", "--out", "runs/adapter", "--resume", *more)
    assert done.exit_code == 0, done.output
    after = (old / "runs" / "adapter" / "history.csv").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 4
    assert json.loads((old / "runs" / "adapter" / "result.json").read_bytes())["test"]["der"] > 0
