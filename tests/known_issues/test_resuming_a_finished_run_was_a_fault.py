"""`trainers fit --resume` on a finished run trained no step, and showing the share of input in no steps exited with 70."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cli.trainers import app
from tests.sessions import make_store

TINY = ("width=8", "heads=2", "layers=1", "ffn=16", "crop_s=4", "batch_size=2", "crops_per_epoch=4", "device=cpu")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_resuming_a_finished_run_says_that_nothing_is_left_to_do(tmp_path, flags):
    store = make_store(tmp_path / "store", {"train": 3, "dev": 1, "test": 1})
    settings = [word for s in (*TINY, "epochs=1") for word in ("--set", s)]
    command = ["fit", "adapter", "--store", str(store), "--out", str(tmp_path / "run"), *settings]
    assert CliRunner().invoke(app, command).exit_code == 0
    again = CliRunner().invoke(app, [*command, "--resume", *flags])
    assert again.exit_code == 0, again.output
    assert "nothing was left to do" in again.stdout
    if flags:
        assert json.loads(again.stdout)["epochs"] == 1
