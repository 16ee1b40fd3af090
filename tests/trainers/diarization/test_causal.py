"""Heads of chunks: a stream that goes on from what is kept says what the recording says in one go, through a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import featstore
from featstore import MIMI_GRID
from tests.sessions import make_store
from tests.trainers.diarization.test_cache import spoken
from trainers.cascade.clusters import unit
from trainers.config import ConfigError, FitConfig
from trainers.diarization.fit import fit_diarizer
from trainers.diarization.follow import Follower, follow, following_of
from trainers.diarization.models import Adapter, Earlier
from trainers.diarization.whole import load_head
from trainers.runs import Run

CPU = torch.device("cpu")
DIM = 8
CHUNKS = ("cache_s=3.2", "token_frames=4", "chunk_frames=8", "left_frames=16")


def config(*settings: str):
    return FitConfig.make("adapter", settings=("crop_s=4", "device=cpu", *CHUNKS, *settings))


def head(**changes):
    """Of random weights, those of distances too."""
    torch.manual_seed(0)
    sizes = {"width": 8, "layers": 3, "heads": 2, "ffn": 16, "dropout": 0.0, "conv_frames": 5, "token_frames": 4}
    chunks = {"cache_s": 3.2, "chunk_frames": 8, "left_frames": 16}
    made = Adapter(DIM, **{**sizes, **chunks, **changes}).eval()
    torch.nn.init.normal_(made.encoder.distance)
    torch.nn.init.normal_(made.head.weight, std=2)  # one alone, often enough to fill a cache
    torch.nn.init.constant_(made.head.bias, -2)
    return made


def told(batch: int = 1) -> Earlier:
    rng = torch.Generator().manual_seed(1)
    return Earlier(
        torch.randn(batch, 5, DIM, generator=rng),
        torch.rand(batch, 5, 4, generator=rng),
        torch.ones(batch, 5, dtype=torch.bool),
    )


@torch.no_grad()
def streamed(model, features, earlier, ends):
    """Logits of parts that end at `ends`, and of what is left, each going on from what was kept of those before."""
    said, kept = [], None
    for begin, end in zip([0, *ends], [*ends, features.shape[1]], strict=True):
        found, kept = model.go_on(features[:, begin:end], None, earlier, kept)
        said.append(found)
    return torch.cat(said, 1)


# ---- the head


@pytest.mark.parametrize("changes", [{}, {"conv_frames": 0}, {"left_frames": 0}, {"left_frames": 200}, {"layers": 1}])
@pytest.mark.parametrize("frames", [5, 8, 61, 96])
def test_a_stream_says_what_the_recording_says_in_one_go(frames, changes):
    model, features = head(**changes), torch.randn(2, frames, DIM)
    for earlier in (None, told(2)):
        whole = model(features, None, earlier).detach()
        for ends in (range(8, frames, 8), range(24, frames, 24), [8, 40][: frames // 40 * 2]):
            torch.testing.assert_close(streamed(model, features, earlier, list(ends)), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_chunk_hears_itself_and_a_bounded_time_before_and_nothing_later():
    model, features = head(layers=1, conv_frames=0), torch.randn(1, 64, DIM)
    said = model(features)[0]
    for frame in (0, 17, 40):
        changed = features.clone()
        changed[0, frame] += 1
        heard = (model(changed)[0] - said).abs().amax(1) > 1e-7
        begin = frame // 8 * 8
        # 16 frames before a chunk are two chunks; a token answers for four frames
        assert heard.tolist() == [begin <= t < begin + 8 + 16 for t in range(64)]


@torch.no_grad()
def test_a_convolution_hears_nothing_behind_its_chunk():
    model, features = head(), torch.randn(1, 64, DIM)
    changed = features.clone()
    changed[0, 24:] = 5
    torch.testing.assert_close(model(changed)[0, :24], model(features)[0, :24])
    assert not torch.allclose(model(changed)[0, 24:], model(features)[0, 24:])
    model.encoder = head(left_frames=0).encoder  # what is left of the chunk before is what the convolution hears of it
    changed = features.clone()
    changed[0, 23] += 1
    assert ((model(changed) - model(features))[0].abs().amax(1) > 1e-7).nonzero().flatten().tolist() == [*range(16, 32)]


@torch.no_grad()
def test_without_bounds_and_distances_it_is_the_transformer_of_torch():
    model = head(chunk_frames=64)
    torch.nn.init.zeros_(model.encoder.distance)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation="gelu", batch_first=True)
    plain = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    plain.load_state_dict({k: v for k, v in model.encoder.state_dict().items() if k != "distance"})
    x = torch.randn(2, 16, 8)
    mask = torch.arange(16).expand(2, -1) < torch.tensor([[16], [11]])
    found, expected = model.encoder(x, mask, None)[0], plain(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(found[mask], expected[mask])


@pytest.mark.parametrize("train", [False, True])
def test_padding_does_not_reach_real_frames_and_is_a_number(train):
    model, features = head().train(train), torch.randn(1, 61, DIM)
    mask = torch.arange(61)[None] < 13
    changed = features.masked_fill(~mask.unsqueeze(-1), 1e3)
    torch.testing.assert_close(model(changed, mask)[:, :13], model(features[:, :13]), atol=1e-5, rtol=0)
    assert model(changed, mask).isfinite().all()
    model(changed, mask).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="too short to know voices by; set cache_s too"):
        FitConfig.make("adapter", settings=("chunk_frames=8",))
    with pytest.raises(ConfigError, match="left_frames must be a multiple of token_frames=4, found 6"):
        config("left_frames=6")
    assert not hasattr(FitConfig.make("unfreeze"), "chunk_frames")


# ---- a recording


def follower(model=None) -> Follower:
    return Follower(model or head(), config(), MIMI_GRID, CPU, unit, 0.5, 0.0)


def recording(frames: int):
    rng = np.random.default_rng(frames)
    made = np.repeat(rng.standard_normal((-(-frames // 12), DIM)).astype(np.float32), 12, axis=0)[:frames]
    return lambda names, a, b: made[a:b]


@pytest.mark.parametrize("frames", [5, 100, 203])
def test_recordings_are_heard_alike_in_steps_of_any_length(frames):
    """Steps that end amid chunks, and features that come late: at last it is the same."""
    read, found = recording(frames), []
    for step, late in ((8, 0), (3, 0), (3, 5), (40, 2)):
        made = follower()
        said = [made.hear(read, heard, max(0, heard - late)) for heard in range(step, frames, step)]
        said.append(made.hear(read, frames, frames))
        found.append(np.concatenate([*said, made.activity]))
        assert len(found[-1]) == frames and (len(made.told) > 2 or frames < 8)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-6)


def test_with_the_cache_of_its_end_a_recording_is_heard_as_in_one_go():
    model, read = head(), recording(203)
    made = follower(model)
    said = follow(made, read, 203)
    earlier = Earlier(torch.from_numpy(made.frames)[None], torch.from_numpy(made.told)[None], torch.ones(1, len(made.told), dtype=torch.bool))  # fmt: skip
    with torch.no_grad():
        whole = model(torch.from_numpy(read((), 0, 203))[None], None, earlier)[0].sigmoid()
    np.testing.assert_allclose(said, whole, atol=1e-6)


def test_what_is_kept_does_not_grow_and_goes_on_elsewhere():
    read = recording(1000)
    made = [follower() for _ in range(2)]
    sizes = []
    for heard in range(3, 700, 3):
        made[0].hear(read, heard, heard - 2)
        sizes.append(sum(each.nbytes for each in made[0].state()[1].values()))
    assert max(sizes[:200]) >= max(sizes[200:]) and len(made[0].told) == 10
    made[1].restore(*made[0].state())
    for heard in range(702, 1000, 3):
        for a, b in zip(*(each.hear(read, heard, heard - 2) for each in made), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(made[0].activity, made[1].activity)


def test_a_chunk_is_known_to_the_next():
    """What is said of a chunk goes into the cache before the next is heard, however many are heard at once."""

    class Asked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.asked = []

        def go_on(self, features, mask, earlier, kept):
            self.asked.append((features.shape[1], earlier.told.shape[1]))
            return torch.where(features[:, :, :4] > 0.5, 6.0, -6.0), None

    model = Asked()
    frames = spoken((0, 40, 1))
    follower(model).hear(lambda names, a, b: frames[a:b], 28)
    assert model.asked == [(8, 0), (8, 2), (8, 4), (4, 6)]


def test_a_run_of_chunks_is_fitted_and_goes_through_whole_recordings(tmp_path):
    store = featstore.open(make_store(tmp_path / "s", {"train": 2, "dev": 1, "test": 1}, seconds=12.0, dim=DIM, pool=4))
    with pytest.raises(ConfigError, match="chunk_frames=56: more than the 50 frames that a crop of 4 s has"):
        fit_diarizer(Run.create(tmp_path / "none", config("chunk_frames=56"), store), store)
    tiny = ("width=8", "heads=2", "layers=1", "ffn=16", "epochs=1", "crops_per_epoch=4", "batch_size=2")
    run = Run.create(tmp_path / "run", config(*tiny, "thresholds=0.5", "medians=1"), store)
    result = fit_diarizer(run, store)
    assert result["whole"]["total_s"] > 0 and result["following"]["dev_der"] is not None
    made = load_head(Run.open(run.path), CPU)
    assert made.model.encoder.chunk == 2 and made.model.encoder.left == 4
    assert made.follower(following_of(run)).config.chunk_frames == 8
