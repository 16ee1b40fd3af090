"""`trainers fit proxy`: who is trained on, what is chosen, what is written, resuming, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr
from typer.testing import CliRunner

import featstore
from cli.trainers import app
from evaluation.report import report
from evaluation.trials import read_trials, score_trials
from featstore import Store
from tests.codes import make_store
from tests.sessions import spec
from trainers.config import ConfigError, FitConfig
from trainers.linear_probe import LinearProbe
from trainers.proxy import Proxy
from trainers.proxy.config import ProxyConfig
from trainers.proxy.data import Crops, Voices, load_data
from trainers.proxy.fit import _agreement, _notes, _spaces, _yardsticks, fit_proxy
from trainers.proxy.forms import corrupted, logits_of
from trainers.proxy.loop import State, best_loss
from trainers.runs import Run

SMALL = (
    "channels=16",
    "size=8",
    "steps=12",
    "speakers=4",
    "crop_s=1.6",
    "looks=3",
    "checkpoint_steps=5",
    "pairs=5",
    "climb=3",
)


def write_trials(path: Path, store: Store) -> Path:
    names = [id for id in store.ids if id.startswith("test")]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    path.write_text("".join(f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n" for a, b in pairs))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("proxy")
    store = make_store(folder / "store")
    rng = np.random.default_rng(3)
    with featstore.writer(store.path, spec("titanet", 8)) as writer:
        for id in store.ids:
            writer.add(store.utterance(id), rng.standard_normal((5, 8)))
    return featstore.open(store.path), write_trials(folder / "trials.txt", store)


def config(trials: Path, *settings: str, **overrides: object) -> FitConfig:
    return FitConfig.make("proxy", settings=(f"trials={trials}", *SMALL, *settings), **overrides)


def test_end_to_end(made: tuple[Store, Path], tmp_path: Path) -> None:
    store, trials = made
    run = Run.create(tmp_path / "run", config(trials), store)
    result = fit_proxy(run, store)
    assert json.loads((run.path / "result.json").read_text()) == result
    assert (result["num_utterances"], result["num_speakers"], result["num_dev_speakers"]) == (18, 6, 3)
    assert result["num_trials"] == 66 and result["steps"] == 48
    assert set(result["dev_eer"]) == {"contrastive", "margin", "teacher"}
    assert result["loss"] == min(result["dev_eer"], key=result["dev_eer"].get)
    assert "UNTRAINED" in result["warnings"][0]
    systems = ["raw", "raw_centred", "probe", "proxy", "proxy_soft", "proxy_straight_through", "proxy_doubtful"]
    systems += ["proxy_sharpened", "proxy_corrupted_10", "proxy_corrupted_30", "titanet", "proxy_mixed"]
    assert list(result["systems"]) == systems
    table = pq.read_table(run.path / "scores.parquet")
    assert table.column_names[-len(systems) :] == systems and table.num_rows == 66
    assert set(result["agreement"]) == set(systems) - {"titanet"}
    # What is written is what was scored, and needs nothing but its file.
    proxy = Proxy.load(run.path)
    left, right = (
        torch.from_numpy(np.array(store.frames("mimi-codes", id), np.int64))[None] for id in ("test1/0", "test0/0")
    )
    row = table.column("enrol").to_pylist().index("test1/0")
    other = table.column("test").to_pylist()[row]
    right = torch.from_numpy(np.array(store.frames("mimi-codes", other), np.int64))[None]
    assert float((proxy(left) * proxy(right)).sum()) == pytest.approx(table["proxy"][row].as_py(), abs=1e-5)
    # Codes against logits is neither codes nor logits; a lower temperature takes doubt away.
    scores = {name: table[name].to_numpy() for name in systems}
    assert all(np.abs(scores["proxy_mixed"] - scores[name]).max() > 1e-4 for name in ("proxy", "proxy_soft"))
    doubt, sharp = (np.abs(scores[name] - scores["proxy"]).mean() for name in ("proxy_doubtful", "proxy_sharpened"))
    assert sharp < doubt
    # The published measure thinks most of vectors that mean nothing at all.
    measure = result["published_measure"]
    assert set(measure) == {"raw", "proxy", "random vectors", "titanet"}
    assert measure["random vectors"]["all_separation"] == pytest.approx(1, abs=0.2)
    seen, unseen = [f"train{k}/0" for k in range(6)], ["test0/1", *(f"test{k}/0" for k in (1, 2, 3))]
    firsts = [np.array(store.frames("mimi-codes", id), int) for id in (*seen, *unseen)]
    table_of = store.codebooks("mimi-codes").table
    means = np.stack([sum(table_of[k, codes[:, k]] for k in range(3)).mean(0) for codes in firsts])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    pairs = {(i, j): float(unit[i] @ unit[j]) for i in range(10) for j in range(i)}
    for part, inside in (("seen", lambda i, j: i < 6), ("unseen", lambda i, j: j >= 6), ("all", lambda i, j: True)):
        mean = np.mean([cosine for pair, cosine in pairs.items() if inside(*pair)])
        assert measure["raw"][f"{part}_cosine"] == pytest.approx(mean, abs=1e-5)
        assert measure["raw"][f"{part}_separation"] == pytest.approx(1 - mean, abs=1e-5)
    between = np.mean([cosine for (i, j), cosine in pairs.items() if i >= 6 > j])
    assert measure["raw"]["seen_unseen_cosine"] == pytest.approx(between, abs=1e-5)
    assert measure["raw"]["worst_cosine"] == pytest.approx(max(pairs.values()), abs=1e-5)
    ranks = spearmanr(table["proxy"].to_numpy(), table["titanet"].to_numpy()).statistic
    assert result["agreement"]["proxy"] == pytest.approx(ranks)
    assert result["best_step"] == run.read_tensors(f"candidate-{result['loss']}.safetensors")[1]["step"]
    assert result["dev_eer"] == {
        loss: run.read_tensors(f"candidate-{loss}.safetensors")[1]["dev_eer"] for loss in result["dev_eer"]
    }
    told = result["ascent"]
    assert (
        len({judge["threshold"] for judge in told["judges"].values()}) == 5
    )  # nobody judges itself under another name
    assert told["pairs"] == 5 and len(told["judges"]) == 5 and "proxy of another start, 1" in told["judges"]
    assert all(
        judge[aim]["accepted"] <= judge["pairs"]
        for judge in told["judges"].values()
        for aim in ("target", "wrong", "random")
    )
    assert fit_proxy(run, store)["notes"][-1].startswith("nothing was left to do")
    # On screen, and in the report's row.
    args = ["fit", "proxy", "--store", str(store.path), "--out", str(run.path), "--set", f"trials={trials}", "--resume"]
    shown = CliRunner().invoke(app, [*args, *(arg for setting in SMALL for arg in ("--set", setting))])
    assert shown.exit_code == 0, shown.output
    assert "proxy_straight_through" in shown.output and "judged by linear discriminants" in shown.output
    facts = report([run.path], tmp_path / "report", num_resamples=20)
    row = next(row for row in facts["experiments"] if row["id"] == "5")
    assert row["sound"]["lines"][0]["value"] == result["systems"]["proxy"]["eer"] and row["reference"] is None
    assert facts["failed_checks"] == []
    page = (tmp_path / "report" / "report.html").read_text().replace("\u00a0", " ")
    assert "proxy, 10 % of the codes wrong" in page
    assert "trainers fit proxy --protocol reference" not in page  # there is none
    # What gradients do, with the judge that proves nothing last; the published measure, with vectors that mean nothing.
    (shown_proxy,) = facts["proxies"]
    assert [judge["name"] for judge in shown_proxy["judges"]][-1] == "itself" and len(shown_proxy["judges"]) == 5
    for judge in shown_proxy["judges"]:
        assert judge["target"] == told["judges"][judge["name"]]["target"]["accepted"]
        assert judge["wrong"] == told["judges"][judge["name"]]["wrong"]["accepted"]
    assert "the proxy itself (proves nothing)" in page and "A speaker loss through codes" in page
    nothing = next(line for line in shown_proxy["published"] if line["name"] == "vectors that mean nothing")
    assert nothing["all_separation"] == measure["random vectors"]["all_separation"] and nothing["eer"] == 0.5
    assert f"{nothing['all_separation']:.2f}" in page and "vectors that mean nothing" in page
    assert [line["value"] for line in shown_proxy["agreement"]] == list(result["agreement"].values())
    measures = [finding["measure"] for finding in facts["findings"] if finding["experiment"] == "5"]
    assert measures == ["EER", "EER", "gradient", "published measure"]
    figures = facts["runs"][0]["figures"]
    for form in ("proxy_soft", "proxy_mixed", "proxy_straight_through"):
        gap = figures[form]["against_codes"]["estimate"]
        assert gap == pytest.approx(figures[form]["eer"] - figures["proxy"]["eer"])


def test_what_it_was_not_compared_with_is_said() -> None:
    rising = np.arange(5, dtype=np.float32)
    scores = {"proxy": rising**3, "raw": -rising, "titanet": rising}
    assert _notes(scores) == ["not compared with mimi: the store does not hold it for all of the trials"]
    assert _notes(scores | {"mimi": rising}) == [] and len(_notes({"proxy": rising})) == 2
    assert _agreement(scores) == {"proxy": pytest.approx(1), "raw": pytest.approx(-1)}
    assert _agreement({"proxy": rising}) is None


def test_what_needs_no_network_is_centred_on_voices_that_are_trained_on(made: tuple[Store, Path]) -> None:
    store, trials = made
    made_of = config(trials)
    data, table = load_data(made_of, store), store.codebooks(made_of.feature).table
    found = _spaces(Proxy(torch.from_numpy(table), 16, 8), data, table, 0, torch.device("cpu"))
    raw, known = (
        np.stack([sum(book[own[:, k]] for k, book in enumerate(table)).mean(0) for own in voices.codes])
        for voices in (data.test, data.train)
    )
    np.testing.assert_allclose(found["raw"], raw, atol=1e-4)
    np.testing.assert_allclose(found["raw_centred"], raw - known.mean(0), atol=1e-4)
    assert np.abs(raw.mean(0) - known.mean(0)).max() > 0.01


def test_each_form_of_the_input_by_hand(made: tuple[Store, Path]) -> None:
    """Codes, logits of so much certainty, the likeliest of them, cooler ones, wrong ones: each drawn anew by the seed."""
    store, trials = made
    data, table = load_data(config(trials), store), store.codebooks("mimi-codes").table
    torch.manual_seed(0)
    proxy = Proxy(torch.from_numpy(table), 16, 8)
    found = _spaces(proxy, data, table, 3, torch.device("cpu"))
    assert not proxy.training

    def by_hand(change: object, **how: object) -> np.ndarray:
        generator, rows = torch.Generator().manual_seed(3), []
        for codes in data.test.codes:
            own = torch.from_numpy(codes.astype(np.int64))[None]
            with torch.no_grad():
                rows.append(proxy(own if change is None else change(own, generator), **how)[0].numpy())
        return np.stack(rows)

    def logits(share: float) -> object:
        return lambda own, generator: logits_of(own, 16, share, generator)

    def wrong(rate: float) -> object:
        return lambda own, generator: corrupted(own, 16, rate, generator)

    expected = {
        "proxy": by_hand(None),
        "proxy_soft": by_hand(logits(0.5)),
        "proxy_straight_through": by_hand(logits(0.5), straight_through=True),
        "proxy_doubtful": by_hand(logits(0.2)),
        "proxy_sharpened": by_hand(logits(0.2), temperature=0.5),
        "proxy_corrupted_10": by_hand(wrong(0.1)),
        "proxy_corrupted_30": by_hand(wrong(0.3)),
    }
    for name, vectors in expected.items():
        np.testing.assert_allclose(found[name], vectors, atol=1e-5, err_msg=name)
        assert all(np.abs(vectors - other).max() > 1e-4 for key, other in expected.items() if key != name)
    means = {
        part: np.stack([sum(book[own[:, k]] for k, book in enumerate(table)).mean(0) for own in voices.codes])
        for part, voices in (("test", data.test), ("train", data.train))
    }
    probe = LinearProbe(random_state=3).fit(means["train"], data.train.speakers)
    np.testing.assert_allclose(found["probe"], means["test"] @ probe.coef_.T, rtol=1e-3, atol=1e-3)


def test_other_features_are_compared_with_where_all_trials_have_them(made: tuple[Store, Path], tmp_path: Path) -> None:
    store, trials = made
    data = load_data(config(trials), store)
    (name,) = _yardsticks(store, data)
    assert name == "titanet"
    np.testing.assert_array_equal(_yardsticks(store, data)["titanet"], store.pooled("titanet", data.test.ids))
    assert _yardsticks(store.select(split="test"), data).keys() == {"titanet"}
    other = make_store(tmp_path / "store")
    with featstore.writer(other.path, spec("titanet", 8)) as writer:
        for id in data.test.ids[1:]:
            writer.add(other.utterance(id), np.ones((5, 8)))
    assert _yardsticks(featstore.open(other.path), data) == {}


def test_who_is_trained_on_is_written_and_costs_are_of_all_steps(made: tuple[Store, Path], tmp_path: Path) -> None:
    store, trials = made
    run = Run.create(
        tmp_path / "run", config(trials, "losses=margin", "judges=0", "seed=1", "train_fraction=0.7"), store
    )
    result = fit_proxy(run, store)
    data = load_data(run.config, store)
    tensors, facts = run.read_tensors("model.safetensors")
    assert facts["classes"] == sorted({*data.train.speakers.tolist(), *data.dev.speakers.tolist()})
    assert (result["num_utterances"], result["num_speakers"]) == (13, len(set(data.train.speakers.tolist())))
    assert (result["num_trial_utterances"], result["num_trial_speakers"], result["steps"]) == (12, 4, 12)
    assert result["step_seconds"] == pytest.approx(result["fit_seconds"] / 12, abs=1e-3)
    assert all(torch.equal(v, tensors[k]) for k, v in run.read_tensors("candidate-margin.safetensors")[0].items())
    assert list(result["ascent"]["judges"]) == ["itself", "linear discriminants"] and result["features"] == [
        "mimi-codes"
    ]
    told = {"steps": 3, "lr": 0.2, "sure": 0.9, "heard": 0.6, "strangers": 0.05, "frames": 20, "pairs": 5}
    assert {key: result["ascent"][key] for key in told} == told


def test_a_judge_is_never_the_one_that_is_kept() -> None:
    losses = ProxyConfig(trials="t", losses=("margin", "contrastive"))
    assert best_loss(losses, State(best={"margin": 0.3, "contrastive": 0.2, "judge1": 0.1})) == "contrastive"


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights(made: tuple[Store, Path], tmp_path: Path) -> None:
    store, trials = made
    settings = config(trials, "losses=margin,contrastive")  # and a judge
    whole = Run.create(tmp_path / "whole", settings, store)
    fit_proxy(whole, store)
    for at in (7, 12, 17, 24, 31):  # inside a loss, between two, inside the second, before the judge, inside it

        def kill(state: object, at: int = at) -> None:
            if state.step == at:
                raise Killed

        run = Run.create(tmp_path / "cut", settings, store, resume=True)
        with pytest.raises(Killed):
            fit_proxy(run, store, on_step=kill)
    run = Run.create(tmp_path / "cut", settings, store, resume=True)
    fit_proxy(run, store)
    for name in (
        "model.safetensors",
        "candidate-margin.safetensors",
        "candidate-contrastive.safetensors",
        "candidate-judge1.safetensors",
        "history.csv",
    ):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_it_learns_who_speaks(made: tuple[Store, Path], tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 12, "dev": 6, "test": 6}, utterances=4)
    trials = write_trials(tmp_path / "trials.txt", store)
    settings = config(trials, "losses=contrastive", "steps=60", "channels=32", "speakers=8")
    result = fit_proxy(Run.create(tmp_path / "run", settings, store), store)
    systems = result["systems"]
    assert systems["proxy"]["eer"] < 0.2, systems["proxy"]["eer"]
    assert systems["proxy"]["mean_same"] > systems["proxy"]["mean_different"] + 0.3


def test_without_dev_speakers_every_eighth_is_kept_out(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 17, "test": 3})
    data = load_data(config(write_trials(tmp_path / "t.txt", store), "losses=margin"), store)
    names = sorted(f"train{k}" for k in range(17))
    assert set(data.dev.speakers) == set(names[::8])
    assert set(data.train.speakers) == set(names) - set(names[::8])
    assert "3 of 17 training speakers were kept out" in data.notes[0]


def test_a_trial_speaker_among_the_trained_is_refused(made: tuple[Store, Path], tmp_path: Path) -> None:
    store, _ = made
    (tmp_path / "t.txt").write_text("1 train3/0 train3/1\n0 train3/0 test0/0\n")
    with pytest.raises(ConfigError, match=r"1 speakers of .* are also trained on \(train3\)"):
        load_data(config(tmp_path / "t.txt"), store)
    (tmp_path / "t.txt").write_text("1 dev1/0 dev1/1\n0 dev1/0 test0/0\n")
    with pytest.raises(ConfigError, match=r"1 speakers of .* have split=dev too"):
        load_data(config(tmp_path / "t.txt"), store)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("losses=margin,margin",), "some of contrastive, margin, teacher, each once"),
        (("soft=0.7", "corrupted=0.7"), "are shares of all crops"),
        (("channels=20",), "multiple of 8, found 20"),
        (("protocol=reference",), "no reference protocol"),
        (("feature=titanet", "losses=margin"), "'titanet' is no codes"),
        (("size=6",), "size must be that of the teacher 'titanet', 8; found 6"),
    ],
)
def test_settings_that_cannot_be_are_refused(made: tuple[Store, Path], settings: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_data(config(made[1], *settings), made[0])


def test_codes_are_no_vectors_for_the_others(made: tuple[Store, Path], tmp_path: Path) -> None:
    store, trials = made
    probe = FitConfig.make("probe", settings=(f"trials={trials}", "feature=mimi-codes"))
    with pytest.raises(ConfigError, match="'mimi-codes' holds codes, names of vectors and not vectors"):
        Run.create(tmp_path / "run", probe, store)
    with pytest.raises(ValueError, match="'mimi-codes' holds codes, names of vectors"):
        score_trials(store, "mimi-codes", read_trials(trials))


def test_crops_are_of_two_utterances_or_of_two_halves() -> None:
    codes = [np.full((30, 2), k, np.int16) for k in range(4)]
    codes[3] = np.arange(60, dtype=np.int16).reshape(30, 2)
    voices = Voices([f"u{k}" for k in range(4)], np.array(["a", "a", "b", "c"]), codes)
    crops = Crops(voices, 10, 3)
    for seed in range(20):
        drawn, mask, speakers, owners = crops.draw(np.random.default_rng(seed))
        assert drawn.shape == (6, 10, 2) and mask.all() and sorted(set(speakers.tolist())) == [0, 1, 2]
        for row in (0, 2, 4):
            first, second = owners[row : row + 2]
            assert voices.speakers[first] == voices.speakers[second]
            assert (first != second) == (voices.speakers[first] == "a")
            if first == 3:
                assert drawn[row, -1, 0] < 30 <= drawn[row + 1, 0, 0]


def test_short_utterances_are_padded_and_masked() -> None:
    voices = Voices(["u", "v"], np.array(["a", "b"]), [np.full((4, 2), 7, np.int16)] * 2)
    drawn, mask, _, _ = Crops(voices, 10, 2).draw(np.random.default_rng(0))
    assert (drawn[mask] == 7).all() and mask.sum(1).tolist() == [4] * 4 and (drawn[~mask] == 0).all()
