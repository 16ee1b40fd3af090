"""The cascade as a whole, on sessions where one feature holds how many speak and another who."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import featstore
from cli.evaluation import app as evaluation
from cli.trainers import app
from evaluation import runs
from evaluation.audit import check_run
from evaluation.diarization import DiarizationErrors, score
from evaluation.report import report
from featstore import MIMI_GRID, Utterance
from tests.sessions import random_turns, spec
from trainers.cascade import counting
from trainers.cascade.cascade import Cascade, Choice
from trainers.cascade.decoding import Decoding
from trainers.cascade.fit import _notes, fit_cascade
from trainers.cascade.inputs import counts
from trainers.cascade.measuring import Truth
from trainers.config import ConfigError, FitConfig
from trainers.diarization.sessions import load_sessions
from trainers.runs import Run, RunError
from trainers.scale import scale_of

TINY = ("when=codec", "who=voices", "width=16", "steps=80", "batch_size=4", "crop_s=8", "lr=1e-2", "device=cpu")
TINY += ("clustering=average", "thresholds=0.3,0.5,0.7", "blends=0,25")
SECONDS, POOL = 40.0, 6


def make_store(path: Path, test_seed: int = 100) -> featstore.Store:
    """`codec` holds how many speak, `voices` who does: neither what the other holds, both small around something large.

    Test sessions are drawn from another seed than the rest.
    """
    voices = np.linalg.qr(np.random.default_rng(7).standard_normal((16, 16)))[0][:POOL]
    sessions = []
    for split, count, seed in (("train", 6, 0), ("dev", 2, 50), ("test", 3, test_seed)):
        rng = np.random.default_rng(seed)
        for i in range(count):
            turns = random_turns(rng, int(rng.integers(2, 4)), SECONDS, POOL)
            sessions.append((Utterance(f"{split}/{i}", "x.wav", 0.0, SECONDS, f"{split}-{i}", None, split, turns), rng))
    made = [(utterance, *_frames(utterance.turns, voices, rng)) for utterance, rng in sessions]
    for name, dim, column in (("codec", 4, 1), ("voices", 16, 2)):
        with featstore.writer(path, spec(name, dim, dtype="float32")) as writer:
            for row in made:
                writer.add(row[0], row[column])
    return featstore.open(path)


def _frames(turns, voices, rng) -> tuple[np.ndarray, np.ndarray]:
    centres_s = MIMI_GRID.centres_s(0, round(SECONDS / MIMI_GRID.step_s))
    active = np.zeros((len(centres_s), POOL))
    for turn in turns:
        active[(centres_s >= turn.start_s) & (centres_s < turn.end_s), int(turn.speaker[1:])] = 1
    codec = np.eye(4)[active.sum(1).astype(int).clip(max=3)] + 0.1 * rng.standard_normal((len(active), 4))
    nobody = rng.standard_normal((len(active), 16)) / 4
    who = np.where(active.any(1, keepdims=True), active @ voices, nobody)
    who = who / np.linalg.norm(who, axis=1, keepdims=True) + 0.05 * rng.standard_normal(who.shape)
    return (50 + codec / 100).astype(np.float32), (50 + 10 * who).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("cascade") / "store")


def fit(folder, store, *settings, resume=False):
    run = Run.create(folder, FitConfig.make("cascade", settings=(*TINY, *settings)), store, resume=resume)
    return run, fit_cascade(run, store)


@pytest.fixture(scope="module")
def fitted(store, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("fitted") / "run", store)


def test_separable_voices_are_told_apart(fitted):
    run, result = fitted
    assert result["test"]["der"] < 0.05
    assert result["dev"]["der"] < 0.05
    assert result["decoding"]["tuned_on"] == "dev"
    assert (result["kind"], result["protocol"], result["when"], result["who"]) == (
        *("cascade", "sound"),
        *(["codec"], ["voices"]),
    )
    assert result == run.read_json("result.json")


def test_training_and_its_costs_by_hand(store, tmp_path, monkeypatch):
    """The head from the seed, crops, dropout and decay as set; history in means of stretches of steps; what it cost."""
    settings = ("steps=45", "seed=2", "batch_size=3", "crop_s=2", "dropout=0.3", "weight_decay=0.9", "substeps=2")
    settings += ("at_once=3", "counted=0.5", "thresholds=0.5", "blends=0", "edge_s=0.4", "piece_s=0.8", "lr=0.02")
    rows, real = [], counting.train

    def timed(*arguments, **named):
        for row in real(*arguments, **named):
            rows.append(row | {"seconds": 0.2, "waited_s": 0.05})
            yield rows[-1]

    monkeypatch.setattr("trainers.cascade.fit.train", timed)
    run, result = fit(tmp_path / "run", store, *settings)
    sessions = load_sessions(store, run.config)
    scale = scale_of(store, ("codec",), [s.id for s in sessions.train])
    labels = [counts(s, sessions.grid, 2) for s in sessions.train]
    assert result["counts"] == 4  # none to three at once, though half of all frames have one speaker at most
    torch.manual_seed(2)
    head = counting.CountHead(4, 4, width=16, dropout=0.3, substeps=2)
    expected = list(
        real(
            head, labels, lambda k, start, stop: scale(store.frames("codec", sessions.train[k].id, start, stop)),
            crop_frames=25, batch_size=3, steps=45, lr=0.02, weight_decay=0.9, seed=2, device=torch.device("cpu"),
        )
    )  # fmt: skip
    tensors, facts = run.read_tensors("model.safetensors")
    for name, value in head.state_dict().items():
        torch.testing.assert_close(tensors[f"head.{name}"], value, msg=lambda text, n=name: f"{n}: {text}")
    assert facts["classes"] == 4 and head.blocks[0].mix[2].p == 0.3
    history = runs.open(run.path).history()
    assert history["step"] == [*range(2, 45, 2), 45]
    losses = np.array([row["train_loss"] for row in expected])
    means = [losses[k : k + 2].mean() for k in range(0, 45, 2)]
    assert history["train_loss"] == pytest.approx(means) and history["lr"][3] == pytest.approx(expected[7]["lr"])
    assert (result["steps"], result["step_seconds"], result["input_share"]) == (
        45,
        pytest.approx(0.2),
        pytest.approx(0.25),
    )
    assert result["parameters"] == result["trainable_parameters"] == sum(p.numel() for p in head.parameters())
    # On dev by what was saved, over all of its recordings; the pieces as long as was set.
    cascade, dev = Cascade.load(run, "cpu"), Truth(sessions.dev, sessions.grid)
    heard = [cascade.listen(store, session) for session in sessions.dev]
    assert result["dev"] == dev.total(cascade.diarize(heard)).to_json() != result["test"]
    assert 9 < np.median(heard[0].pieces.weights) < 13 and result["decoding"]["mapping"] == "optimal"


def test_what_cannot_be_measured_is_said(store, tmp_path):
    with pytest.raises(RunError, match=r"run: the loss is no longer a number by step \d+; lower lr"):
        fit(tmp_path / "run", store, "lr=1e30", "steps=20")
    told = _notes(SimpleNamespace(tuned_on="test"), {"a": DiarizationErrors(scored_s=9.0)})
    assert told == [
        "decoding was tuned on the data that the figures are of",
        "nobody speaks in the test sessions: there is no error rate",
    ]
    assert _notes(SimpleNamespace(tuned_on="dev"), {"a": DiarizationErrors(total_s=1.0)}) == []


def test_neither_part_can_take_the_others_place(store, tmp_path):
    """Who a voice is does not stand in `codec`, nor how many there are in `voices`: swapped, or shared, it goes wrong."""
    for settings in (("when=voices", "who=codec"), ("who=codec",)):
        _, result = fit(tmp_path / str(len(settings)), store, *settings)
        assert result["test"]["der"] > 0.15


def test_ceilings_say_which_half_fails(fitted, store, tmp_path):
    _, good = fitted
    _, deaf = fit(tmp_path / "deaf", store, "who=codec")
    for result in (good, deaf):
        when, who = (result["ceilings"][name] for name in ("true_when_own_who", "own_when_true_who"))
        assert when["test"]["der"] <= result["test"]["der"] + 1e-9
        assert who["test"]["der"] == pytest.approx(result["test"]["detection"])
        assert who["test"]["confusion"] == 0
        assert list(when["recordings"]) == list(who["recordings"]) == list(result["recordings"])
        for ceiling in (when, who):
            summed = {key: sum(r[key] for r in ceiling["recordings"].values()) for key in ("total_s", "missed_s")}
            assert summed == pytest.approx({key: ceiling["test"][key] for key in summed})
    # without voices it is who that fails, and true counts do not help
    assert deaf["ceilings"]["true_when_own_who"]["test"]["der"] > 0.15
    assert deaf["ceilings"]["own_when_true_who"]["test"]["der"] < 0.1


def test_a_run_holds_whole_recordings(fitted, store):
    run, result = fitted
    reference, hypothesis, uem = runs.open(run.path).diarization()
    assert list(reference) == list(uem) == ["test/0", "test/1", "test/2"]
    assert set(hypothesis) == set(reference)
    assert [regions.tolist() for regions in uem.values()] == [[[0.0, SECONDS]]] * 3
    assert list(result["recordings"]) == ["test-0", "test-1", "test-2"]
    again = score(reference, hypothesis, uem=uem).corpus
    assert again.der == pytest.approx(result["test"]["der"], abs=2e-3)
    assert [check.level for check in check_run(run.path, store)] == ["ok"] * 7
    assert runs.session_of("test/0") == "test/0"


def test_what_was_saved_is_all_that_is_needed(fitted, store):
    """From the run's folder alone: the same turns, from frames as the store has them."""
    run, result = fitted
    cascade = Cascade.load(Run.open(run.path), "cpu")
    assert cascade.choice.threshold == result["decoding"]["threshold"]
    written = runs.open(run.path).diarization().hypothesis
    for id, turns in written.items():
        heard = cascade.heard(cascade.counts(store.frames("codec", id)), store.frames("voices", id))
        (found,) = cascade.diarize([heard])
        assert [t.speaker for t in found] == [t.speaker for t in turns]
        np.testing.assert_allclose(found.start_s, turns.start_s, atol=1e-3)
    facts = runs.open(run.path).model_facts()
    assert facts["when"] == {"codec": store.features["codec"].fingerprint}
    assert facts["who"] == {"voices": store.features["voices"].fingerprint}


def test_what_was_chosen_comes_back(fitted, store, tmp_path):
    run, _ = fitted
    other = Cascade.load(run, "cpu").with_choice(Choice("complete", 0.3, Decoding(nearest=1.5, blend=2.5, change=3.5)))
    copy = Run.create(tmp_path / "run", run.config, store)
    copy.begin()
    other.save(copy)
    assert Cascade.load(copy, "cpu").choice == other.choice


def test_nothing_is_learnt_or_chosen_on_test(fitted, tmp_path):
    """With other test sessions, weights and choices stay to the byte."""
    run, result = fitted
    other, changed = fit(tmp_path / "run", make_store(tmp_path / "store", test_seed=200))
    assert changed["test"] != result["test"]
    assert changed["decoding"] == result["decoding"]
    assert (other.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


def test_the_seed_decides_all(fitted, store, tmp_path):
    run, result = fitted
    same, again = fit(tmp_path / "same", store)
    for name in ("model.safetensors", "hyp.rttm", "history.csv"):
        assert (same.path / name).read_bytes() == (run.path / name).read_bytes()
    assert again["test"] == result["test"]
    other, _ = fit(tmp_path / "other", store, "seed=1")
    assert (other.path / "model.safetensors").read_bytes() != (run.path / "model.safetensors").read_bytes()


def test_a_finished_run_is_left_as_it_is(store, tmp_path):
    run, result = fit(tmp_path / "run", store, "steps=2", "thresholds=0.5")
    before = {p.name: p.stat().st_mtime_ns for p in run.path.iterdir()}
    _, again = fit(tmp_path / "run", store, "steps=2", "thresholds=0.5", resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in run.path.iterdir()} == before
    assert "nothing was left to do" in again["notes"][-1]
    with pytest.raises(RunError, match=r"cannot resume with other settings: steps \(was 2, now 3\)"):
        fit(tmp_path / "run", store, "steps=3", "thresholds=0.5", resume=True)
    # one that was cut off before its figures begins anew, and ends the same
    weights = (run.path / "model.safetensors").read_bytes()
    for name in ("result.json", "model.safetensors"):
        (run.path / name).unlink()
    _, anew = fit(tmp_path / "run", store, "steps=2", "thresholds=0.5", resume=True)
    assert anew["test"] == result["test"]
    assert (run.path / "model.safetensors").read_bytes() == weights


def test_features_may_be_joined_for_either_part(store, tmp_path):
    run, result = fit(tmp_path / "run", store, "when=codec+voices", "who=voices+codec")
    assert result["features"] == ["codec", "voices"]
    assert result["test"]["der"] < 0.2
    assert Cascade.load(run, "cpu").when.mean.shape == (20,)


def test_splits_are_kept_as_by_the_other_kinds(tmp_path):
    """No dev: some of train is held out. A recording in two splits: refused before anything is written."""
    whole = make_store(tmp_path / "store")
    _, result = fit(tmp_path / "held", whole.select(split=["train", "test"]), "steps=2", "thresholds=0.5")
    assert any("held out to tune on" in note for note in result["notes"])
    _, result = fit(tmp_path / "no-test", whole.select(split=["train", "dev"]), "steps=2", "thresholds=0.5")
    assert result["decoding"]["tuned_on"] == "test"
    assert "decoding was tuned on the data that the figures are of" in result["notes"]
    utterance = whole.utterance("train/0")
    leak = Utterance("leak", "x.wav", 0.0, SECONDS, "train-0", None, "test", utterance.turns)
    for name in ("codec", "voices"):
        with featstore.writer(tmp_path / "store", whole.features[name]) as writer:
            writer.add(leak, whole.frames(name, "train/0"))
    with pytest.raises(ConfigError, match="1 recordings are in more than one split"):
        fit(tmp_path / "leak", featstore.open(tmp_path / "store"))
    assert not (tmp_path / "leak").exists()


def test_each_default_is_the_one_that_was_measured():
    """docs/decisions/0008: what its figures were made with."""
    assert FitConfig.make("cascade").to_json() == {
        **{"kind": "cascade", "protocol": "sound", "experiment": "", "seed": 0, "device": "auto"},
        **{"dev_fraction": 0.05, "when": "mimi", "who": "titanet", "width": 128, "dropout": 0.1, "substeps": 4},
        **{"steps": 1000, "batch_size": 16, "crop_s": 20.0, "lr": 2e-3, "weight_decay": 1e-2, "counted": 0.999},
        **{"train_fraction": 1.0},
        **{"piece_s": 0.64, "edge_s": 0.24, "min_share": 0.05, "clustering": ("average", "complete")},
        **{"thresholds": tuple(round(0.05 * k, 2) for k in range(2, 21)), "neighbours": (0.1, 0.2, 0.3, 0.4)},
        **{"blends": (0.0, 12.0, 25.0, 40.0), "nearest": 5.0, "change": 10.0, "at_once": 2},
    }
    assert Decoding() == Decoding(nearest=5.0, blend=25.0, change=10.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["protocol=reference"], "the reference study has no cascade"),
        (["feature=mimi"], "no setting is called 'feature'"),
        (["when=mimi+mimi"], "when must be different names"),
        (["clustering=average,ward"], "clustering must be some of average, complete, spectral, found"),
        (["thresholds=0"], "thresholds must be"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        FitConfig.make("cascade", settings=settings)


def test_the_commands(store, fitted, tmp_path):
    run, result = fitted
    words = ["fit", "cascade", "--store", store.address, "--out", str(tmp_path / "out")]
    out = CliRunner().invoke(app, [*words, "--protocol", "reference"])
    assert out.exit_code == 2
    assert out.stderr.count("\n") == 1 and "the reference study has no cascade" in out.stderr
    settings = [word for setting in TINY for word in ("--set", setting)]
    out = CliRunner().invoke(
        app, ["fit", "cascade", "--store", store.address, "--out", str(run.path), "--resume", *settings]
    )
    assert out.exit_code == 0, out.output
    assert f"true when own who      {result['ceilings']['true_when_own_who']['test']['der']:7.2%}" in out.stdout
    out = CliRunner().invoke(evaluation, ["doctor", str(run.path)])
    assert out.exit_code == 0, out.output


def test_the_report_has_its_row_and_its_timelines(tmp_path):
    """Under the names the experiments ask about, which the report looks for."""
    made = make_store(tmp_path / "made")
    for name, of in (("mimi", "codec"), ("titanet", "voices")):
        facts = made.features[of].to_json() | {"name": name}
        with featstore.writer(tmp_path / "store", type(made.features[of]).from_json(facts)) as writer:
            for id in made.ids:
                writer.add(made.utterance(id), made.frames(of, id))
    store = featstore.open(tmp_path / "store")
    settings = [s for s in TINY if not s.startswith("wh")]
    result = fit_cascade(Run.create(tmp_path / "run", FitConfig.make("cascade", settings=settings), store), store)
    facts = report([tmp_path / "run"], tmp_path / "page", num_resamples=20)
    (row,) = [row for row in facts["experiments"] if row["id"] == "4"]
    told = {line["what"]: line["value"] for line in row["sound"]["lines"]}
    assert told["DER"] == result["test"]["der"]
    for name in ("true when own who", "own when true who"):
        assert told[f"DER, {name}"] == result["ceilings"][name.replace(" ", "_")]["test"]["der"]
    assert "whole, one identity throughout" in row["sound"]["on"]
    assert result["train_s"] == pytest.approx(6 * SECONDS, abs=6 * MIMI_GRID.step_s)
    assert facts["failed_checks"] == []
    page = (tmp_path / "page" / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ").replace("&nbsp;", " ")
    assert "4 cascade: Mimi says when, TitaNet who: test/0" in page
    assert json.loads((tmp_path / "page" / "report.json").read_text()) == facts


def test_weights_that_are_no_cascade_s_are_refused(fitted, store, tmp_path):
    run, _ = fitted
    copy = Run.create(tmp_path / "run", run.config, store)
    copy.begin()
    tensors, facts = run.read_tensors("model.safetensors")
    for broken, said in (
        ({k: v for k, v in tensors.items() if k != "who.mean"}, facts),
        (tensors | {"head.unheard": torch.zeros(1)}, facts),
        (tensors, {k: v for k, v in facts.items() if k != "choice"}),
        (tensors, facts | {"grid": {"step": 1}}),
    ):
        copy.write_tensors("model.safetensors", broken, said)
        with pytest.raises(RunError, match=r"model\.safetensors: not of a cascade, or damaged"):
            Cascade.load(copy, "cpu")
