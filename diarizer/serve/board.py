"""What a session has said, and who reads it: final turns once and in order for each reader, whatever its speed."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diarizer.live import Update

PROTOCOL = 1
#: A proxy in between closes a connection in which nothing is said for a minute.
PING_S = 20.0


@dataclass(frozen=True)
class Limits:
    """What a server takes; more is refused, with the reason.

    Attributes
    ----------
    sessions, connections : at a time.
    message_bytes : of one WebSocket message.
    backlog_s : audio that waits for the engine; then the server reads on only as fast as the engine goes.
    idle_s : a session without audio, and a connection that brings none, ends after this.
    keep_s : a session that nobody is connected to waits so long for who left.
    stall_s : a reader that takes nothing for so long is let go.
    start_s : a connection says what it wants within this.
    messages : of those with final turns, renaming, resets and ends; older ones are forgotten.
    faults : messages that are none, before a connection is closed.
    """

    sessions: int = 8
    connections: int = 64
    message_bytes: int = 1 << 20
    backlog_s: float = 30.0
    idle_s: float = 300.0
    keep_s: float = 60.0
    stall_s: float = 30.0
    start_s: float = 10.0
    messages: int = 20_000
    faults: int = 20


@dataclass(eq=False)
class Counts:
    """Numbers for monitoring, from the server's start."""

    sessions: int = 0
    refused: int = 0
    failed: int = 0
    faults: int = 0
    stalled: int = 0
    partials_dropped: int = 0
    audio_s: float = 0.0
    engine_s: float = 0.0


class Board:
    """What a session has said; all of it on the event loop's thread.

    Messages that must not be lost (final turns, names, resets, the end) are kept once, for all readers, each of whom
    has a place in them; partial turns and the clock replace each other. So a reader who reads nothing costs nothing.

    Attributes
    ----------
    id : who has it may read, go on and rename: it is a secret.
    epoch : counts resets; times begin at 0 in each.
    first : number of the oldest message kept.
    seen_s : `time.monotonic()` of the last audio.
    """

    def __init__(self, facts: Mapping[str, Any], limits: Limits, counts: Counts, id: str | None = None) -> None:
        self.id = id or secrets.token_urlsafe(16)
        self.facts, self.limits, self.counts = dict(facts), limits, counts
        self.kept: deque[str] = deque()
        self.first = self.epoch = 0
        self.time_s = self.received_s = 0.0
        self.ended = False
        self.readers: set[Reader] = set()
        self.seen_s = self.left_s = time.monotonic()
        self._partial: list[dict[str, Any]] = []
        self._passing: dict[str, str] = {}  # by kind, and how many of that kind there were
        self._passes = {"turns": 0, "clock": 0}
        self._told_s = 0.0

    def ready(self) -> dict[str, Any]:
        """The first message to a reader: what it reads, and where the session stands."""
        return {
            "type": "ready",
            "protocol": PROTOCOL,
            "session": self.id,
            **self.facts,
            "epoch": self.epoch,
            "time_s": round(self.time_s, 3),
            "received_s": round(self.received_s, 6),
            "partial": self._partial,
            "first": self.first,
            "next": self.first + len(self.kept),
            "ended": self.ended,
        }

    def publish(self, updates: list[Update]) -> None:
        """Take an engine's updates on; with final turns they are kept."""
        for update in updates:
            told = update.json() | {"epoch": self.epoch}
            self._partial, self.time_s = told["partial"], max(self.time_s, told["time_s"])
            if told["final"]:
                self._keep(told)
                self._passing.pop("turns", None)
            else:
                self._pass("turns", told)
        self._wake()

    def clock(self, time_s: float, received_s: float) -> None:
        """Audio heard and audio received up to here, seconds; told twice a second of it."""
        self.time_s, self.received_s = time_s, received_s
        if abs(time_s - self._told_s) >= 0.5:
            self._told_s = time_s
            told = {"type": "clock", "epoch": self.epoch, "time_s": round(time_s, 3)}
            self._pass("clock", told | {"received_s": round(received_s, 3)})
            self._wake()

    async def rename(self, speaker: str, name: str) -> None:
        """Call a voice by a name; sessions with an engine tell it."""
        self.renamed(speaker, name)

    def renamed(self, speaker: str, name: str) -> None:
        """From now on `speaker` is called so; a reader may call the turns so that it has had."""
        self._keep({"type": "renamed", "epoch": self.epoch, "speaker": speaker, "name": name})
        self._wake()

    def restarted(self) -> None:
        """The clock stands at 0 again and voices are forgotten: a new epoch."""
        self.epoch += 1
        self.time_s = self.received_s = self._told_s = 0.0
        self._partial, self.ended = [], False
        self._passing.clear()
        self._keep({"type": "reset", "epoch": self.epoch})
        self._wake()

    def end(self, why: str = "") -> None:
        """No more audio; `why` where that was not asked for."""
        if not self.ended:
            self.ended, self._partial = True, []
            self._passing.clear()
            told = {"type": "ended", "epoch": self.epoch, "time_s": round(self.time_s, 3)}
            self._keep(told | ({"why": why} if why else {}))
            self._wake()

    def _keep(self, told: dict[str, Any]) -> None:
        self.kept.append(json.dumps(told | {"n": self.first + len(self.kept)}))
        while len(self.kept) > self.limits.messages:
            self.kept.popleft()
            self.first += 1

    def _pass(self, kind: str, told: dict[str, Any]) -> None:
        self._passes[kind] += 1
        self._passing[kind] = json.dumps(told)

    def _wake(self) -> None:
        for reader in self.readers:
            reader.wake.set()


@dataclass(eq=False)
class Reader:
    """One who reads a board.

    Attributes
    ----------
    next : number of the next message of those that are kept.
    replies : answers to this one alone, errors mostly.
    """

    board: Board
    next: int = 0
    replies: deque[str] = field(default_factory=lambda: deque(maxlen=50))
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._passed = dict(self.board._passes)  # the first message says where things stand

    def take(self) -> str | None:
        """The next message for this reader, or None.

        Raises
        ------
        LookupError : it is so far behind that messages were forgotten.
        """
        board = self.board
        if self.replies:
            return self.replies.popleft()
        if self.next < board.first:
            raise LookupError(f"{board.first - self.next} messages behind what is kept")
        if self.next < board.first + len(board.kept):
            self.next += 1
            return board.kept[self.next - 1 - board.first]
        for kind, message in board._passing.items():
            missed = board._passes[kind] - self._passed[kind]
            if missed:
                self._passed[kind] += missed
                board.counts.partials_dropped += missed - 1 if kind == "turns" else 0
                return message
        return None

    async def write(self, send: Callable[[str], Awaitable[None]], ping: Callable[[], Awaitable[None]]) -> None:
        """Send what there is to send until the session's end is sent, or the connection or the reader fails.

        Raises
        ------
        TimeoutError : a message was not taken for `Limits.stall_s`.
        """
        stall_s = self.board.limits.stall_s
        while True:  # not wait_for, which in Python 3.11 may swallow that this is cancelled
            self.wake.clear()
            while (message := self.take()) is not None:
                async with asyncio.timeout(stall_s):
                    await send(message)
            if self.board.ended:
                return
            try:
                async with asyncio.timeout(PING_S):
                    await self.wake.wait()
            except TimeoutError:
                async with asyncio.timeout(stall_s):
                    await ping()
