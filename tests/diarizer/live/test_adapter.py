"""Adapter and fusion on the fly: channels by arrival in each window become voices that last."""

from __future__ import annotations

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


def adapter(latency_s: float = 0.48) -> LiveAdapter:
    config = FitConfig.make("adapter", settings=("feature=fake", "crop_s=6", "device=cpu"))
    head = WholeHead(Tones(), config, FrameGrid(0.04, 0.08), {"fake": 8}, torch.device("cpu"))
    return LiveAdapter(head, Stitching("fake", 0.5, 0.02, 0.5, 1), Timing.of(latency_s, 0.08, 0), slots=8)


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
    assert scored.der < 0.15 and scored.confusion_s / scored.total_s < 0.04
    assert len(found.speakers) == 3


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
