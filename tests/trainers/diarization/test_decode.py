"""From activities to figures: what decoding is tuned on, which windows are scored, what is summed; by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import featstore
from evaluation.runs import MODEL, OUTPUTS
from featstore import MIMI_GRID
from tests.trainers.diarization.test_data import config, talk, write
from trainers.diarization.data import Crop, FrameSource, rasterise, windows
from trainers.diarization.decode import FrameTally, Windows, measure, tune
from trainers.diarization.evaluate import evaluate
from trainers.diarization.losses import hybrid_loss
from trainers.diarization.sessions import load_sessions
from trainers.runs import Run

SETTINGS = ("speakers=2", "thresholds=0.5,0.7,0.95", "medians=1")
#: a talks in frames 0 to 24, b in 25 to 49, of 0.08 s each.
TURNS = ((0.0, 2.0, "a"), (2.0, 4.0, "b"))


@pytest.fixture
def store(tmp_path):
    talks = [talk(id, split, *TURNS, recording=f"m-{split}") for id, split in
             (("r", "train"), ("d", "dev"), ("t", "test"), ("u", "test"))]  # fmt: skip
    return featstore.open(write(tmp_path / "s", talks))


def answer(crops, length, speech, silence, *, flip=False):
    """Activities (crops, length, 2): `speech` where a speaker talks, `silence` elsewhere and behind the session."""
    out = np.full((len(crops), length, 2), silence, np.float32)
    for row, crop in enumerate(crops):
        labels, _, _ = rasterise(crop, length, 2, resort=True)
        out[row][labels > 0] = speech
    return out[..., ::-1].copy() if flip else out


def a_run(tmp_path, store, made):
    run = Run.create(tmp_path / "run", made, store)
    run.begin()
    run.write_tensors(MODEL, {"w": torch.zeros(1)}, {})
    return run


def measured(tmp_path, store, made, length, test, dev):
    """`test` and `dev` are what `answer` takes; dev may be None."""
    sessions = load_sessions(store, made)
    sides = []
    for chosen, how in ((sessions.test, test), (sessions.dev, dev)):
        crops = windows(chosen, length)
        sides.append(None if how is None else (crops, answer(crops, length, **how)))
    return measure(a_run(tmp_path, store, made), store, MIMI_GRID, *sides), sides


def test_decoding_is_tuned_on_dev_and_only_applied_to_test(store, tmp_path):
    """On dev 0.7 is right and all else errs in full; on test it misses everything."""
    dev, test = {"speech": 0.9, "silence": 0.6}, {"speech": 0.6, "silence": 0.1}
    figures, _ = measured(tmp_path, store, config(*SETTINGS), 50, test, dev)
    assert figures["decoding"] == {
        "tuned_on": "dev", "threshold": 0.7, "median": 1, "mapping": "optimal",
        "sweep": [{"threshold": t, "median": 1, "der": pytest.approx(d)} for t, d in ((0.5, 1), (0.7, 0), (0.95, 1))],
    }  # fmt: skip
    assert (figures["test"]["missed_s"], figures["test"]["total_s"]) == (pytest.approx(8), pytest.approx(8))
    assert figures["notes"] == []


def test_without_dev_it_is_tuned_on_test_and_says_so(store, tmp_path):
    figures, _ = measured(tmp_path, store, config(*SETTINGS), 50, {"speech": 0.6, "silence": 0.1}, None)
    assert (figures["decoding"]["tuned_on"], figures["decoding"]["threshold"]) == ("test", 0.5)
    assert figures["test"]["der"] == pytest.approx(0)
    assert figures["notes"] == ["decoding was tuned on the data that the figures are of"]


def test_of_equal_settings_the_first_is_taken_and_a_median_where_it_helps(store):
    crops = windows(load_sessions(store, config()).dev, 50)
    made = config("speakers=2", "thresholds=0.4,0.5,0.6", "medians=1,3")
    activity = answer(crops, 50, 0.9, 0.1)
    assert tune(activity, Windows(crops, MIMI_GRID, 50, made), made)["median"] == 1
    activity[0, 10] = 0.1  # one frame of 50 is lost; a median over three brings it back
    found = tune(activity, Windows(crops, MIMI_GRID, 50, made), made)
    assert [row["der"] for row in found["sweep"]] == pytest.approx([0.02] * 3 + [0] * 3)
    assert (found["threshold"], found["median"]) == (0.4, 3)
    assert [(row["median"], row["threshold"]) for row in found["sweep"]] == [
        (median, threshold) for median in (1, 3) for threshold in (0.4, 0.5, 0.6)
    ]


def test_the_median_that_dev_asks_for_is_applied_to_test(store, tmp_path):
    made = config("speakers=2", "thresholds=0.5", "medians=1,3")
    sessions = load_sessions(store, made)
    dev, test = windows(sessions.dev, 50), windows(sessions.test, 50)
    flickering, gone = answer(dev, 50, 0.9, 0.1), answer(test, 50, 0.9, 0.1)
    flickering[0, 10] = 0.1
    gone[0, [5, 30]] = 0.1
    figures = measure(a_run(tmp_path, store, made), store, MIMI_GRID, (test, gone), (dev, flickering))
    assert figures["decoding"]["median"] == 3
    assert figures["test"]["missed_s"] == pytest.approx(0)


@pytest.mark.parametrize(("protocol", "mapping", "threshold"), [("sound", "optimal", 0.5), ("reference", "fixed", 0.7)])
def test_each_protocol_is_tuned_by_its_own_mapping(store, protocol, mapping, threshold):
    """0.5: everybody is heard, in each other's channel, and b in both for 15 frames: DER 15/50, fixed (50 - 15 + 15)/50.

    0.7: nobody but b, in 15 frames of its own channel: 35/50 under either mapping.
    """
    made = config("speakers=2", "thresholds=0.5,0.7", "medians=1", protocol=protocol)
    crops = windows(load_sessions(store, made).dev, 50)
    activity = answer(crops, 50, 0.6, 0.1, flip=True)
    activity[0, 30:45, 1] = 0.8
    found = tune(activity, Windows(crops, MIMI_GRID, 50, made), made)
    assert (found["mapping"], found["threshold"]) == (mapping, threshold)
    expected = {"optimal": [0.3, 0.7], "fixed": [1.0, 0.7]}[mapping]
    assert [row["der"] for row in found["sweep"]] == pytest.approx(expected)


def test_windows_cover_the_session_and_end_with_it_or_are_padded_as_published(store):
    """50 frames in windows of 20: the third has 10 frames, or 20 under the reference protocol."""
    session = load_sessions(store, config()).test[0]
    crops = windows([session], 20)
    for protocol, end_s, order in (("sound", 4.0, ["b"]), ("reference", 4.8, ["a", "b"])):
        found = Windows(crops, MIMI_GRID, 20, config(*SETTINGS, protocol=protocol))
        assert found.names == ["t@0.00", "t@1.60", "t@3.20"]
        regions = [found.uem[name][0].tolist() for name in found.names]
        assert regions == [pytest.approx(r) for r in ([0, 1.6], [1.6, 3.2], [3.2, end_s])]
        turns = [[(t.start_s, t.end_s, t.speaker) for t in found.reference[name]] for name in found.names]
        assert turns == [
            [(0, pytest.approx(1.6), "a")],
            [(pytest.approx(1.6), 2, "a"), (2, pytest.approx(3.2), "b")],
            [(pytest.approx(3.2), 4, "b")],
        ]
        assert found.order["t@3.20"] == order
        always = found.turns(np.ones((3, 20, 2)), 0.5, 1)
        assert [t.end_s for t in always["t@3.20"]] == [pytest.approx(end_s)] * 2
        assert [t.speaker for t in always["t@1.60"]] == ["channel0", "channel1"]
        errors = found.score(always)
        assert errors["t@3.20"].false_alarm_s == pytest.approx(2 * end_s - 6.4 - 0.8)


def test_channels_are_counted_as_they_arrive_in_the_window_or_in_the_session(store):
    """In the third window only b talks: its first channel there, the session's second."""
    crops = windows(load_sessions(store, config()).test[:1], 20)
    first = np.zeros((3, 20, 2))
    first[2, :10, 0] = 1
    for protocol, fixed in (("sound", 0), ("reference", 0.8)):
        found = Windows(crops, MIMI_GRID, 20, config(*SETTINGS, protocol=protocol))
        errors = found.score(found.turns(first, 0.5, 1))["t@3.20"]
        assert (errors.confusion_s, errors.fixed_confusion_s) == (0, pytest.approx(fixed))


def test_errors_are_summed_over_windows_and_sessions_of_a_recording(store, tmp_path):
    """Sessions t and u are of one recording; u's answer is wrong in its first window only, of 20 frames."""
    made = config("speakers=2", "thresholds=0.5", "medians=1")
    sessions = load_sessions(store, made)
    crops = windows(sessions.test, 20)
    activity = answer(crops, 20, 0.9, 0.1)
    activity[3] = 0.1
    run = a_run(tmp_path, store, made)
    figures = measure(run, store, MIMI_GRID, (crops, activity), (crops[:3], activity[:3]))
    assert list(figures["recordings"]) == ["m-test"]
    for errors in (figures["test"], figures["recordings"]["m-test"]):
        assert (errors["missed_s"], errors["total_s"]) == (pytest.approx(1.6), pytest.approx(8))
    assert figures["test"]["der"] == pytest.approx(0.2)
    assert figures["mean_window_der"] == pytest.approx(1 / 6)  # of rates, not of seconds
    assert (figures["num_windows"], figures["window_s"]) == (6, pytest.approx(1.6))
    outputs = featstore.open(run.path / OUTPUTS)
    assert outputs.ids == ["t", "u"]
    for number, id in enumerate(outputs.ids):
        whole = activity[3 * number : 3 * number + 3].reshape(60, 2)[:50]
        np.testing.assert_array_equal(outputs.frames("activity", id), whole.astype(np.float16))


def test_averages_are_of_the_windows_in_which_somebody_speaks(store, tmp_path):
    made = config("speakers=2", "thresholds=0.5", "medians=1")
    crops = [*windows(load_sessions(store, made).test[:1], 50), silent_crop(store, made)]
    activity = answer(crops, 50, 0.9, 0.1, flip=True)
    figures = measure(a_run(tmp_path, store, made), store, MIMI_GRID, (crops, activity), (crops, activity))
    assert (figures["mean_window_der"], figures["mean_window_fixed_der"]) == (pytest.approx(0), pytest.approx(1))
    assert figures["test"]["fixed_der"] == pytest.approx(1)
    assert figures["num_windows"] == 2


def silent_crop(store, made):
    nobody = np.zeros(0, np.int64)
    session = load_sessions(store, made).test[1]
    return Crop(replace(session, first=nobody, last=nobody, speaker=nobody, names=(), turns=()), 0)


def test_where_nobody_speaks_there_is_no_rate(store, tmp_path):
    made = config("speakers=2", "thresholds=0.5,0.6", "medians=1")
    silent, quiet = silent_crop(store, made), np.full((1, 50, 2), 0.1)
    figures = measure(a_run(tmp_path, store, made), store, MIMI_GRID, ([silent], quiet), ([silent], quiet))
    assert figures["test"]["der"] is figures["mean_window_der"] is figures["mean_window_fixed_der"] is None
    assert [row["der"] for row in figures["decoding"]["sweep"]] == [None, None]
    assert figures["test"]["scored_s"] == pytest.approx(4)
    assert figures["notes"] == ["nobody speaks in the test sessions: there is no error rate"]


# ---- counting frames


def test_padding_counts_for_nothing():
    """Behind the mask there is speech that nobody heard, and an answer to nothing."""
    truth = torch.tensor([[[1, 0], [0, 1], [1, 1], [0, 0]], [[1, 0], [1, 0], [0, 0], [0, 0]]])
    answers = torch.tensor(
        [[[0.9, 0.9], [0.0, 0.0], [0.0, 0.0], [0.9, 0.9]], [[0.5, 0.5], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]]]
    )
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    tally = FrameTally([0.5])
    tally.add(answers, truth, mask)
    # Three frames of speech count: one missed, two right with a false alarm each (0.5 is at the threshold).
    assert tally.total == 3
    assert tally.counts.tolist() == [[1, 2, 2, 2]]
    assert tally.der().tolist() == [1]
    tally.add(answers[:, 3:], truth[:, 3:], mask[:, 3:])
    assert (tally.total, tally.counts.tolist()) == (3, [[1, 2, 2, 2]])


def test_the_best_threshold_counts_and_silence_has_no_rate():
    truth = torch.tensor([[[1, 0], [1, 0]]])
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    tally = FrameTally([0.3, 0.6, 0.95])
    tally.add(torch.tensor([[[0.9, 0.5], [0.9, 0.1]]]), truth, everywhere)
    assert tally.der().tolist() == [0.5, 0, 1]
    assert tally.best_der() == 0
    silent = FrameTally([0.3])
    silent.add(torch.ones(1, 2, 2), torch.zeros(1, 2, 2), everywhere)
    assert silent.best_der() == 1 and np.isnan(silent.der()).all()


class Echo(nn.Module):
    """A model whose logits are its features."""

    def forward(self, inputs, mask=None):
        return inputs.float()


@pytest.mark.parametrize("protocol", ["sound", "reference"])
def test_evaluation_weighs_frames_alike_and_keeps_the_crops_in_order(tmp_path, protocol):
    """Windows of 20, 20 and 10 frames in batches of two; the last one's padding counts as published, or not at all."""
    rng = np.random.default_rng(0)
    with featstore.writer(
        tmp_path / "s", featstore.FeatureSpec("mimi", 2, "float32", 24000, MIMI_GRID, "x", "")
    ) as out:
        logits = rng.normal(size=(50, 2))
        out.add(talk("t", "train", *TURNS), logits)
        out.add(talk("d", "dev", *TURNS), logits)
    store = featstore.open(tmp_path / "s")
    made = config("speakers=2", "batch_size=2", "sort_weight=0.25", "pil_weight=0.75", protocol=protocol)
    session = load_sessions(store, made).train[0]
    crops = windows([session], 20)
    source = FrameSource(store, made, 20, torch.device("cpu"))
    found = evaluate(Echo().train(), source, crops, made, torch.device("cpu"))
    batch = source.batch(crops)
    sound = protocol == "sound"
    weights = {"sort_weight": 0.25, "pil_weight": 0.75, "resort": sound}
    expected = hybrid_loss(batch.inputs, batch.labels, batch.mask if sound else None, **weights)
    assert found.loss == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(found.activity, batch.inputs.sigmoid(), atol=1e-3)
    tally = FrameTally(made.thresholds)
    tally.add(batch.inputs.sigmoid(), batch.labels, batch.mask if sound else torch.ones_like(batch.mask))
    assert found.der == tally.best_der() > 0
