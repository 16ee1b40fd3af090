"""`trainers fit probe`: the two protocols, what it writes, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

import featstore
from cli.trainers import app
from evaluation.trials import read_trials, score_trials
from evaluation.verification import evaluate_scores
from featstore import Utterance
from tests.sessions import spec
from trainers.config import ConfigError, FitConfig
from trainers.linear_probe import LinearProbe
from trainers.probe import fit_probe, load_data, second_opinions
from trainers.runs import Run
from trainers.trial_list import listed

DIM = 12


def make(path, train=8, test=5, per_speaker=4, frames=50, **changes):
    """Speakers are directions; half of the noise is shared by all, as a channel would be."""
    rng = np.random.default_rng(1)
    with featstore.writer(path, spec(dim=DIM, **changes)) as writer:
        for split, speakers in (("train", train), ("test", test)):
            for s in range(speakers):
                direction = rng.standard_normal(DIM)
                for k in range(per_speaker if split == "test" or per_speaker > 1 else 1):
                    id = f"{split}{s}/{k}"
                    u = Utterance(id, f"audio/{id}.wav", 0.0, frames * 0.08, id, f"{split}{s}", split)
                    writer.add(u, direction + 2 * rng.standard_normal((frames, DIM)) + 3)
    return featstore.open(path)


def write_trials(path, names):
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    path.write_text("".join(f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n" for a, b in pairs))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    store = make(folder / "store", settings={"weights": "random:0"})
    trials = write_trials(folder / "trials.txt", [f"test{s}/{k}.wav" for s in range(5) for k in range(4)])
    return store, trials


def config(trials, *settings, **overrides):
    return FitConfig.make("probe", settings=(f"trials={trials}", "epochs=60", "lr=0.02", *settings), **overrides)


def fit(folder, store, *args, **overrides):
    run = Run.create(folder, config(*args, **overrides), store)
    return run, fit_probe(run, store)


def test_sound_protocol_end_to_end(made, tmp_path):
    store, trials = made
    run, result = fit(tmp_path / "run", store, trials)
    assert (result["num_utterances"], result["num_speakers"]) == (32, 8)
    assert (result["num_trials"], result["num_trial_speakers"]) == (190, 5)
    assert result["train_accuracy"] > 0.9
    assert list(result["systems"]) == ["raw", "raw_centred", "probe", "lda", "logreg"]
    assert result["warnings"] and "UNTRAINED" in result["warnings"][0]
    assert json.loads((run.path / "result.json").read_text()) == result

    table = pq.read_table(run.path / "scores.parquet")
    facts = ["label", "enrol", "test", "enrol_speaker", "test_speaker"]
    assert table.column_names == facts + list(result["systems"])
    same = table["label"].to_numpy()
    assert (same == (table["enrol_speaker"].to_numpy() == table["test_speaker"].to_numpy())).all()
    # What `evaluation eer` says of the store's feature and of the run's own embeddings is what the run says.
    np.testing.assert_allclose(table["raw"], score_trials(store, "mimi", read_trials(trials)).scores, atol=1e-6)
    outputs = featstore.open(run.path / "outputs")
    np.testing.assert_allclose(table["probe"], score_trials(outputs, "probe", read_trials(trials)).scores, atol=1e-6)
    assert "UNTRAINED" in outputs.features["probe"].warning

    tensors, written = run.read_tensors("model.safetensors")
    assert tensors["weight"].shape == (8, DIM) and written["classes"] == [f"train{s}" for s in range(8)]
    assert len((run.path / "history.csv").read_text().splitlines()) == 61
    saved = json.loads((run.path / "config.json").read_text())
    assert saved["features"]["mimi"]["fingerprint"] == store.features["mimi"].fingerprint
    assert FitConfig.from_json(saved["config"]) == run.config


def test_reference_protocol_trains_on_the_trials_own_utterances(made, tmp_path):
    store, trials = made
    data = load_data(Run.create(tmp_path / "run", config(trials, protocol="reference"), store), store)
    assert set(data.speakers) == {f"test{s}" for s in range(5)}
    assert len(data.vectors) == 20
    assert not (tmp_path / "run").exists()


def test_a_trial_speaker_among_the_trained_is_refused_and_named(made, tmp_path):
    store, _ = made
    trials = write_trials(tmp_path / "t.txt", ["train3/0", "train3/1", "test0/0"])
    with pytest.raises(ConfigError, match=r"1 speakers of .* are also trained on \(train3\)"):
        fit(tmp_path / "run", store, trials)
    assert not (tmp_path / "run").exists()


def test_one_utterance_a_speaker_is_cut_into_pieces(tmp_path):
    store = make(tmp_path / "s", per_speaker=1, frames=100)
    trials = write_trials(tmp_path / "t.txt", [f"test{s}/0" for s in range(5)])
    (tmp_path / "t.txt").write_text("1 test0/0 test0/0\n" + trials.read_text())
    data = load_data(Run.create(tmp_path / "run", config(trials), store), store)
    assert data.piece_s == 3.0
    assert int(data.whole.sum()) == 8 and len(data.vectors) == 8 + 8 * 2  # 8 s: two pieces of 38 frames
    expected = store.frames("mimi", "train2/0", 38, 76).astype(np.float32).mean(0)
    pieces = data.vectors[~data.whole][data.speakers[~data.whole] == "train2"]
    np.testing.assert_allclose(pieces[1], expected, rtol=1e-5)


def test_pooled_features_are_concatenated(tmp_path):
    """In the order of the settings, of training vectors, pieces and trials alike."""
    store = make(tmp_path / "s", per_speaker=1, frames=100)
    with featstore.writer(store.path, spec("titanet", dim=3)) as writer:
        for number, id in enumerate(store.ids):
            writer.add(store.utterance(id), np.arange(100)[:, None] / 64 + [number, 0, -number])
    store = featstore.open(store.path)
    trials = write_trials(tmp_path / "t.txt", [f"test{s}/0" for s in range(5)])
    for feature, names in (("mimi+titanet", ("mimi", "titanet")), ("titanet+mimi", ("titanet", "mimi"))):
        data = load_data(Run.create(tmp_path / "r", config(trials, f"feature={feature}"), store), store)
        pooled = [store.pooled(name, data.ids) for name in names]
        np.testing.assert_array_equal(data.trial_vectors, np.concatenate(pooled, axis=1))
        train = [f"train{s}/0" for s in range(8)]
        pooled = [store.pooled(name, train) for name in names]
        np.testing.assert_array_equal(data.vectors[data.whole], np.concatenate(pooled, axis=1))
        second = [store.frames(name, "train3/0", 38, 76).astype(np.float32).mean(0) for name in names]
        piece = data.vectors[~data.whole][data.speakers[~data.whole] == "train3"][1]
        np.testing.assert_allclose(piece, np.concatenate(second), rtol=1e-5)


def test_every_system_is_fitted_on_training_vectors_alone(tmp_path):
    """Scores from the trial vectors, once more by NumPy and scikit-learn; pieces train, but do not move the mean."""
    store = make(tmp_path / "s", train=6, test=4, per_speaker=2, frames=100)
    trials = write_trials(tmp_path / "t.txt", [f"test{s}/{k}" for s in range(4) for k in range(2)])
    run, result = fit(tmp_path / "run", store, trials, "piece_s=2")
    data = load_data(run, store)
    assert (int(data.whole.sum()), len(data.vectors)) == (12, 12 + 12 * 4)
    mean = store.pooled("mimi", [f"train{s}/{k}" for s in range(6) for k in range(2)]).mean(0)
    scaler = StandardScaler().fit(data.vectors)
    train, test = scaler.transform(data.vectors), scaler.transform(data.trial_vectors)
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(train, data.speakers)
    logreg = LogisticRegression(max_iter=200).fit(train, data.speakers)
    probe = LinearProbe(0.02, 60, 256, "cpu", 0).fit(data.vectors, data.speakers)
    spaces = {
        "raw": data.trial_vectors,
        "raw_centred": data.trial_vectors - mean,
        "probe": data.trial_vectors @ probe.coef_.T,
        "lda": lda.transform(test),
        "logreg": test @ logreg.coef_.T,
    }
    table = pq.read_table(run.path / "scores.parquet")
    left, right = data.trials.left, data.trials.right
    for name, space in spaces.items():
        unit = space / np.linalg.norm(space, axis=1, keepdims=True)
        expected = (unit[left] * unit[right]).sum(1)
        np.testing.assert_allclose(table[name].to_numpy(), expected, atol=2e-5, err_msg=name)
        assert result["systems"][name]["eer"] == evaluate_scores(table[name].to_numpy(), data.trials.same).eer
    tensors, _ = run.read_tensors("model.safetensors")
    np.testing.assert_allclose(tensors["train_mean"], mean, rtol=1e-5)
    np.testing.assert_array_equal(tensors["weight"], probe.coef_)
    np.testing.assert_array_equal(tensors["bias"], probe.intercept_)
    whole = data.vectors[data.whole]
    assert result["train_accuracy"] == pytest.approx(np.mean(probe.predict(whole) == data.speakers[data.whole]))
    assert (result["num_utterances"], result["num_pieces"], result["piece_s"]) == (12, 48, 2)


def test_what_could_not_be_fitted_is_said(tmp_path, monkeypatch):
    """Every speaker once: no scatter within speakers to go by. Or too few iterations, or a solver that fails."""
    store = make(tmp_path / "s", per_speaker=1)
    trials = write_trials(tmp_path / "t.txt", [f"test{s}/0" for s in range(5)])
    (tmp_path / "t.txt").write_text("1 test0/0 test0/0\n" + trials.read_text())
    data = load_data(Run.create(tmp_path / "run", config(trials), store), store)
    few = replace(data, vectors=data.vectors[data.whole], speakers=data.speakers[data.whole])
    spaces, notes = second_opinions(few)
    assert list(spaces) == ["logreg"] and notes == ["lda: not fitted: every speaker has one vector only"]
    monkeypatch.setattr("trainers.probe._LOGREG_ITERATIONS", 1)
    monkeypatch.setattr(LinearDiscriminantAnalysis, "fit", lambda *_: (_ for _ in ()).throw(ValueError("no")))
    twice = replace(few, vectors=np.repeat(few.vectors, 2, 0), speakers=np.repeat(few.speakers, 2))
    spaces, notes = second_opinions(twice)
    assert list(spaces) == ["logreg"]
    assert notes == ["lda: not fitted: no", "logreg: not converged after 1 iterations"]


def test_the_seed_decides_the_probe(made, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run, _ = fit(tmp_path / name, made[0], made[1], f"seed={seed}", "epochs=1")
        weights.append(run.read_tensors("model.safetensors")[0]["weight"].numpy())
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - weights[2]).max() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set", "epoch=3"], "no setting is called 'epoch'; did you mean epochs"),
        (["--set", "epochs=many"], "epochs must be a whole number, found 'many'"),
        (["--set", "feature=titanet"], "has no feature 'titanet'"),
        ([], "a trial list is needed; add: --set trials=FILE"),
        (["--set", "trials=absent.txt"], "absent.txt: No such file"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(made, tmp_path, settings, message):
    store, _ = made
    out = CliRunner().invoke(app, ["fit", "probe", "--store", str(store.path), "--out", str(tmp_path / "r"), *settings])
    assert out.exit_code == 2
    assert out.stderr.startswith("error: ") and message in out.stderr and out.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_command_prints_json_and_refuses_an_existing_run(made, tmp_path):
    store, trials = made
    arguments = ["fit", "probe", "--store", str(store.path), "--out", str(tmp_path / "r"), "--set", f"trials={trials}"]
    out = CliRunner().invoke(app, [*arguments, "--set", "epochs=2", "--json"])
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["kind"] == "probe"
    again = CliRunner().invoke(app, [*arguments, "--set", "epochs=2"])
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_trials_name_ids_or_ends_of_sources(tmp_path):
    with featstore.writer(tmp_path / "s", spec(dim=2)) as writer:
        for k in range(3):
            writer.add(Utterance(f"u{k}", f"audio/f{k}.wav", 0.0, 0.8, f"r{k}", f"s{k}"), np.ones((10, 2)))
    (tmp_path / "t").write_text("1 f0.wav audio/f1\n0 u2 f0.wav\n")
    trials, ids, speakers = listed(str(tmp_path / "t"), featstore.open(tmp_path / "s"))
    assert [(ids[a], ids[b]) for a, b in zip(trials.left, trials.right, strict=True)] == [("u0", "u1"), ("u2", "u0")]
    assert [id.replace("u", "s") for id in ids] == speakers


def test_command_lists_examples():
    out = CliRunner().invoke(app, ["fit", "--help"])
    assert out.exit_code == 0 and "--set trials=trials.txt" in out.stdout
