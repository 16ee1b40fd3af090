"""Heads with a cache: what is kept of earlier speech, what training makes of labels, and how a recording is gone through."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import featstore
from featstore import MIMI_GRID
from tests.sessions import make_store
from trainers.cascade.clusters import unit
from trainers.cascade.inputs import read
from trainers.config import ConfigError, FitConfig
from trainers.diarization import data, whole
from trainers.diarization.cache import CachedSource, blocks_of, example, pick
from trainers.diarization.data import Crop, CropSampler, FrameSource, windows
from trainers.diarization.evaluate import run_model
from trainers.diarization.fit import fit_diarizer
from trainers.diarization.follow import Follower, Following, follow, following_of
from trainers.diarization.losses import assignment_costs, cost_matrix, hybrid_loss
from trainers.diarization.models import Adapter, Earlier, Recall, adapter_sizes
from trainers.diarization.sessions import load_sessions
from trainers.diarization.whole import load_head
from trainers.runs import Run, RunError

CPU = torch.device("cpu")
DIM, POOL = 8, 6


def config(*settings: str):
    return FitConfig.make("adapter", settings=("crop_s=4", "speakers=4", "cache_s=3.2", "device=cpu", *settings))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "store"
    return featstore.open(make_store(path, {"train": 4, "dev": 2, "test": 2}, seconds=24.0, dim=DIM, pool=POOL))


# ---- what is kept


def test_blocks_in_which_one_speaks_alone_are_kept():
    sure, other, unsure, both, nobody = (0.9, 0.1), (0.1, 0.9), (0.6, 0.1), (0.9, 0.8), (0.1, 0.1)
    told = np.array([both, nobody, sure, unsure, other, nobody], np.float32)
    assert pick(told, 2).tolist() == [2, 4]
    assert pick(told, 3).tolist() == [2, 3, 4]
    assert pick(told, 6).tolist() == [0, 2, 3, 4]  # nobody is worth nothing, whatever room there is
    assert pick(told[:0], 3).tolist() == []


def test_who_said_little_has_a_share_of_the_cache():
    told = np.zeros((100, 4), np.float32)
    told[:, 0], told[40:44] = 0.99, (0, 0.7, 0, 0)  # four blocks of another, less sure than all the rest
    kept = pick(told, 16)
    assert {40, 41, 42, 43} < set(kept.tolist())
    assert len(kept) == 16 and (np.diff(kept) > 0).all()


# ---- training examples


def test_a_cache_of_labels_puts_known_voices_where_they_were(store):
    session = load_sessions(store, config()).dev[0]
    labels, told, blocks = _made(Crop(session, 200, 0))
    assert set(blocks % 4) == {0} and blocks.max() + 4 <= 200 and len(blocks) <= 10
    # channels are by arrival in all that was heard, and the window's are the same
    names = list(session.names)
    for k in range(min(4, len(names))):
        expected = _active(session, names[k])
        assert labels[:, k].tolist() == expected[200:250].tolist()
        np.testing.assert_allclose(told[:, k], [expected[b : b + 4].mean() for b in blocks])


def test_a_newcomer_takes_the_first_free_channel(store):
    """Whoever is known stands first; whoever else speaks, before those who do not."""
    for session in load_sessions(store, config()).train:
        for draw in range(5):
            labels, told, _ = _made(Crop(session, 120, 60, draw))
            known = int((told > 0.5).any(0).sum())
            assert (told > 0.5).any(0).tolist() == [True] * known + [False] * (4 - known)
            free = labels[:, known:]
            arrival = [int(c.argmax()) if c.any() else 999 for c in free.T]
            assert arrival == sorted(arrival)
            alone, _, _ = _made(Crop(session, 120, 120, draw))
            assert sorted(alone.sum(0)) == pytest.approx(sorted(labels.sum(0)))


def test_drawn_caches_are_unsure_and_now_and_then_wrong_and_the_same_each_time(store):
    session = load_sessions(store, config()).train[0]
    right, drawn, again = (_made(Crop(session, 200, 0, draw))[1] for draw in (None, 5, 5))
    np.testing.assert_array_equal(drawn, again)
    assert set(np.unique(right)) <= {0, 0.25, 0.5, 0.75, 1}
    assert drawn.max() < 1 and drawn.min() > 0


def _made(crop):
    found = example(crop, 50, 4, 10, 4)
    return found.labels, found.told, found.blocks


def _active(session, name):
    active = np.zeros(session.num_frames)
    for a, b, k in zip(session.first, session.last, session.speaker, strict=True):
        active[a:b] = np.maximum(active[a:b], session.names[k] == name)
    return active


def test_crops_begin_anywhere_and_some_are_short(store):
    made = config("crops_per_epoch=200")
    sessions = load_sessions(store, made)
    crops = CropSampler(sessions.train, made, 50).epoch(1)
    assert all(0 <= crop.begin <= crop.start for crop in crops)
    assert len({crop.draw for crop in crops}) == 200
    assert {crop.begin == 0 for crop in crops} == {True, False} and any(crop.begin == crop.start for crop in crops)
    short = [crop for crop in crops if crop.session.num_frames - crop.start < 50]
    assert short and all(crop.begin == crop.start for crop in short)
    alone = CropSampler(sessions.train, config("crops_per_epoch=200", "cache_s=0"), 50).epoch(1)
    assert [(c.session.id, c.start) for c in alone] == [(c.session.id, c.start) for c in crops]
    assert alone[0].begin is alone[0].draw is None


@pytest.mark.parametrize("resident", [False, True])
def test_batches_tell_what_the_store_holds_of_earlier_blocks(store, resident):
    made = config("token_frames=4")
    sessions = load_sessions(store, made)
    frames = FrameSource(store, made, 50, CPU)
    if resident:
        frames.keep(sessions.train)
    source = CachedSource(frames, made, blocks_of(made, 0.08), CPU)
    assert source.size == 10 and source.resident is resident
    crops = [Crop(sessions.train[0], 200, 0), Crop(sessions.train[1], 30, 30)]
    (batch,) = source.batches(crops, 2)
    _, told, blocks = _made(crops[0])
    rows = store.frames("mimi", sessions.train[0].id, 0, 200).astype(np.float32)
    expected = np.stack([rows[b : b + 4].mean(0) for b in blocks])
    np.testing.assert_allclose(batch.earlier.frames[0, : len(blocks)], expected, atol=1e-6)
    np.testing.assert_array_equal(batch.earlier.told[0, : len(blocks)], told)
    assert batch.earlier.mask.sum(1).tolist() == [len(blocks), 0]
    assert batch.earlier.known[0].tolist() == (told > 0.5).any(0).tolist() and not batch.earlier.known[1].any()


def test_a_window_alone_is_one_whose_cache_is_empty(store):
    """So single windows are measured as training begins recordings; dev looks at both."""
    made = config("token_frames=4")
    sessions = load_sessions(store, made)
    source = CachedSource(FrameSource(store, made, 50, CPU), made, blocks_of(made, 0.08), CPU)
    crops = windows(sessions.dev, 50)
    both = windows(sessions.dev, 50, cache=True)
    assert [(c.session, c.start) for c in both] == [(c.session, c.start) for c in crops] * 2
    assert [c.begin for c in both] == [0] * len(crops) + [None] * len(crops)
    batch, plain = source.batch(crops), source.frames.batch(crops)
    assert not batch.earlier.mask.any() and batch.earlier.mask.shape[1] == 10
    for name in ("inputs", "labels", "mask"):
        torch.testing.assert_close(getattr(batch, name), getattr(plain, name))
    assert batch.dropped == plain.dropped
    torch.manual_seed(0)
    head = Adapter(DIM, **adapter_sizes(made)).eval()
    torch.testing.assert_close(head(batch.inputs, batch.mask, batch.earlier), head(batch.inputs, batch.mask))


def test_labels_of_a_batch_are_made_once(store, monkeypatch):
    made = config("token_frames=4")
    source = CachedSource(FrameSource(store, made, 50, CPU), made, blocks_of(made, 0.08), CPU)
    monkeypatch.setattr(data, "label_batch", lambda *args, **more: pytest.fail("made, to be thrown away"))
    source.batch([Crop(load_sessions(store, made).train[0], 200, 0)])


# ---- loss and model


def test_the_loss_leaves_known_voices_on_their_channels():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 7, 4, generator=rng, dtype=torch.float64)
    labels = (torch.rand(3, 7, 4, generator=rng) < 0.4).double()
    known = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    costs = assignment_costs(cost_matrix(logits, labels))
    allowed = [[all(p[i] == i for i in range(4) if k[i]) for p in permutations(range(4))] for k in known.tolist()]
    pil = sum(min(c for c, ok in zip(row.tolist(), oks, strict=True) if ok) for row, oks in zip(costs, allowed, strict=True))  # fmt: skip
    found = hybrid_loss(logits, labels, sort_weight=0, pil_weight=1, resort=False, known=known)
    assert float(found) == pytest.approx(pil / (3 * 7 * 4))


def test_recall_says_what_was_said_of_what_sounds_alike():
    recall = Recall(4, 3, 4)
    with torch.no_grad():
        recall.sound.weight.copy_(torch.eye(4))
    voices = torch.eye(4)
    earlier = Earlier(voices[None, :3] * 7, torch.eye(3)[None, [2, 0, 1]], torch.tensor([[True, True, False]]))
    said = recall(voices[None], earlier)[0]
    assert said[0].argmax() == 2 and said[1].argmax() == 0 and said[:2].max(1).values.min() > 0.99
    assert said[2:].max() < 0.2  # padding is nobody, and so is who was never heard


def test_a_head_that_is_told_nothing_hears_the_window_alone():
    torch.manual_seed(0)
    sizes = {"speakers": 3, "width": 8, "layers": 1, "heads": 2, "ffn": 16, "token_frames": 4}
    head, alone = Adapter(DIM, cache_s=1.0, **sizes).eval(), Adapter(DIM, **sizes).eval()
    alone.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("recall")})
    frames = torch.randn(2, 30, DIM)
    torch.testing.assert_close(head(frames), alone(frames))
    mask = torch.arange(30).expand(2, -1) < torch.tensor([[30], [17]])
    told = Earlier(torch.randn(2, 5, DIM), torch.rand(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))
    both = head(frames, mask, told)
    assert not torch.allclose(both, head(frames, mask))
    # each example by itself, without padding, says the same
    cut = head(frames[1:, :17], None, Earlier(*(each[1:] for each in told)))
    torch.testing.assert_close(both[1:, :17], cut, atol=1e-5, rtol=1e-4)


# ---- a recording


class Knows(nn.Module):
    """Says who is active, on the channels that it is told; whoever is new takes the first free one."""

    asked: int = 0

    def forward(self, features, mask=None, earlier=None):
        return torch.stack([self._one(frames > 0.5, earlier) for frames in features])

    def _one(self, frames, earlier):
        channel_of: dict[int, int] = {}
        if earlier is not None:
            self.asked = max(self.asked, earlier.told.shape[1])
            mostly = earlier.frames[0, :, :POOL].T @ earlier.told[0]
            channel_of = {k: int(mostly[k].argmax()) for k in range(POOL) if mostly[k].max() > 0.6}
        logits = torch.full((len(frames), 4), -6.0)
        for k in sorted(range(POOL), key=lambda k: int(frames[:, k].int().argmax())):
            if frames[:, k].any():
                channel_of.setdefault(k, min(set(range(4)) - set(channel_of.values()), default=0))
                logits[frames[:, k], channel_of[k]] = 6.0
        return logits


def spoken(*turns):
    frames = np.zeros((max(b for _, b, _ in turns), DIM), np.float32)
    for a, b, k in turns:
        frames[a:b, k] = 1
    return frames


def follower():
    return Follower(Knows(), config("token_frames=4"), MIMI_GRID, CPU, unit, 0.5, 0.25)


def test_who_comes_back_after_long_absence_has_his_channel():
    turns = [(0, 30, 5), (30, 60, 1), (60, 300, 2), (300, 330, 1), (330, 360, 5), (360, 400, 3)]
    frames = spoken(*turns)
    made = follower()
    activity = follow(made, lambda names, a, b: frames[a:b], 400)
    expected = np.zeros((400, 4), bool)
    for a, b, k in turns:
        expected[a:b, [5, 1, 2, 3].index(k)] = True
    np.testing.assert_array_equal(activity > 0.5, expected)
    assert made.model.asked == made.size == 10 and len(made.told) == 10
    assert len(made.total) <= 50  # whatever the length of the recording


def test_a_voice_that_the_head_took_for_another_has_a_channel_of_its_own_in_the_cache():
    """A head that puts all that it is not told of on the first channel: groups of blocks undo it."""

    class Deaf(Knows):
        def _one(self, frames, earlier):
            told = {
                int(f[:POOL].argmax()): int(t.argmax()) for f, t in zip(earlier.frames[0], earlier.told[0], strict=True)
            }
            logits = torch.full((len(frames), 4), -6.0)
            for k in range(POOL):
                logits[frames[:, k], told.get(k, 0)] = 6.0
            return logits

    frames = spoken((0, 60, 5), (60, 120, 1), (120, 180, 5), (180, 240, 1))
    made = follower()
    made.model = Deaf()
    activity = follow(made, lambda names, a, b: frames[a:b], 240) > 0.5
    expected = np.repeat(np.eye(4, dtype=bool)[[0, 1, 0, 1]], 60, axis=0)
    np.testing.assert_array_equal(activity, expected)
    made.apart = 2.0  # nothing is another voice
    assert (follow(made, lambda names, a, b: frames[a:b], 240) > 0.5)[:, 1:].sum() == 0


@pytest.mark.parametrize(("said", "cosine", "voices"), [(0.25, 0.4, 1), (0.0, 0.4, 2), (0.25, 0.3, 2)])
def test_blocks_on_one_channel_are_one_voice_a_little_further_apart(said, cosine, voices):
    """Distance 0.5 is 0.625 for blocks that were said to be of one channel, where channels count 0.25."""
    assert len(_of_two(said, cosine, (0, 0))) == voices


@pytest.mark.parametrize(("said", "cosine", "voices"), [(0.25, 0.6, 2), (0.0, 0.6, 1), (0.25, 0.7, 1), (1.0, 0.99, 2)])
def test_blocks_on_two_channels_are_one_voice_only_if_they_are_nearer(said, cosine, voices):
    assert len(_of_two(said, cosine, (0, 1))) == voices


def _of_two(said, cosine, channels):
    """Channels on which two sounds stand that the head said on `channels`, three blocks each."""
    made = follower()
    made.said = said
    frames = np.zeros((6, DIM), np.float32)
    frames[:3, 0], frames[3:, 0], frames[3:, 1] = 1, cosine, (1 - cosine**2) ** 0.5
    told = np.full((6, 4), 0.1, np.float32)
    told[:3, channels[0]] = told[3:, channels[1]] = 0.9
    return set(made._regrouped(frames, told).argmax(1).tolist())


@pytest.mark.parametrize("step", [1, 5, 12])
def test_the_cache_learns_as_much_at_once_however_short_the_steps(step, monkeypatch):
    """A newcomer's first blocks alone would be taken for somebody else's."""
    frames = spoken((0, 30, 5), (30, 90, 1), (90, 150, 2), (150, 200, 5))
    made, before = follower(), 0
    for heard in range(step, 200, step):
        made.hear(lambda names, a, b: frames[a:b], heard)
        if made.learned != before:
            assert made.learned - before >= made.step == 12  # a quarter of the window
            assert made.learned <= heard - made.delay
            before = made.learned
    assert before > 100


def test_dev_is_gone_through_once_and_twice_and_both_count(store, monkeypatch):
    """Where one time through is as good as the other, the distance is not that of the second time alone."""
    sessions = load_sessions(store, config("thresholds=0.5", "medians=1"))
    head = whole.WholeHead(Knows(), config("thresholds=0.5", "medians=1"), sessions.grid, {"mimi": DIM}, CPU)
    truth = [_all_active(session) for session in sessions.dev]
    # (share of frames that are wrong the first time, the second time) by distance
    wrong = {0.3: (0.0, 0.3), 0.4: (0.2, 0.15), 0.5: (0.5, 0.0), 0.6: (0.6, 0.6), 0.7: (0.6, 0.6)}

    def followed(head, store, sessions, how):
        shares = wrong[how.apart] if how.said == 0.25 else (0.9, 0.9)
        return [tuple(np.where(np.arange(len(t)) < share * len(t), 0, t.T).T for share in shares) for t in truth]

    monkeypatch.setattr(whole, "_followed", followed)
    best, der = whole.choose_following(head, store, sessions.dev)
    assert best == Following("mimi", 0.3, 0.5, 1, 0.25)
    assert der == pytest.approx(0.3, abs=0.1)  # of the second time


def _all_active(session):
    return np.stack([_active(session, name) for name in session.names], 1).astype(np.float32)


def test_a_follower_goes_on_elsewhere():
    frames = spoken((0, 30, 5), (30, 90, 1), (90, 150, 2), (150, 180, 5))
    read = lambda names, a, b: frames[a:b]  # noqa: E731
    made = [follower() for _ in range(2)]
    for heard in range(7, 120, 7):
        made[0].hear(read, heard)
    made[1].restore(*made[0].state())
    for heard in range(126, 180, 7):
        for a, b in zip(made[0].hear(read, heard), made[1].hear(read, heard), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(made[0].activity, made[1].activity)


def test_the_published_procedure_has_no_cache():
    with pytest.raises(ConfigError, match="cache_s: the published procedure hears windows alone"):
        FitConfig.make("adapter", settings=("cache_s=3",), protocol="reference")


def test_a_fitted_run_says_how_it_is_decoded(store, tmp_path):
    tiny = (
        "width=8",
        "heads=2",
        "layers=1",
        "ffn=16",
        "epochs=1",
        "crops_per_epoch=4",
        "batch_size=2",
        "token_frames=4",
    )
    run = Run.create(tmp_path / "run", config(*tiny, "thresholds=0.3,0.5", "medians=1"), store)
    result = fit_diarizer(run, store)
    found = following_of(Run.open(run.path))
    told = result["following"]
    assert found == Following("mimi", told["apart"], told["threshold"], 1, told["said"])
    assert (found.apart, found.said) in whole._FOLLOWED
    before = {name: told[name] for name in ("who", "apart", "threshold", "median")}
    old = SimpleNamespace(path="r", read_json=lambda name: {"following": before})
    assert following_of(old) == replace(found, said=0.0)  # as it was when there was no such thing
    assert found.threshold in (0.3, 0.5) and "stitching" not in result
    assert set(result["whole"]["recordings"]) == set(result["recordings"])
    assert result["whole"]["total_s"] == pytest.approx(result["test"]["total_s"], rel=0.02)
    head, session = load_head(Run.open(run.path), CPU), load_sessions(store, run.config).test[0]
    said = follow(head.follower(found), lambda names, a, b: read(store, names, session.id, a, b), session.num_frames)
    assert said.shape == (session.num_frames, 4)
    with pytest.raises(RunError, match="finish it first"):
        following_of(SimpleNamespace(path="r", read_json=lambda name: {}))


@pytest.mark.slow
def test_a_head_with_a_cache_learns_that_channels_are_voices(tmp_path):
    """Voices that are plain: what it says of whole sessions has one identity throughout, and by chance it would not."""
    store = featstore.open(make_store(tmp_path / "s", {"train": 24, "dev": 3, "test": 3}, seconds=40.0, dim=DIM, pool=POOL))  # fmt: skip
    tiny = ("width=32", "heads=2", "layers=1", "ffn=32", "dropout=0", "token_frames=4", "batch_size=8", "lr=0.01")
    more = ("epochs=8", "crops_per_epoch=480", "warmup_steps=20", "thresholds=0.5", "medians=1,3")
    made = FitConfig.make("adapter", settings=("crop_s=8", "cache_s=6.4", "device=cpu", *tiny, *more))
    result = fit_diarizer(Run.create(tmp_path / "run", made, store), store)
    assert result["following"]["dev_der"] < 0.25 and result["whole"]["confusion"] < 0.25


def test_the_loss_of_a_batch_knows_whose_channels_are_taken(store):
    """Channels are not sorted anew, and the window's permutations leave known voices where they are."""
    made = config("token_frames=4")
    frames = FrameSource(store, made, 50, CPU)
    source = CachedSource(frames, made, blocks_of(made, 0.08), CPU)
    (batch,) = source.batches([Crop(s, 150, 0) for s in load_sessions(store, made).train], 4)
    logits = torch.randn(4, 50, 4, generator=torch.Generator().manual_seed(2))
    _, loss = run_model(lambda inputs, mask, earlier: logits, batch, made, CPU)
    weights = {"sort_weight": made.sort_weight, "pil_weight": made.pil_weight}
    assert loss == hybrid_loss(logits, batch.labels, resort=False, known=batch.earlier.known, **weights)
    assert loss > hybrid_loss(logits, batch.labels, resort=False, **weights)
