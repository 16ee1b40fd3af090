"""Sessions without a server: what their engines hear and when, what is refused, and the numbers that are kept of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diarizer.serve import board as boards
from diarizer.serve import session as sessions
from diarizer.serve.board import Board, Counts, Limits, Reader
from diarizer.serve.session import Full, Hub, Session
from tests.diarizer.serve import FACTS, RATE_HZ, TinyLive, TinyUpdate, sound


class Gated(TinyLive):
    """Writes down what it hears, and does not begin before it is let."""

    def __init__(self, latency_s: float | None = None) -> None:
        super().__init__(latency_s)
        self.go, self.at_work = threading.Event(), threading.Event()
        self.heard: list[tuple[tuple[int, ...], str, int]] = []
        self.first: list[float] = []

    def push(self, samples: np.ndarray, rate_hz: int) -> list[TinyUpdate]:
        self.at_work.set()
        assert self.go.wait(20)
        self.heard.append((samples.shape, samples.dtype.name, rate_hz))
        self.first.append(float(samples.ravel()[0]))
        return super().push(samples, rate_hz)


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def begun(live: TinyLive, **limits: Any) -> tuple[Hub, Session]:
    hub = Hub(lambda latency_s: live, FACTS, Limits(**limits))
    return hub, await hub.begin()


def kept(board: Board) -> list[dict[str, Any]]:
    return [json.loads(message) for message in board.kept]


def turns(board: Board) -> list[tuple[float, float, str]]:
    told = [turn for message in kept(board) if message["type"] == "turns" for turn in message["final"]]
    return [(turn["start_s"], turn["end_s"], turn["speaker"]) for turn in told]


def test_what_waits_is_heard_a_second_at_a_time_and_only_with_its_like() -> None:
    async def work() -> None:
        live = Gated()
        hub, session = await begun(live)
        tenth = np.full(800, 0.1, np.float32)
        await session.push(tenth, RATE_HZ)
        await asyncio.to_thread(live.at_work.wait, 20)
        for _ in range(12):
            await session.push(tenth, RATE_HZ)
        await session.push(np.full(20_000, 0.2, np.float32), RATE_HZ)
        await session.push(np.full(1600, 0.2, np.float32), 2 * RATE_HZ)
        await session.push(np.full(400, 3277, np.int16), RATE_HZ)
        await session.push(np.full((800, 2), 0.2, np.float32), RATE_HZ)
        await session.push(np.zeros(0, np.float32), RATE_HZ)
        assert session.waiting_s == pytest.approx(1.3 + 2.5 + 0.05 + 0.1 + 0.1)
        live.go.set()
        await session.finalize()
        lengths = [((800,), "float32", RATE_HZ), ((8000,), "float32", RATE_HZ), ((1600,), "float32", RATE_HZ)]
        lengths += [((8000,), "float32", RATE_HZ)] * 2 + [
            ((4000,), "float32", RATE_HZ),
            ((1600,), "float32", 2 * RATE_HZ),
        ]
        assert live.heard == [*lengths, ((400,), "int16", RATE_HZ), ((800, 2), "float32", RATE_HZ)]
        assert live.first == pytest.approx([0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 3277, 0.2])
        assert (session.time_s, session.received_s, hub.counts.audio_s) == pytest.approx((4.05, 4.05, 4.05))
        assert session.waiting_s == 0 and hub.counts.engine_s > 0 and session.ended
        for refused in (session.push(tenth, RATE_HZ), session.rename("a", "b"), session.finalize(), session.reset()):
            with pytest.raises(ValueError, match="this session is over: start another"):
                await refused
        await hub.close()

    run(work())


def test_who_pushes_waits_while_enough_is_in_line() -> None:
    async def work() -> None:
        live = Gated()
        hub, session = await begun(live, backlog_s=2.0)
        await session.push(sound((1, 1.5)), RATE_HZ)
        await asyncio.wait_for(session.push(sound((2, 0.5)), RATE_HZ), 5)  # now there are two seconds
        third = asyncio.create_task(session.push(sound((1, 0.5)), RATE_HZ))
        await asyncio.sleep(0.05)
        assert not third.done() and session.received_s == pytest.approx(2.0)
        live.go.set()
        await asyncio.wait_for(third, 5)
        await session.finalize()
        assert turns(session) == [(0.0, 1.5, "speaker1"), (1.5, 2.0, "speaker2"), (2.0, 2.5, "speaker1")]
        await hub.close()

    run(work())


def test_a_reset_forgets_what_is_in_line_too() -> None:
    async def work() -> None:
        live = Gated()
        hub, session = await begun(live, backlog_s=3.0)
        await session.push(sound((1, 1.0)), RATE_HZ)
        await asyncio.to_thread(live.at_work.wait, 20)
        await session.push(sound((2, 3.0)), RATE_HZ)
        reset = asyncio.create_task(session.reset())
        await asyncio.sleep(0)
        assert session.waiting_s == 0 and session._room.is_set()
        live.go.set()
        await reset
        assert (session.epoch, session.time_s, session.received_s) == (1, 0.0, 0.0)
        await session.push(sound((3, 0.75)), RATE_HZ)
        await session.finalize()
        assert turns(session) == [(0.0, 0.7, "speaker3")] and session.time_s == pytest.approx(0.75)
        assert len(live.heard) == 2
        await hub.close()

    run(work())


def test_the_end_says_why_and_leaves_nothing_at_work() -> None:
    async def work() -> None:
        live = Gated()
        hub, session = await begun(live)
        await session.push(sound((1, 0.5)), RATE_HZ)
        await asyncio.to_thread(live.at_work.wait, 20)
        await session.push(sound((2, 5.0)), RATE_HZ)
        closing = asyncio.create_task(session.close("enough"))
        await asyncio.sleep(0)
        live.go.set()
        await closing
        await session.close("again")
        assert kept(session)[-1]["why"] == "enough" and len([m for m in kept(session) if m["type"] == "ended"]) == 1
        assert len(live.heard) == 1 and turns(session) == [(0.0, 0.5, "speaker1")]  # what is in line is not heard
        hub._make = TinyLive
        other, third = await hub.begin(), await hub.begin()
        await other.close()
        assert "why" not in kept(other)[-1]
        await asyncio.sleep(0)
        assert session._worker.done() and other._worker.done() and not third._worker.done()
        await hub.close()
        assert kept(third)[-1]["why"] == "the server stops"

    run(work())


def test_who_asked_for_the_end_may_leave_meanwhile() -> None:
    async def work() -> None:
        live = Gated()
        hub, session = await begun(live)
        await session.push(sound((1, 0.5)), RATE_HZ)
        asking = asyncio.create_task(session.finalize())
        await asyncio.to_thread(live.at_work.wait, 20)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(ValueError, match="this session is over"):
            await session.push(sound((1, 0.5)), RATE_HZ)
        live.go.set()
        await session._last
        assert turns(session) == [(0.0, 0.5, "speaker1")] and session.ended
        await hub.close()

    run(work())


def test_room_is_made_of_what_is_over_and_only_as_much_as_is_needed() -> None:
    async def work() -> None:
        asked: list[float | None] = []

        def make(latency_s: float | None) -> TinyLive:
            asked.append(latency_s)
            return TinyLive(latency_s)

        hub = Hub(make, FACTS, Limits(sessions=3))
        first, second, third = await hub.begin(0.5), await hub.begin(), await hub.begin()
        assert asked == [0.5, None, None]
        assert (first.facts["latency_s"], first.facts["algorithmic_latency_s"], first.facts["run"]) == (
            0.5,
            0.32,
            "tiny",
        )
        with pytest.raises(Full, match="3 sessions are under way, and there may be no more: try again later"):
            await hub.begin()
        for session in (first, second, third):
            await session.close()
        first.readers.add(object())  # somebody reads it still
        fourth = await hub.begin()
        assert list(hub.boards.values()) == [first, third, fourth]
        with pytest.raises(ValueError, match="latency_s"):
            await hub.begin(99.0)
        assert (hub._beginning, hub.counts.sessions, hub.counts.refused) == (0, 4, 1)
        # Those that are being made count too.
        both = await asyncio.gather(hub.begin(), hub.begin(), return_exceptions=True)
        assert sum(isinstance(each, Full) for each in both) == 1
        await hub.close()

    run(work())


def test_what_still_has_audio_in_line_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(sessions, "time", clock)
    monkeypatch.setattr(boards, "time", clock)

    async def work() -> None:
        nonlocal now
        live = Gated()
        hub, session = await begun(live, idle_s=0.05, keep_s=0.06)
        session.readers.add(Reader(session))
        await session.push(sound((1, 0.5)), RATE_HZ)
        await asyncio.to_thread(live.at_work.wait, 20)
        await session.push(sound((2, 0.5)), RATE_HZ)
        now += 1.0
        tidying = asyncio.create_task(hub.tidy())
        await asyncio.sleep(0.1)
        assert not session.ended
        live.go.set()
        while not session.ended:
            await asyncio.sleep(0.01)
        assert turns(session) == [(0.0, 0.5, "speaker1"), (0.5, 1.0, "speaker2")]
        assert kept(session)[-1]["why"] == "no audio came" and list(hub.boards.values()) == [session]
        session.readers.clear()
        while hub.boards:
            await asyncio.sleep(0.01)
        other = await hub.begin()
        other.seen_s = now + 9.0
        now += 0.5
        while hub.boards:
            await asyncio.sleep(0.01)
        assert kept(other)[-1]["why"] == "nobody was connected"
        tidying.cancel()
        await hub.close()

    run(work())


def test_numbers_as_prometheus_reads_them() -> None:
    async def work() -> None:
        live = Gated()
        hub, session = await begun(live)
        other = await hub.begin()
        await other.close()
        other.readers |= {object(), object()}
        await session.push(sound((1, 0.5)), RATE_HZ)
        await asyncio.to_thread(live.at_work.wait, 20)
        await session.push(sound((1, 1.25)), RATE_HZ)
        hub._make = lambda latency_s: live
        await (await hub.begin()).push(sound((1, 0.25)), RATE_HZ)  # the most of any is told, not all of it
        numbers = {"sessions": 2, "refused": 3, "failed": 4, "faults": 5, "stalled": 6, "partials_dropped": 7}
        hub.counts.__dict__.update(numbers, audio_s=8.5, engine_s=9.25)
        lines = hub.metrics().splitlines()
        found = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
        assert found == {f"whowhen_{name}_total": value for name, value in numbers.items()} | {
            "whowhen_sessions": 2, "whowhen_readers": 2, "whowhen_backlog_seconds": 1.75,
            "whowhen_audio_seconds_total": 8.5, "whowhen_engine_seconds_total": 9.25,
        }  # fmt: skip
        kinds = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
        assert kinds == {name: "counter" if name.endswith("_total") else "gauge" for name in found}
        live.go.set()
        await hub.close()

    run(work())


def test_an_engine_that_fails_counts_and_what_it_refuses_does_not() -> None:
    async def work() -> None:
        hub, session = await begun(TinyLive())
        with pytest.raises(ValueError, match="nobody is called 'x'"):
            await session.rename("x", "Ann")
        assert hub.counts.failed == 0 and not session.ended and not session.kept
        await session.rename("speaker1", "Ann")
        assert kept(session) == [{"type": "renamed", "epoch": 0, "speaker": "speaker1", "name": "Ann", "n": 0}]
        await session.push(sound((90, 0.2)), RATE_HZ)
        while not session.ended:
            await asyncio.sleep(0.01)
        assert hub.counts.failed == 1 and hub.counts.audio_s == 0
        assert kept(session)[-1]["why"] == "the engine failed; the server's log says how"
        await hub.close()

    run(work())


def test_the_usual_limits_and_counts_are_each_hub_s_own() -> None:
    one, other = Hub(TinyLive, FACTS), Hub(TinyLive, FACTS)
    assert one.limits == Limits() and one.counts is not other.counts and one.boards is not other.boards
    assert Counts().__dict__ == dict.fromkeys(Counts().__dict__, 0)
