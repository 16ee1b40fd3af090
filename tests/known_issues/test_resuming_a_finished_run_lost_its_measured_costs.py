"""Resuming a finished run wrote result.json again, with `seconds` 0 and `step_seconds` null: its costs were gone."""

from __future__ import annotations

import json

import pytest

import featstore
from featstore import Utterance
from tests.sessions import make_store, spec
from trainers.config import FitConfig
from trainers.diarization.fit import fit_diarizer
from trainers.probe import fit_probe
from trainers.runs import Run

TINY = ("width=8", "heads=2", "layers=1", "ffn=16", "crop_s=4", "batch_size=2", "crops_per_epoch=4", "device=cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "store"
    return featstore.open(make_store(path, {"train": 3, "dev": 1, "test": 1}))


def fit(folder, store, epochs, resume=True):
    config = FitConfig.make("adapter", settings=(*TINY, f"epochs={epochs}"))
    return fit_diarizer(Run.create(folder, config, store, resume=resume), store)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_with_nothing_to_do_every_file_stays_as_it_is(store, tmp_path):
    first = fit(tmp_path / "run", store, 2, resume=False)
    before = contents(tmp_path / "run")
    for epochs in (2, 1):
        again = fit(tmp_path / "run", store, epochs)
        assert any("nothing was left to do" in note for note in again.pop("notes"))
        assert again == {key: value for key, value in first.items() if key != "notes"}
        assert contents(tmp_path / "run") == before


def test_a_run_that_goes_on_adds_up_its_costs(store, tmp_path):
    first = fit(tmp_path / "run", store, 2, resume=False)
    more = fit(tmp_path / "run", store, 3)
    assert (more["epochs"], more["steps"]) == (3, 6)
    assert more["seconds"] > first["seconds"] > 0
    assert more["step_seconds"] * 6 > first["step_seconds"] * 4
    assert 0 < more["input_share"] < 1
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == more


def test_a_run_that_was_cut_off_before_its_figures_keeps_its_costs(store, tmp_path):
    first = fit(tmp_path / "run", store, 2, resume=False)
    (tmp_path / "run" / "result.json").unlink()
    again = fit(tmp_path / "run", store, 2)
    costs = ("seconds", "step_seconds", "input_share")
    assert [again[key] for key in costs] == [first[key] for key in costs]


def test_a_finished_probe_stays_as_it_is(tmp_path):
    with featstore.writer(tmp_path / "store", spec(dim=4)) as writer:
        for k in range(8):
            utterance = Utterance(f"u{k}", "none.wav", 0.0, 1.0, f"u{k}", f"s{k // 2}", "train" if k < 4 else "test")
            writer.add(utterance, [[k, 1 + k, -k, k % 3]] * 12)
    (tmp_path / "trials.txt").write_text("1 u4 u5\n0 u4 u6\n1 u6 u7\n0 u5 u7\n")
    store = featstore.open(tmp_path / "store")

    def probe(epochs, resume=True):
        config = FitConfig.make("probe", settings=(f"trials={tmp_path / 'trials.txt'}", f"epochs={epochs}"))
        return fit_probe(Run.create(tmp_path / "run", config, store, resume=resume), store)

    probe(2, resume=False)
    before = contents(tmp_path / "run")
    assert any("nothing was left to do" in note for note in probe(2)["notes"])
    assert contents(tmp_path / "run") == before
    assert not any("nothing was left to do" in note for note in probe(3)["notes"])
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 4
