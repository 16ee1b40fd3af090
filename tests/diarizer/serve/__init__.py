"""A server on a port of its own with a tiny engine, and clients: what the tests of serving share."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from diarizer.serve.address import Address
from diarizer.serve.board import Limits
from diarizer.serve.run import listening
from diarizer.serve.server import Server
from diarizer.serve.session import Hub

RATE_HZ, FRAME_S = 8000, 0.1
FACTS = {"run": "tiny", "warnings": ["demo weights: toys"]}


@dataclass(frozen=True)
class TinyUpdate:
    seq: int
    time_s: float
    final: tuple[dict[str, Any], ...]
    partial: tuple[dict[str, Any], ...]

    def json(self) -> dict[str, Any]:
        told = {"type": "turns", "seq": self.seq, "time_s": self.time_s}
        return told | {"final": list(self.final), "partial": list(self.partial)}


class TinyLive:
    """An engine in which a sample's value is who speaks: 0.1 is the first, 0.2 the second, 0 is silence, 9 breaks it.

    A turn is final as soon as another begins, and partial from its first frame of 0.1 s on.
    """

    latency_s, algorithmic_latency_s = 1.04, 0.32

    def __init__(self, latency_s: float | None = None) -> None:
        if latency_s is not None and latency_s > 10:
            raise ValueError(f"latency_s: expected 0.16 to 10, found {latency_s}")
        self.latency_s = latency_s or 1.04
        self.names: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        self.rest, self.frames, self.seq, self.over = np.zeros(0), 0, 0, False
        self.who, self.since = 0, 0.0

    def push(self, samples: np.ndarray, rate_hz: int) -> list[TinyUpdate]:
        assert not self.over
        wave = samples.mean(1) if samples.ndim == 2 else samples
        wave = wave / 32767 if wave.dtype.kind == "i" else wave
        self.rest, updates = np.concatenate([self.rest, wave]), []
        frame = round(FRAME_S * rate_hz)
        while len(self.rest) >= frame:
            who, self.rest = round(10 * float(np.median(self.rest[:frame]))), self.rest[frame:]
            if who >= 90:
                raise RuntimeError("the engine broke")
            self.frames += 1
            updates += self._hear(who)
        return updates

    def _turn(self, end_s: float) -> tuple[dict[str, Any], ...]:
        name = self.names.get(f"speaker{self.who}", f"speaker{self.who}")
        return ({"start_s": self.since, "end_s": end_s, "speaker": name, "sure": 0.9},) if self.who else ()

    def _hear(self, who: int) -> list[TinyUpdate]:
        now = round(self.frames * FRAME_S, 6)
        final = self._turn(round(now - FRAME_S, 6)) if who != self.who else ()
        if who != self.who:
            self.who, self.since = who, round(now - FRAME_S, 6)
        partial = self._turn(now)
        if not final and not partial:
            return []
        self.seq += 1
        return [TinyUpdate(self.seq - 1, now, final, partial)]

    def finalize(self) -> list[TinyUpdate]:
        final, self.over = self._turn(round(self.frames * FRAME_S, 6)), True
        return [TinyUpdate(self.seq, self.frames * FRAME_S, final, ())] if final else []

    def rename(self, speaker: str, name: str) -> None:
        if not speaker.startswith("speaker"):
            raise ValueError(f"nobody is called {speaker!r}")
        self.names[speaker] = name


def sound(*turns: tuple[int, float]) -> np.ndarray:
    """(samples,) float32 of (who, seconds) one after the other."""
    return np.concatenate([np.full(round(s * RATE_HZ), who / 10, np.float32) for who, s in turns])


class Client:
    """One connection; `heard` are its messages."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.heard: list[dict[str, Any]] = []

    async def say(self, **told: Any) -> None:
        await self.ws.send_str(json.dumps(told))

    async def push(self, wave: np.ndarray, piece: int = 800) -> None:
        for at in range(0, len(wave), piece):
            await self.ws.send_bytes(wave[at : at + piece].tobytes())

    async def hear(self) -> dict[str, Any] | None:
        """The next message, None once the connection is closed."""
        message = await asyncio.wait_for(self.ws.receive(), 120)
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return None
        told = message.data[1:].decode() if message.type is aiohttp.WSMsgType.BINARY else message.data
        self.heard.append(json.loads(told) if told else {"type": "handshake"})
        return self.heard[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        """Messages up to one of this kind, which is given."""
        while (told := await self.hear()) is not None:
            if told["type"] == kind:
                return told
        raise AssertionError(f"closed before {kind!r}: {self.heard[-3:]}")

    async def rest(self) -> list[dict[str, Any]]:
        while await self.hear() is not None:
            pass
        return self.heard

    @property
    def final(self) -> list[tuple[float, float, str]]:
        turns = [turn for told in self.heard if told["type"] == "turns" for turn in told["final"]]
        return [(turn["start_s"], turn["end_s"], turn["speaker"]) for turn in turns]


@dataclass
class Served:
    url: str
    hub: Hub
    http: aiohttp.ClientSession

    @contextlib.asynccontextmanager
    async def client(self, **start: Any) -> AsyncIterator[Client]:
        """A connection that has said its start message; `raw` says none."""
        path = start.pop("path", "api/live")
        async with self.http.ws_connect(self.url + path, max_msg_size=0) as ws:
            client = Client(ws)
            if not start.pop("raw", False):
                await client.say(type="start", **{"rate_hz": RATE_HZ, **start})
            yield client


@contextlib.asynccontextmanager
async def served(
    make: Any = TinyLive, *, token: str | None = None, beside: str | None = None, **limits: Any
) -> AsyncIterator[Served]:
    """A server on a free port, for as long as the block lasts."""
    hub = Hub(make, FACTS, Limits(**limits))
    url, cleanup = await listening(Server(hub, token, beside), Address(port=0, token=token))
    async with aiohttp.ClientSession() as http:
        try:
            yield Served(url, hub, http)
        finally:
            await http.close()
            await cleanup()
