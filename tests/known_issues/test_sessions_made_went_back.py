"""The bar of `simulate` went back when one of several workers ended a session: the others' shares were not added yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import featstore.simulation.simulate as simulation
from featstore.simulation.recipe import read_recipe
from featstore.types import Utterance
from tests.fakes import tone


def test_it_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = []
    for k in range(3):
        path = tmp_path / f"{k}.wav"
        soundfile.write(path, np.pad(tone(1.0, hz=300 + 200 * k), 1000), 8000)
        utterances.append(Utterance(str(k), str(path), 0.0, 1.25, str(k), speaker=str(k)))
    make_all = simulation._run

    def run(jobs: list, workers: int, make: Callable, shown: Callable[[float], None]) -> Iterator[tuple[float, list]]:
        """One session has ended and is not counted yet, the other is half made."""
        first, second = make_all(jobs, 1, make, lambda share: None)
        shown(1.5)
        yield first
        shown(0.75)
        yield second

    monkeypatch.setattr(simulation, "_run", run)
    calls: list[tuple[float, int]] = []
    recipe = replace(read_recipe("tiny"), sessions=2)
    simulation.simulate(utterances, recipe, tmp_path / "out", progress=lambda done, of, _: calls.append((done, of)))
    assert calls == [(1.5, 2), (1.5, 2), (1.75, 2), (2.0, 2)]
