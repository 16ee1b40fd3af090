"""A session that was closed while audio waited heard a second more after its engine's end: "the engine failed", it said."""

from __future__ import annotations

import asyncio
import json
import threading

from diarizer.serve.session import Hub
from tests.diarizer.serve import FACTS, RATE_HZ, TinyLive, sound


class Slow(TinyLive):
    """Its steps, and its end, wait to be let."""

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.step, self.last = 0, threading.Event(), threading.Event()

    def push(self, samples, rate_hz):
        self.heard += 1
        assert self.step.wait(20)
        return super().push(samples, rate_hz)

    def finalize(self):
        assert self.last.wait(20)
        return super().finalize()


def test_what_is_in_line_when_a_session_is_closed_is_not_heard() -> None:
    async def work() -> None:
        live = Slow()
        hub = Hub(lambda latency_s: live, FACTS)
        session = await hub.begin()
        for _ in range(3):
            await session.push(sound((1, 1.0)), RATE_HZ)
        while not live.heard:
            await asyncio.sleep(0.01)
        closing = asyncio.create_task(session.close("the server stops"))
        await asyncio.sleep(0.01)
        live.step.set()
        while len(session._audio) > 1:  # the worker has the next second in its hand
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        live.last.set()
        await closing
        await asyncio.sleep(0.05)
        assert json.loads(session.kept[-1])["why"] == "the server stops"
        assert (live.heard, hub.counts.failed) == (1, 0)
        await hub.close()

    asyncio.run(asyncio.wait_for(work(), 30))
