"""A head on a Mimi of somebody else's: what it hears, and that the Mimi's owner notices nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diarizer.serve.tap as taps
from diarizer import attach
from diarizer.live import LiveTurn, Update
from diarizer.serve.tap import Tap


class Downsample(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class PlainMimi(torch.nn.Module):
    """What a tap uses of a Mimi, PersonaPlex's as well as Moshi's."""

    frame_rate, dimension = 12.5, 4

    def __init__(self) -> None:
        super().__init__()
        self.downsample, self.resets = Downsample(), 0

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.downsample(x.reshape(1, 1, -1, 1920).mean(3).expand(1, 4, -1))

    def reset_streaming(self) -> str:
        self.resets += 1
        return "reset"


class Frames:
    """An engine that tells a turn a push, of as many frames as it was given."""

    def __init__(self) -> None:
        self.calls: list = []
        self.frames, self.fault = 0, False

    def push_frames(self, frames: dict) -> list[Update]:
        if self.fault:
            raise RuntimeError("a fault put in")
        self.calls.append(frames["mimi"])
        end_s = round((self.frames + len(frames["mimi"])) * 0.08, 6)
        turn = LiveTurn(self.frames * 0.08, end_s, "speaker1", 1.0)
        self.frames += len(frames["mimi"])
        return [Update(0, end_s, (turn,), ())]

    def push(self, samples: np.ndarray, rate_hz: int) -> list[Update]:
        self.calls.append((samples, rate_hz))
        return []

    def reset(self) -> None:
        self.calls.append("reset")
        self.frames = 0

    def finalize(self) -> list[Update]:
        self.calls.append("end")
        return []

    def rename(self, speaker: str, name: str) -> None:
        if speaker != "speaker1":
            raise ValueError("nobody")
        self.calls.append((speaker, name))


def piece(value: float, frames: int = 1) -> torch.Tensor:
    return torch.full((1, 1, 1920 * frames), value)


def tapped(**settings) -> tuple[PlainMimi, Frames, list, Tap]:
    mimi, live, told = PlainMimi(), Frames(), []
    settings = {"audio": False, **settings}
    return mimi, live, told, Tap(mimi, live, lambda *each: told.append(each), **settings)


def turns(told: list) -> list[tuple[float, float]]:
    return [(turn.start_s, turn.end_s) for updates, _, _ in told for update in updates for turn in update.final]


def test_it_hears_what_is_encoded_and_changes_nothing():
    mimi, live, told, tap = tapped()
    plain = PlainMimi()
    for value in (1.0, 2.0):
        assert torch.equal(mimi.encode(piece(value, 2)), plain.encode(piece(value, 2)))
    tap.detach()
    assert [frames.tolist() for frames in live.calls[:2]] == [[[2.0] * 4] * 2, [[4.0] * 4] * 2]
    assert live.calls[2:] == ["end", "reset"]
    assert [heard_s for _, heard_s, _ in told] == [0.16, 0.32, 0.32]
    assert "reset_streaming" not in mimi.__dict__ and not mimi.downsample._forward_hooks
    mimi.encode(piece(1.0))
    assert len(live.calls) == 4


def test_sound_comes_with_the_frames_where_a_run_wants_it():
    mimi, live, _, tap = tapped(audio=True)
    mimi.encode(piece(0.5))
    tap.detach()
    assert live.calls[0].tolist() == [[1.0] * 4]
    samples, rate_hz = live.calls[1]
    assert (samples.tolist(), rate_hz) == ([0.5] * 1920, 24_000)
    assert "encode" not in mimi.__dict__


def test_a_frame_that_moshi_skips_stays_on_the_clock():
    """Moshi's server resets after a conversation's first frame; what was heard before the handshake is none."""
    mimi, live, told, tap = tapped(gated=True)
    for _ in range(4):
        mimi.encode(piece(9.0))  # a warm-up, or PersonaPlex's voice prompt
    assert mimi.reset_streaming() == "reset"
    tap.begin()
    mimi.encode(piece(1.0))
    mimi.reset_streaming()
    mimi.encode(piece(2.0))
    tap.end()
    mimi.encode(piece(9.0))
    tap.detach()
    assert [frames.tolist()[0][0] for frames in live.calls if isinstance(frames, np.ndarray)] == [2.0, 4.0]
    assert turns(told) == [(0.0, 0.08), (0.08, 0.16)]
    assert [new for _, _, new in told].count(True) == 1
    assert mimi.resets == 2


def test_a_reset_begins_anew():
    mimi, live, told, tap = tapped()
    for _ in range(2):
        for _ in range(3):
            mimi.encode(piece(1.0))
        mimi.reset_streaming()
        mimi.reset_streaming()  # twice is once
    tap.detach()
    assert turns(told) == 2 * [(0.0, 0.08), (0.08, 0.16), (0.16, 0.24)]
    assert [new for _, _, new in told].count(True) == 2
    assert [call for call in live.calls if isinstance(call, str)].count("end") == 2


def test_a_head_that_fails_costs_its_conversation_alone(caplog):
    mimi, live, told, tap = tapped()
    live.fault = True
    out = [mimi.encode(piece(1.0)) for _ in range(3)]
    assert len(out) == 3
    while tap.failures < 1:
        pass
    live.fault = False
    mimi.encode(piece(1.0))  # of the same conversation: its clock has a hole
    mimi.reset_streaming()
    mimi.encode(piece(1.0))
    tap.detach()
    assert tap.failures == 1
    assert "a fault put in" in caplog.text
    assert turns(told) == [(0.0, 0.08)]


def test_a_head_that_is_too_slow_loses_turns_and_not_the_clock(monkeypatch):
    monkeypatch.setattr(taps, "MOST_WAITING", 2)
    go, waits = threading.Event(), threading.Event()
    mimi, live, told, tap = tapped()
    push_frames = live.push_frames

    def slow(frames: dict) -> list[Update]:
        waits.set()
        go.wait(20)
        return push_frames(frames)

    live.push_frames = slow
    mimi.encode(piece(1.0))
    waits.wait(20)
    for _ in range(10):
        mimi.encode(piece(2.0))
    go.set()
    while len(turns(told)) < 4:
        pass
    mimi.encode(piece(3.0))
    tap.detach()
    assert turns(told)[-1] == (0.88, 0.96)  # the twelfth frame


def test_names_are_given_between_steps():
    mimi, live, _, tap = tapped()
    mimi.encode(piece(1.0))
    answers: list = []
    tap.rename("speaker1", "Ann", answers.append)
    tap.rename("x", "Bob", answers.append)
    tap.detach()
    assert answers[0] is None and isinstance(answers[1], ValueError)
    assert live.calls[1] == ("speaker1", "Ann")


@pytest.mark.parametrize(("latency_s", "asked"), [(None, ()), (0.5, (0.5,))])
def test_what_is_attached_hears_at_the_latency_asked_for(latency_s, asked):
    """Sound too, where the run hears more than Mimi's frames; random numbers of the program are drawn as before."""
    calls, told = [], []

    def live(*latency: float, **settings: object) -> Frames:
        calls.append((latency, settings))
        torch.rand(3)
        return Frames()

    mimi = SimpleNamespace(dim=4, grid=SimpleNamespace(step_s=0.08))
    for more in ({}, {"titanet": None}):
        run = SimpleNamespace(path=Path("cascade"), features={"mimi": mimi, **more})
        torch.manual_seed(7)
        tap = attach(there := PlainMimi(), told.append, SimpleNamespace(run=run, live=live), latency_s=latency_s)
        assert torch.initial_seed() == 7 and torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(7))
        there.encode(piece(0.5, 2))
        tap.detach()
        assert [isinstance(call, tuple) for call in tap.live.calls if not isinstance(call, str)] == [False, True][: 1 + len(more)]  # fmt: skip
    assert calls == [(asked, {"given": {"mimi": 0}})] * 2
    assert [(update.time_s, update.final[0].end_s) for update in told] == [(0.16, 0.16)] * 2  # each update by itself


def test_every_update_of_a_step_is_told():
    class Twice(Frames):
        def push_frames(self, frames: dict) -> list[Update]:
            (last,) = super().push_frames(frames)
            return [Update(0, 0.04, (LiveTurn(0.0, 0.04, "speaker2", 1.0),), ()), last]

    told: list[Update] = []
    mimi = SimpleNamespace(dim=4, grid=SimpleNamespace(step_s=0.08))
    run = SimpleNamespace(path=Path("cascade"), features={"mimi": mimi})
    tap = attach(there := PlainMimi(), told.append, SimpleNamespace(run=run, live=lambda **_: Twice()))
    there.encode(piece(0.5))
    tap.detach()
    assert [(update.time_s, update.final[0].speaker) for update in told] == [(0.04, "speaker2"), (0.08, "speaker1")]


def test_a_clock_that_began_earlier():
    update = Update(3, 1.0, (LiveTurn(0.25, 0.5, "a", 0.9),), (LiveTurn(0.75, 1.0, "b", 0.5),))
    later = Update(3, 3.5, (LiveTurn(2.75, 3.0, "a", 0.9),), (LiveTurn(3.25, 3.5, "b", 0.5),))
    assert taps._later(update, 2.5) == later and taps._later(update, 0.0) == update


def test_what_is_between_conversations_is_not_heard():
    mimi, live, told, tap = tapped(gated=True)
    mimi.encode(piece(1.0))
    tap.begin()
    mimi.encode(piece(2.0, 3))
    tap.end()
    mimi.encode(piece(3.0))
    mimi.reset_streaming()
    mimi.encode(piece(3.0))
    tap.begin()
    mimi.encode(piece(4.0))
    tap.detach()
    heard = [(len(frames), frames[0, 0]) for frames in live.calls if isinstance(frames, np.ndarray)]
    assert heard == [(3, 4.0), (1, 8.0)]
    assert [(heard_s, new) for _, heard_s, new in told if new] == [(0.0, True)] * 2
    assert turns(told) == [(0.0, 0.24), (0.0, 0.08)] and tap.failures == 0


def test_what_is_no_mimi_is_refused():
    def made(**features: object) -> object:
        return SimpleNamespace(run=SimpleNamespace(path=Path("cascade"), features=features))

    mimi = SimpleNamespace(dim=512, grid=SimpleNamespace(step_s=0.08))
    with pytest.raises(ValueError, match="run cascade hears fake, not mimi's frames"):
        attach(PlainMimi(), print, made(fake=mimi))
    with pytest.raises(ValueError, match="Linear is no Mimi: it has no downsample"):
        attach(torch.nn.Linear(1, 1), print, made(mimi=mimi))
    with pytest.raises(ValueError, match=r"frames of 512 numbers every 0.08 s, this Mimi makes 4 every 0.08 s"):
        attach(PlainMimi(), print, made(mimi=mimi))
