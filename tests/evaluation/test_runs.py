"""A run's folder: names that come back as they were, what is handed to pyannote, damage that is named."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyannote.metrics.diarization import DiarizationErrorRate

from evaluation import runs
from evaluation.rttm import read_rttm, read_uem
from evaluation.runs import Diarization, RunError, score_table, session_of, window_name, write_diarization
from evaluation.trials import Trials
from evaluation.turns import Turns
from featstore import Turn
from tests.conftest import ROOT
from tests.evaluation.test_report import diarization_run, probe_run

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.text(" _%;@2025\u00a0\n", max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.lists(names, min_size=1, max_size=6, unique=True))
@example(["\ufeff", "a b", "a%20b", ""])
def test_any_names_stay_apart_and_come_back(tmp_path_factory: pytest.TempPathFactory, sessions: list[str]) -> None:
    folder = tmp_path_factory.mktemp("run")
    turns = Turns.of([Turn(i, i + 1, name) for i, name in enumerate(sessions)])
    windows = [window_name(name, 12.0) for name in sessions]
    assert [session_of(window) for window in windows] == sessions
    uem = {window: np.array([[0.0, 9.0]]) for window in windows}
    write_diarization(folder, Diarization(dict.fromkeys(windows, turns), {windows[0]: turns}, uem))
    (folder / "config.json").write_text('{"protocol": "sound", "features": {}}')
    reference, hypothesis, scored = runs.open(folder).diarization()
    assert list(reference) == list(scored) == windows
    assert list(hypothesis) == windows[:1]
    assert all(list(found) == list(turns) for found in reference.values())
    assert len(read_rttm(folder / "ref.rttm")) == len(read_uem(folder / "windows.uem")) == len(sessions)


def test_windows_a_frame_apart_have_names_of_their_own() -> None:
    starts_s = [0.04 * k for k in range(200)]
    names = [window_name("talk@home", start_s) for start_s in starts_s]
    assert names[:3] == ["talk@home@0.00", "talk@home@0.04", "talk@home@0.08"] and len(set(names)) == 200
    assert {session_of(name) for name in names} == {"talk@home"}
    assert session_of("talk@home") == "talk@home"


def test_usual_names_stand_in_the_files_as_they_are(tmp_path: Path) -> None:
    diarization_run(tmp_path / "run", "adapter")
    before = (tmp_path / "run" / "ref.rttm").read_bytes()
    write_diarization(tmp_path / "run", runs.open(tmp_path / "run").diarization())
    assert (tmp_path / "run" / "ref.rttm").read_bytes() == before
    assert b"SPEAKER m1@0.00 1 0.000 4.000 <NA> <NA> ann" in before


def test_annotations_score_in_pyannote_as_the_run_says(tmp_path: Path) -> None:
    der = diarization_run(tmp_path / "run", "adapter")
    reference, hypothesis, uem = runs.open(tmp_path / "run").annotations()
    assert list(reference) == list(hypothesis) == list(uem) == ["m1@0.00", "m2@0.00"]
    metric = DiarizationErrorRate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in uem:
            metric(reference[name], hypothesis[name], uem=uem[name])
    assert abs(metric) == pytest.approx(der)
    assert reference["m1@0.00"].labels() == ["ann", "bob"]
    assert {side[name].uri for side in (reference, hypothesis, uem) for name in side} == set(uem)
    with pytest.raises(RunError, match="does not say who spoke when"):
        probe_run(tmp_path / "probe")
        runs.open(tmp_path / "probe").annotations()


def test_scores_come_back(tmp_path: Path) -> None:
    probe_run(tmp_path / "run")
    trials = Trials(("x.wav", "y.wav", "z"), np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    table = score_table(trials, ["x", "y", "z"], ["ann", "ann", None], {"raw": np.array([0.5, 0.25], np.float32)})
    assert table.column_names == ["label", "enrol", "test", "enrol_speaker", "test_speaker", "raw"]
    assert table["test"].to_pylist() == ["y", "z"]
    pq.write_table(table, tmp_path / "run" / "scores.parquet")
    scores = runs.open(tmp_path / "run").scores()
    assert scores.same.tolist() == [True, False]
    assert (scores.left_speakers, scores.right_speakers) == (["ann", "ann"], ["ann", None])
    assert {name: values.tolist() for name, values in scores.systems.items()} == {"raw": [0.5, 0.25]}


def test_history_by_column(tmp_path: Path) -> None:
    diarization_run(tmp_path / "run", "adapter")
    run = runs.open(tmp_path / "run")
    assert run.history() == {"epoch": [1, 2], "train_loss": [0.5, 0.3], "dev_der": [0.4, 0.2]}
    (run.path / "history.csv").write_text("epoch,dev_der\n1,\n")
    assert math.isnan(run.history()["dev_der"][0])
    for text, expected in (("", {}), ("epoch,dev_der\n", {})):
        (run.path / "history.csv").write_text(text)
        assert run.history() == expected
    (run.path / "history.csv").unlink()
    assert run.history() == {}


@pytest.mark.parametrize(
    ("file", "content", "read", "message"),
    [
        ("config.json", b"{", runs.open, "config.json: damaged"),
        ("config.json", b"[]", runs.open, "config.json: damaged: expected a JSON object"),
        ("config.json", b'{"protocol": "sound"}', runs.open, "config.json: damaged or of another version: 'features'"),
        ("config.json", b'{"features": {"a": 1}}', runs.open, "config.json: damaged or of another version"),
        ("result.json", b"\xff", lambda p: runs.open(p).result(), "result.json: damaged"),
        ("history.csv", b"epoch\nx\n", lambda p: runs.open(p).history(), "history.csv: damaged"),
        ("history.csv", b"epoch\n1,2\n", lambda p: runs.open(p).history(), "history.csv: damaged"),
        ("scores.parquet", b"PAR1", lambda p: runs.open(p).scores(), "scores.parquet: missing or damaged"),
        ("model.safetensors", b"\0" * 9, lambda p: runs.open(p).model_facts(), "model.safetensors: missing or damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, content: bytes, read: object, message: str) -> None:
    probe_run(tmp_path / "run")
    assert runs.open(tmp_path / "run").model_facts()["classes"][0] == "t0"
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(RunError, match=message):
        read(tmp_path / "run")


def test_an_unfinished_run_has_no_result(tmp_path: Path) -> None:
    probe_run(tmp_path / "run")
    assert runs.open(str(tmp_path / "run")).result() == json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").unlink()
    assert runs.open(tmp_path / "run").result() is None


def test_only_what_needs_pyannote_imports_it() -> None:
    """It takes a second: `evaluation der` and `doctor` must not wait for it."""
    script = (
        "import sys, cli.tables, evaluation.measure, evaluation.runs, evaluation.results\n"
        "sys.exit('pyannote.core' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
