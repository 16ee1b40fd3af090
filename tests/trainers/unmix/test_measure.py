"""What the set predictor and its rivals are measured with, each by hand: what dev chooses, counts, rates, recordings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.unmixing import Enrolment, f1, followed, identify
from featstore import Store
from tests.mixtures import DIM, SIZE, make_store
from tests.trainers.unmix.test_fit import config
from trainers.config import FitConfig
from trainers.progress import Unseen
from trainers.runs import Run
from trainers.schedule import share_of_rate
from trainers.unmix import loop, talks
from trainers.unmix.data import Mixture, batch_of, load_data, targets_of, towards
from trainers.unmix.fit import _only, fit_unmix
from trainers.unmix.loop import Training, make_network, predict, surest
from trainers.unmix.losses import set_loss
from trainers.unmix.measure import Heard, Sets, by_cardinality, existence_for, existing, figures, systems, total
from trainers.unmix.rivals import Grouping, constant_set, unit
from trainers.unmix.talks import Talk, remembered, talk_of, try_memory

CPU = torch.device("cpu")


def units(*degrees: float) -> NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def mixture(id: str, **degrees: float) -> Mixture:
    """Of voices at these angles, each saying words of its own in it."""
    return Mixture(
        id, np.zeros((4, 1), np.float16), units(*degrees.values()), tuple(degrees), tuple(f"{id}-{n}" for n in degrees)
    )


def test_each_default_is_the_one_that_was_measured() -> None:
    assert FitConfig.make("unmix").to_json() == {
        **{"kind": "unmix", "protocol": "sound", "experiment": "", "seed": 0, "train_fraction": 1.0, "device": "auto"},
        **{
            "feature": "mimi",
            "teacher": "titanet",
            "slots": 4,
            "width": 128,
            "layers": 3,
            "heads": 4,
            "conv_frames": 5,
        },
        **{"dropout": 0.1, "input_dropout": 0.2, "steps": 4000, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01},
        **{"windows": False, "windows_of": "", "correction": True},
        **{"existence": 1.0, "apart": 1.0, "apart_margin": 0.3, "contrast": 0.5, "scale": 10.0, "looks": 20},
        **{"chunk_s": 3.5, "memory_thresholds": tuple(k / 10 for k in range(1, 9)), "checkpoint_steps": 200},
    }
    small = FitConfig.make("unmix", preset="small")
    assert (small.width, small.layers, small.windows, small.steps, small.looks) == (96, 2, True, 1500, 10)


# ---- training


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("unmix") / "store")


def test_steps_by_hand(store: Store, tmp_path: Path) -> None:
    """Every weight of the loss, decay of matrices only (not of the queries), the rate of its place; dropout by the seed."""
    made = config(
        *("seed=3", "lr=0.01", "weight_decay=0.5", "existence=0.7", "apart=1.3", "apart_margin=0.1", "contrast=0.9"),
        *("scale=4", "dropout=0", "input_dropout=0", "batch_size=5"),
    )
    data, run = load_data(made, store), Run.create(tmp_path / "run", made, store)
    ours = Training(run, data, make_network(made, DIM, SIZE), CPU, Unseen())
    network = make_network(made, DIM, SIZE)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), ours.network.parameters(), strict=True))
    matrices = [p for name, p in network.named_parameters() if p.ndim > 1 and name != "queries"]
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or name == "queries"]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}], lr=1.0
    )
    names = sorted({s for m in data.train for s in m.speakers})
    for step in range(4):
        batch = []
        for k in range(5 * step, 5 * step + 5):
            order = np.random.default_rng([3, 4, k // 12]).permutation(12)
            batch.append(data.train[order[k % 12]])
        frames, mask = batch_of(batch)
        voices, speakers = targets_of(batch, {name: k for k, name in enumerate(names)})
        embeddings, logits = network.train()(frames, mask)
        weights = {"existence": 0.7, "apart": 1.3, "apart_margin": 0.1, "contrast": 0.9, "scale": 4.0}
        value = set_loss(embeddings, logits, voices, speakers, **weights)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * share_of_rate(step, 12)
        optimizer.step()
        assert float(ours._step()) == pytest.approx(float(value.detach()), rel=1e-4)
        ours.state.step += 1
    for (name, a), b in zip(network.named_parameters(), ours.network.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_dropout_is_as_set_and_another_step_draws_another(store: Store, tmp_path: Path) -> None:
    network = make_network(config("dropout=0.25", "input_dropout=0.4", "slots=2", "conv_frames=3"), DIM, SIZE)
    rates = {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25} and network.channel_dropout.p == 0.4
    assert network.queries.shape == (2, 16) and network.front.kernel_size == (3,)
    starts = [make_network(config(f"seed={seed}"), DIM, SIZE).queries for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_dev_keeps_the_sets_that_lie_nearest(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the surest slots, as many as there are voices; by mixture the mean cosine of the best pairing, then of mixtures."""
    made = config()
    data, run = load_data(made, store), Run.create(tmp_path / "run", made, store)
    run.begin()
    ours = Training(run, data, make_network(made, DIM, SIZE), CPU, Unseen())
    kept, wanted = [], []
    for step, right in ((3, 0.2), (6, 0.7), (9, 0.5), (12, 0.7)):

        def told(network: object, frames: list, device: object, right: float = right) -> tuple[list, list]:
            sets, sure = [], []
            for k, m in enumerate(data.dev):
                good = k < right * len(data.dev)
                far = np.zeros_like(m.voices[:1])
                own = list(m.voices[::-1]) if good else [far[0]] * len(m.voices)
                sets.append(np.stack([far[0], *own]))  # the first slot is surest to be empty
                sure.append(np.array([0.01, *[0.9] * len(own)], np.float32))
            return sets, sure

        monkeypatch.setattr(loop, "predict", told)
        ours.state.step, ours.state.loss_sum, ours.state.summed = step, 3.0, 2
        ours._look()
        kept.append(run.read_tensors("model.safetensors")[1])
        wanted.append(np.ceil(right * 12 - 1e-9) / 12)
    assert [facts["step"] for facts in kept] == [3, 6, 6, 6] and kept[-1]["dev_cosine"] == pytest.approx(wanted[1])
    assert (ours.state.best, ours.state.best_step) == (pytest.approx(wanted[1]), 6)
    assert [(row["step"], row["train_loss"]) for row in ours.state.history] == [(n, 1.5) for n in (3, 6, 9, 12)]
    assert [row["dev_cosine"] for row in ours.state.history] == pytest.approx(wanted)
    assert kept[0]["classes"] == sorted({s for m in data.train for s in m.speakers}) and ours.state.loss_sum == 0


def test_a_network_answers_alike_alone_and_among_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(config("dropout=0.5"), DIM, SIZE)
    frames = [np.random.default_rng(k).standard_normal((5 + k, DIM)).astype(np.float16) for k in range(5)]
    monkeypatch.setattr(loop, "_MOST_AT_ONCE", 2)
    sets, sure = predict(network, frames, CPU)
    for own, existence, one in zip(sets, sure, frames, strict=True):
        with torch.no_grad():
            found, logits = network(torch.from_numpy(one)[None], torch.ones(1, len(one), dtype=torch.bool))
        np.testing.assert_allclose(own, found[0], atol=1e-5)
        np.testing.assert_allclose(existence, 1 / (1 + np.exp(-logits[0].numpy())), atol=1e-5)


# ---- what is chosen and measured


def test_slots_that_exist_the_surest_first() -> None:
    sets, sure = units(0, 10, 20, 30), np.array([0.3, 0.9, 0.5, 0.5], np.float32)
    np.testing.assert_array_equal(surest(sets, sure, 2), sets[[1, 2]])
    np.testing.assert_array_equal(existing(sets, sure, 0.5), sets[[1, 2, 3]])
    np.testing.assert_array_equal(existing(sets, sure, 0.95), sets[[1]])


MIXTURES = [mixture("m0", a=0, b=90), mixture("m1", a=5), mixture("m2", b=95, c=180, a=2), mixture("m3", c=185)]


def heard(windows: bool = True) -> Heard:
    """Slots in the wrong order: those of voices are at 0.6 and 0.5, one that holds none is at 0.45 or 0.2."""
    sets = [np.concatenate([units(300), m.voices[::-1]]) for m in MIXTURES]
    sure = [
        np.array([0.45 if k % 2 else 0.2, *[0.6, 0.5, 0.55][: len(m.voices)]], np.float32)
        for k, m in enumerate(MIXTURES)
    ]
    shown = [np.repeat(m.voices, 3, 0) for m in MIXTURES] if windows else None
    return Heard(MIXTURES, sets, sure, shown)


def test_dev_chooses_the_threshold_that_counts_most_mixtures_right() -> None:
    """From 0.5 on voices themselves are lost, under it the empty slots of m1 and m3 count: 0.5 is the first that is right."""
    assert existence_for(heard()) == 0.5
    few = Heard(MIXTURES[:1], heard().sets[:1], [np.array([0.2, 0.34, 0.31], np.float32)], None)
    assert existence_for(few) == 0.25


def test_every_system_told_how_many_there_are_and_left_alone() -> None:
    made = systems(heard(), [mixture("t0", x=40, y=220, z=130), mixture("t1", x=40)], 0.55, Grouping(0.2, 0.05), 3, 0)
    assert list(made) == ["unmix", "windows", "mean", "constant", "tracks"]
    for k, m in enumerate(MIXTURES):
        count = len(m.voices)
        for name in ("unmix", "windows", "tracks"):
            cosines = made[name].told[k] @ m.voices.T
            assert made[name].told[k].shape == (count, 2) and cosines.max(0) == pytest.approx(np.ones(count), abs=1e-5)
        np.testing.assert_allclose(made["mean"].told[k], np.repeat(unit(m.voices.mean(0))[None], count, 0), atol=1e-5)
        np.testing.assert_allclose(made["mean"].own[k], made["mean"].told[k][:1])
        np.testing.assert_allclose(made["constant"].told[k][0], units(40)[0], atol=1e-5)
        assert len(made["constant"].told[k]) == count and len(made["windows"].own[k]) == count
    assert [len(own) for own in made["unmix"].own] == [1, 1, 2, 1]  # at 0.55 the slots at 0.5 are gone
    assert made["constant"].own is None and made["tracks"].own is None
    assert list(systems(heard(windows=False), MIXTURES, 0.5, None, 3, 0)) == ["unmix", "constant", "tracks"]


def test_figures_are_of_all_voices_and_of_the_mixtures() -> None:
    wrong = [units(0, 90), units(5), units(180, 95, 270), units(95)]
    made = {"x": Sets(wrong, [units(0), units(5), units(2, 95, 180), units(0, 1)]), "y": Sets(wrong, None)}
    told = figures(MIXTURES, made, 0)
    # of seven voices: both of m0, that of m1, b and c of m2, not a (0 by 270°, that is cos 92°), c by b (cos 90°)
    cosines = [1, 1, 1, 1, 1, np.cos(np.radians(92)), 0]
    assert told["x"]["cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    said, speakers = [m.utterances for m in MIXTURES], [m.speakers for m in MIXTURES]
    enrolment = Enrolment([m.voices for m in MIXTURES], speakers, said)
    assert told["x"]["identified"] == identify(wrong, speakers, said, enrolment)
    assert told["x"]["own"] == identify(made["x"].own, speakers, said, enrolment) != told["x"]["identified"]
    # counted right: m1 and m2; a is in three mixtures of 2, 1 and 3
    assert told["x"]["counting"]["a"] == {
        "mixtures": pytest.approx(1 / 2 + 1 + 1 / 3),
        "right": pytest.approx(1 + 1 / 3),
    }
    assert told["y"]["own"] is told["y"]["counting"] is None
    sums = told["x"]["identified"]
    assert total(sums, "hits", "voices") == sum(s["hits"] for s in sums.values()) / sum(
        s["voices"] for s in sums.values()
    )
    assert total({"a": {"hits": 0, "voices": 0}}, "hits", "voices") == 0
    rows = by_cardinality(MIXTURES, made, lambda n: n < 3)
    assert [(r["voices"], r["mixtures"], r["trained"]) for r in rows] == [(1, 2, True), (2, 1, True), (3, 1, False)]
    assert [r["systems"]["x"]["counted"] for r in rows] == [0.5, 0, 1] and rows[0]["systems"]["y"]["counted"] is None
    assert [r["systems"]["x"]["cosine"] for r in rows] == pytest.approx([0.5, 1, np.mean(cosines[3:6])], abs=1e-5)
    # m1: a is near to a's other words; m3: b's words are nearest to what was given for c
    assert [r["systems"]["x"]["identified"] for r in rows] == pytest.approx([0.5, 1, 2 / 3])


def test_only_mixtures_of_as_many_voices_as_were_trained_on_are_chosen_by() -> None:
    kept = Heard(*_only(heard(), {1, 3}))
    assert [m.id for m in kept.mixtures] == ["m1", "m2", "m3"] and kept.counts == [1, 3, 1]
    for name in ("sets", "existence", "windows"):
        assert [len(own) for own in getattr(kept, name)] == [len(getattr(heard(), name)[k]) for k in (1, 2, 3)]
    assert _only(heard(windows=False), {1})[3] is None
    part = Sets(["a", "b", "c"], None).of([1, 2, 1], {1})
    assert part.told == ["a", "c"] and part.own is None and Sets([1, 2], [3, 4]).of([1, 2], {2}).own == [4]


# ---- recordings


def test_windows_of_a_recording_are_those_of_its_chunks(store: Store) -> None:
    """The teacher's frames from the centre, grouped within a chunk; the mean of each; nothing heard twice."""
    made, network = config("slots=2"), make_network(config("slots=2"), DIM, SIZE)
    network.centre.copy_(torch.arange(SIZE) / 10)
    id, turns = "talk-test-0", store.utterance("talk-test-0").turns
    how = Grouping(0.3, 0.05)
    talk = talk_of(store, id, turns, network, made, 0.0, how, CPU)
    frames = store.frames("titanet", id).astype(np.float32)
    assert len(talk.truth) == 8 and [len(of) for of in talk.truth] == [1, 2] * 4
    for k in range(8):
        chunk = towards(frames[20 * k : 20 * k + 20], np.arange(SIZE, dtype=np.float32) / 10)
        np.testing.assert_allclose(talk.voices["windows"][k], how(chunk, 2), atol=1e-5)
        np.testing.assert_allclose(talk.voices["mean"][k], unit(chunk.mean(0))[None], atol=1e-5)
        sets, sure = predict(network, [store.frames("mimi", id)[20 * k : 20 * k + 20]], CPU)
        np.testing.assert_allclose(talk.voices["unmix"][k], surest(sets[0], sure[0], 2), atol=1e-4)
    assert list(talk_of(store, id, turns, network, made, 0.0, None, CPU).voices) == ["unmix"]
    np.testing.assert_array_equal(talks._once(units(0, 0, 30, 30, 0)), units(0, 30, 0))


def a_talk(*degrees: tuple[float, ...], truth: str = "") -> Talk:
    """Voices of each chunk; who really speaks there."""
    return Talk([frozenset(names) for names in truth.split()], {"unmix": [units(*of) for of in degrees]})


def test_dev_chooses_the_memory_and_test_is_only_heard() -> None:
    """On dev one voice wanders by 30°, cos 0.87, so 0.8 follows it and 0.95 does not; on test 0.95 would be right."""
    dev = {"d": a_talk((0, 90), (30, 120), (0, 90), (30, 120), truth="ab ab ab ab")}
    test = {"t": a_talk((0, 25), (0, 25), (0, 25), truth="ab ab ab"), "u": a_talk((0,), (0,), (90,), truth="a a b")}
    told = try_memory(dev, test, (0.95, 0.8), 3)
    assert list(told) == ["unmix", "constant"]
    own = told["unmix"]
    assert (own["threshold"], own["confirm"], own["dev_f1"]) == (0.8, 1, 1.0) and list(own["recordings"]) == ["t", "u"]
    assert own["recordings"] == {id: remembered(talk, "unmix", 0.8, 1) for id, talk in test.items()}
    assert own["recordings"]["u"]["hits"] == 3 and own["recordings"]["u"]["numbers"] == 2
    # Always two: all of dev's right; of u's six numbers three are.
    always = told["constant"]
    assert (always["always"], always["dev_f1"]) == (2, 1.0)
    assert always["recordings"]["u"] == followed(test["u"].truth, [[0, 1]] * 3)
    assert f1(always["recordings"]["u"]) == pytest.approx(2 * 3 / (3 + 6))


def test_a_voice_that_comes_once_is_no_number_where_dev_says_so() -> None:
    """A wrong voice in each chunk, another every time: who must be heard twice is followed without them."""
    dev = {"d": a_talk((0, 90), (0, 150), (0, 200), (0, 270), (0, 310), truth="a a a a a")}
    told = try_memory(dev, dev, (0.9,), 2)["unmix"]
    assert told["confirm"] == 2 and told["recordings"]["d"]["numbers"] == 1
    assert told["recordings"]["d"] == remembered(dev["d"], "unmix", 0.9, 2)
    assert told["recordings"]["d"]["given"] == 4


# ---- a run


def test_a_result_follows_from_its_files(store: Store, tmp_path: Path) -> None:
    """Thresholds from dev, figures of test by the best weights: taken again from the run's folder and the store."""
    made = config("seed=2", "steps=16", "looks=8", "lr=0.02", "train_fraction=0.8")
    run = Run.create(tmp_path / "run", made, store)
    result = fit_unmix(run, store)
    data, (tensors, facts) = load_data(made, store), run.read_tensors("model.safetensors")
    rows = list(csv.DictReader((run.path / "history.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: float(row["dev_cosine"]))
    assert (result["best_step"], facts["step"]) == (int(best["step"]), int(best["step"]))
    assert result["dev_cosine"] == pytest.approx(float(best["dev_cosine"])) and len(rows) == 8
    network = make_network(made, DIM, SIZE)
    network.load_state_dict(tensors)
    np.testing.assert_allclose(network.centre, data.centre)
    frames = np.concatenate([m.frames for m in data.train]).astype(np.float64)
    np.testing.assert_allclose(network.scale.mean, frames.mean(0), atol=1e-2)
    np.testing.assert_allclose(network.scale.size, np.sqrt(frames.var(0).mean()), rtol=1e-2)
    dev, test = (Heard.of(of, network, store, "titanet", CPU) for of in (data.dev, data.test))
    threshold = existence_for(dev)
    windows = result["decoding"]["windows"]
    made_of = (threshold, Grouping(windows["threshold"], windows["share"]), 3, 2)
    assert result["decoding"]["existence"] == threshold
    on_test, on_dev = (figures(h.mixtures, systems(h, data.train, *made_of), 2) for h in (test, dev))
    assert result["sets"] == on_test
    for name, told in on_dev.items():
        assert result["dev"][name] == {
            "identified": total(told["identified"], "hits", "voices"), "cosine": told["cosine"],
            "counted": total(told["counting"], "right", "mixtures") if told["counting"] else None,
        }  # fmt: skip
    assert result["names_found"] == total(on_test["unmix"]["identified"], "hits", "voices")
    assert (result["num_mixtures"], result["num_test_mixtures"], result["num_test_speakers"]) == (10, 12, 4)
    assert (result["inputs"], result["teacher"], result["steps"]) == (["mimi"], "titanet", 16)
    assert result["step_seconds"] == pytest.approx(result["fit_seconds"] / 16, abs=1e-3)
    talks_of = {
        split: {
            id: talk_of(store, id, turns, network, made, threshold, made_of[1], CPU)
            for id, turns in data.recordings[split].items()
        }
        for split in ("dev", "test")
    }
    assert result["memory"] == try_memory(talks_of["dev"], talks_of["test"], made.memory_thresholds, 3)
    assert constant_set([m.voices for m in data.train], 3, 2).shape == (3, SIZE)
