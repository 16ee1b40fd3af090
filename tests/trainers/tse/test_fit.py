"""Fitting an extraction on made-up voices: it learns, goes on exactly, and says what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.trainers import app
from evaluation.audit import check_run
from evaluation.extraction import si_sdr
from evaluation.report import report
from evaluation.words import decibels
from featstore import Store
from featstore.corpora import audio
from featstore.corpora.manifest import read_manifest
from tests.voices import make_voices
from trainers import kinds
from trainers.config import ConfigError, FitConfig
from trainers.runs import Run
from trainers.tse.measure import separate
from trainers.tse.network import Extractor

SMALL = (
    "channels=16", "blocks=2", "repeats=1", "window=128", "hop=64", "steps=6", "looks=2", "batch_size=3",
    "crop_s=0.4", "rated=0", "checkpoint_steps=1", "dev_voices=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_voices(tmp_path_factory.mktemp("voices") / "store")


def fit(store: Store, out: Path, *settings: str, **more: Any) -> dict[str, Any]:
    config = FitConfig.make("tse", settings=(*SMALL, *settings))
    return kinds.function_of("tse")(Run.create(out, config, store, resume=more.pop("resume", False)), store, **more)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Run.open(run).read_tensors("last.safetensors")[0]


def test_a_run_says_how_well_each_way_of_asking_does(store: Store, tmp_path: Path) -> None:
    result = fit(store, tmp_path / "run")
    assert list(result["extraction"]) == ["mixture", "wrong", "enrolled", "oracle"]
    assert result["extraction"]["mixture"]["si_sdri"] == 0
    assert result["num_test_voices"] == 9  # of 6 mixtures, every other one of two voices
    assert result["swaps"]["oracle"]["pairs"] == 3
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    for voice in result["examples"][0]["voices"]:
        assert all((tmp_path / "run" / file).stat().st_size > 500 for file in voice["files"].values())


def test_the_report_has_a_row_for_it_and_sounds_to_play(store: Store, tmp_path: Path) -> None:
    fit(store, tmp_path / "asked")
    fit(store, tmp_path / "blind", "condition=none", "voices=2")
    told = report([tmp_path / "asked", tmp_path / "blind"], tmp_path / "out", num_resamples=20)
    assert not told["failed_checks"]
    (row,) = [row for row in told["experiments"] if row["id"] == "7" and "=embedding" in row["title"]]
    assert row["title"].startswith("one voice out of a mixture, told by TitaNet (condition=embedding")
    lines = {line["what"]: line for line in row["sound"]["lines"]}
    own = told["voices"][0]["systems"]
    assert lines["SI-SDRi, asked for by another utterance"]["value"] == own[2]["several"]["si_sdri"]
    assert (
        "6 of 9 voices, those of mixtures of several, of 3 speakers, medians; trained on 6 mixtures of 3 other speakers"
        in row["sound"]["on"]
    )
    said = [f["text"] for f in told["findings"] if f["experiment"] == "7"]
    assert "asked for by another utterance: " in said[0] and "the mixture itself: 0.0 dB" in said[0]
    assert f"with voices that are alone in theirs {decibels(own[2]['si_sdri'], own[2]['interval'])})." in said[0]
    assert "nearer to it than asked for a wrong one" in said[1] and "swap with who is asked for" in said[1]
    page = (tmp_path / "out" / "report.html").read_text()
    played = sum(1 + sum(len(v["files"]) for v in e["voices"]) for run in told["runs"] for e in examples(run["path"]))
    assert page.count("<audio") == page.count("data:audio/mpeg;base64,") == played
    assert "data:audio" not in (tmp_path / "out" / "report.json").read_text()
    assert " dB |" in (tmp_path / "out" / "report.md").read_text()


def examples(path: str) -> list[dict[str, Any]]:
    return json.loads((Path(path) / "result.json").read_text())["examples"]


def test_figures_that_do_not_follow_from_the_files_are_told(store: Store, tmp_path: Path) -> None:
    result = fit(store, tmp_path / "run")
    result["extraction"]["enrolled"]["si_sdri"] += 1
    result["extraction"]["oracle"]["several"]["si_sdri"] += 1
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    failed, other = [check.name for check in check_run(tmp_path / "run") if check.level == "error"]
    assert "SI-SDRi, asked for by another utterance, from voices.parquet" in failed
    assert "SI-SDRi of mixtures of several, asked for by the clean voice itself, from voices.parquet" in other


def test_seeds_lie_apart_in_decibels(store: Store, tmp_path: Path) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    out = str(tmp_path / "runs")
    done = CliRunner().invoke(app, ["fit", "tse", "--store", str(store.path), "--out", out, "--seeds", "2", *settings])
    assert done.exit_code == 0, done.output
    assert "SI-SDRi of 2 seeds: mean " in done.stdout and " dB, between " in done.stdout
    told = report([out], tmp_path / "report", num_resamples=20)
    (row,) = [row for row in told["experiments"] if row["id"] == "7"]
    assert row["sound"]["seeds"] == 2


@pytest.mark.parametrize(
    "settings", [(), ("architecture=gru", "remixed=0.7"), ("condition=none", "voices=2", "remixed=1.0")]
)
def test_a_killed_run_goes_on_to_the_same_weights(store: Store, tmp_path: Path, settings: tuple[str, ...]) -> None:
    fit(store, tmp_path / "whole", *settings)

    def killed(state: Any) -> None:
        if state.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(store, tmp_path / "parts", *settings, on_step=killed)
    fit(store, tmp_path / "parts", *settings, resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_without_a_condition_all_voices_come_out(store: Store, tmp_path: Path) -> None:
    result = fit(store, tmp_path / "run", "condition=none", "voices=2")
    assert list(result["extraction"]) == ["mixture", "none"]
    assert result["extraction"]["none"]["num_voices"] == 9


def test_it_learns_whom_to_listen_for(store: Store, tmp_path: Path) -> None:
    more = ("steps=80", "lr=5e-3", "channels=32", "looks=8", "checkpoint_steps=0", "jitter=0.0")
    fit(store, tmp_path / "run", *more)
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    first, last = (float(history[k].split(",")[1]) for k in (1, -1))
    assert last < first - 3  # dB


def test_speakers_must_not_be_shared(tmp_path: Path) -> None:
    store = make_voices(tmp_path / "store", {"train": 3, "dev": 2})
    with pytest.raises(ConfigError, match="no mixtures with tracks in split test; make some with: featstore simulate"):
        fit(store, tmp_path / "run")


def test_enrolment_is_of_other_words(store: Store) -> None:
    from trainers.tse.config import TseConfig
    from trainers.tse.data import load_data

    data = load_data(TseConfig(), store)
    assert data.splits["test"]
    for mixture in data.splits["test"]:
        for voice in mixture.voices:
            words = voice.track.id.split("/")[1]
            assert voice.others
            assert all(words not in other and voice.speaker in other for other in voice.others)
            assert not any(other.startswith(mixture.utterance.id) for other in voice.others)
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in data.vectors.values())


def test_mixtures_are_taken_apart_into_utterances_to_extract_from(store: Store, tmp_path: Path) -> None:
    fit(store, tmp_path / "blind", "condition=none", "voices=2")
    arguments = ["separate", str(tmp_path / "blind"), "--store", str(store.path), "--out", str(tmp_path / "parts")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and done.stdout.startswith("24 parts: "), done.output
    parts = read_manifest(tmp_path / "parts" / "manifest.jsonl")
    assert [(p.id, p.recording, p.speaker, p.split) for p in parts[:3]] == [
        ("mix-dev-0/part-0", "mix-dev-0", None, "dev"),
        ("mix-dev-0/part-1", "mix-dev-0", None, "dev"),
        ("mix-dev-1/part-0", "mix-dev-1", None, "dev"),
    ]
    assert {p.split for p in parts} == {"dev", "test"} and len({p.audio for p in parts}) == 24
    blind = Run.open(tmp_path / "blind")
    network, mixture = Extractor.load(blind, torch.device("cpu")), audio.load(store.utterance("mix-dev-1"), 16000)
    for part, expected in zip(parts[2:4], separate(network, mixture, torch.device("cpu")), strict=True):
        wave = audio.load(part, 16000)
        assert abs(wave).max() == pytest.approx(0.9, abs=1e-3)
        assert si_sdr(wave, expected) > 40
    fit(store, tmp_path / "asked")
    done = CliRunner().invoke(app, [*arguments[:1], str(tmp_path / "asked"), *arguments[2:]])
    assert done.exit_code == 2 and "expected a run of fit tse with condition=none" in done.stderr
