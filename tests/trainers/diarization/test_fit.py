"""The training loop: configuration, exact resumption, what a run writes, and a problem with a known answer."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import types
import typing

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import featstore
from cli.trainers import app
from evaluation.diarization import score
from evaluation.rttm import read_rttm, read_uem
from featstore.settings import table
from tests.conftest import ROOT
from tests.sessions import make_store
from trainers import distributed, kinds, presets
from trainers.checkpoint import State, load_best, read_state
from trainers.config import ConfigError, FitConfig
from trainers.diarization.data import CropSampler, FrameSource, windows
from trainers.diarization.decode import FrameTally
from trainers.diarization.evaluate import evaluate
from trainers.diarization.fit import _notes, _resident, build, fit_diarizer
from trainers.diarization.log import Log
from trainers.diarization.loop import Training, learning_rate_factor, seed_torch
from trainers.diarization.losses import hybrid_loss
from trainers.diarization.models import Adapter
from trainers.diarization.sessions import load_sessions
from trainers.distributed import Ranks
from trainers.progress import Unseen
from trainers.runs import Run, RunError
from trainers.scale import scale_of
from trainers.seeds import spread

TINY = (
    *("width=8", "heads=2", "layers=1", "ffn=16", "crop_s=4", "batch_size=2", "epochs=3", "crops_per_epoch=7"),
    *("warmup_steps=4", "lr=1e-2", "device=cpu", "thresholds=0.3,0.5", "medians=1,3"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "store"
    return featstore.open(make_store(path, {"train": 6, "dev": 2, "test": 2}, seconds=10.0))


def config(*settings, kind="adapter", **overrides):
    return FitConfig.make(kind, settings=(*TINY, *settings), **overrides)


def fit(folder, store, *settings, resume=False, on_step=None, **overrides):
    run = Run.create(folder, config(*settings, **overrides), store, resume=resume)
    return run, fit_diarizer(run, store, on_step=on_step)


class Killed(Exception):
    pass


def kill_at(step):
    def on_step(state):
        if state.step == step:
            raise Killed

    return on_step


def timeless_history(run):
    rows = list(csv.DictReader((run.path / "history.csv").read_text().splitlines()))
    return [{k: v for k, v in row.items() if k not in ("steps_per_s", "input_share")} for row in rows]


# ---- configuration


def test_defaults_are_the_published_recipe():
    c = FitConfig.make("adapter")
    assert (c.lr, c.weight_decay, c.warmup_steps, c.batch_size, c.epochs, c.patience) == (1e-4, 1e-3, 2500, 4, 40, 10)
    assert (c.crop_s, c.speakers, c.sort_weight, c.pil_weight) == (90.0, 4, 0.5, 0.5)
    assert c.thresholds == (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60)
    probe = FitConfig.make("probe")
    assert (probe.lr, probe.epochs, probe.batch_size) == (1e-3, 100, 256)
    assert FitConfig.make("fusion").features == ("mimi", "titanet")
    unfreeze = FitConfig.make("unfreeze")
    assert (unfreeze.mimi_lr, unfreeze.lr, unfreeze.mimi_grad_clip, unfreeze.grad_clip) == (1e-5, 1e-4, 0.5, 1.0)
    assert FitConfig.from_json(json.loads(json.dumps(unfreeze.to_json()))) == unfreeze


EVERY = {"protocol": "sound", "experiment": "", "feature": "mimi", "seed": 0, "device": "auto", "train_fraction": 1.0}
HEAD = {
    **EVERY,
    **{"precision": "float32", "tensorboard": False, "epochs": 40, "patience": 10, "batch_size": 4, "lr": 1e-4},
    **{"weight_decay": 1e-3, "warmup_steps": 2500, "grad_clip": 1.0, "sort_weight": 0.5, "pil_weight": 0.5},
    **{"checkpoint_steps": 0, "width": 384, "layers": 4, "heads": 6, "ffn": 1536, "dropout": 0.1},
    **{"crop_s": 90.0, "speakers": 4, "crops_per_epoch": 0, "sampling": {}, "dev_fraction": 0.05},
    **{"thresholds": (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60), "medians": (1, 5, 11)},
    **{"ema": 0.0, "channel_dropout": False, "input_dropout": 0.0, "conv_frames": 0, "token_frames": 1},
}
CHUNKS = {"chunk_frames": 0, "left_frames": 0}
MIMI = {"mimi_lr": 1e-5, "mimi_grad_clip": 0.5, "mimi_top_layers": 3, "mimi_context_s": 10.0, "mimi_weights": ""}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("probe", {**EVERY, "epochs": 100, "batch_size": 256, "lr": 1e-3, "trials": "", "piece_s": 0.0}),
        ("adapter", {**HEAD, "resident": "auto", "cache_s": 0.0, **CHUNKS}),
        ("fusion", {**HEAD, "resident": "auto", "cache_s": 0.0, **CHUNKS, "feature": "mimi+titanet"}),
        ("unfreeze", {**HEAD, **MIMI}),
    ],
)
def test_each_default_is_the_one_that_was_published(kind, expected):
    assert FitConfig.make(kind).to_json() == {**expected, "kind": kind}


@pytest.mark.parametrize(
    ("least", "below"),
    [
        *((f"{name}=1", f"{name}=0") for name in ("epochs", "patience", "batch_size", "layers", "medians")),
        *((f"{name}=0", f"{name}=-1") for name in ("seed", "warmup_steps", "checkpoint_steps", "crops_per_epoch")),
        *((f"{name}=0", f"{name}=-0.01") for name in ("weight_decay", "sort_weight", "pil_weight", "dropout")),
        *((f"{name}=0.01", f"{name}=0") for name in ("lr", "grad_clip", "crop_s", "thresholds")),
        *((f"{name}=0.99", f"{name}=1") for name in ("dropout", "dev_fraction", "thresholds", "ema", "input_dropout")),
        *((f"{name}=0", f"{name}=-0.01") for name in ("ema", "input_dropout")),
        ("train_fraction=1", "train_fraction=1.01"),
        ("train_fraction=0.01", "train_fraction=0"),
        ("token_frames=1", "token_frames=0"),
        ("conv_frames=0", "conv_frames=-1"),
        ("conv_frames=3", "conv_frames=2"),
        ("dev_fraction=0", "dev_fraction=-0.01"),
        ("speakers=1", "speakers=0"),
        ("speakers=6", "speakers=7"),
        ("width=12", "width=15"),
        ("sampling=a:0", "sampling=a:-1"),
        ("precision=bf16", "precision=float16"),
        ("resident=no", "resident=maybe"),
        ("experiment=2.5", "experiment=2.6"),
    ],
)
def test_the_edges_of_what_a_setting_may_be(least, below):
    FitConfig.make("adapter", settings=[least])
    with pytest.raises(ConfigError, match=f"^{least.partition('=')[0]}"):
        FitConfig.make("adapter", settings=[below])


def test_toml_then_settings_then_overrides(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('epochs = 7\nlr = 1\nthresholds = [0.4]\n[sampling]\n"ami*" = 3\n')
    c = FitConfig.make("adapter", file=file, settings=["epochs=9", "medians=3,7"], protocol="reference")
    assert (c.epochs, c.lr, c.thresholds, c.medians) == (9, 1.0, (0.4,), (3, 7))
    assert (c.sampling, c.protocol) == ({"ami*": 3.0}, "reference")


def test_a_preset_is_overridden_by_a_file_and_that_by_settings(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("width = 32\nlayers = 1\n")
    c = FitConfig.make("fusion", preset="small", file=file, settings=["layers=3"])
    assert (c.width, c.layers, c.heads, c.token_frames, c.ema) == (32, 3, 4, 4, 0.99)
    assert c.thresholds == (0.3, 0.4, 0.45, 0.5, 0.6)
    small = {  # docs/decisions/0011: what its figures were made with
        **{"width": 96, "layers": 2, "heads": 4, "ffn": 384, "channel_dropout": True, "input_dropout": 0.2},
        **{
            "conv_frames": 9,
            "token_frames": 4,
            "crop_s": 15.0,
            "batch_size": 4,
            "epochs": 16,
            "patience": 8,
            "lr": 2e-3,
        },
        **{"warmup_steps": 100, "ema": 0.99, "thresholds": [0.3, 0.4, 0.45, 0.5, 0.6], "medians": [5, 11, 17]},
    }
    cached = small | {"cache_s": 15.0, "epochs": 24}  # docs/decisions/0018
    found = {kind: presets.settings_of(kind, "small") for kind in ("adapter", "fusion", "unfreeze")}
    assert found == {"adapter": small, "fusion": cached, "unfreeze": small}
    assert presets.settings_of("cascade", "small") == presets.settings_of("probe", "small") == {}
    for kind in kinds.NAMES:  # "published" is what a kind's class holds
        assert FitConfig.make(kind, preset="published") == FitConfig.make(kind)
        assert FitConfig.make(kind, preset="small").kind == kind
    with pytest.raises(ValueError, match="preset must be one of published, small, found 'tiny'"):
        FitConfig.make("adapter", preset="tiny")


def test_a_preset_leaves_out_what_the_published_procedure_has_not(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('protocol = "reference"\n')
    asked = {"protocol": "reference"}, {"settings": ["protocol=reference"]}, {"file": file}
    made = [FitConfig.make("fusion", preset="small", **each) for each in asked]
    assert [(each.cache_s, each.epochs) for each in made] == [(0, 16)] * 3
    assert FitConfig.make("fusion", preset="small", file=file, protocol="sound").cache_s == 15
    with pytest.raises(ConfigError, match="cache_s: the published procedure hears windows alone"):
        FitConfig.make("fusion", preset="small", settings=["cache_s=15"], protocol="reference")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["warmup=3"], "no setting is called 'warmup'; did you mean warmup_steps"),
        (["zzzz=3"], "no setting is called 'zzzz'; known are kind, protocol"),
        (["epochs=2.5"], "epochs must be a whole number, found '2.5'"),
        (["tensorboard=maybe"], "tensorboard must be true or false, found 'maybe'"),
        (["lr=nan"], "lr must be a number, found nan"),
        (["lr=-1"], "lr must be more than 0"),
        (["thresholds=0.3,high"], "thresholds must be numbers separated by commas, found '0.3,high'"),
        (["medians=4"], "medians must be one or more odd frame counts"),
        (["conv_frames=4"], "conv_frames must be an odd frame count, or 0, found 4"),
        (["width=10", "heads=4"], "multiple of heads=4"),
        (["feature=mimi+mimi"], "different names joined with"),
        (["sort_weight=0", "pil_weight=0"], "there is no loss left"),
        (["experiment=9"], "experiment must be one of"),
        (["epochs"], "expected key=value"),
        (["kind=probe"], "kind must be adapter, found 'probe'"),
        (["trials=x"], "no setting is called 'trials'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        FitConfig.make("adapter", settings=settings)


def test_wrong_toml(tmp_path):
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    with pytest.raises(ConfigError, match=r"bad.toml: not a TOML file"):
        FitConfig.make("adapter", file=tmp_path / "bad.toml")
    (tmp_path / "text.toml").write_text('epochs = "3"')
    with pytest.raises(ConfigError, match="epochs must be a whole number, found '3'"):
        FitConfig.make("adapter", file=tmp_path / "text.toml")


@pytest.mark.parametrize("kind", kinds.NAMES)
def test_every_setting_of_every_kind_says_what_it_means(kind):
    cls = kinds.settings_of(kind)
    assert cls().kind == kind
    assert [name for name, field in cls.__pydantic_fields__.items() if not field.description] == ["kind"]
    assert len(table(cls).splitlines()) == len(cls.__pydantic_fields__)
    assert callable(kinds.function_of(kind))


def test_learning_rate_by_hand():
    assert [learning_rate_factor(s, 4) for s in (1, 4, 16)] == [0.25, 1.0, 0.5]
    assert learning_rate_factor(99, 0) == 1.0
    assert [learning_rate_factor(s, 4) for s in (2, 3, 5)] == pytest.approx([0.5, 0.75, (4 / 5) ** 0.5])


# ---- a run


def test_a_run_writes_what_it_says(store, tmp_path):
    run, result = fit(tmp_path / "run", store)
    assert json.loads((run.path / "result.json").read_text()) == result
    assert len((run.path / "history.csv").read_text().splitlines()) == 4
    assert (result["epochs"], result["steps"], result["parameters"]) == (3, 12, result["trainable_parameters"])
    assert result["decoding"]["tuned_on"] == "dev" and len(result["decoding"]["sweep"]) == 4

    # Anyone's scorer gets the same figures from the files.
    reference, hypothesis = read_rttm(run.path / "ref.rttm"), read_rttm(run.path / "hyp.rttm")
    corpus = score(reference, hypothesis, uem=read_uem(run.path / "windows.uem")).corpus
    assert corpus.der == pytest.approx(result["test"]["der"], abs=1e-3)
    assert sum(r["total_s"] for r in result["recordings"].values()) == pytest.approx(result["test"]["total_s"])
    spoken = sum(t.end_s - t.start_s for u in ("test/0", "test/1") for t in store.utterance(u).turns)
    assert result["test"]["total_s"] == pytest.approx(spoken, abs=0.1)

    outputs = featstore.open(run.path / "outputs")
    assert outputs.ids == ["test/0", "test/1"]
    assert outputs.frames("activity", "test/0").shape == (125, 4)
    assert outputs.utterance("test/0").turns == store.utterance("test/0").turns


def test_the_best_weights_are_measured_and_not_the_last(store, tmp_path):
    """At this rate the dev loss rises again before the end."""
    run, result = fit(tmp_path / "run", store, "lr=0.1", "warmup_steps=0", "grad_clip=100", "epochs=4")
    losses = [float(row["dev_loss"]) for row in timeless_history(run)]
    assert result["best_epoch"] == 1 + losses.index(min(losses)) < 4
    assert result["best_dev_loss"] == pytest.approx(min(losses))
    sessions = load_sessions(store, run.config)
    model, source = build(run, store, sessions, torch.device("cpu"))
    load_best(run, model)

    def of(chosen):
        return evaluate(model, source, windows(chosen, source.length), run.config, torch.device("cpu"))

    assert of(sessions.dev).loss == pytest.approx(min(losses), rel=1e-5)
    outputs = featstore.open(run.path / "outputs")
    for session in sessions.test:
        found = np.concatenate(of([session]).activity)[:125]  # in a batch of its own: a last bit may differ
        np.testing.assert_allclose(outputs.frames("activity", session.id), found, rtol=2e-3, atol=1e-4)
    last, _ = run.read_tensors("last.safetensors")
    assert any(not torch.equal(last[f"model.{name}"], value) for name, value in model.named_parameters())


def test_a_result_says_what_must_be_known_of_its_training():
    """Speech of a fifth speaker, and a warm-up that did not end."""
    state = State(step=9, history=[{"dropped_frames": 3}, {"dropped_frames": 4}])
    assert _notes(config("warmup_steps=10", "speakers=4"), state) == [
        "training ended after 9 steps, inside the warm-up of 10",
        "7 frames of training speech had no channel: more than 4 speakers in a crop",
    ]
    assert _notes(config("warmup_steps=9"), State(step=9, history=[{"dropped_frames": 0}])) == []


def by_hand(store, config):
    """Two epochs as anyone would write them down; yields the model after each, with its losses and dropped frames."""
    sessions = load_sessions(store, config)
    length = round(config.crop_s / 0.08)
    source = FrameSource(store, config, length, torch.device("cpu"))
    weights = {"sort_weight": config.sort_weight, "pil_weight": config.pil_weight}
    torch.manual_seed(config.seed)
    model = Adapter(8, speakers=2, width=8, layers=1, heads=2, ffn=16, dropout=config.dropout)
    model.scale.take(scale_of(store, ("mimi",), [session.id for session in sessions.train]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=config.weight_decay, fused=True)
    warmup = [1 / 3, 2 / 3, 1, *((3 / step) ** 0.5 for step in range(4, 9))]
    step, norms = 0, []
    for epoch in (1, 2):
        crops, losses, dropped = CropSampler(sessions.train, config, length).epoch(epoch), [], 0
        model.train()
        for at in range(0, len(crops), config.batch_size):
            batch = source.batch(crops[at : at + config.batch_size])
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step, 0)).generate_state(1, np.uint64)[0] >> 1))
            optimizer.param_groups[0]["lr"] = config.lr * warmup[step]
            optimizer.zero_grad()
            mask = batch.mask if batch.padded else None
            loss = hybrid_loss(model(batch.inputs, mask), batch.labels, mask, **weights)
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)))
            optimizer.step()
            step, dropped = step + 1, dropped + batch.dropped
            losses.append(loss.item())
        # Dev: every frame of every window weighs the same, the short last window of a session too; without dropout.
        dev = source.batch(windows(sessions.dev, length))
        with torch.no_grad():
            logits = model.eval()(dev.inputs, dev.mask)
        tally = FrameTally(config.thresholds)
        tally.add(logits.sigmoid(), dev.labels, dev.mask)
        assert dev.padded and max(norms) > config.grad_clip and dropped  # else some of it would not show
        yield {
            "model": {name: p.detach().clone() for name, p in model.named_parameters()},
            "row": {
                **{"epoch": epoch, "step": step, "lr": config.lr * warmup[step - 1], "train_loss": np.mean(losses)},
                **{"dev_loss": hybrid_loss(logits, dev.labels, dev.mask, **weights).item()},
                **{"dev_der": tally.der().min(), "dropped_frames": dropped},
            },
        }


def test_two_epochs_equal_what_is_written_by_hand(store, tmp_path):
    """Seed, crops, dropout, warm-up, weights of the loss, clipping, decay: whatever is ignored changes the weights."""
    settings = ("seed=5", "epochs=2", "dropout=0.3", "grad_clip=0.05", "weight_decay=0.5", "crop_s=9", "speakers=2")
    settings += ("sort_weight=0.2", "pil_weight=0.9", "warmup_steps=3", "crops_per_epoch=7", "checkpoint_steps=3")
    steps = []
    run, result = fit(tmp_path / "run", store, *settings, on_step=lambda state: steps.append(state.step))
    expected = list(by_hand(store, run.config))
    assert steps == list(range(1, 9)) and result["steps"] == 8
    rows = list(csv.DictReader((run.path / "history.csv").read_text().splitlines()))
    for row, epoch in zip(rows, expected, strict=True):
        assert {k: float(row[k]) for k in epoch["row"]} == pytest.approx(epoch["row"], rel=1e-5)
    losses = [epoch["row"]["dev_loss"] for epoch in expected]
    best = int(np.argmin(losses))
    found, facts = run.read_tensors("model.safetensors")
    assert (facts["epoch"], result["best_epoch"]) == (best + 1, best + 1)
    assert result["best_dev_loss"] == pytest.approx(min(losses), rel=1e-5)
    last = {k.removeprefix("model."): v for k, v in run.read_tensors("last.safetensors")[0].items()}
    for tensors, epoch in ((found, expected[best]), (last, expected[1])):
        for name, value in epoch["model"].items():
            torch.testing.assert_close(
                tensors[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )
    dropped = sum(epoch["row"]["dropped_frames"] for epoch in expected)
    assert f"{dropped} frames of training speech had no channel: more than 2 speakers in a crop" in result["notes"]


def test_the_average_is_what_is_measured_and_kept(store, tmp_path):
    """By hand from the weights after each step: average += (1 - d) · (weights - average), d = min(ema, (1+n)/(10+n))."""
    settings, seen = ("ema=0.3", "epochs=2", "dropout=0.1"), []
    made = config(*settings)
    sessions = load_sessions(store, made)
    run = Run.create(tmp_path / "run", made, store)
    model, source = build(run, store, sessions, torch.device("cpu"))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def follow(state):
        decay = min(0.3, (1 + state.step) / (10 + state.step))
        for name, p in model.named_parameters():
            average[name] += (1 - decay) * (p.detach() - average[name])
        seen.append({name: value.clone() for name, value in average.items()})

    run.begin()
    Training(run, model, source, sessions, torch.device("cpu"), Ranks(0, 1, "cpu"), Unseen(), follow).to_the_end()
    rows = timeless_history(run)
    best = int(np.argmin([float(row["dev_loss"]) for row in rows]))
    kept, last = run.read_tensors("model.safetensors")[0], run.read_tensors("last.safetensors")[0]
    for name, value in seen[4 * (best + 1) - 1].items():
        torch.testing.assert_close(kept[name], value)
        torch.testing.assert_close(last[f"average.{name}"], seen[-1][name])
        assert torch.equal(last[f"model.{name}"], dict(model.named_parameters())[name])
    assert torch.equal(kept["scale.mean"], model.scale.mean)
    load_best(run, model)
    again = evaluate(model, source, windows(sessions.dev, 50), made, torch.device("cpu"))
    assert again.loss == pytest.approx(float(rows[best]["dev_loss"]), rel=1e-5)


def test_a_share_of_the_sessions_is_part_of_a_larger_one_and_takes_as_many_steps(store, tmp_path):
    def ids(*settings):
        return [session.id for session in load_sessions(store, config(*settings)).train]

    half, third = ids("train_fraction=0.5"), ids("train_fraction=0.34")
    assert set(third) < set(half) < set(ids()) and (len(third), len(half)) == (2, 3)
    assert half == sorted(half) and {tuple(ids("train_fraction=0.5", f"seed={s}")) for s in range(5)} != {tuple(half)}
    assert len(ids("train_fraction=0.01")) == 1
    _, whole = fit(tmp_path / "whole", store, "crops_per_epoch=0", "epochs=1")
    run, part = fit(tmp_path / "part", store, "crops_per_epoch=0", "epochs=1", "train_fraction=0.5")
    assert part["steps"] == whole["steps"] == 8  # 60 s in crops of 4 s, two a step
    assert "train_fraction: 3 of 6 training sessions are used" in part["notes"]
    held = scale_of(store, ("mimi",), half)
    np.testing.assert_allclose(run.read_tensors("model.safetensors")[0]["scale.mean"], held.mean, rtol=1e-5)


def test_each_process_has_dropout_of_its_own(store, tmp_path):
    """Crops and initial weights are the same in all of them; another rank draws other dropout, and writes nothing."""
    weights = {}
    for dropout in (0.0, 0.5):
        for rank in (0, 1):
            run = Run.create(tmp_path / f"{dropout}-{rank}", config(f"dropout={dropout}", "epochs=1"), store)
            sessions = load_sessions(store, run.config)
            model, source = build(run, store, sessions, torch.device("cpu"))
            if rank == 0:
                run.begin()
            Training(run, model, source, sessions, torch.device("cpu"), Ranks(rank, 1, "cpu"), Unseen()).to_the_end()
            weights[dropout, rank] = model.project.weight.detach()
    assert torch.equal(weights[0.0, 0], weights[0.0, 1])
    assert not torch.equal(weights[0.5, 0], weights[0.5, 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.0-0", "0.5-0"]


@pytest.mark.parametrize("protocol", ["sound", "reference"])
def test_activities_and_loss_of_windows_by_hand(store, protocol):
    """Three windows in batches of two: the reference protocol counts padding and takes the session's order."""
    made = config("crop_s=4", "batch_size=2", "thresholds=0.45,0.55", "sort_weight=0.3", protocol=protocol)
    sessions = load_sessions(store, made)
    source = FrameSource(store, made, 50, torch.device("cpu"))
    torch.manual_seed(1)
    model = Adapter(8, width=8, layers=1, heads=2, ffn=16, dropout=0.5)
    crops = windows(sessions.dev[:1], 50)
    found = evaluate(model, source, crops, made, torch.device("cpu"))
    assert not model.training and len(crops) == 3
    total = frames = 0.0
    tally = FrameTally((0.45, 0.55))
    for at in (0, 2):
        batch = source.batch(crops[at : at + 2])
        mask = batch.mask if protocol == "sound" else torch.ones_like(batch.mask)
        masked = mask if protocol == "sound" and batch.padded else None
        with torch.no_grad():
            logits = model(batch.inputs, masked)
        loss = hybrid_loss(logits, batch.labels, masked, sort_weight=0.3, pil_weight=0.5, resort=protocol == "sound")
        total, frames = total + float(loss) * int(mask.sum()), frames + int(mask.sum())
        tally.add(logits.sigmoid(), batch.labels, mask)
        expected = logits.sigmoid().to(torch.float16).numpy()
        np.testing.assert_array_equal(found.activity[at : at + len(expected)], expected)
    assert frames == (125 if protocol == "sound" else 150)
    assert found.loss == pytest.approx(total / frames, rel=1e-6)
    assert found.der == pytest.approx(tally.der().min())
    assert np.isnan(FrameTally((0.5,)).der()).all() and FrameTally((0.5,)).best_der() == 1.0


def test_each_draw_has_a_seed_of_its_own():
    """Initial weights, crops and dropout: of seed, of epoch or step, and dropout of the process too."""
    drawn = []
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed_torch(*key)
        drawn.append(torch.rand(4))
        seed_torch(*key)
        assert torch.equal(torch.rand(4), drawn[-1])
    assert len({tuple(row.tolist()) for row in drawn}) == 4


def test_another_seed_is_another_run(store, tmp_path):
    """Of what is drawn, each by itself: with the other draws taken out of the game."""
    made = [config(f"seed={seed}") for seed in (0, 1)]
    sessions = load_sessions(store, made[0])
    weights = []
    for c in made:
        model, _ = build(Run.create("unused-run-folder", c, store), store, sessions, torch.device("cpu"))
        weights.append([p.detach().clone() for p in model.parameters() if p.dim() > 1])
    assert not any(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    crops = [[(c.session.id, c.start) for c in CropSampler(sessions.train, c, 50).epoch(1)] for c in made]
    assert crops[0] != crops[1]


def test_the_best_epoch_is_the_one_of_least_dev_loss(store, tmp_path):
    """Later epochs that are worse change neither the kept weights nor the figures; patience counts from the best."""
    run, result = fit(tmp_path / "run", store, "lr=0.3", "warmup_steps=0", "grad_clip=100", "epochs=9", "patience=3")
    losses = [float(row["dev_loss"]) for row in timeless_history(run)]
    assert result["best_dev_loss"] == pytest.approx(min(losses)) and result["best_epoch"] == 1 + int(np.argmin(losses))
    assert result["epochs"] == len(losses) == min(9, result["best_epoch"] + 3)
    best = [min(losses[: n + 1]) for n in range(len(losses))]
    assert all(n - best.index(best[n]) < 3 for n in range(len(losses) - 1))
    model, _ = build(run, store, load_sessions(store, run.config), torch.device("cpu"))
    load_best(run, model)
    sessions, source = load_sessions(store, run.config), FrameSource(store, run.config, 50, torch.device("cpu"))
    again = evaluate(model, source, windows(sessions.dev, 50), run.config, torch.device("cpu"))
    assert again.loss == pytest.approx(min(losses), rel=1e-5)


def test_the_reference_protocol_scores_padding_and_tunes_on_what_it_reports(store, tmp_path):
    run, result = fit(tmp_path / "run", store, protocol="reference")
    assert result["decoding"]["tuned_on"] == "test" and result["decoding"]["mapping"] == "fixed"
    assert [list(r[0]) for r in read_uem(run.path / "windows.uem").values()][2] == pytest.approx([8.0, 12.0])  # of 10 s
    assert result["test"]["scored_s"] == pytest.approx(24.0)
    assert any("tuned on the data" in note for note in result["notes"])
    facts = featstore.open(run.path / "outputs").features["activity"]
    assert (facts.settings["protocol"], facts.settings["window_frames"], facts.dim) == ("reference", 50, 4)
    assert facts.model == "adapter on mimi"


SMALL = ("ema=0.9", "channel_dropout=true", "input_dropout=0.2", "conv_frames=3", "token_frames=2")


@pytest.mark.parametrize(
    ("step", "more"), [(3, ()), (4, ()), (6, ()), (3, SMALL), (6, SMALL)], ids=["3", "4", "6", "3-small", "6-small"]
)
def test_killed_and_resumed_ends_with_the_same_weights(store, tmp_path, step, more):
    """Inside the first epoch, at its end (4 steps an epoch), between two checkpoints."""
    settings = ("checkpoint_steps=2", "dropout=0.2", *more)
    whole, expected = fit(tmp_path / "whole", store, *settings)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", store, *settings, on_step=kill_at(step))
    torch.rand(3)  # whatever else has been drawn in the meantime must not matter
    cut, result = fit(tmp_path / "cut", store, *settings, resume=True)
    for name in ("model.safetensors", "last.safetensors"):
        a, b = whole.read_tensors(name)[0], cut.read_tensors(name)[0]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert result["test"] == expected["test"]
    assert timeless_history(whole) == timeless_history(cut)


def test_input_from_memory_map_and_device_memory_train_alike(store, tmp_path):
    a, _ = fit(tmp_path / "a", store, "resident=no")
    b, result = fit(tmp_path / "b", store, "resident=yes")
    assert result["resident"]
    a, b = a.read_tensors("model.safetensors")[0], b.read_tensors("model.safetensors")[0]
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_torchs_global_generator_alone(store, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit(tmp_path / "run", store, "epochs=1")
    assert torch.equal(torch.rand(1), expected)


def test_resume_refuses_other_settings_and_other_features(store, tmp_path):
    fit(tmp_path / "run", store, "epochs=1")
    with pytest.raises(RunError, match="exists already"):
        fit(tmp_path / "run", store)
    with pytest.raises(RunError, match=r"other settings: lr \(was 0.01, now 0.02\)"):
        fit(tmp_path / "run", store, "lr=0.02", resume=True)
    other = featstore.open(make_store(tmp_path / "s", {"train": 2, "dev": 1}, dim=9))
    with pytest.raises(RunError, match="was trained on feature 'mimi' with fingerprint"):
        fit(tmp_path / "run", other, "epochs=1", resume=True)
    _, result = fit(tmp_path / "run", store, "epochs=2", resume=True)  # more epochs may be asked for
    assert result["epochs"] == 2


def test_damaged_checkpoint(store, tmp_path):
    run, _ = fit(tmp_path / "run", store, "epochs=1")
    (run.path / "last.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(RunError, match=r"last.safetensors: damaged"):
        fit(tmp_path / "run", store, "epochs=1", resume=True)


def test_a_loss_that_is_no_number_stops_the_run(store, tmp_path):
    with pytest.raises(RunError, match=r"the loss became (nan|inf)"):
        fit(tmp_path / "run", store, "lr=1e38", "grad_clip=1e38", "warmup_steps=0")


def test_early_stopping(store, tmp_path):
    _, result = fit(tmp_path / "run", store, "lr=1e-30", "epochs=50", "patience=2")
    assert result["epochs"] <= 4  # nothing is learnt: the dev loss stays as it is


def test_tensorboard(store, tmp_path, monkeypatch):
    class Writer:
        rows: typing.ClassVar = []

        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (str(tmp_path / "run" / "tensorboard"), 0)

        def add_scalar(self, name, value, step):
            self.rows.append((name, step))

        def close(self):
            self.rows.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    fit(tmp_path / "run", store, "tensorboard=true", "epochs=1")
    assert Writer.rows == [("train_loss", 4), ("dev_loss", 4), ("dev_der", 4), ("lr", 4), "closed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        fit(tmp_path / "other", store, "tensorboard=true", "epochs=1")


class Told:
    """Keeps what a fit tells."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float, str]] = []
        self.lines: list[str] = []

    def update(self, done, of, note=""):
        self.updates.append((done, of, note))

    def line(self, text):
        self.lines.append(text)


def test_what_is_told_while_it_trains(store, tmp_path, monkeypatch):
    """Steps of all epochs, the last epoch's DER on dev, steps a second and the share of waiting; once a second at most."""
    told, now = Told(), [0.0]
    monkeypatch.setattr("trainers.diarization.log.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    run = Run.create(tmp_path / "run", config("epochs=5"), store)
    log = Log(run, State(), told, first=True)
    state = State(epoch=2, step=9, busy_s=4.0, waited_s=1.0, timed_steps=8, history=[{"dev_der": 0.25}])
    for now[0] in (0.5, 1.0, 1.9, 2.0):
        log.step(state, torch.tensor(0.12345), 7)
    note = "epoch 2/5 loss 0.1235 dev DER 25.0% 2.00 steps/s, input 25.0%"
    assert told.updates == [(9, 35, note)] * 2
    now[0] = 9.0
    log.step(State(epoch=1, busy_s=1.0, timed_steps=1), torch.tensor(1.0), 7)
    assert told.updates[-1] == (0, 35, "epoch 1/5 loss 1.0000 1.00 steps/s, input 0.0%")
    log.epoch(
        {
            "epoch": 3,
            "step": 21,
            "train_loss": 0.5,
            "dev_loss": 0.25,
            "dev_der": 0.125,
            "steps_per_s": 1.5,
            "input_share": 0.0625,
        }
    )
    assert told.lines == [
        "epoch   3  step     21  loss 0.5000  dev loss 0.2500  dev DER 12.50%  1.50 steps/s  input 6.25%"
    ]


def test_what_a_run_has_cost_is_of_all_its_steps(store, tmp_path, monkeypatch):
    """With a clock that a step takes 2 s of, half a second of it for input; cut off after the first epoch and gone on with."""
    now = [100.0]
    monkeypatch.setattr("trainers.diarization.loop.time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    real = FrameSource.batches

    def slow(self, crops, size):
        for batch in real(self, crops, size):
            now[0] += 0.5 if torch.is_grad_enabled() else 0
            yield batch

    monkeypatch.setattr(FrameSource, "batches", slow)

    def on_step(stop):
        def follow(state):
            now[0] += 1.5
            if state.step == stop:
                raise Killed

        return follow

    with pytest.raises(Killed):
        fit(tmp_path / "run", store, on_step=on_step(5))
    now[0] += 1000  # nobody trained meanwhile
    _, result = fit(tmp_path / "run", store, on_step=on_step(99), resume=True)
    assert (result["steps"], result["epochs"]) == (12, 3)
    # The clock is read before `on_step`: of each epoch's last step the half second for input alone may be missing.
    assert result["step_seconds"] == pytest.approx(2.0, abs=0.05) and result["input_share"] == pytest.approx(
        0.25, abs=0.01
    )
    assert result["seconds"] == pytest.approx(24.0, abs=0.1)
    history = timeless_history(Run.open(tmp_path / "run"))
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert [float(row["steps_per_s"]) for row in rows] == pytest.approx([0.5] * 3, rel=0.05) and len(history) == 3
    assert [float(row["input_share"]) for row in rows] == pytest.approx([0.25] * 3, abs=0.01)
    assert result["train_s"] == pytest.approx(6 * 10.0) and result["resident"] is False
    assert result["peak_memory_bytes"] > 10**7 and (result["device"], result["device_name"], result["ranks"]) == (
        "cpu",
        "cpu",
        1,
    )


@pytest.mark.parametrize(
    ("resident", "device", "free", "kept"),
    [
        ("auto", "cuda", 6 * 125 * 8 * 2 * 2 + 2, True),  # six sessions of 125 frames, 8 halves each, in less than half
        ("auto", "cuda", 6 * 125 * 8 * 2 * 2, False),
        ("auto", "cpu", 10**12, False),
        ("yes", "cpu", 0, True),
        ("no", "cuda", 10**12, False),
    ],
)
def test_training_frames_live_on_the_device_where_they_fill_less_than_half(
    store, monkeypatch, resident, device, free, kept
):
    made = config(f"resident={resident}")
    source = FrameSource(store, made, 50, torch.device("cpu"))
    sessions = load_sessions(store, made).train
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free, 10**12))
    assert _resident(source, sessions, made, torch.device(device)) == (sessions if kept else [])


def test_more_epochs_go_on_where_fewer_ended_and_patience_ends_them(store, tmp_path):
    whole, expected = fit(tmp_path / "whole", store, "epochs=3")
    fit(tmp_path / "part", store, "epochs=1")
    part, result = fit(tmp_path / "part", store, "epochs=3", resume=True)
    a, b = (run.read_tensors("last.safetensors")[0] for run in (whole, part))
    assert all(torch.equal(a[key], b[key]) for key in a) and result["test"] == expected["test"]
    assert timeless_history(part) == timeless_history(whole)
    # One that ended by its patience has nothing left to do, however many epochs are asked for.
    _, ended = fit(tmp_path / "ended", store, "lr=1e-30", "epochs=9", "patience=1")
    run, again = fit(tmp_path / "ended", store, "lr=1e-30", "epochs=30", "patience=1", resume=True)
    assert again["epochs"] == ended["epochs"] < 9 and "nothing was left to do" in again["notes"][-1]
    assert read_state(run).finished and math.isfinite(read_state(run).best_loss)


def test_weights_of_another_model_are_refused_by_name(store, tmp_path):
    run, _ = fit(tmp_path / "run", store, "epochs=1")
    sessions = load_sessions(store, run.config)
    for settings, first in (("width=16", "project.weight"), ("conv_frames=3", "conv.weight")):
        model, _ = build(Run.create(tmp_path / "x", config(settings), store), store, sessions, torch.device("cpu"))
        with pytest.raises(RunError, match=rf"model\.safetensors: of another version or model: .*{first}"):
            load_best(run, model)
    tensors, facts = run.read_tensors("last.safetensors")
    run.write_tensors("last.safetensors", tensors, facts | {"unheard": 1})
    with pytest.raises(RunError, match=r"last\.safetensors: of another version or model: .*unheard"):
        read_state(run)


def test_command(store, tmp_path):
    settings = [word for s in (*TINY, "epochs=1") for word in ("--set", s)]
    out = CliRunner().invoke(
        app, ["fit", "adapter", "--store", str(store.path), "--out", str(tmp_path / "r"), *settings]
    )
    assert out.exit_code == 0, out.output
    assert "DER, fixed channels" in out.stdout and "epoch   1" in out.stderr


def test_several_seeds_are_runs_side_by_side(store, tmp_path):
    words = [word for s in (*TINY, "epochs=1", "seed=3") for word in ("--set", s)]
    command = ["fit", "adapter", "--store", str(store.path), "--out", str(tmp_path / "r"), *words, "--seeds"]
    out = CliRunner().invoke(app, [*command, "2"])
    assert out.exit_code == 0, out.output
    ders = {
        name: Run.open(tmp_path / "r" / name).read_json("result.json")["test"]["der"] for name in ("seed3", "seed4")
    }
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == list(ders)
    low, high = sorted(ders.values())
    assert low < high and Run.open(tmp_path / "r" / "seed4").config.seed == 4
    line = f"DER of 2 seeds: mean {(low + high) / 2:.2%}, between {low:.2%} and {high:.2%}"
    assert out.stdout.splitlines()[-1] == line

    out = CliRunner().invoke(app, [*command, "3"])
    assert out.exit_code == 2 and "seed3: exists already; choose another --out, or add --resume" in out.stderr
    assert not (tmp_path / "r" / "seed5").exists()
    before = (tmp_path / "r" / "seed3" / "last.safetensors").stat().st_mtime_ns
    out = CliRunner().invoke(app, [*command, "3", "--resume", "--json"])
    found = json.loads(out.stdout)
    assert list(found) == ["seed3", "seed4", "seed5"] and found["seed4"]["test"]["der"] == ders["seed4"]
    assert (tmp_path / "r" / "seed3" / "last.safetensors").stat().st_mtime_ns == before

    command[command.index("--out") + 1] = str(tmp_path / "r" / "seed3")
    out = CliRunner().invoke(app, [*command, "2", "--resume"])
    assert out.exit_code == 2 and "is a run of one seed" in out.stderr


def test_the_spread_of_probes_is_of_their_eer():
    probes = {f"seed{n}": {"kind": "probe", "systems": {"probe": {"eer": eer}}} for n, eer in enumerate((0.3, 0.1))}
    assert spread(probes) == {
        **{"measure": "EER", "values": {"seed0": 0.3, "seed1": 0.1}, "mean": 0.2, "min": 0.1, "max": 0.3}
    }
    proxies = {"seed0": {"kind": "proxy", "systems": {"raw": {"eer": 0.4}, "proxy": {"eer": 0.2}}}}
    assert spread(proxies)["values"] == {"seed0": 0.2} and spread(proxies)["measure"] == "EER"
    silent = spread({"seed0": {"kind": "adapter", "test": {"der": None}}})
    assert (silent["measure"], silent["mean"], silent["max"]) == ("DER", None, None)


@pytest.mark.slow
def test_a_run_killed_by_the_system_resumes(store, tmp_path):
    """As above, but with kill -9 from outside, wherever that happens to fall."""
    settings = [word for s in (*TINY, "epochs=40", "patience=40", "checkpoint_steps=1") for word in ("--set", s)]
    base = [sys.executable, "-m", "cli.trainers", "fit", "adapter", "--store", str(store.path), *settings]
    subprocess.run([*base, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    with subprocess.Popen([*base, "--out", str(tmp_path / "cut")], cwd=ROOT, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if b"epoch   5" in line:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert not (tmp_path / "cut" / "result.json").exists()
    subprocess.run([*base, "--out", str(tmp_path / "cut"), "--resume"], cwd=ROOT, check=True, capture_output=True)
    a, b = (Run.open(tmp_path / n).read_tensors("last.safetensors")[0] for n in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_processes_share_each_batch_and_fill_up_the_last():
    shares = [list(Ranks(rank, 2, "cpu").share(range(7), 4)) for rank in (0, 1)]
    assert shares == [[0, 1, 4, 5], [2, 3, 6, 0]]
    with pytest.raises(ConfigError, match="batch_size 4 cannot be divided among 3 processes"):
        Ranks(0, 3, "cpu").share(range(7), 4)


def test_each_process_of_several_takes_its_own_gpu(monkeypatch):
    """The GPU's number counts on the machine (LOCAL_RANK), the share of a batch over all machines (RANK)."""
    asked = []
    for name, value in (("WORLD_SIZE", 4), ("RANK", 3), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", asked.append)
    monkeypatch.setattr("torch.distributed.init_process_group", asked.append)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: asked.append("gone"))
    for device, told in (("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")):
        with distributed.group(device) as ranks:
            assert ranks == Ranks(3, 4, told) and not ranks.first
    assert asked == ["cuda:1", "nccl", "gone"] * 2 + ["gloo", "gone"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.group("auto") as ranks:
        assert ranks == Ranks(0, 1, "auto")


def test_several_processes_average_gradients_and_hear_of_dev_from_the_first(monkeypatch):
    wrapped, told, model = [], [], torch.nn.Linear(1, 1)

    def broadcast(tensor, src):
        told.append(src)
        tensor.copy_(torch.tensor([0.25, 0.5]))

    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", lambda *a, **k: wrapped.append((*a, k)))
    monkeypatch.setattr("torch.distributed.broadcast", broadcast)
    for device, ids in (("cuda:1", [1]), ("cpu", None)):
        Ranks(1, 2, device).wrap(model, torch.device(device))
        assert wrapped.pop() == (model, {"device_ids": ids})
    assert Ranks(1, 2, "cpu").tell((0.0, 0.0), torch.device("cpu")) == (0.25, 0.5) and told == [0]
    alone = Ranks(0, 1, "cpu")
    assert alone.wrap(model, torch.device("cpu")) is model and alone.tell((1.0,), torch.device("cpu")) == (1.0,)


def test_each_process_takes_its_part_of_every_step(store, tmp_path, monkeypatch):
    """Batches of two crops by two processes: a crop each a step, and between them all of the epoch in its order."""
    monkeypatch.setattr(Ranks, "wrap", lambda self, model, device: model)
    monkeypatch.setattr(Ranks, "tell", lambda self, values, device: values)
    parts = []
    for rank in (0, 1):
        run = Run.create(tmp_path / str(rank), config("epochs=1", "crops_per_epoch=8"), store)
        sessions, asked = load_sessions(store, run.config), []
        model, source = build(run, store, sessions, torch.device("cpu"))
        real = source.batches
        source.batches = lambda crops, size, real=real, asked=asked: asked.append((crops, size)) or real(crops, size)
        if rank == 0:
            run.begin()
        training = Training(run, model, source, sessions, torch.device("cpu"), Ranks(rank, 2, "cpu"), Unseen())
        whole = training.sampler.epoch(training.state.epoch)
        training.epoch()
        assert training.state.step == 4 and asked[0][1] == 1
        parts.append([(crop.session.id, crop.start) for crop in asked[0][0]])
    assert [crop for step in zip(*parts, strict=True) for crop in step] == [(c.session.id, c.start) for c in whole]


@pytest.mark.slow
def test_two_processes_train_together(store, tmp_path):
    settings = [word for s in (*TINY, "crops_per_epoch=8", "dropout=0", "ema=0.5") for word in ("--set", s)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cli.trainers", "fit"]
    arguments = ["adapter", "--store", str(store.path), "--out", str(tmp_path / "two"), *settings]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *arguments], cwd=ROOT, check=True, capture_output=True, env=threads)
    run, two = Run.open(tmp_path / "two"), json.loads((tmp_path / "two" / "result.json").read_text())
    alone, one = fit(tmp_path / "one", store, "crops_per_epoch=8", "dropout=0", "ema=0.5")
    assert (two["ranks"], two["steps"]) == (2, one["steps"]) == (2, 12)
    # Crops of equal length: the mean of both halves' gradients is the whole batch's, so the weights are one process's.
    for name in ("model.safetensors", "last.safetensors"):
        a, b = run.read_tensors(name)[0], alone.read_tensors(name)[0]
        assert a.keys() == b.keys()
        for key in a:
            ours, theirs = a[key], b[key]
            if key.endswith("in_proj_bias"):
                # Attention does not depend on the keys' bias: its gradient is rounding, which Adam makes as large as any.
                width = len(ours) // 3
                ours, theirs = (torch.cat([v[:width], v[2 * width :]]) for v in (ours, theirs))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(timeless_history(run), timeless_history(alone), strict=True):
        assert float(ours["dev_loss"]) == pytest.approx(float(theirs["dev_loss"]), rel=1e-4)
        assert ours["dropped_frames"] == theirs["dropped_frames"]


def test_frame_tally_by_hand():
    truth = torch.tensor([[[1, 0], [1, 0], [1, 1], [0, 0]]])
    answer = torch.tensor([[[0.0, 0.9], [0.0, 0.9], [0.0, 0.9], [0.0, 0.6]]])
    tally = FrameTally([0.5, 0.7])
    tally.add(answer, truth, torch.ones(1, 4, dtype=torch.bool))
    # Swapped channels: 3 of 4 right under the optimal mapping, 1 missed; one false alarm at 0.5.
    assert tally.der().tolist() == [2 / 4, 1 / 4]
    # Fixed: 1 right, 2 confused, 1 missed.
    assert tally.der("fixed").tolist() == [4 / 4, 3 / 4]


# ---- a problem with a known answer

SANITY = (
    *("width=64", "heads=4", "layers=2", "ffn=128", "dropout=0", "crop_s=6.4", "batch_size=32", "lr=2e-3"),
    *("warmup_steps=200", "epochs=11", "crops_per_epoch=3200", "device=cpu"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "pil_weight", "least", "most"),
    [("sound", 0.5, 0.0, 0.05), ("sound", 0.0, 0.0, 0.05), ("reference", 0.0, 0.2, 1.0)],
)
def test_plainly_encoded_speakers_are_learnt_unless_arrival_order_is_the_sessions(
    tmp_path, protocol, pil_weight, least, most
):
    """Each speaker is one direction of the features, plus noise; more speakers than channels, so that a channel cannot
    be a speaker. Without PIL, nothing but the order of arrival says which channel is right; taken over the session it
    contradicts itself from crop to crop, and under the best of mappings much stays confused.
    """
    counts = {"train": 200, "dev": 20, "test": 20}
    path = make_store(tmp_path / "store", counts, seconds=60.0, dim=16, pool=8, noise=0.1)
    settings = (*SANITY, f"pil_weight={pil_weight}", f"sort_weight={1 - pil_weight}")
    store = featstore.open(path)
    run = Run.create(tmp_path / "run", FitConfig.make("adapter", settings=settings, protocol=protocol), store)
    result = fit_diarizer(run, store)
    assert least <= result["test"]["der"] < most
    assert (result["test"]["fixed_der"] < 0.07) is (protocol == "sound")
