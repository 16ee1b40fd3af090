"""Sessions with an engine of their own: audio waits in line for it, and its steps run in threads."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diarizer.serve.board import Board, Counts, Limits

if TYPE_CHECKING:
    from diarizer.live import Live, Update

#: What the engine takes at a time where more waits: long enough to be quick, short enough for others to have their turn.
PUSH_S = 1.0
logger = logging.getLogger(__name__)
Work = Callable[[], "list[Update] | None"]


class Full(ValueError):
    """The server takes no more."""


class Session(Board):
    """A board with an engine behind it; `Hub.begin` makes one.

    Attributes
    ----------
    waiting_s : audio in line.
    source : the task that brings audio.
    """

    def __init__(
        self, live: Live, pool: ThreadPoolExecutor, facts: Mapping[str, Any], limits: Limits, counts: Counts
    ) -> None:
        latency = {"latency_s": live.latency_s, "algorithmic_latency_s": live.algorithmic_latency_s}
        super().__init__({**facts, **latency}, limits, counts)
        self._live: Live | None = live
        self._pool = pool
        self._audio: deque[tuple[NDArray[Any], int]] = deque()
        self.waiting_s = 0.0
        self._heard_s = 0.0
        self._closing = False
        self.source: asyncio.Task[bool] | None = None
        self._room, self._more = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._engine = asyncio.Lock()  # one step at a time, in the order of asking
        self._worker = asyncio.create_task(self._work())

    async def push(self, samples: NDArray[Any], rate_hz: int) -> None:
        """Put audio in line, (samples,) or (samples, channels); waits while `Limits.backlog_s` is in line already.

        Raises
        ------
        ValueError : the session is over.
        """
        self.seen_s = time.monotonic()
        await self._room.wait()
        self._check()
        if len(samples):
            self._audio.append((samples, rate_hz))
            self._waits(len(samples) / rate_hz)
            self.received_s += len(samples) / rate_hz
            self._more.set()
        self.seen_s = time.monotonic()

    async def rename(self, speaker: str, name: str) -> None:
        """Call a voice by a name.

        Raises
        ------
        ValueError : the engine knows no such voice, or the name is taken or empty; the session is over.
        """
        self._check()
        live = self._live
        assert live is not None
        await self._do(lambda: live.rename(speaker, name), may_refuse=True)
        self.renamed(speaker, name)

    async def finalize(self) -> None:
        """All audio in line, then the end: every open turn is closed."""
        self._check()
        self._closing = True
        self._last = asyncio.create_task(self._finish("", with_rest=True))
        await asyncio.shield(self._last)  # who asked may leave meanwhile

    async def reset(self) -> None:
        """Forget what is in line and what was heard; the clock stands at 0.

        Raises
        ------
        ValueError : the session is over.
        """
        self._check()
        self._audio.clear()
        self._waits(-self.waiting_s)
        live = self._live
        assert live is not None
        await self._do(live.reset)
        self._heard_s = 0.0
        self.restarted()

    async def close(self, why: str = "") -> None:
        """End the session if it has not, and let the engine go."""
        if not self.ended:
            await self._finish(why)
        self._worker.cancel()

    def end(self, why: str = "") -> None:
        """See `Board.end`; who waits to push waits no longer."""
        super().end(why)
        self._room.set()
        self._more.set()

    def _check(self) -> None:
        if self.ended or self._closing or self._live is None:
            raise ValueError("this session is over: start another")

    def _waits(self, seconds: float) -> None:
        self.waiting_s = max(self.waiting_s + seconds, 0.0) if self._audio else 0.0
        if self.waiting_s < self.limits.backlog_s:
            self._room.set()
        else:
            self._room.clear()

    async def _work(self) -> None:
        while not self.ended:
            await self._more.wait()
            self._more.clear()
            while self._audio and not self.ended:
                await self._step()

    async def _step(self) -> None:
        """A second of audio or less through the engine."""
        samples, rate_hz = self._audio.popleft()
        some = max(round(PUSH_S * rate_hz), 1)
        pieces = [samples[:some]]
        if len(samples) > some:
            self._audio.appendleft((samples[some:], rate_hz))
        while self._audio and self._audio[0][1] == rate_hz and self._audio[0][0].shape[1:] == samples.shape[1:]:
            if self._audio[0][0].dtype != samples.dtype or sum(map(len, pieces)) + len(self._audio[0][0]) > some:
                break
            pieces.append(self._audio.popleft()[0])
        piece = np.concatenate(pieces)
        live = self._live
        if live is not None and await self._do(lambda: live.push(piece, rate_hz)):
            seconds = len(piece) / rate_hz
            self._heard_s += seconds
            self.counts.audio_s += seconds
            self._waits(-seconds)
            self.clock(self._heard_s, self.received_s)

    async def _finish(self, why: str, with_rest: bool = False) -> None:
        while with_rest and self._audio and not self.ended:
            await self._step()
        live, self._live = self._live, None  # what the worker takes out of the line from now on comes after the end
        if live is not None and await self._do(live.finalize):
            self.end(why)
        self._audio.clear()

    async def _do(self, work: Work, may_refuse: bool = False) -> bool:
        """Run a step of the engine in a thread and tell what it says; whether it went well.

        Raises
        ------
        ValueError : the engine's, where it may refuse; anything else it raises ends the session.
        """
        # A step goes on in its thread whatever becomes of who waits for it, and the next must not begin before its end.
        return await asyncio.shield(asyncio.ensure_future(self._locked(work, may_refuse)))

    async def _locked(self, work: Work, may_refuse: bool) -> bool:
        async with self._engine:
            if self.ended:
                return False
            began = time.perf_counter()
            try:
                updates = await asyncio.get_running_loop().run_in_executor(self._pool, work)
            except Exception as error:
                if may_refuse and isinstance(error, ValueError):
                    raise
                logger.exception("session %s: the engine failed; others go on", self.id[:4])
                self.counts.failed += 1
                self.end("the engine failed; the server's log says how")
                self._live = None
                return False
            finally:
                self.counts.engine_s += time.perf_counter() - began
            self.publish(updates or [])
            return True


class Hub:
    """All sessions of a server, none of which knows of another.

    Parameters
    ----------
    make : a new engine with this latency in seconds, or the usual one; called in a thread.
    facts : what each session's first message says too: the run, its warnings.
    """

    def __init__(
        self, make: Callable[[float | None], Live], facts: Mapping[str, Any], limits: Limits | None = None
    ) -> None:
        self.limits, self.counts = limits or Limits(), Counts()
        self.facts = dict(facts)
        self.boards: dict[str, Board] = {}
        self._make = make
        self._pool = ThreadPoolExecutor(os.cpu_count() or 2, "engine")
        self._beginning = 0

    async def begin(self, latency_s: float | None = None) -> Session:
        """A new session.

        Raises
        ------
        Full : as many as there may be are there.
        ValueError : a latency that the run cannot have.
        """
        self._forget_ended()
        if len(self.boards) + self._beginning >= self.limits.sessions:
            self.counts.refused += 1
            raise Full(f"{self.limits.sessions} sessions are under way, and there may be no more: try again later")
        self._beginning += 1
        try:
            live = await asyncio.get_running_loop().run_in_executor(self._pool, self._make, latency_s)
        finally:
            self._beginning -= 1
        session = Session(live, self._pool, self.facts, self.limits, self.counts)
        self.boards[session.id] = session
        self.counts.sessions += 1
        return session

    def _forget_ended(self) -> None:
        """Room for who comes: what is over and read by nobody."""
        for board in [b for b in self.boards.values() if b.ended and not b.readers]:
            if len(self.boards) + self._beginning < self.limits.sessions:
                return
            del self.boards[board.id]

    async def tidy(self) -> None:
        """End what is idle and forget what was left, for as long as the server lives."""
        while True:
            await asyncio.sleep(min(self.limits.keep_s, self.limits.idle_s, 1.0) / 2)
            now = time.monotonic()
            for session in [b for b in self.boards.values() if isinstance(b, Session)]:
                left = not session.readers and now - session.left_s > self.limits.keep_s
                idle = now - session.seen_s > self.limits.idle_s and not session.waiting_s
                if left or idle:
                    await session.close("no audio came" if idle else "nobody was connected")
                if left:
                    del self.boards[session.id]

    async def close(self) -> None:
        """End all sessions."""
        for session in [b for b in self.boards.values() if isinstance(b, Session)]:
            await session.close("the server stops")
        self._pool.shutdown(wait=False, cancel_futures=True)

    def metrics(self) -> str:
        """Numbers as Prometheus reads them."""
        counts, boards = self.counts, self.boards.values()
        waiting = [b.waiting_s for b in boards if isinstance(b, Session)]
        rows = [
            ("sessions", "gauge", "sessions now", sum(not b.ended for b in boards)),
            ("readers", "gauge", "connections that read a session now", sum(len(b.readers) for b in boards)),
            ("backlog_seconds", "gauge", "audio that waits for the engine, the most of any session", max(waiting, default=0.0)),
            ("sessions_total", "counter", "sessions begun", counts.sessions),
            ("refused_total", "counter", "sessions and connections refused", counts.refused),
            ("failed_total", "counter", "sessions whose engine failed", counts.failed),
            ("faults_total", "counter", "messages that were none", counts.faults),
            ("stalled_total", "counter", "readers let go because they took nothing", counts.stalled),
            ("partials_dropped_total", "counter", "partial turns that a slow reader did not get", counts.partials_dropped),
            ("audio_seconds_total", "counter", "audio heard", counts.audio_s),
            ("engine_seconds_total", "counter", "time in the engine; by audio_seconds_total: the real-time factor", counts.engine_s),
        ]  # fmt: skip
        return "".join(
            f"# HELP whowhen_{name} {about}\n# TYPE whowhen_{name} {kind}\nwhowhen_{name} {value:g}\n"
            for name, kind, about, value in rows
        )
