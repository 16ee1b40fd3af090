"""A head on whole recordings: windows in, one voice throughout out, chosen on dev."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import featstore
from featstore import MIMI_GRID
from tests.sessions import make_store, spec
from trainers.cascade.inputs import read
from trainers.cascade.measuring import Truth
from trainers.config import FitConfig
from trainers.diarization import whole
from trainers.diarization.fit import fit_diarizer
from trainers.diarization.sessions import load_sessions
from trainers.diarization.whole import Stitching, WholeHead, activities, load_head, measure_whole, stitching_of
from trainers.runs import Run
from trainers.scale import OneScale

POOL, DIM = 6, 16
SETTINGS = ("crop_s=6.4", "speakers=3", "thresholds=0.3,0.5", "medians=1,3", "device=cpu")


class Arrivals(nn.Module):
    """Knows who is active, and gives channels out anew in each window: by arrival in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = OneScale(DIM)

    def forward(self, features, mask=None):
        active = features[:, :, :POOL] > 0.5
        logits = torch.full((*active.shape[:2], 3), -4.0)
        for row, window in enumerate(active):
            here = [k for k in range(POOL) if window[:, k].sum() > 2]
            for channel, k in enumerate(sorted(here, key=lambda k: int(window[:, k].int().argmax()))[:3]):
                logits[row, window[:, k], channel] = 4.0
        return logits


def sessions(path, test_noise: float = 0.1):
    store = featstore.open(make_store(path, {"train": 1, "dev": 3, "test": 3}, seconds=40.0, dim=DIM, pool=POOL, noise=test_noise))  # fmt: skip
    config = FitConfig.make("adapter", settings=SETTINGS)
    return store, config, load_sessions(store, config)


def test_channels_that_change_become_voices_that_last(tmp_path):
    store, config, found = sessions(tmp_path / "store")
    head = WholeHead(Arrivals(), config, MIMI_GRID, {"mimi": DIM}, torch.device("cpu"))
    figures = measure_whole(head, store, found.dev, found.test)
    assert figures["whole"]["der"] < 0.06
    assert figures["whole"]["confusion"] < 0.01
    assert set(figures["whole"]) >= {"der", "missed_detection", "false_alarm", "confusion", "total_s"}
    # once more by hand, with what was chosen
    best = Stitching(**{k: v for k, v in figures["stitching"].items() if k not in ("dev_der", "overlaps")})
    turns = [head.turns(head.active(head.hear(_reads(store, s), s.num_frames, "mimi"), best)[0]) for s in found.test]
    truth = Truth(found.test, MIMI_GRID)
    errors = truth.score(turns)
    assert figures["whole"] == truth.total(turns).to_json() | {
        "recordings": {n: e.to_json() for n, e in errors.items()}
    }
    chosen, told = whole.choose(head, store, found.dev)
    assert chosen == best and (figures["stitching"]["dev_der"], figures["stitching"]["overlaps"]) == (told["der"], 2)
    # what was chosen is of dev alone
    again = measure_whole(head, store, found.dev, found.dev)
    assert again["stitching"] == figures["stitching"]
    assert figures["stitching"]["who"] == "mimi"


def test_the_end_of_a_recording_is_heard_as_its_middle_is(tmp_path):
    _, config, _ = sessions(tmp_path / "store")
    head = WholeHead(Arrivals(), config, MIMI_GRID, {"mimi": DIM}, torch.device("cpu"))
    rng = np.random.default_rng(0)
    frames = (np.eye(DIM)[np.repeat(rng.integers(0, 3, 30), 12)] + 0.05 * rng.standard_normal((360, DIM))).astype(
        np.float32
    )
    for length in (360, 357, 81, 80, 30, 3):
        heard = head.hear(lambda names, start, stop, n=length: frames[start : min(stop, n)], length, "mimi")
        active, activity, _ = head.active(heard, Stitching("mimi", 0.5, 0.0, 0.5, 1))
        assert active.shape[0] == activity.shape[0] == length
        if length > 12:
            assert active.any(1).mean() > 0.97


def test_the_feature_that_says_who_has_its_own_columns_on_its_own_scale():
    """Of two features side by side the second says who, once its mean is taken off; or both, if neither alone is asked."""
    config = FitConfig.make("fusion", settings=("feature=a+b", *SETTINGS))
    head = WholeHead(Arrivals(), config, MIMI_GRID, {"a": POOL, "b": DIM - POOL}, torch.device("cpu"))
    head.model.scale.mean[POOL:] = 5.0
    head.model.scale.size[:] = 2.0
    frames = np.full((160, DIM), 5.0, np.float32)
    frames[:, :POOL] = 0
    frames[:80, 0] = frames[80:, 1] = 1
    frames[:80, POOL] += 4
    frames[80:, POOL + 1] += 4
    asked = []

    def read(names, start, stop):
        asked.append((tuple(names), stop - start))
        return frames[start:stop]

    by = head.hear_by(read, 160, ("a", "b", "a+b"))
    assert set(asked) == {(("a", "b"), 80)} and len(asked) == 3  # windows of 80 frames, each half over the next
    assert [by[who].vectors.shape[2] for who in by] == [POOL, DIM - POOL, DIM]
    np.testing.assert_allclose(by["b"].vectors[0, 0], np.eye(DIM - POOL)[0], atol=1e-6)
    np.testing.assert_allclose(by["b"].vectors[2, 0], np.eye(DIM - POOL)[1], atol=1e-6)
    assert by["b"].alone[[0, 2], 0].tolist() == [80, 80] and by["b"].alone[1].tolist() == [40, 40, 0]
    assert by["b"].starts.tolist() == [0, 40, 80]
    assert head.hear(read, 160, "b").vectors.tolist() == by["b"].vectors.tolist()
    # 160 frames in pieces of 8, three of each stretch's ends left out
    assert set(by["b"].pieces.weights.tolist()) <= {8.0, 9.0} and by["b"].pieces.weights.sum() == 160 - 6


def test_who_and_where_clusters_end_is_what_dev_says(tmp_path):
    """A feature of noise beside one that knows: it is the latter that says who, on dev and so on test."""
    store, _, found = sessions(tmp_path / "store")
    rng = np.random.default_rng(0)
    with featstore.writer(tmp_path / "store", spec("noise", 4)) as out:
        for id in store.ids:
            out.add(store.utterance(id), rng.standard_normal((store.num_frames("mimi", id), 4)))
    store = featstore.open(tmp_path / "store")
    config = FitConfig.make("fusion", settings=("feature=mimi+noise", *SETTINGS))

    class Both(Arrivals):
        def __init__(self) -> None:
            super().__init__()
            self.scale = OneScale(DIM + 4)

    head = WholeHead(Both(), config, MIMI_GRID, {"mimi": DIM, "noise": 4}, torch.device("cpu"))
    best, figures = whole.choose(head, store, found.dev)
    assert best.who == "mimi" and best.threshold in (0.3, 0.5) and best.median in (1, 3)
    truth = Truth(found.dev, MIMI_GRID)
    turns = [head.turns(head.active(head.hear(_reads(store, s), s.num_frames, best.who), best)[0]) for s in found.dev]
    assert figures["der"] == pytest.approx(truth.total(turns).der)


def _reads(store, session):
    return lambda names, start, stop: read(store, names, session.id, start, stop)


def test_of_equal_choices_the_first_is_taken_and_its_figure_told(monkeypatch):
    """DER by median and threshold, by hand: the least counts, whatever the voices were chosen with."""
    ders = {(1, 0.3): 0.4, (1, 0.5): 0.2, (3, 0.3): 0.2, (3, 0.5): 0.3}
    config = FitConfig.make("adapter", settings=SETTINGS)
    head = SimpleNamespace(config=config, grid=MIMI_GRID, turns=lambda told: told)
    monkeypatch.setattr(whole, "_listen", lambda *_: {"mimi": None})
    monkeypatch.setattr(whole, "_der", lambda head, truth, heard, how: abs(how.apart - 0.6) + how.min_share)
    monkeypatch.setattr(whole, "stitch", lambda *_: None)
    monkeypatch.setattr(whole, "join", lambda *_: None)
    monkeypatch.setattr(whole, "decode", lambda _, threshold, median: (median, threshold))
    monkeypatch.setattr(whole, "Truth", lambda *_: SimpleNamespace(total=lambda t: SimpleNamespace(der=ders[t[0]])))
    best, figures = whole.choose(head, None, [None])
    assert best == Stitching("mimi", 0.6, 0.02, 0.5, 1) and figures == {"der": 0.2}


def test_one_low_distance_between_high_ones_is_luck(monkeypatch):
    config = FitConfig.make("adapter", settings=SETTINGS)
    head = SimpleNamespace(config=config, grid=MIMI_GRID, turns=lambda told: told)
    monkeypatch.setattr(whole, "_listen", lambda *_: {"mimi": None})
    monkeypatch.setattr(
        whole, "_der", lambda head, truth, heard, how: 0.0 if how.apart == 0.2 else 0.1 + abs(how.apart - 0.6)
    )
    for name in ("stitch", "join", "decode"):
        monkeypatch.setattr(whole, name, lambda *_: None)
    monkeypatch.setattr(whole, "Truth", lambda *_: SimpleNamespace(total=lambda _: SimpleNamespace(der=0.5)))
    assert whole.choose(head, None, [None])[0].apart == 0.6


def test_a_run_from_before_there_was_anything_to_decide_is_stitched_by_its_last_feature():
    def missing(name):
        raise FileNotFoundError(name)

    config = SimpleNamespace(features=("mimi", "titanet"))
    for told in (lambda name: {}, lambda name: {"stitching": {"who": "mimi"}}, missing):
        assert stitching_of(SimpleNamespace(read_json=told, config=config)) == Stitching("titanet")


def test_clusters_end_in_the_middle_of_the_valley():
    for ders, best, expected in (
        ([0.5, 0.2, 0.1, 0.105, 0.109, 0.2, 0.1], 2, 3),  # as good from the third to the fifth; the last is another's
        ([0.3, 0.1, 0.1, 0.109, 0.12], 3, 2),
        ([0.1, 0.2, 0.3], 0, 0),
        ([0.3, 0.2, 0.1], 2, 2),
        ([0.1, 0.1, 0.1, 0.1, 0.1], 0, 2),
    ):
        assert whole._middle(np.array(ders), best) == expected


def test_a_fitted_run_says_how_it_does_on_whole_sessions(tmp_path):
    store, _, _ = sessions(tmp_path / "store")
    tiny = ("width=8", "heads=2", "layers=1", "ffn=16", "epochs=1", "crops_per_epoch=4", "batch_size=2")
    run = Run.create(tmp_path / "run", FitConfig.make("adapter", settings=(*SETTINGS, *tiny)), store)
    result = fit_diarizer(run, store)
    assert set(result["whole"]) == {*result["test"], "recordings"}
    assert set(result["whole"]["recordings"]) == set(result["recordings"])
    assert result["whole"]["total_s"] == pytest.approx(result["test"]["total_s"], rel=0.02)
    assert stitching_of(run) == Stitching(
        **{k: v for k, v in result["stitching"].items() if k not in ("dev_der", "overlaps")}
    )
    head = load_head(Run.open(run.path), torch.device("cpu"))
    frames = store.frames("mimi", store.ids[0], 0, 80).astype(np.float32)[None]
    assert activities(head.model, frames, 80, head.device).shape == (1, 80, 3)
    reference = Run.create(tmp_path / "published", FitConfig.make("adapter", settings=(*SETTINGS, *tiny), protocol="reference"), store)  # fmt: skip
    assert "whole" not in fit_diarizer(reference, store)
