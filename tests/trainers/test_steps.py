"""Runs that count steps: when dev is looked at, what the history holds, where a killed run goes on, a loss that is none."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.voices import make_voices
from trainers.config import FitConfig
from trainers.progress import Unseen
from trainers.runs import Run, RunError
from trainers.steps import StepState, StepTraining

SETTINGS = ("steps=10", "looks=3", "checkpoint_steps=2")


class Adding(StepTraining):
    """Each step adds its loss, 1, 2, 3 …, to the one weight; dev says the weight."""

    def __init__(self, run: Run[Any], total: int = 10, told: Any = None, wrong: int = 0) -> None:
        self.wrong, self.starts = wrong, []
        super().__init__(run, StepState(), total, torch.device("cpu"), Unseen(), told)

    def _start(self) -> None:
        self.starts.append(self.state.step)
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def _step(self) -> float:
        loss = self.state.step + 1
        self.model.weight.data += loss
        return float("nan") if loss == self.wrong else float(loss)

    def _dev(self) -> dict[str, float]:
        return {"weight": float(self.model.weight.detach())}

    def _told(self, loss: float) -> str:
        return f"loss {loss}"


def run_at(folder: Path, *settings: str) -> Run[Any]:
    run = Run.create(folder / "run", FitConfig.make("tse", settings=(*SETTINGS, *settings)), make_voices(folder / "s"))
    run.begin()
    return run


def history(run: Run[Any]) -> list[tuple[int, float, float]]:
    rows = csv.DictReader((run.path / "history.csv").read_text().splitlines())
    return [(int(row["step"]), float(row["train_loss"]), float(row["weight"])) for row in rows]


def test_dev_is_looked_at_after_equal_parts_and_at_the_end(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    Adding(run).to_the_end()
    assert history(run) == [(3, 2.0, 6.0), (6, 5.0, 21.0), (9, 8.0, 45.0), (10, 10.0, 55.0)]


def test_parts_that_follow_each_other_are_looked_at_alike(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    Adding(run, total=20).to_the_end()
    assert [step for step, _, _ in history(run)] == [3, 6, 9, 10, 13, 16, 19, 20]


@pytest.mark.parametrize("killed", [1, 2, 3, 5, 9])
def test_a_killed_run_goes_on_where_its_last_checkpoint_is(tmp_path: Path, killed: int) -> None:
    run = run_at(tmp_path)

    def kill(state: StepState) -> None:
        if state.step == killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Adding(run, told=kill).to_the_end()
    again = Adding(run)
    kept = max((step for step in (0, 2, 3, 4, 6, 8, 9) if step <= killed), default=0)
    assert again.state.step == kept and again.starts == [kept]
    assert float(again.model.weight.detach()) == kept * (kept + 1) / 2
    again.to_the_end()
    assert history(run) == [(3, 2.0, 6.0), (6, 5.0, 21.0), (9, 8.0, 45.0), (10, 10.0, 55.0)]


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    run = run_at(tmp_path, "checkpoint_steps=0")
    with pytest.raises(RunError, match=r"run: the loss is no longer a number by step 6; lower lr"):
        Adding(run, wrong=5).to_the_end()
    assert Adding(run).state.step == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    class Other(Adding):
        def _start(self) -> None:
            super()._start()
            self.model = nn.Linear(2, 1, bias=False)

    run = run_at(tmp_path)
    Adding(run).to_the_end()
    with pytest.raises(RunError, match=r"last\.safetensors: of another version or model: .*size mismatch"):
        Other(run)
