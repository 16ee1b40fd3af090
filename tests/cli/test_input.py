"""What commands refuse, and that their help shows all of it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import evaluation, featstore
from evaluation import trials


def test_channels_that_nobody_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.rttm").write_text("SPEAKER r 1 0 2 <NA> <NA> x <NA> <NA>\n")
    (tmp_path / "h.rttm").write_text("SPEAKER r 1 0 2 <NA> <NA> A <NA> <NA>\n")
    command = ["der", "--ref", str(tmp_path / "r.rttm"), "--hyp", str(tmp_path / "h.rttm"), "--channels"]
    assert CliRunner().invoke(evaluation.app, [*command, "A"]).exit_code == 0
    found = CliRunner().invoke(evaluation.app, [*command, "A,b,c"])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: --channels: b, c in no recording of ") and found.stderr.endswith("are A\n")


def test_a_packed_trial_list_is_believed_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.txt.gz"
    path.write_bytes(gzip.compress(b"1 a b\n" * 10))
    monkeypatch.setattr(trials, "MAX_BYTES", 60)
    assert len(trials.read_trials(path)) == 10
    monkeypatch.setattr(trials, "MAX_BYTES", 59)
    with pytest.raises(ValueError, match="unpacks to more than 59 bytes"):
        trials.read_trials(path)


def test_help_keeps_its_brackets() -> None:
    shown = CliRunner().invoke(featstore.app, ["extract", "--help"], env={"COLUMNS": "200"})
    assert "hf:NAME[@SPLIT]" in shown.stdout
