"""The example of docs/your-encoder.md, from its entry point to its rows in the report."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from cli.evaluation import app as evaluation
from cli.featstore import app as featstore_app
from cli.trainers import app as trainers
from featstore import extractors
from featstore.testing import check_extractor, check_spec, speech_like
from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "resemblyzer"
pytestmark = pytest.mark.skipif(
    find_spec("resemblyzer") is None or find_spec("librosa") is None,
    reason="needs resemblyzer and librosa: pip install librosa; pip install --no-deps resemblyzer",
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as pip would leave it: its module, and its entry points in a folder beside it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"][extractors.GROUP].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{extractors.GROUP}]", *lines, ""]))
    shutil.copy(EXAMPLE / "resemblyzer_encoder.py", site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "resemblyzer_encoder", raising=False)


def invoke(app, *words: str) -> str:
    out = CliRunner().invoke(app, words)
    assert out.exit_code == 0, out.output
    return out.stdout


def test_it_joins_by_its_entry_point(installed: None) -> None:
    assert "resemblyzer" in extractors.names()
    encoder = extractors.create("resemblyzer", device="cpu")
    check_spec(encoder)
    assert encoder.spec.warning is None and len(encoder.spec.weights_sha256) == 64
    with pytest.raises(extractors.ExtractorError, match="no setting 'weights'; resemblyzer takes: device"):
        extractors.create("resemblyzer", weights="demo")


@pytest.mark.slow
def test_it_holds_what_any_encoder_must(installed: None) -> None:
    encoder = extractors.create("resemblyzer", device="cpu")
    check_extractor(encoder)
    (frames,) = encoder.extract([speech_like(16000, 1.0)])
    assert frames.shape == (13, 256)
    np.testing.assert_allclose(np.linalg.norm(frames, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_from_audio_to_its_rows_in_the_report(installed: None, tmp_path: Path) -> None:
    lines = []
    for number, split in enumerate(("train", "train", "dev", "test", "test")):
        voices = [speech_like(16000, 1.0, seed=10 * number + k) * gain for k, gain in ((0, 1.0), (1, 0.5))]
        soundfile.write(tmp_path / f"{number}.wav", np.concatenate(voices), 16000)
        rttm = "".join(f"SPEAKER {number} 1 {k} 1 <NA> <NA> {split}{k} <NA> <NA>\n" for k in range(2))
        (tmp_path / f"{number}.rttm").write_text(rttm)
        line = {"audio_filepath": f"{number}.wav", "duration": 2.0, "rttm_filepath": f"{number}.rttm"}
        lines.append(json.dumps({**line, "label": "infer", "session_id": str(number), "split": split}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    words = ["--store", store, "--feature", "resemblyzer", "--device", "cpu"]
    invoke(featstore_app, "extract", str(tmp_path / "manifest.jsonl"), *words)
    settings = "feature=resemblyzer width=8 heads=2 layers=1 ffn=8 crop_s=1 epochs=1 warmup_steps=1 device=cpu".split()
    invoke(trainers, "fit", "adapter", "--store", store, "--out", run, *(w for s in settings for w in ("--set", s)))
    facts = json.loads(
        invoke(evaluation, "report", run, "--out", str(tmp_path / "page"), "--bootstrap", "20", "--json")
    )
    (row,) = [row for row in facts["experiments"] if row["id"] == "2"]
    assert row["title"] == "adapter on resemblyzer" and row["sound"]["lines"][0]["what"] == "DER"
    assert facts["question"].startswith("Can resemblyzer tell who speaks when")
    assert json.loads(invoke(evaluation, "doctor", "--store", store, run, "--json"))["ok"]
