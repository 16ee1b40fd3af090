"""What a proxy is trained and judged with, by hand: defaults, pieces, pairs, steps, what dev keeps."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.verification import det_curve
from featstore import Store
from tests.codes import make_store
from tests.trainers.proxy.test_fit import config, made, write_trials  # noqa: F401  # a fixture
from trainers.config import FitConfig
from trainers.progress import Unseen
from trainers.proxy import ascent, loop
from trainers.proxy.ascent import linear_judge
from trainers.proxy.data import Voices, load_data
from trainers.proxy.fit import _first_of_each
from trainers.proxy.forms import logits_of, mixed
from trainers.proxy.loop import Training, all_pairs, embed
from trainers.proxy.losses import contrastive, to_teacher
from trainers.runs import Run
from trainers.schedule import share_of_rate

CPU = torch.device("cpu")


def test_each_default_is_the_one_that_was_measured() -> None:
    assert FitConfig.make("proxy").to_json() == {
        **{"kind": "proxy", "protocol": "sound", "experiment": "", "seed": 0, "train_fraction": 1.0, "device": "auto"},
        **{"feature": "mimi-codes", "teacher": "titanet", "trials": "", "channels": 512, "size": 192},
        **{"losses": ("contrastive", "margin", "teacher"), "steps": 2000, "speakers": 32, "crop_s": 3.0, "lr": 1e-3},
        **{"weight_decay": 1e-5, "negatives": 5.0, "cosine_margin": 0.0, "angle": 0.2, "scale": 30.0},
        **{"soft": 0.4, "corrupted": 0.25, "looks": 10, "checkpoint_steps": 200},
        **{"judges": 1, "pairs": 40, "climb": 80},
    }
    assert (ascent.RATE, ascent.SURE, ascent.HEARD, ascent.STRANGERS, loop.SOFT_SHARE) == (0.2, 0.9, 0.6, 0.05, 0.5)


def voices(*owners: str, frames: int = 4) -> Voices:
    """Utterance k of speaker `owners[k]` is code k throughout."""
    codes = [np.full((frames, 2), k, np.int16) for k in range(len(owners))]
    return Voices([f"u{k}" for k in range(len(owners))], np.array(owners), codes)


def test_pieces_by_hand() -> None:
    long = Voices(
        ["u", "v"], np.array(["a", "b"]), [np.arange(58, dtype=np.int16).reshape(29, 2), np.zeros((3, 2), np.int16)]
    )
    found = long.pieces(5)
    assert found.ids == ["u"] * 4 + ["v"] and found.speakers.tolist() == ["a"] * 4 + ["b"]
    assert [len(own) for own in found.codes] == [5, 5, 5, 5, 3]
    assert [int(own[0, 0]) for own in found.codes] == [0, 10, 20, 30, 0]
    assert [len(own) for own in long.pieces(15).codes] == [15, 3]


def test_pairs_are_of_two_utterances_unless_speakers_have_but_one() -> None:
    left, right, same = all_pairs(voices("a", "a", "b").pieces(2))
    ids = [0, 0, 1, 1, 2, 2]
    assert {(ids[i], ids[j]) for i, j in zip(left, right, strict=True)} == {(0, 1), (0, 2), (1, 2)}
    assert len(left) == 12 and int(same.sum()) == 4
    left, right, same = all_pairs(voices("a", "b").pieces(2))
    assert len(left) == 6 and int(same.sum()) == 2  # pieces of one utterance are all there is


def test_the_learning_rate_by_hand() -> None:
    rates = [share_of_rate(step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[11] == pytest.approx(0.5) and rates[19] < 0.02
    assert rates[2:] == sorted(rates[2:], reverse=True) and share_of_rate(0, 1) == 1.0


@pytest.fixture
def training(made: tuple[Store, Path], tmp_path: Path) -> Training:  # noqa: F811
    """At its beginning, with the first of three losses."""
    store, trials = made
    settings = config(trials, "soft=0.5", "corrupted=0.3", "cosine_margin=0.1", "negatives=3", "lr=0.01")
    run = Run.create(tmp_path / "run", settings, store)
    data = load_data(settings, store)
    run.begin()
    table = torch.from_numpy(store.codebooks("mimi-codes").table)
    return Training(run, data, table, store.pooled("titanet", data.train.ids), 20, CPU, Unseen())


@pytest.mark.parametrize("loss", ["contrastive", "margin", "teacher"])
def test_a_step_by_hand(training: Training, loss: str, made: tuple[Store, Path]) -> None:  # noqa: F811
    """Seed and step draw the crops; each loss has its settings, its own start, and the rate of its place."""
    number = ("contrastive", "margin", "teacher").index(loss)
    training.state.step = step = 12 * number + 5
    training._begin(number)
    proxy, head = copy.deepcopy(training.proxy), copy.deepcopy(training.head)
    rng = np.random.default_rng([0, step])
    codes, mask, speakers, owners = training.crops.draw(rng)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    embeddings = proxy.train().embed(mixed(proxy, codes, 0.5, 0.3, generator), mask)
    if loss == "contrastive":
        expected = contrastive(embeddings, speakers, 3.0, 0.1)
    elif loss == "margin":
        assert head.directions.shape == (6, 8) and (head.angle, head.scale) == (0.2, 30.0)
        expected = head(embeddings, speakers)
    else:
        store = made[0]
        ids = [training.crops.voices.ids[owner] for owner in owners]
        expected = to_teacher(embeddings, torch.from_numpy(store.pooled("titanet", ids)))
    value = training._step()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * share_of_rate(5, 12))
    assert training.optimizer.param_groups[0]["weight_decay"] == 1e-5
    changed = {n for n, p in training.proxy.named_parameters() if not torch.equal(p, dict(proxy.named_parameters())[n])}
    assert len(changed) > 20


def test_each_loss_begins_elsewhere_and_each_seed_too(training: Training) -> None:
    starts = []
    training.state.best["contrastive"] = 0.1  # so that the judge, the fourth, is of this loss
    for number in (0, 3, 0):
        training._begin(number)
        starts.append(training.proxy.front[0].weight.detach().clone())
    assert torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[1])


def test_dev_keeps_the_best_of_codes_and_logits(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(0.4, 0.2), (0.1, 0.6), (0.3, 0.1), (0.2, 0.2)])
    monkeypatch.setattr(loop, "dev_eers", lambda *_: next(looks))
    kept = []
    for inside, total in ((4, 8.0), (8, 4.0), (12, 2.0)):
        training.state.loss_sum, training.state.summed, training.state.step = total, 4, inside
        training._look()
        kept.append(training.run.read_tensors("candidate-contrastive.safetensors")[1]["step"])
    assert kept == [4, 4, 12] and training.state.best == {"contrastive": pytest.approx(0.2)}
    training.state.loss_sum, training.state.summed, training.state.step = 1.0, 4, 16
    training._begin(1)
    training._look()
    assert [row["train_loss"] for row in training.state.history] == [2.0, 1.0, 0.5, 0.25]
    assert [(row["number"], row["dev_eer"], row["dev_eer_soft"]) for row in training.state.history] == [
        *((0, 0.4, 0.2), (0, 0.1, 0.6), (0, 0.3, 0.1), (1, 0.2, 0.2)),
    ]


def test_dev_eers_by_hand(training: Training) -> None:
    hard, soft = loop.dev_eers(training.proxy, training.dev, 0, CPU)
    left, right, same = all_pairs(training.dev)
    vectors = embed(training.proxy, training.dev.codes, CPU)
    assert hard == det_curve((vectors[left] * vectors[right]).sum(1), same).eer[0]
    generator = torch.Generator().manual_seed(0)
    logits = embed(training.proxy, training.dev.codes, CPU, lambda own: logits_of(own, 16, 0.5, generator))
    assert soft == det_curve((logits[left] * logits[right]).sum(1), same).eer[0] and 0 < soft < 1 and soft != hard
    assert loop.dev_eers(training.proxy, training.dev, 0, CPU) == (hard, soft)


# ---- judges


def test_the_published_measure_is_of_one_utterance_of_ten_speakers() -> None:
    found = _first_of_each(voices(*(f"s{k // 2:02d}" for k in range(30))))
    assert found.ids == [f"u{2 * k}" for k in range(10)] and found.codes[3][0, 0] == 6


def test_linear_discriminants_know_speakers_by_their_codes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 6, "dev": 2, "test": 3}, utterances=4)
    trials = write_trials(tmp_path / "t.txt", store)
    data = load_data(config(trials, "losses=margin"), store)
    judge = linear_judge(data.train, store.codebooks("mimi-codes").table)
    found = judge(data.train.codes)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    cosine, same = found @ found.T, data.train.speakers[:, None] == data.train.speakers[None]
    assert cosine[same].min() > 0.1 + cosine[~same].max()
