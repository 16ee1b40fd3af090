"""The parts of the cascade on cases worked by hand: counts and scale, clusters, Viterbi over sets."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

import featstore
from evaluation.diarization import DiarizationErrors
from evaluation.turns import Turns
from featstore import FrameGrid, Turn, Utterance
from tests.sessions import spec
from trainers.cascade import choosing, clusters, counting
from trainers.cascade.cascade import Cascade, as_counts
from trainers.cascade.clusters import Limits, Pieces, groupings, pieces_of, unit, voices_of, voices_within
from trainers.cascade.decoding import (
    Decoding,
    Evidence,
    best_path,
    best_paths,
    decode,
    prices_of,
    scores_of,
    sets_of,
    smooth_counts,
)
from trainers.cascade.inputs import counts, finer
from trainers.cascade.measuring import Truth
from trainers.config import FitConfig
from trainers.diarization.sessions import Session, load_sessions
from trainers.scale import Scale, scale_of

# ---- counts and scale


@pytest.fixture
def two_features(tmp_path):
    """Two sessions of 4 frames of 1 s; "small" and "large" hold the same values but for a factor and a shift."""
    grid = FrameGrid(0.5, 1.0)
    values = np.array([[0, 0], [2, 0], [0, 4], [2, 4]], np.float32)
    turns = (Turn(0.0, 2.0, "a"), Turn(1.5, 3.0, "b"))
    for name, frames in (("small", values / 8), ("large", 100 + 10 * values)):
        with featstore.writer(tmp_path / "store", spec(name, 2, grid=grid)) as writer:
            for split, k in (("train", 0), ("train", 1), ("dev", 2), ("test", 3)):
                writer.add(
                    Utterance(f"{split}{k}", "x.wav", 0.0, 4.0, f"r{k}", None, split, turns), frames + k // 2 * 50
                )
    store = featstore.open(tmp_path / "store")
    return store, load_sessions(store, FitConfig.make("cascade", settings=["when=small+large", "who=large"]))


def test_a_feature_loses_its_mean_vector_and_is_divided_by_one_number(two_features):
    store, sessions = two_features
    scale = scale_of(store, ("small", "large"), [s.id for s in sessions.train])
    assert scale.mean.tolist() == [1 / 8, 2 / 8, 110, 120]  # of train: dev and test are 50 higher
    # variances 1 and 4 of the values: sqrt((1 + 4) / 2), one number for both dimensions
    size = np.sqrt(2.5)
    np.testing.assert_allclose(scale.size, [size / 8, size / 8, 10 * size, 10 * size], rtol=1e-6)
    on_it = scale(np.array([[0, 0, 100, 100]], np.float32))
    np.testing.assert_allclose(on_it, [[-1 / size, -2 / size] * 2], rtol=1e-6)


def test_counts_are_finer_than_frames(two_features):
    _, sessions = two_features
    assert finer(sessions.grid, 4) == FrameGrid(0.125, 0.25)
    found = counts(sessions.train[0], sessions.grid, 4)
    assert found.tolist() == [1] * 6 + [2] * 2 + [1] * 4 + [0] * 4  # a to 2 s, b from 1.5 s to 3 s


def test_training_data_say_how_many_are_told_apart():
    labels = [np.array([0] * 500 + [1] * 400, np.uint8), np.array([2] * 98 + [3] * 2, np.uint8)]
    assert counting.classes_of(labels, 0.99) == 3
    assert counting.classes_of(labels, 0.999) == 4
    assert counting.classes_of([np.zeros(10, np.uint8)], 0.999) == 2


def test_frames_behind_a_session_are_not_counted():
    """A head that is trained on a crop longer than its session learns from the session alone."""
    torch.manual_seed(0)
    head = counting.CountHead(1, 2, width=4, dropout=0.0, substeps=2)
    labels = [np.array([1] * 6, np.uint8)]
    sizes = dict(batch_size=1, steps=1, lr=1e-3, weight_decay=0.0, seed=0, device=torch.device("cpu"))
    asked = []

    def read(k, start, stop):
        asked.append((k, start, stop))
        return np.ones((stop - start, 1), np.float32)

    with torch.no_grad():
        told = head(torch.tensor([[[1.0]] * 3 + [[0.0]] * 5]))[0, :6, 1]
    (row,) = counting.train(head, labels, read, crop_frames=8, **sizes)
    assert asked == [(0, 0, 3)]
    assert row["train_loss"] == pytest.approx(-float(told.mean()), rel=1e-5)


def test_every_start_that_fits_is_drawn_and_no_other():
    sizes = dict(batch_size=2, steps=20, lr=1e-3, weight_decay=0.0, seed=0, device=torch.device("cpu"))
    head = counting.CountHead(1, 2, width=4, dropout=0.0, substeps=1)
    asked = set()

    def read(k, start, stop):
        asked.add((k, start, stop))
        return np.zeros((stop - start, 1), np.float32)

    list(counting.train(head, [np.zeros(n, np.uint8) for n in (6, 4, 3)], read, crop_frames=4, **sizes))
    assert asked == {(0, 0, 4), (0, 1, 5), (0, 2, 6), (1, 0, 4), (2, 0, 3)}


def test_sessions_come_up_in_proportion_to_their_length_and_steps_are_as_set():
    """Learning rate up over a tenth, then down; a head without a gradient still decays by `weight_decay`."""
    sizes = dict(batch_size=40, steps=20, lr=1e-2, seed=0, device=torch.device("cpu"), crop_frames=2)
    drawn = []

    def read(k, start, stop):
        drawn.append(k)
        return np.zeros((stop - start, 1), np.float32)

    def norms(weight_decay):
        torch.manual_seed(0)
        head = counting.CountHead(1, 2, width=4, dropout=0.0, substeps=1)
        labels = [np.zeros(n, np.uint8) for n in (30, 10)]
        rows = list(counting.train(head, labels, read, weight_decay=weight_decay, **sizes))
        return float(head.enter.weight.norm().detach()), [row["lr"] for row in rows]

    decayed, rates = norms(0.5)
    assert decayed < 0.98 * norms(0.0)[0]
    assert 0.7 < 1 - np.mean(drawn) < 0.8
    assert int(np.argmax(rates)) in (1, 2) and max(rates) == pytest.approx(1e-2, rel=1e-3)
    assert rates[0] < 1e-3 and rates[-1] < 1e-5 and rates[2:] == sorted(rates[2:], reverse=True)


# ---- clusters


def plain_cascade(**settings):
    """Of one feature of two dimensions, on frames of 1 s, two answers each; both scales change nothing."""
    texts = ["when=f", "who=f", "substeps=2", "piece_s=1", "edge_s=0", *(f"{k}={v}" for k, v in settings.items())]
    scale = Scale(np.zeros(2, np.float32), np.ones(2, np.float32))
    config = FitConfig.make("cascade", settings=texts)
    return Cascade(config, FrameGrid(0.5, 1.0), None, scale, scale, torch.device("cpu"))


@pytest.mark.parametrize(
    ("many", "frames"),
    [
        ([[1, 1], [1, 0], [1, 2], [2, 2], [0, 0], [1, 1]], [0, 5]),  # one speaker in all of a frame
        ([[0, 0], [0, 2], [2, 2], [0, 0]], [1, 2]),  # nobody alone: any speech in it
    ],
)
def test_voices_are_of_frames_in_which_one_speaks_or_else_somebody(many, frames):
    who = np.stack([np.cos(np.arange(len(many))), np.sin(np.arange(len(many)))], 1).astype(np.float32)
    found = plain_cascade().heard(as_counts(np.array(many).ravel(), 3), 2 * who)
    assert found.pieces.weights.tolist() == [1] * len(frames)
    np.testing.assert_allclose(found.pieces.vectors, who[frames], atol=1e-6)
    np.testing.assert_allclose(found.frames, who, atol=1e-6)


def test_counts_that_are_not_told_apart_are_the_most_of_them():
    log_p = as_counts(np.array([0, 1, 2, 3, 7]), 3)
    assert log_p.argmax(1).tolist() == [0, 1, 2, 2, 2]
    assert np.exp(log_p).round(6).tolist() == np.eye(3)[[0, 1, 2, 2, 2]].tolist()


def test_pieces_leave_out_the_edges_of_stretches():
    frames = np.repeat([[1.0, 0.0], [0.0, 1.0]], [12, 8], axis=0).astype(np.float32)
    single = np.ones(20, bool)
    single[[0, 9, 10, 11]] = False  # stretches 1–8 and 12–19
    found = pieces_of(frames, single, piece=3, edge=1)
    assert found.weights.tolist() == [3, 3, 3, 3]
    np.testing.assert_allclose(found.vectors, [[1, 0], [1, 0], [0, 1], [0, 1]], atol=1e-6)
    # of a stretch shorter than its edges, the middle stays; of nothing, nothing
    assert pieces_of(frames, np.arange(20) < 2, piece=3, edge=3).weights.tolist() == [2]
    assert pieces_of(frames, np.arange(20) < 3, piece=3, edge=3).weights.tolist() == [1]
    assert pieces_of(frames, np.zeros(20, bool), piece=3, edge=1).vectors.shape == (0, 2)


def test_a_small_cluster_is_no_voice_and_its_pieces_go_to_the_nearest():
    vectors = unit(np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1]], np.float32))
    pieces = Pieces(vectors, np.array([10.0, 10, 10, 10, 1]))
    labels = np.array([0, 0, 1, 1, 2])
    assert len(voices_of(pieces, labels, 0.0)) == 3
    voices = voices_of(pieces, labels, 0.05)
    assert len(voices) == 2
    # the fifth is nearer to the second voice: that one's mean leans towards it
    assert voices[1] @ vectors[4] > unit(10 * vectors[2] + 10 * vectors[3]) @ vectors[4]
    longer = Pieces(vectors, np.array([11.0, 10, 10, 10, 1]))
    assert len(voices_of(longer, labels, 0.9)) == 1  # the largest always is one


@pytest.mark.parametrize(
    ("seconds", "of", "voices"),
    [(12, 400, 2), (8, 400, 1), (8, 100, 2), (4, 100, 1), (30, 2000, 1), (44, 2000, 2)],
)
def test_ten_seconds_are_a_voice_in_a_long_recording_too(seconds, of, voices):
    """The share of the time that a voice needs falls to what ten seconds are, though not below a fiftieth."""
    who = np.repeat(np.eye(2, dtype=np.float32), [of - seconds, seconds], axis=0)
    cascade = plain_cascade(min_share=0.05)
    assert len(cascade.voices(cascade.heard(as_counts(np.ones(2 * of, int), 3), who))) == voices


def test_a_voice_is_the_mean_of_all_its_frames():
    """Pieces weigh as long as they are."""
    vectors = np.array([[1.0, 0.0], [0.8, 0.6]], np.float32)
    voices = voices_of(Pieces(vectors, np.array([3.0, 1.0])), np.array([0, 0]), 0.0)
    np.testing.assert_allclose(voices, unit(np.array([[3.8, 0.6]])), rtol=1e-6)


def test_clusters_end_at_the_threshold():
    angles = np.radians([0, 10, 60, 70])  # cosine distances: 0.015 inside, 0.36 to 0.66 between
    pieces = Pieces(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), np.ones(4))
    for clustering in ("average", "complete"):
        found = groupings(pieces, clustering, (0.001, 0.2, 0.45, 0.9))
        assert [len(set(found[t].tolist())) for t in (0.001, 0.2, 0.45, 0.9)] == [4, 2, 2, 1]  # means are 0.5 apart
        assert found[0.2][0] == found[0.2][1] != found[0.2][2] == found[0.2][3]


def test_clusters_with_near_means_become_one():
    """Pieces of one voice far from each other: linkage keeps them apart, their means are the same."""
    rng = np.random.default_rng(0)
    voices = unit(rng.standard_normal((2, 64)))
    noisy = unit(np.repeat(voices, 40, axis=0) + 0.1 * rng.standard_normal((80, 64))).astype(np.float32)
    assert len(set(fcluster(linkage(noisy, "average", "cosine"), 0.4, "distance"))) == 14
    labels = groupings(Pieces(noisy, np.ones(80)), "average", (0.4,))[0.4]
    assert labels.tolist() in ([0] * 40 + [1] * 40, [1] * 40 + [0] * 40)


def test_spectral_clusters_find_their_number():
    rng = np.random.default_rng(1)
    voices = np.repeat(np.eye(3, 8), 12, axis=0) + 0.05 * rng.standard_normal((36, 8))
    labels = groupings(Pieces(unit(voices).astype(np.float32), np.ones(36)), "spectral", (0.3,))[0.3]
    assert sorted(np.unique(labels, return_counts=True)[1].tolist()) == [12, 12, 12]


@pytest.fixture
def spread_out():
    """Three voices on a circle at 0°, 40° and 90°, ten pieces each of growing length."""
    angles = np.radians(np.repeat([0, 40, 90], 10) + np.tile(np.linspace(-4, 4, 10), 3))
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    return Pieces(vectors, np.tile(np.arange(1.0, 11.0), 3))


def degrees(voices):
    return sorted(round(float(np.degrees(np.arctan2(y, x))), 1) for x, y in voices)


def test_as_many_voices_as_are_asked_for(spread_out):
    """Too few: grouped more finely, by means where that is not enough. Too many: the nearest become one."""
    found = {
        limits: degrees(voices_within(spread_out, "average", 0.1, 0.0, Limits(*limits)))
        for limits in ((1, None), (3, None), (1, 2), (2, 2), (1, 1), (5, 5), (99, None))
    }
    assert [len(voices) for voices in found.values()] == [3, 3, 2, 2, 1, 5, 30]
    assert found[1, None] == pytest.approx([1.3, 41.3, 91.3], abs=0.5)
    assert found[1, 2][1] == pytest.approx(91.3, abs=0.5) and found[1, 2][0] == pytest.approx(21.3, abs=1)
    near = voices_within(spread_out, "average", 0.5, 0.0, Limits(3, None))  # 0.5 joins two; half of it does not
    assert degrees(near) == pytest.approx([1.3, 41.3, 91.3], abs=0.5)
    assert len(voices_within(spread_out, "average", 0.5, 0.0, Limits(1, 9))) == 2
    few = Pieces(spread_out.vectors[:2], spread_out.weights[:2])
    assert len(voices_within(few, "average", 0.1, 0.0, Limits(4, 4))) == 2


def test_of_many_pieces_some_are_grouped_and_the_others_go_to_the_nearest(spread_out, monkeypatch):
    expected = groupings(spread_out, "average", (0.1,))[0.1]
    monkeypatch.setattr(clusters, "_MOST_PIECES", 11)
    found = groupings(spread_out, "average", (0.1,))[0.1]
    assert len(found) == 30 and [len(set(found[k : k + 10].tolist())) for k in (0, 10, 20)] == [1, 1, 1]
    assert len(set(found.tolist())) == len(set(expected.tolist())) == 3


# ---- Viterbi over sets


def test_sets_are_of_at_most_so_many_voices():
    assert sets_of(3, 2).sum(1).tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert sets_of(1, 2).tolist() == [[False], [True]]
    assert sets_of(0, 2).shape == (1, 0)


def test_scores_by_hand():
    """Two orthogonal voices, one answer: cosines 0.8 and 0.6, so the frame is the blend 0.8 : 0.6."""
    log_p = np.log(np.array([[0.1, 0.5, 0.3, 0.1]], np.float32))
    evidence = Evidence(log_p, np.array([[0.8, 0.6]], np.float32), np.eye(2, dtype=np.float32))
    found = scores_of(evidence, sets_of(2, 2), Decoding(nearest=5, blend=10, change=3))
    expected = [
        np.log(0.1),
        np.log(0.5),  # the nearest voice: nothing off
        np.log(0.5) - 5 * 0.2,
        np.log(0.3 + 0.1) + 10 * (1.4 / np.sqrt(2) - 0.8),  # two or more; the only pair is the nearest one
    ]
    np.testing.assert_allclose(found, [expected], rtol=1e-5)
    assert prices_of(sets_of(2, 2), Decoding(change=3))[1].tolist() == [-3, 0, -6, -3]  # a → –, a, b, both


def every_path(scores, prices):
    """The best path by trying all of them."""
    paths = itertools.product(range(scores.shape[1]), repeat=len(scores))
    value = lambda p: sum(scores[t, s] for t, s in enumerate(p)) + sum(prices[a, b] for a, b in itertools.pairwise(p))  # noqa: E731
    return list(max(paths, key=value))


def test_six_frames_by_hand():
    """a, a, a doubtful frame, both, b, b: one doubtful frame does not interrupt a voice, and both are found at once."""
    counted = np.array([1, 1, 0, 2, 1, 1])
    log_p = np.log(np.where(np.eye(3)[counted] > 0, 0.8, 0.1)).astype(np.float32)
    half = np.sqrt(0.5)
    cosines = np.array([[1, 0], [1, 0], [1, 0], [half, half], [0, 1], [0, 1]], np.float32)
    evidence = Evidence(log_p, cosines, np.eye(2, dtype=np.float32))
    how = Decoding(nearest=5, blend=5, change=1.5)
    (active,) = decode([evidence], 2, how)
    assert active.astype(int).tolist() == [[1, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, 1]]
    sets = sets_of(2, 2)
    scores, prices = scores_of(evidence, sets, how), prices_of(sets, how)
    assert (
        best_paths([scores], [prices])[0].tolist() == best_path(scores, prices).tolist() == every_path(scores, prices)
    )
    (free,) = decode([evidence], 2, Decoding(nearest=5, blend=5, change=0))
    assert free[2].tolist() == [False, False]  # without a price, the doubtful frame is silence


def test_many_tables_at_once_are_each_as_alone():
    rng = np.random.default_rng(0)
    scores = [rng.standard_normal((n, k)) for n, k in ((6, 3), (1, 2), (4, 1), (6, 4), (0, 2), (5, 2))]
    prices = [-rng.random((s.shape[1], s.shape[1])) for s in scores]
    expected = [every_path(s, p) for s, p in zip(scores, prices, strict=True)]
    assert [path.tolist() for path in best_paths(scores, prices)] == expected
    assert [best_path(s, p).tolist() for s, p in zip(scores, prices, strict=True)] == expected


def test_many_recordings_at_once_are_each_as_alone(monkeypatch):
    rng = np.random.default_rng(1)
    found = []
    for answers, voices in ((9, 3), (0, 2), (30, 1), (7, 4), (30, 2)):
        log_p = np.log(rng.dirichlet(np.ones(3), answers)).astype(np.float32)
        directions = unit(rng.standard_normal((voices, 5))).astype(np.float32)
        frames = unit(rng.standard_normal((answers, 5))).astype(np.float32)
        found.append(Evidence(log_p, frames @ directions.T, directions @ directions.T))
    how = Decoding(change=1.0)
    alone = [decode([each], 2, how)[0].tolist() for each in found]
    assert [active.tolist() for active in decode(found, 2, how)] == alone
    monkeypatch.setattr("trainers.cascade.decoding._MOST_CELLS", 100)  # few side by side
    assert [active.tolist() for active in decode(found, 2, how)] == alone


def test_a_long_recording_goes_in_blocks_that_hear_what_is_around(monkeypatch):
    """A price that takes many answers to pay: at a block's edge it is paid as if there were none."""
    rng = np.random.default_rng(2)
    who = np.repeat(rng.integers(0, 3, 20), 25)
    log_p = np.log(rng.dirichlet((1, 8, 1), len(who))).astype(np.float32)
    directions = np.eye(3, dtype=np.float32)
    cosines = directions[who] + 0.6 * rng.standard_normal((len(who), 3)).astype(np.float32)
    evidence = Evidence(log_p, cosines, directions @ directions.T)
    how = Decoding(nearest=1.0, blend=0.0, change=6.0)
    whole = decode([evidence], 2, how)[0]
    for block, margin in ((100, 60), (77, 60), (250, 60)):
        monkeypatch.setattr("trainers.cascade.decoding._BLOCK", block)
        monkeypatch.setattr("trainers.cascade.decoding._MARGIN", margin)
        other = Evidence(log_p[:40], cosines[:40], evidence.among)
        found, second = decode([evidence, other], 2, how)
        np.testing.assert_array_equal(found, whole)
        assert len(second) == 40
    monkeypatch.setattr("trainers.cascade.decoding._BLOCK", 10)
    monkeypatch.setattr("trainers.cascade.decoding._MARGIN", 0)
    assert (decode([evidence], 2, how)[0] != whole).any()  # else nothing above would show


def test_a_long_recording_is_heard_in_pieces_that_overlap(monkeypatch):
    """The head hears 60 frames on each side: what it says of a piece is what it says of the whole."""
    assert counting.REACH == 60
    torch.manual_seed(0)
    cascade = plain_cascade()
    head = counting.CountHead(2, 3, width=8, dropout=0.0, substeps=2).eval()
    cascade = replace(cascade, head=head)
    frames = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    asked = []

    def read(names, start, stop):
        asked.append((*names, start, stop))
        return frames[start:stop]

    whole = cascade.hear(read, 400)
    assert asked == [("f", 0, 400)] * 2
    monkeypatch.setattr("trainers.cascade.cascade._PIECE", 150)
    found = cascade.hear(read, 400)
    np.testing.assert_allclose(found.counts, whole.counts, atol=1e-5)
    np.testing.assert_array_equal(found.frames, whole.frames)
    assert [span[1:] for span in asked[2::2]] == [(0, 210), (90, 360), (240, 400)]
    assert len(whole.counts) == 800


def test_nobody_found_is_silence():
    nobody = Evidence(np.zeros((4, 3), np.float32), np.zeros((4, 0), np.float32), np.zeros((0, 0), np.float32))
    assert decode([nobody], 2, Decoding())[0].shape == (4, 0)


def test_a_head_must_tell_apart_as_many_as_may_speak_at_once():
    two = Evidence(np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32), np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="sets of 2 voices, but the head tells apart 2 counts only"):
        decode([two], 2, Decoding())
    assert decode([two], 1, Decoding())[0].shape == (4, 3)


def test_counts_are_smoothed():
    log_p = np.log(np.where(np.eye(3)[[1, 1, 2, 1, 1]] > 0, 0.8, 0.1)).astype(np.float32)
    assert smooth_counts(log_p, 3.0).tolist() == [1] * 5
    assert smooth_counts(log_p, 0.5).tolist() == [1, 1, 2, 1, 1]


# ---- measuring


def test_a_recording_has_the_errors_of_all_its_sessions():
    """Two sessions of 10 frames of 1 s: 3 s missed of 4 in one, 1 s too much in the other, from frame to frame."""
    turns = (Turn(1.0, 5.0, "a"),)
    none = np.zeros(0, np.int64)
    rest = {"split": "test", "num_frames": 10, "first": none, "last": none, "speaker": none, "names": ("a",)}
    sessions = [Session(id=id, recording="r", turns=turns, **rest) for id in ("r/0", "r/1")]
    sessions.append(Session(id="q/0", recording="q", turns=turns, **rest))
    found = [Turns.of([Turn(*span, "x")]) for span in ((1.0, 2.0), (1.0, 6.0), (1.0, 5.0))]
    truth = Truth(sessions, FrameGrid(2.5, 1.0))  # the first frame begins at 2 s: what is before is not scored
    errors = truth.score(found)
    assert list(errors) == ["r", "q"]
    assert (errors["r"].total_s, errors["r"].missed_s, errors["r"].false_alarm_s) == (6.0, 3.0, 1.0)
    assert (errors["q"].scored_s, errors["q"].wrong_s) == (10.0, 0.0)
    assert truth.total(found).der == pytest.approx(4 / 9)


# ---- choosing


def test_the_middle_of_a_valley_is_chosen(monkeypatch):
    """DER by threshold: a sharp single best beside a cliff loses to the middle of a valley."""
    by_threshold = {0.1: 0.3, 0.2: 0.12, 0.3: 0.5, 0.4: 0.14, 0.5: 0.13, 0.6: 0.14, 0.7: 0.4}
    by_blend = {0.0: 0.11, 3.0: 0.2, 6.0: 0.12, 9.0: 0.13, 12.0: 0.14}
    config = FitConfig.make(
        "cascade",
        settings=["clustering=average", "thresholds=0.4,0.1,0.7,0.2,0.6,0.3,0.5", "blends=12,9,6,3,0"],
    )
    monkeypatch.setattr(choosing, "groupings", lambda *_: dict.fromkeys(by_threshold))
    blends = []
    monkeypatch.setattr(choosing, "decode", lambda found, at_once, how: blends.append(how.blend))
    asked = []
    stub = SimpleNamespace(config=config, turns=lambda _: None, evidence=lambda *_: None, found=lambda *_: None)

    def measure(_):
        asked.append(1)
        der = (*by_threshold.values(), *by_blend.values())[len(asked) - 1]
        return DiarizationErrors(total_s=1.0, missed_s=der)

    choice, tried = choosing.choose(stub, [SimpleNamespace(pieces=None)], measure)
    assert (choice.threshold, choice.decoding) == (0.5, Decoding(blend=9.0))
    assert [row["der"] for row in tried] == [*by_threshold.values(), *by_blend.values()]
    assert [row["threshold"] for row in tried] == [*by_threshold, *[0.5] * len(by_blend)]
    assert blends == [*[6.0] * len(by_threshold), *by_blend]  # the voices are chosen with the middle blend


def test_each_way_to_group_is_tried_with_its_own_thresholds_and_the_settings_weights(monkeypatch):
    """Complete linkage is best on dev at 0.4; spectral grouping goes over shares of neighbours. The seed is its own."""
    settings = [
        "clustering=average,complete,spectral",
        "thresholds=0.4,0.2",
        "neighbours=0.3,0.1,0.2",
        "blends=7",
        "seed=5",
    ]
    config = FitConfig.make("cascade", settings=[*settings, "nearest=1.5", "change=2.5", "at_once=3"])
    grouped, decoded, asked, told = [], [], [], []

    def group(pieces, clustering, thresholds, seed):
        grouped.append((clustering, thresholds, seed))
        return {threshold: (clustering, threshold) for threshold in thresholds}

    ders = iter([0.5, 0.5, 0.4, 0.2, 0.6, 0.6, 0.6, 0.3])
    monkeypatch.setattr(choosing, "groupings", group)
    monkeypatch.setattr(choosing, "decode", lambda found, at_once, how: decoded.append((found, at_once, how)))
    stub = SimpleNamespace(
        config=config, turns=lambda _: None, evidence=lambda heard, labels: asked.append(labels) or labels,
        found=lambda heard, choice: (choice.clustering, choice.threshold),
    )  # fmt: skip
    measure = lambda _: DiarizationErrors(total_s=1.0, missed_s=next(ders))  # noqa: E731
    choice, tried = choosing.choose(stub, [SimpleNamespace(pieces=None)], measure, told.append)
    assert grouped == [("average", (0.2, 0.4), 5), ("complete", (0.2, 0.4), 5), ("spectral", (0.1, 0.2, 0.3), 5)]
    assert asked == [(c, t) for c, of, _ in grouped for t in of]
    assert [found for found, _, _ in decoded] == [[each] for each in [*asked, ("complete", 0.4)]]
    assert {(at_once, how) for _, at_once, how in decoded} == {(3, Decoding(nearest=1.5, blend=7, change=2.5))}
    assert (choice.clustering, choice.threshold, choice.decoding) == ("complete", 0.4, Decoding(1.5, 7, 2.5))
    assert [(row["clustering"], row["threshold"], row["blend"]) for row in tried] == [
        *((c, t, 7) for c, t in asked), ("complete", 0.4, 7)
    ]  # fmt: skip
    assert told[3] == "dev: complete 0.4, DER 20.0%"
