"""One scale: statistics of training frames, one size a feature, kept in the weights, applied wherever the run is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import featstore
from evaluation.runs import MODEL
from featstore import Utterance
from tests.sessions import make_store, spec
from trainers.checkpoint import load_best, trained_tensors
from trainers.config import FitConfig
from trainers.diarization.fit import build, fit_diarizer
from trainers.diarization.models import Adapter
from trainers.diarization.sessions import load_sessions
from trainers.runs import Run
from trainers.scale import Scale, scale_of

SMALL = ("width=16", "heads=2", "layers=1", "ffn=16", "crop_s=4", "epochs=1", "crops_per_epoch=8", "warmup_steps=0")


@pytest.fixture
def store(tmp_path: Path) -> featstore.Store:
    """Two features of which one is a thousand times larger, of utterances of different lengths."""
    rng = np.random.default_rng(0)
    for name, dim, size in (("small", 2, 0.01), ("large", 3, 10.0)):
        with featstore.writer(tmp_path / "s", spec(name, dim, dtype="float32")) as writer:
            for k, frames in enumerate((3, 50, 11)):
                values = size * (rng.standard_normal((frames, dim)) * np.arange(1, dim + 1) + 5 + k)
                writer.add(Utterance(f"u{k}", "none.wav", 0.0, frames * 0.08, f"r{k}"), values)
    return featstore.open(tmp_path / "s")


def test_it_is_that_of_all_frames_of_the_utterances_asked_for(store: featstore.Store) -> None:
    scale = scale_of(store, ("small", "large"), ("u0", "u1"))
    for name, columns in (("small", slice(0, 2)), ("large", slice(2, 5))):
        frames = np.concatenate([store.frames(name, id) for id in ("u0", "u1")]).astype(np.float64)
        np.testing.assert_allclose(scale.mean[columns], frames.mean(0), rtol=1e-5)
        np.testing.assert_allclose(scale.size[columns], np.sqrt(frames.var(0).mean()), rtol=1e-5)


def test_features_come_to_one_size_and_dimensions_keep_their_relation(store: featstore.Store) -> None:
    ids = ("u0", "u1", "u2")
    scale = scale_of(store, ("small", "large"), ids)
    both = np.concatenate([np.concatenate([store.frames(n, id) for n in ("small", "large")], 1) for id in ids])
    scaled = scale(both)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    variance = scaled.var(0)
    np.testing.assert_allclose([variance[:2].mean(), variance[2:].mean()], 1, rtol=1e-4)
    np.testing.assert_allclose(variance[1] / variance[0], both.var(0)[1] / both.var(0)[0], rtol=1e-3)


def test_a_feature_that_never_changes_stays_finite(tmp_path: Path) -> None:
    with featstore.writer(tmp_path / "s", spec("flat", 2)) as writer:
        writer.add(Utterance("u", "none.wav", 0.0, 0.8, "r"), np.full((10, 2), 3.0))
    scale = scale_of(featstore.open(tmp_path / "s"), ("flat",), ("u",))
    assert scale(np.full((1, 2), 3.0, np.float32)).tolist() == [[0.0, 0.0]]


def test_the_head_sees_scaled_features_and_as_made_takes_them_as_they_are() -> None:
    torch.manual_seed(0)
    head = Adapter(2, speakers=2, width=8, layers=1, heads=2, ffn=8).eval()
    x = torch.randn(1, 5, 2)
    plain = head(x)
    head.scale.take(Scale(np.array([1.0, -2.0], np.float32), np.array([4.0, 0.5], np.float32)))
    moved = x * torch.tensor([4.0, 0.5]) + torch.tensor([1.0, -2.0])
    torch.testing.assert_close(head(moved), plain)
    torch.testing.assert_close(head(moved.half()), plain, rtol=0, atol=0.02)
    assert not torch.allclose(head(x), plain)


def run_of(path: Path, store: featstore.Store, *settings: str, **changes: str) -> Run:
    return Run.create(path, FitConfig.make("adapter", settings=(*SMALL, *settings), **changes), store)


def test_it_is_of_training_sessions_under_the_sound_protocol_only(tmp_path: Path) -> None:
    store = featstore.open(make_store(tmp_path / "s", {"train": 3, "dev": 1, "test": 1}))
    for protocol in ("sound", "reference"):
        run = run_of(tmp_path / protocol, store, protocol=protocol)
        sessions = load_sessions(store, run.config)
        model, _ = build(run, store, sessions, torch.device("cpu"))
        expected = scale_of(store, ("mimi",), [s.id for s in sessions.train])
        sound = protocol == "sound"
        torch.testing.assert_close(model.scale.mean, torch.from_numpy(expected.mean) if sound else torch.zeros(8))
        torch.testing.assert_close(model.scale.size, torch.from_numpy(expected.size) if sound else torch.ones(8))


def test_it_is_in_the_weights_and_comes_back_with_them(tmp_path: Path) -> None:
    store = featstore.open(make_store(tmp_path / "s", {"train": 2, "dev": 1, "test": 1}))
    run = run_of(tmp_path / "run", store)
    fit_diarizer(run, store)
    tensors, facts = run.read_tensors(MODEL)
    assert tensors["scale.size"].unique().numel() == 1 and tensors["scale.mean"].abs().sum() > 0
    again = Adapter(8, speakers=4, width=16, heads=2, layers=1, ffn=16)
    load_best(run, again)
    torch.testing.assert_close(again.scale.mean, tensors["scale.mean"])
    # Weights of version 0.1 hold none: they were trained on features as they are.
    run.write_tensors(MODEL, {k: v for k, v in tensors.items() if not k.startswith("scale.")}, facts)
    load_best(run, again)
    assert trained_tensors(again)["scale.mean"].eq(0).all() and trained_tensors(again)["scale.size"].eq(1).all()
