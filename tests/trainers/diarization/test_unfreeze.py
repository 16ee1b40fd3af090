"""Unfreeze: gradients reach what they should and nothing else; with nothing unfrozen it equals the cached features."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile as sf
import torch

import featstore
from featstore import MIMI_GRID, Turn, Utterance
from tests.sessions import spec
from trainers.config import ConfigError, FitConfig
from trainers.diarization.data import Crop, FrameSource
from trainers.diarization.evaluate import run_model
from trainers.diarization.fit import build, fit_diarizer
from trainers.diarization.loop import parameter_groups
from trainers.diarization.sessions import load_sessions
from trainers.runs import Run

pytest.importorskip("moshi", reason="moshi is not installed: pip install '.[extract]'")

from trainers.diarization.unfreeze import AudioSource

CPU = torch.device("cpu")
SECONDS = 6.0
TINY = (
    *("width=8", "heads=2", "layers=1", "ffn=16", "crop_s=1.6", "batch_size=2", "epochs=1", "crops_per_epoch=2"),
    *("warmup_steps=1", "device=cpu", "thresholds=0.5", "medians=1", "mimi_top_layers=2"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three sessions of noise bursts at 24 kHz, with the latents of a small untrained Mimi."""
    from featstore.extractors.mimi import MimiExtractor

    folder = tmp_path_factory.mktemp("unfreeze")
    extractor = MimiExtractor(weights="random:0", device="cpu", precision="float32")
    rng = np.random.default_rng(0)
    with featstore.writer(folder / "store", extractor.spec) as writer:
        for split in ("train", "dev", "test"):
            wave = 0.1 * rng.standard_normal(round(SECONDS * 24000)).astype(np.float32)
            sf.write(folder / f"{split}.wav", wave, 24000, subtype="FLOAT")
            turns = (Turn(0.0, 2.5, "a"), Turn(2.0, SECONDS, "b"))
            utterance = Utterance(split, str(folder / f"{split}.wav"), 0.0, SECONDS, split, None, split, turns)
            writer.add(utterance, extractor.extract([wave])[0])
    return featstore.open(folder / "store")


def config(*settings) -> FitConfig:
    return FitConfig.make("unfreeze", settings=(*TINY, *settings))


def built(store, *settings):
    made = config(*settings)
    run = Run.create("unused-run-folder", made, store)
    sessions = load_sessions(store, made)
    return made, sessions, *build(run, store, sessions, CPU)


def test_cached_features_and_frozen_mimi_give_the_same_adapter_outputs(store):
    made, sessions, model, source = built(store, "mimi_top_layers=0", "crop_s=4")
    cached = FrameSource(store, made, source.length, CPU)
    crops = [Crop(sessions.train[0], 0)]
    a, b = source.batch(crops), cached.batch(crops)
    assert torch.equal(a.labels, b.labels) and torch.equal(a.mask, b.mask)
    model.eval()
    with torch.no_grad():
        # The store keeps float16: 11 bits.
        torch.testing.assert_close(model.latents(a.inputs), b.inputs.float(), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(model(a.inputs, a.mask), model.adapter(b.inputs, b.mask), rtol=1e-2, atol=2e-3)


def test_the_same_from_the_middle_of_a_session_and_past_its_end(store):
    """Mimi hears what came before the crop, as it did when the cached frames were computed."""
    made, sessions, model, source = built(store, "mimi_top_layers=0", "crop_s=2", "mimi_context_s=10")
    cached = FrameSource(store, made, source.length, CPU)
    crops = [Crop(sessions.train[0], 20), Crop(sessions.dev[0], 60)]  # 60 + 25 frames: the session has 75
    a, b = source.batch(crops[:1]), cached.batch(crops[:1])
    with torch.no_grad():
        found = model.eval()(a.inputs, a.mask)
        torch.testing.assert_close(found, model.adapter(b.inputs, b.mask), rtol=1e-2, atol=2e-3)
        a, b = source.batch(crops[1:]), cached.batch(crops[1:])
        found = model(a.inputs, a.mask)[b.mask]
        torch.testing.assert_close(found, model.adapter(b.inputs, b.mask)[b.mask], rtol=1e-2, atol=2e-3)


def test_latents_equal_moshis_own(store):
    _, sessions, model, source = built(store)
    batch = source.batch([Crop(sessions.train[0], 0)])
    with torch.no_grad():
        expected = model.mimi.encode_to_latent(batch.inputs.unsqueeze(1), quantize=False).transpose(1, 2)
        torch.testing.assert_close(model.latents(batch.inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top", [0, 1, 3])
def test_gradients_reach_exactly_the_top_layers_and_output_projections(store, top):
    made, sessions, model, source = built(store, f"mimi_top_layers={top}")
    run_model(model.train(), source.batch([Crop(sessions.train[0], 0)]), made, CPU)[1].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    layers = model.mimi.encoder_transformer.transformer.layers
    under = "mimi.encoder_transformer."
    expected = {
        f"{under}transformer.layers.{number}.{name}"
        for number in range(len(layers) - top, len(layers))
        for name, _ in layers[number].named_parameters()
    }
    if top:
        expected |= {n for n, _ in model.named_parameters() if n.startswith(f"{under}output_projs.")}
        assert f"{under}output_projs.0.weight" in expected  # the small Mimi has a projection
    assert {name for name in reached if name.startswith("mimi.")} == expected
    assert {name for name in reached if name.startswith("adapter.")}
    assert {name for name, p in model.named_parameters() if p.grad is not None} >= expected
    groups = parameter_groups(model, made)
    assert [(g["lr"], g["clip"]) for g in groups] == [(1e-4, 1.0), (1e-5, 0.5)][: 2 if top else 1]
    assert sum(len(g["params"]) for g in groups[1:]) == len(expected)


def test_frozen_layers_keep_no_activations(store):
    _, sessions, model, source = built(store, "mimi_top_layers=1")
    latents = model.train().latents(source.batch([Crop(sessions.train[0], 0)]).inputs)
    seen, todo = set(), [latents.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    leaves = {id(node.variable) for node in seen if hasattr(node, "variable")}
    trained = {id(p) for p in model.mimi.parameters() if p.requires_grad}
    assert leaves == trained


def test_context_is_heard_and_not_scored_by_either_protocol(store):
    for protocol in ("sound", "reference"):
        made = FitConfig.make("unfreeze", settings=(*TINY, "mimi_context_s=0.8"), protocol=protocol)
        sessions = load_sessions(store, made)
        model, source = build(Run.create("unused-run-folder", made, store), store, sessions, CPU)
        batch = source.batch([Crop(sessions.train[0], 10)])
        assert batch.inputs.shape == (1, 30 * 1920)
        assert run_model(model, batch, made, CPU)[0].shape == (1, 20, 4)


def test_a_whole_run_changes_only_what_is_trainable(store, tmp_path, monkeypatch):
    made = config("lr=1e-2", "mimi_lr=1e-2")
    run = Run.create(tmp_path / "run", made, store)
    kept = []

    def build_and_keep(*arguments):
        kept.append(build(*arguments))
        return kept[-1]

    monkeypatch.setattr("trainers.diarization.fit.build", build_and_keep)
    result = fit_diarizer(run, store)
    assert result["kind"] == "unfreeze" and 0 < result["trainable_parameters"] < result["parameters"]
    assert any("UNTRAINED" in warning for warning in result["warnings"])
    tensors, _ = run.read_tensors("model.safetensors")
    scale = {"adapter.scale.mean", "adapter.scale.size"}
    assert sum(t.numel() for n, t in tensors.items() if n not in scale) == result["trainable_parameters"]
    ((model, _),) = kept
    before = build(run, store, load_sessions(store, made), CPU)[0]
    after, trainable = dict(model.named_parameters()), {n for n, p in before.named_parameters() if p.requires_grad}
    assert set(tensors) == trainable | scale
    assert {n for n in trainable if n.startswith("mimi.")} and {n for n in trainable if n.startswith("adapter.")}
    changed = {name for name, value in before.named_parameters() if not torch.equal(after[name], value)}
    assert changed == trainable  # all of them, and nothing else
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in before.named_buffers())
    assert all(torch.equal(tensors[name], after[name]) for name in trainable)


def test_too_many_layers_and_other_weights_are_refused(store):
    with pytest.raises(ConfigError, match="this Mimi has 4 transformer layers, found 9"):
        built(store, "mimi_top_layers=9")
    with pytest.raises(ConfigError, match="the two runs could not be compared"):
        built(store, "mimi_weights=random:1")


@pytest.mark.parametrize("known", [True, False])
def test_a_session_that_begins_inside_its_file(tmp_path, known):
    """Frame k of a session that starts at 3 s is sample 72,000 + 1920 k of the file; nothing past its end is heard.

    Where the manifest says no duration, the session reaches to the end of the file.
    """
    wave = np.arange(12 * 24000, dtype=np.float32) / 1e6 + 0.1
    sf.write(tmp_path / "a.wav", wave, 24000, subtype="FLOAT")
    seconds = 4.0 if known else float("nan")
    frames = 50 if known else 113  # of 9 s, the last one filled up
    turns = (Turn(0.0, 2.0, "a"),)
    with featstore.writer(tmp_path / "s", spec(dim=4)) as writer:
        for split in ("train", "dev", "test"):
            u = Utterance(split, str(tmp_path / "a.wav"), 3.0, seconds, split, None, split, turns)
            writer.add(u, np.ones((frames, 4)))
    store = featstore.open(tmp_path / "s")
    made = config("mimi_context_s=0.4", "crop_s=1.6")
    source, session = AudioSource(store, made, 20, CPU), load_sessions(store, made).train[0]
    begin, end = 3 * 24000, (7 if known else 12) * 24000
    for start in (0, 2, 5, 20, frames - 20, frames - 7):
        context = min(5, start)
        expected = wave[begin + (start - context) * 1920 : min(begin + (start + 20) * 1920, end)]
        for asked in (context, 5):  # more context than there is: silence before
            heard = source.read(Crop(session, start), asked)
            assert len(heard) == (asked + 20) * 1920
            silent = (asked - context) * 1920
            assert not heard[:silent].any() and not heard[silent + len(expected) :].any()
            np.testing.assert_array_equal(heard[silent : silent + len(expected)], expected)
    batch = source.batch([Crop(session, 3), Crop(session, frames - 7)])
    assert batch.inputs.shape == (2, 25 * 1920)  # the context of the one that has most
    assert batch.mask.sum(1).tolist() == [20, 7] and batch.padded
    assert source.batch([Crop(session, 0)]).inputs.shape == (1, 20 * 1920)
    assert source.batch([Crop(session, 3)]).inputs.shape == (1, 23 * 1920)


def test_audio_before_the_session_is_silence_and_after_it_too(store):
    made = config("mimi_context_s=0.8", "crop_s=1.6")
    source = AudioSource(store, made, 20, CPU)
    sessions = load_sessions(store, made)
    whole, _ = sf.read(store.utterance("train").audio, dtype="float32")
    wave = source.read(Crop(sessions.train[0], 4), 10)
    assert len(wave) == 30 * 1920
    assert not wave[: 6 * 1920].any()
    np.testing.assert_allclose(wave[6 * 1920 :], whole[: 24 * 1920], atol=1e-7)
    wave = source.read(Crop(sessions.train[0], 70), 10)
    np.testing.assert_allclose(wave[: 15 * 1920], whole[60 * 1920 :], atol=1e-7)
    assert not wave[15 * 1920 :].any()
    assert MIMI_GRID.step_s * 24000 == 1920
