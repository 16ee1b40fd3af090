"""Crops, labels, masks, splits and sampling."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

import featstore
from evaluation.frames import turns_to_frames
from featstore import MIMI_GRID, FrameGrid, Turn, Utterance
from tests.sessions import make_store, spec
from trainers.config import ConfigError, FitConfig
from trainers.diarization.data import Crop, CropSampler, FrameSource, rasterise, windows
from trainers.diarization.sessions import common_grid, load_sessions

CPU = torch.device("cpu")
SMALL = ("width=8", "heads=2", "layers=1", "ffn=8")


def config(*settings, kind="adapter", **overrides) -> FitConfig:
    return FitConfig.make(kind, settings=(*SMALL, *settings), **overrides)


def write(path, utterances, dim=3, name="mimi", frames=None, **changes):
    with featstore.writer(path, spec(name, dim, **changes)) as writer:
        for u in utterances:
            n = frames or round(u.duration_s / 0.08)
            writer.add(u, np.arange(n)[:, None] + np.arange(dim) / 10)
    return path


def talk(id, split, *turns, seconds=4.0, recording=None):
    return Utterance(id, "none.wav", 0.0, seconds, recording or id, None, split, tuple(Turn(*t) for t in turns))


@pytest.fixture
def by_hand(tmp_path):
    """0.08 s frames centred on 0.04, 0.12, …: b talks in frames 5–24, a in 10–14, c in 30–49."""
    turns = ((0.40, 2.00, "b"), (0.80, 1.20, "a"), (2.40, 4.00, "c"))
    write(tmp_path / "s", [talk("t", "train", *turns), talk("d", "dev", *turns), talk("e", "test", *turns)])
    return featstore.open(tmp_path / "s")


def test_labels_by_hand_in_order_of_arrival_in_the_crop(by_hand):
    session = load_sessions(by_hand, config()).train[0]
    assert session.names == ("b", "a", "c")
    labels, names, dropped = rasterise(Crop(session, 0), 50, 4, resort=True)
    assert (names, dropped) == (["b", "a", "c"], 0)
    assert [np.flatnonzero(labels[:, k]).tolist() for k in range(4)] == [
        list(range(5, 25)),
        list(range(10, 15)),
        list(range(30, 50)),
        [],
    ]
    # From frame 26 on only c talks, so c is channel 0; the session's order would leave c on channel 2.
    labels, names, _ = rasterise(Crop(session, 26), 20, 4, resort=True)
    assert names == ["c"]
    assert np.flatnonzero(labels[:, 0]).tolist() == list(range(4, 20))
    labels, names, _ = rasterise(Crop(session, 26), 20, 4, resort=False)
    assert names == ["b", "a", "c"]
    assert labels[:, :2].sum() == 0
    assert np.flatnonzero(labels[:, 2]).tolist() == list(range(4, 20))


def test_labels_equal_the_scorers_rasterisation(tmp_path):
    store = featstore.open(make_store(tmp_path / "s", {"train": 3, "dev": 1}))
    rng = np.random.default_rng(0)
    for session in load_sessions(store, config()).train:
        for start in rng.integers(0, 100, 5):
            labels, names, dropped = rasterise(Crop(session, int(start)), 50, 6, resort=True)
            assert dropped == 0
            expected = turns_to_frames(session.turns, MIMI_GRID, start, start + 50, names)
            np.testing.assert_array_equal(labels[:, : len(names)], expected)
            assert not labels[:, len(names) :].any()


def test_too_many_speakers_keep_those_who_talk_most_and_count_the_rest(tmp_path):
    turns = [(0.0, 0.16, "brief")] + [(0.4 + i * 0.8, 0.4 + i * 0.8 + 0.56, f"long{i}") for i in range(4)]
    write(tmp_path / "s", [talk("t", "train", *turns), talk("d", "dev", *turns)])
    session = load_sessions(featstore.open(tmp_path / "s"), config()).train[0]
    _, names, dropped = rasterise(Crop(session, 0), 50, 4, resort=True)
    assert (names, dropped) == (["long0", "long1", "long2", "long3"], 2)
    _, names, _ = rasterise(Crop(session, 0), 50, 4, resort=False)  # as published: the first four
    assert names == ["brief", "long0", "long1", "long2"]


@pytest.mark.parametrize("resident", [False, True])
def test_batches_hold_the_crops_frames_then_zeros(by_hand, resident):
    sessions = load_sessions(by_hand, config())
    source = FrameSource(by_hand, config(), 30, CPU)
    if resident:
        source.keep(sessions.train + sessions.dev)
    assert source.resident is resident
    crops = [Crop(sessions.train[0], 0), Crop(sessions.train[0], 7), Crop(sessions.dev[0], 35)]
    batches = list(source.batches(crops, 2))
    assert [len(b.inputs) for b in batches] == [2, 1]
    assert batches[0].inputs[1, :, 0].tolist() == list(range(7, 37))
    assert batches[1].inputs[0, :, 0].tolist() == list(range(35, 50)) + [0] * 15
    assert batches[1].mask[0].tolist() == [True] * 15 + [False] * 15
    assert batches[1].labels[0].sum() == 15


def test_fusion_concatenates_and_cuts_to_the_common_length(by_hand):
    write(by_hand.path, [by_hand.utterance(i) for i in ("t", "d", "e")], dim=2, name="titanet", frames=49)
    store = featstore.open(by_hand.path)
    fusion = config(kind="fusion")
    sessions = load_sessions(store, fusion)
    assert sessions.train[0].num_frames == 49
    batch = FrameSource(store, fusion, 50, CPU).batch([Crop(sessions.train[0], 0)])
    assert batch.inputs.shape == (1, 50, 5)
    np.testing.assert_allclose(batch.inputs[0, 20], [20, 20.1, 20.2, 20, 20.1], rtol=1e-3)
    assert batch.inputs[0, 49].abs().sum() == 0 and not batch.mask[0, 49]


def test_features_that_do_not_fit_together_are_refused(by_hand, tmp_path):
    utterances = [by_hand.utterance(i) for i in ("t", "d", "e")]
    write(by_hand.path, utterances, dim=2, name="short", frames=40)
    write(by_hand.path, utterances, dim=2, name="slow", frames=50, grid=FrameGrid(0.1, 0.2))
    store = featstore.open(by_hand.path)
    with pytest.raises(ConfigError, match="differ by more than a frame"):
        load_sessions(store, config("feature=mimi+short"))
    with pytest.raises(ConfigError, match="lie on different frames"):
        common_grid(store, ("mimi", "slow"))


def test_a_recording_in_two_splits_is_refused_unless_by_the_reference_protocol(tmp_path):
    turns = ((0.0, 1.0, "a"),)
    utterances = [talk("x", "train", *turns, recording="m1"), talk("y", "test", *turns, recording="m1")]
    write(tmp_path / "s", [*utterances, talk("z", "dev", *turns)])
    store = featstore.open(tmp_path / "s")
    with pytest.raises(ConfigError, match=r"1 recordings are in more than one split \(first: m1\)"):
        load_sessions(store, config())
    assert load_sessions(store, config(protocol="reference")).train


def test_without_dev_whole_recordings_are_held_out(tmp_path):
    turns = ((0.0, 1.0, "a"),)
    utterances = [talk(f"{r}-{i}", "train", *turns, recording=f"m{r}") for r in range(10) for i in range(2)]
    write(tmp_path / "s", utterances)
    sessions = load_sessions(featstore.open(tmp_path / "s"), config("dev_fraction=0.2"))
    assert {s.recording for s in sessions.train}.isdisjoint(s.recording for s in sessions.dev)
    assert len({s.recording for s in sessions.dev}) == 2
    assert sessions.test == sessions.dev
    assert any("no split=dev" in note for note in sessions.notes)
    assert any("no split=test" in note for note in sessions.notes)


@pytest.mark.parametrize(
    ("fraction", "recordings", "held"),
    [(0.05, 10, 1), (0.2, 10, 2), (0.26, 10, 3), (0.9, 3, 2), (0.99, 2, 1), (0, 4, 1)],
)
def test_how_many_recordings_are_held_out(tmp_path, fraction, recordings, held):
    """The share, rounded; one at least, and never all of them. Which ones, the seed decides."""
    write(tmp_path / "s", [talk(f"u{r}", "train", (0.0, 1.0, "a"), recording=f"m{r}") for r in range(recordings)])
    store = featstore.open(tmp_path / "s")
    chosen = set()
    for seed in range(8):
        sessions = load_sessions(store, config(f"dev_fraction={fraction}", f"seed={seed}"))
        assert (len(sessions.dev), len(sessions.train)) == (held, recordings - held)
        chosen.add(tuple(s.recording for s in sessions.dev))
        again = load_sessions(store, config(f"dev_fraction={fraction}", f"seed={seed}"))
        assert [s.id for s in again.dev] == [s.id for s in sessions.dev]
    assert len(chosen) > 1


def test_what_a_store_is_for_and_what_was_noticed(tmp_path):
    turns = ((0.0, 1.0, "a"), (0.5, 1.5, "b"))
    alone = Utterance("alone", "none.wav", 0.0, 1.0, "alone", "a", "train")
    silent = Utterance("silent", "none.wav", 0.0, 1.0, "silent", None, "train")
    spare = [
        talk("t", "train", *turns),
        talk("d", "dev", *turns),
        talk("e", "test", (0.0, 1.0, "b"), (2, 3, "z")),
        talk("o", "", *turns),
    ]
    write(tmp_path / "s", [*spare, alone, silent])
    store = featstore.open(tmp_path / "s")
    sessions = load_sessions(store, config())
    assert [[s.id for s in part] for part in (sessions.train, sessions.dev, sessions.test)] == [["t"], ["d"], ["e"]]
    assert sessions.tuned_on == "dev" and sessions.grid == MIMI_GRID
    assert sessions.notes == [
        "1 utterances with neither speaker nor turns were left out",
        "1 sessions with a split other than train, dev, test were left out",
        "1 speaker names of test occur in train too",
    ]
    assert load_sessions(store, config(protocol="reference")).tuned_on == "test"
    assert load_sessions(store.select(split=["train", "dev"]), config()).tuned_on == "test"


def test_turns_may_come_in_any_order(tmp_path):
    turns = ((0.4, 2.0, "b"), (0.8, 1.2, "a"), (0.8, 1.0, "c"), (2.4, 4.0, "b"))
    write(tmp_path / "s", [talk("t", "train", *turns[::-1]), talk("d", "dev", *turns)])
    sessions = load_sessions(featstore.open(tmp_path / "s"), config())
    for session in (sessions.train[0], sessions.dev[0]):
        assert session.names == ("b", "c", "a")  # by their first turn; of two that begin together, the one that ends
        assert [session.names[k] for k in session.speaker] == ["b", "c", "a", "b"]
        assert (session.first.tolist(), session.last.tolist()) == ([5, 10, 10, 30], [25, 12, 15, 50])


def test_grids_may_differ_by_half_a_frame_and_lengths_by_one(tmp_path):
    utterances = [talk(f"{split}", split, (0.0, 1.0, "a")) for split in ("train", "dev", "test")]
    write(tmp_path / "s", utterances, frames=50)
    for name, frames, first in (("half", 49, 0.08), ("more", 51, 0.0), ("late", 50, 0.081), ("two", 52, 0.04)):
        write(tmp_path / "s", utterances, dim=1, name=name, frames=frames, grid=FrameGrid(first, 0.08))
    store = featstore.open(tmp_path / "s")
    for name, num in (("half", 49), ("more", 50)):
        assert load_sessions(store, config(f"feature=mimi+{name}")).train[0].num_frames == num
    with pytest.raises(ConfigError, match="lie on different frames"):
        load_sessions(store, config("feature=mimi+late"))
    with pytest.raises(ConfigError, match="more than a frame .mimi: 50, two: 52."):
        load_sessions(store, config("feature=mimi+two"))


def test_nothing_to_train_or_tune_on(tmp_path):
    write(tmp_path / "s", [talk("x", "test", (0.0, 1.0, "a"))])
    with pytest.raises(ConfigError, match="nothing to train on"):
        load_sessions(featstore.open(tmp_path / "s"), config())
    write(tmp_path / "t", [talk("x", "train", (0.0, 1.0, "a"))])
    with pytest.raises(ConfigError, match="one recording only"):
        load_sessions(featstore.open(tmp_path / "t"), config())


def test_sampling_weighs_sessions_by_length_and_pattern(tmp_path):
    turns = ((0.0, 1.0, "a"),)
    utterances = [
        talk("sim/1", "train", *turns, seconds=8.0),
        talk("ami/1", "train", *turns, seconds=8.0),
        talk("ami/2", "train", *turns, seconds=16.0),
        talk("d", "dev", *turns),
    ]
    write(tmp_path / "s", utterances)
    chosen = config("sampling=ami/*:3", "crops_per_epoch=1000")
    sessions = load_sessions(featstore.open(tmp_path / "s"), chosen).train
    sampler = CropSampler(sessions, chosen, 25)
    crops = sampler.epoch(1)
    counts = Counter(c.session.id for c in crops)
    assert counts == {"sim/1": 100, "ami/1": 300, "ami/2": 600}
    assert min(c.start for c in crops) == 0
    assert max(c.start for c in crops if c.session.id == "ami/2") in range(170, 176)  # up to the very end
    assert list(sampler.epoch(1)) == list(crops) == list(crops[:400]) + list(crops[400:])
    assert [c.start for c in sampler.epoch(2)] != [c.start for c in crops]
    # In random order: neighbours are as often of one session as chance has it (0.01 + 0.09 + 0.36).
    alike = sum(a.session is b.session for a, b in pairwise(crops)) / 999
    assert 0.40 < alike < 0.52
    # By default an epoch is as much audio as there is, weights included: (8 + 3·8 + 3·16) s in crops of 2 s.
    assert len(CropSampler(sessions, config("sampling=ami/*:3"), 25).epoch(1)) == 40
    # Rounded, and one crop at least: 400 frames are 3.7 crops of 108, and 0.4 of 1000.
    assert [len(CropSampler(sessions, config(), length).epoch(1)) for length in (108, 120, 1000)] == [4, 3, 1]
    with pytest.raises(ConfigError, match="weight 0"):
        CropSampler(sessions, config("sampling=*:0"), 25)
    with pytest.raises(
        ConfigError, match=r"'amy\*' matches none of the 3 training sessions, which are called sim/1, ami/1"
    ):
        CropSampler(sessions, config("sampling=ami*:3,amy*:2"), 25)


def test_every_start_that_fits_is_drawn_and_no_other(tmp_path):
    """Crops of 25 frames: sessions of 28, 26, 25 and 24 frames can begin at 0–3, 0–1, 0 and 0."""
    turns = ((0.0, 1.0, "a"),)
    lengths = {"t28": 28, "t26": 26, "t25": 25, "t24": 24}
    write(
        tmp_path / "s",
        [talk(id, "train", *turns, seconds=0.08 * n) for id, n in lengths.items()] + [talk("d", "dev", *turns)],
    )
    chosen = config("crops_per_epoch=400")
    sessions = load_sessions(featstore.open(tmp_path / "s"), chosen).train
    crops = CropSampler(sessions, chosen, 25).epoch(1)
    starts = {id: Counter(c.start for c in crops if c.session.id == id) for id in lengths}
    assert {id: sorted(found) for id, found in starts.items()} == {
        **{"t28": [0, 1, 2, 3], "t26": [0, 1], "t25": [0], "t24": [0]},
    }
    assert min(starts["t28"].values()) > 10 and min(starts["t26"].values()) > 25  # each as likely as the next


def test_crops_depend_on_the_seed_and_the_epoch(tmp_path):
    turns = ((0.0, 1.0, "a"),)
    write(tmp_path / "s", [talk(f"t{i}", "train", *turns) for i in range(9)] + [talk("d", "dev", *turns)])
    store = featstore.open(tmp_path / "s")
    drawn = []
    for seed, epoch in ((0, 1), (1, 1), (0, 2), (0, 1)):
        chosen = config(f"seed={seed}", "crops_per_epoch=30")
        crops = CropSampler(load_sessions(store, chosen).train, chosen, 25).epoch(epoch)
        drawn.append([(c.session.id, c.start) for c in crops])
    assert drawn[0] == drawn[3]
    for one in (1, 2):
        assert [id for id, _ in drawn[0]] != [id for id, _ in drawn[one]]  # which session
        assert [start for _, start in drawn[0]] != [start for _, start in drawn[one]]  # and where


def test_the_first_pattern_that_fits_gives_the_weight(tmp_path):
    turns, ids = ((0.0, 1.0, "a"),), ("ami/a", "ami/b", "not-ami/a")
    write(tmp_path / "s", [talk(id, "train", *turns) for id in ids] + [talk("d", "dev", *turns)])
    chosen = config("sampling=ami/a:5,ami/*:0", "crops_per_epoch=60")
    sessions = load_sessions(featstore.open(tmp_path / "s"), chosen).train
    drawn = Counter(c.session.id for c in CropSampler(sessions, chosen, 25).epoch(1))
    assert drawn == {"ami/a": 50, "not-ami/a": 10}  # a pattern is of the whole name
    with pytest.raises(ConfigError, match=r"'AMI\*' matches none"):  # letters' case counts
        CropSampler(sessions, config("sampling=AMI*:9,ami/*:2"), 25)


def test_labels_at_the_edges_of_a_crop(tmp_path):
    """a in frames 2–5, b in 6–9; a turn that ends where the crop begins, or begins where it ends, is not in it."""
    write(
        tmp_path / "s",
        [talk("t", "train", (0.2, 0.5, "a"), (0.52, 0.84, "b"), seconds=0.8), talk("d", "dev", (0, 1, "a"))],
    )
    session = load_sessions(featstore.open(tmp_path / "s"), config()).train[0]
    assert (session.first.tolist(), session.last.tolist(), session.num_frames) == ([2, 6], [6, 10], 10)
    for start, length, expected in (
        (0, 2, []),
        (0, 3, [("a", [2])]),
        (5, 1, [("a", [0])]),
        (5, 2, [("a", [0]), ("b", [1])]),
        (6, 3, [("b", [0, 1, 2])]),
        (9, 4, [("b", [0])]),
    ):
        labels, names, dropped = rasterise(Crop(session, start), length, 2, resort=True)
        assert labels.shape == (length, 2) and dropped == 0
        assert [(n, np.flatnonzero(labels[:, k]).tolist()) for k, n in enumerate(names)] == expected, (start, length)
        assert labels.sum() == sum(len(frames) for _, frames in expected)


def test_turns_past_the_end_of_the_features_are_cut(tmp_path):
    """A turn to 4 s, frames to 2 s: nothing is active where there is no frame."""
    write(tmp_path / "s", [talk("t", "train", (0.0, 4.0, "a")), talk("d", "dev", (0.0, 1.0, "a"))], frames=25)
    store = featstore.open(tmp_path / "s")
    session = load_sessions(store, config()).train[0]
    for start, inside in ((0, 25), (10, 15), (24, 1)):
        labels, _, _ = rasterise(Crop(session, start), 30, 4, resort=True)
        assert labels[:, 0].tolist() == [1] * inside + [0] * (30 - inside)
    batch = FrameSource(store, config(), 25, CPU).batch([Crop(session, 0)])
    assert batch.mask.all() and not batch.padded
    batch = FrameSource(store, config(), 25, CPU).batch([Crop(session, 0), Crop(session, 1)])
    assert batch.mask.sum(1).tolist() == [25, 24] and batch.padded


def test_speakers_that_talk_alike_keep_their_order_and_all_that_is_lost_is_counted(tmp_path):
    """Five talk for 5 frames each, the second for 6: with two channels the second and the first stay, 15 are lost."""
    turns = [(0.4 * i, 0.4 * (i + 1) + (0.08 if i == 1 else 0), f"s{i}") for i in range(5)]
    write(tmp_path / "s", [talk("t", "train", *turns), talk("d", "dev", *turns)])
    store = featstore.open(tmp_path / "s")
    session = load_sessions(store, config()).train[0]
    labels, names, dropped = rasterise(Crop(session, 0), 30, 2, resort=True)
    assert (names, dropped, labels.sum(0).tolist()) == (["s0", "s1"], 15, [5, 6])
    labels, names, dropped = rasterise(Crop(session, 0), 30, 2, resort=False)
    assert (names, dropped, labels.sum(0).tolist()) == (["s0", "s1"], 15, [5, 6])
    batch = FrameSource(store, config("speakers=2"), 30, CPU).batch([Crop(session, 0), Crop(session, 5)])
    assert batch.dropped == 15 + 10 and batch.labels.shape == (2, 30, 2)


def test_speakers_who_arrive_together_stand_in_the_sessions_order(tmp_path):
    """However much each of them talks: b and c begin in one frame, c talks longer, and a comes last."""
    turns = [(0.8, 1.6, "b"), (0.8, 3.2, "c"), (2.0, 3.9, "a")]
    write(tmp_path / "s", [talk("t", "train", *turns), talk("d", "dev", *turns)])
    session = load_sessions(featstore.open(tmp_path / "s"), config()).train[0]
    labels, names, _ = rasterise(Crop(session, 0), 50, 4, resort=True)
    assert names == ["b", "c", "a"] and labels.sum(0).tolist() == [10, 30, 24, 0]


def test_batches_have_the_order_of_their_protocol(by_hand):
    for protocol, channel in (("sound", 0), ("reference", 2)):  # c talks alone, and is the session's third
        made = config(protocol=protocol)
        source = FrameSource(by_hand, made, 20, CPU)
        labels = source.batch([Crop(load_sessions(by_hand, made).train[0], 26)]).labels
        assert labels[0].sum(0).tolist() == [16 if k == channel else 0 for k in range(4)]


@pytest.mark.parametrize("resident", [False, True])
def test_a_buffer_that_was_used_before_leaves_nothing_behind(by_hand, resident):
    """Five batches through two buffers: each holds its own crops, the last is short, and its padding is zero."""
    sessions = load_sessions(by_hand, config())
    source = FrameSource(by_hand, config(), 20, CPU)
    if resident:
        source.keep(sessions.train + sessions.dev)
    starts = [3, 45, 7, 31, 12, 40, 0, 30, 49]
    crops = [Crop(sessions.train[0] if k % 2 else sessions.dev[0], start) for k, start in enumerate(starts)]
    seen = [row.clone() for batch in source.batches(crops, 2) for row in batch.inputs[:, :, 0]]
    assert [row.tolist() for row in seen] == [
        [*range(start, min(start + 20, 50)), *[0] * max(0, start + 20 - 50)] for start in starts
    ]
    assert list(source.batches([], 2)) == []


def test_resident_frames_keep_their_kind_and_other_crops_come_from_the_store(by_hand):
    sessions = load_sessions(by_hand, config())
    source = FrameSource(by_hand, config(), 20, CPU)
    source.keep([])
    assert not source.resident
    source.keep(sessions.train)
    mixed = source.batch([Crop(sessions.train[0], 5), Crop(sessions.test[0], 6)])
    assert mixed.inputs[:, 0, 0].tolist() == [5, 6] and mixed.inputs.dtype == torch.float16
    write(by_hand.path, [by_hand.utterance(i) for i in "tde"], dim=2, name="wide", dtype="float32")
    store = featstore.open(by_hand.path)
    for names, kind in (("mimi", torch.float16), ("wide", torch.float32), ("mimi+wide", torch.float32)):
        source = FrameSource(store, config(f"feature={names}"), 20, CPU)
        for _ in range(2):
            assert source.batch([Crop(sessions.train[0], 5)]).inputs.dtype == kind
            source.keep(sessions.train)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 1000])
def test_an_epoch_draws_from_every_stretch_of_the_sessions_once(tmp_path, count):
    """Systematic sampling: with sessions of equal length, each comes up count / sessions times, give or take one."""
    turns = ((0.0, 1.0, "a"),)
    write(tmp_path / "s", [talk(f"t{i}", "train", *turns) for i in range(7)] + [talk("d", "dev", *turns)])
    chosen = config(f"crops_per_epoch={count}")
    sessions = load_sessions(featstore.open(tmp_path / "s"), chosen).train
    drawn = Counter(crop.session.id for crop in CropSampler(sessions, chosen, 25).epoch(1))
    assert sum(drawn.values()) == count
    assert all(abs(drawn[session.id] - count / 7) < 1 for session in sessions)


def test_windows_cover_every_frame_once(by_hand):
    session = load_sessions(by_hand, config()).train[0]
    assert [(c.start, min(20, session.num_frames - c.start)) for c in windows([session], 20)] == [
        (0, 20),
        (20, 20),
        (40, 10),
    ]
    for length, starts in ((50, [0]), (49, [0, 49]), (25, [0, 25]), (24, [0, 24, 48]), (51, [0])):
        assert [c.start for c in windows([session, session], length)] == starts * 2
