"""White space in a name became an underscore in a run's RTTMs, so "a b" and "a_b" were one speaker, or one session."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import featstore
from cli.evaluation import app as evaluation
from cli.trainers import app as trainers
from evaluation.rttm import read_rttm
from featstore import Turn, Utterance
from tests.sessions import spec

SPEAKERS = ("a b", "a_b", "a%20b", "")
SESSIONS = ("my talk", "my_talk", "; my\u00a0talk", "50% my@talk")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on sessions of 4 s in which every speaker talks, two at a time."""
    turns = tuple(Turn(i / 2, i / 2 + 1, speaker) for i, speaker in enumerate(SPEAKERS))
    with featstore.writer(tmp_path / "store", spec()) as writer:
        for split, ids in (("train", ["t"]), ("dev", ["d"]), ("test", SESSIONS)):
            for id in ids:
                frames = np.random.default_rng(0).normal(size=(50, 8))
                writer.add(Utterance(id, "none.wav", 0.0, 4.0, id, None, split, turns), frames)
    settings = "width=8 heads=2 layers=1 ffn=16 crop_s=2 batch_size=2 epochs=1 crops_per_epoch=2 device=cpu".split()
    command = ["fit", "adapter", "--store", tmp_path / "store", "--out", tmp_path / "run"]
    command += [word for setting in settings for word in ("--set", setting)]
    fitted = CliRunner().invoke(trainers, list(map(str, command)))
    assert fitted.exit_code == 0, fitted.output
    return tmp_path / "run"


def test_every_speaker_and_session_stays_itself(run: Path) -> None:
    reference = read_rttm(run / "ref.rttm")
    assert len(reference) == 2 * len(SESSIONS)  # windows of 2 s
    assert sum(len(turns) for turns in reference.values()) == 5 * len(SESSIONS)
    assert {len(turns.speakers) for name, turns in reference.items() if name.endswith("@0.00")} == {4}
    first = CliRunner().invoke(evaluation, ["doctor", str(run), "--json"])
    assert first.exit_code == 0, first.output
    stated = json.loads((run / "result.json").read_text())["test"]["total_s"]
    assert sum(float((t.end_s - t.start_s).sum()) for t in reference.values()) == pytest.approx(stated, abs=0.02)
