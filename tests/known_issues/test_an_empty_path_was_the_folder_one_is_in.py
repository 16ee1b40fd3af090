"""``--store "$STORE"`` with a variable that is not set wrote a store into the folder that one happened to be in."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import evaluation, featstore, trainers, whowhen
from tests.featstore.store.test_store import fill

REFUSED = {
    "featstore info ": "info ''",
    "featstore extract a.jsonl --store  --feature mimi": "--store ''",
    "featstore extract a.jsonl --store= --feature mimi": "--store=",
    "trainers fit adapter --store s --out ": "--out ''",
    "evaluation report  --out x": "report ''",
    "whowhen diarize a.wav --run ": "--run ''",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_it_is_refused(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    command, *words = typed.split(" ")
    app = {"featstore": featstore, "trainers": trainers, "evaluation": evaluation, "whowhen": whowhen}[command].app
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and f"{REFUSED[typed]}: is empty; a variable that is not set?" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_may_be_empty(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    told = CliRunner().invoke(featstore.app, ["remove", str(tmp_path / "s"), "--split", ""]).stderr
    assert "no utterance of split ''" in told  # those of no split
    told = (
        CliRunner().invoke(trainers.app, ["fit", "adapter", "--store", "s", "--out", "r", "--set=experiment="]).stderr
    )
    assert "no such folder" in told
