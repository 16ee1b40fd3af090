"""Adapter and fusion on the fly: channels by arrival in each window become voices that last."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diarizer.live.adapter import LiveAdapter
from diarizer.live.timing import Timing
from evaluation.diarization import score
from evaluation.turns import Turns
from featstore import FrameGrid
from tests.diarizer.live.conftest import SECONDS
from tests.fakes import FakeExtractor
from tests.tones import sound_of, turns_of
from trainers.config import FitConfig
from trainers.diarization.whole import Stitching, WholeHead
from trainers.scale import OneScale


class Tones(nn.Module):
    """Who is heard, by loudness in each tone's band; channels in order of arrival in the window."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = OneScale(8)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        heard = features > 1.0
        first = torch.where(heard.any(1), heard.to(torch.uint8).argmax(1), features.shape[1])
        order = torch.argsort(first, dim=1, stable=True)[:, None, :4].expand(-1, features.shape[1], -1)
        return torch.where(heard.gather(2, order), 4.0, -4.0)


def adapter(latency_s: float = 0.48, threshold: float = 0.5, median: int = 1) -> LiveAdapter:
    config = FitConfig.make("adapter", settings=("feature=fake", "crop_s=6", "device=cpu"))
    head = WholeHead(Tones(), config, FrameGrid(0.04, 0.08), {"fake": 8}, torch.device("cpu"))
    return LiveAdapter(head, Stitching("fake", 0.5, 0.02, threshold, median), Timing.of(latency_s, 0.08, 0), slots=8)


def settled(live: LiveAdapter, frames: np.ndarray) -> dict[int, np.ndarray]:
    """(frames,) by voice."""
    active: dict[int, np.ndarray] = {}
    done = 0
    for heard in [*range(live.timing.step, len(frames), live.timing.step), len(frames)]:
        said, _ = live.step(lambda names, start, stop: frames[start:stop], heard, heard, heard == len(frames))
        for column, voice in enumerate(said.voices):
            row = active.setdefault(voice, np.zeros(len(frames), bool))
            row[done : done + said.settled] = said.active[: said.settled, column]
        done += said.settled
    assert done == len(frames)
    return active


@pytest.fixture(scope="module")
def frames(wave) -> np.ndarray:
    return FakeExtractor().extract([wave])[0]


def as_turns(active: dict[int, np.ndarray]) -> Turns:
    from evaluation.frames import frames_to_turns

    return frames_to_turns(np.stack(list(active.values()), 1), FrameGrid(0.04, 0.08), [f"v{v}" for v in active])


def test_one_identity_while_windows_pass(frames, turns):
    """Channels change from window to window as arrivals leave them; voices do not."""
    found = as_turns(settled(adapter(), frames))
    scored = score({"x": Turns.of(turns)}, {"x": found}, uem={"x": np.array([[0.0, SECONDS]])}).corpus
    assert scored.der < 0.05 and scored.confusion_s < 0.1 and scored.missed_s < 0.1
    assert len(found.speakers) == 3


@pytest.fixture
def two() -> np.ndarray:
    """Of 60 frames the first voice has 0-19 and, with the second, 20-24, which goes on to 39; a frame of it alone at 50."""
    frames = np.zeros((60, 8), np.float32)
    frames[:25, 0] = frames[20:40, 1] = frames[50, 1] = 2
    return frames


@pytest.mark.parametrize(
    ("settings", "seconds"), [({}, (25, 21)), ({"median": 3}, (25, 20)), ({"threshold": 0.99}, (0, 0))]
)
def test_threshold_and_median_are_those_of_the_run(two, settings, seconds):
    """Channels are active with a probability of 0.982."""
    found = settled(adapter(**settings), two)
    assert tuple(found[k].sum() if k in found else 0 for k in (0, 1)) == seconds


def test_voices_are_learnt_of_frames_in_which_one_is_heard_and_nothing_lacks(two):
    live, heard = adapter(), []
    live.listening = SimpleNamespace(hear=lambda *told: heard.append(told), finish=lambda upto: heard.append(upto))
    for step in range(3, 58, 3):
        live.step(lambda names, start, stop: two[start:stop], step, step - 2, False)
        assert [at for *_, at in heard] == list(range(step - 2))
    live.step(lambda names, start, stop: two[start:stop], 60, 58, True)
    assert heard.pop() == 60 and [at for *_, at in heard] == list(range(60))
    assert [at for _, single, at in heard if single] == [*range(20), *range(25, 40), 50]
    np.testing.assert_array_equal([vector[:2] for vector, *_ in heard[19:26:6]], [[1, 0], [0, 1]])


def test_a_channel_is_the_voice_that_heard_the_shared_seconds_alike():
    """Before, from frame 10 on: the first voice in 10-17, the second in 14-17. Now, from 12 on: one channel throughout,
    one in the last two, which are too few to go by; and one in 12-16."""
    live = adapter()
    live.numbers, live.first = (3, 7), 10
    live.before = np.zeros((8, 2), np.float32)
    live.before[:, 0] = live.before[4:, 1] = 1
    channels = np.zeros((9, 3), np.float32)
    channels[:, 0] = channels[4:, 1] = channels[:5, 2] = 1
    found = live._alike(channels, 12, {7: 9})
    assert list(found) == [3, 9]
    np.testing.assert_allclose(found[3], [6 / 6, 0, 5 / 6])
    np.testing.assert_allclose(found[9], [4 / 6, 0, 3 / 6])


@pytest.mark.parametrize(
    ("alike", "expected"), [([[0.9, 0.0], [0.0, 0.8]], (0, 1)), ([[0.69, 0.0], [0.0, 0.69]], (1, 0))]
)
def test_what_was_heard_alike_outweighs_what_it_sounds_like(alike, expected):
    """The first channel sounds like the second voice and the other way round; each speaks alone for four frames."""
    live = adapter()
    live.voices = SimpleNamespace(numbers=(0, 1, 5), means=np.eye(8, dtype=np.float32)[:3], next=6)
    live._alike = lambda *_: {0: np.array([*alike[0], 0.0]), 1: np.array([*alike[1], 0.0])}
    channels, who = np.zeros((8, 3), np.float32), np.zeros((8, 8), np.float32)
    channels[:4, 0] = channels[4:, 1] = 0.75
    channels[7, 2] = 1  # once is never: it is nobody
    who[:4, 1] = who[4:, 0] = 1
    found = live._by_voice(channels, who, 0, {})
    np.testing.assert_array_equal(found[:, list(expected)], channels[:, :2])
    assert live.numbers == (0, 1, 5) and not found[:, 2].any()


def test_a_state_goes_on_elsewhere(frames):
    whole, half, other = adapter(), adapter(), adapter()
    read = lambda names, start, stop: frames[start:stop]  # noqa: E731
    for heard in range(3, 120, 3):
        whole.step(read, heard, heard, False)
        half.step(read, heard, heard, False)
    other.restore(*half.state())
    for heard in range(120, 180, 3):
        (a, _), (b, _) = whole.step(read, heard, heard, False), other.step(read, heard, heard, False)
        assert a.voices == b.voices and a.settled == b.settled
        np.testing.assert_array_equal(a.active, b.active)


def test_more_people_than_slots_come_and_go():
    """Six tones, three slots: nobody is lost, and whoever comes back has the number of before."""
    turns = turns_of(3, SECONDS, 6)
    frames = FakeExtractor().extract([sound_of(turns, SECONDS)])[0]
    live = adapter()
    live.voices.slots = 3
    assert len(settled(live, frames)) <= 6
    assert len(live.voices.numbers) <= 3 and live.voices.next <= 6
