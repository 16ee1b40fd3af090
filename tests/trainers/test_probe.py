"""`trainers fit probe`: the two protocols, what it writes, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import featstore
from cli.trainers import app
from evaluation.trials import read_trials, score_trials
from featstore import Utterance
from tests.sessions import spec
from trainers.config import ConfigError, FitConfig
from trainers.probe import fit_probe, load_data
from trainers.runs import Run

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


def test_pooled_features_are_concatenated(made, tmp_path):
    store, trials = made
    data = load_data(Run.create(tmp_path / "r", config(trials), store), store)
    np.testing.assert_array_equal(data.trial_vectors, store.pooled("mimi", data.ids))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set", "epoch=3"], "no setting is called 'epoch'; did you mean epochs"),
        (["--set", "epochs=many"], "epochs must be a whole number, found 'many'"),
        (["--set", "feature=titanet"], "has no feature 'titanet'"),
        ([], "the probe needs a trial list; add: --set trials=FILE"),
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


def test_command_lists_examples():
    out = CliRunner().invoke(app, ["fit", "--help"])
    assert out.exit_code == 0 and "--set trials=trials.txt" in out.stdout
