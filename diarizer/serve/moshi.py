"""Moshi's own server with a head beside it: turns in its page's metadata and on ours, its tokens as they were."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diarizer.serve.address import Address
from diarizer.serve.board import Board, Counts, Limits, Reader
from diarizer.serve.run import Beside, facts_of
from diarizer.serve.session import Hub
from diarizer.serve.tap import FEATURE, Tap, attach
from featstore.extractors.sources import file_sha256

if TYPE_CHECKING:
    from aiohttp import web

    from diarizer.diarizer import Diarizer
    from diarizer.live import Update

PATH = "/api/chat"
HANDSHAKE, METADATA = b"\x00", b"\x04"
#: In a connection to Moshi's server: its conversation, once it has been answered.
_answered: ContextVar[list[Chat] | None] = ContextVar("answered", default=None)


class TappedBoard(Board):
    """A board whose engine is at a Mimi."""

    tap: Tap | None = None

    async def rename(self, speaker: str, name: str) -> None:
        """See `Board.rename`.

        Raises
        ------
        ValueError : the engine knows no such voice, or the name is taken.
        """
        if self.tap is None:
            raise ValueError("nobody has spoken yet")
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        faults: list[Exception] = []

        def answered(error: Exception | None) -> None:
            if error is not None:
                faults.append(error)
            loop.call_soon_threadsafe(done.set)

        self.tap.rename(speaker, name, answered)
        await done.wait()
        if faults:
            raise faults[0]
        self.renamed(speaker, name)

    def heard(self, updates: list[Update], heard_s: float, new: bool) -> None:
        """What a tap tells."""
        if new:
            self.restarted()
        self.publish(updates)
        self.clock(heard_s, heard_s)


@dataclass(eq=False)
class Chat:
    """A conversation with Moshi's server, and the task that tells its client turns."""

    ws: web.WebSocketResponse
    telling: asyncio.Task[None] | None = None
    over: bool = False


class Chats:
    """Conversations with Moshi's server, which has one at a time: each client gets its own turns as metadata.

    All of it runs on that server's loop, but for `heard`.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self.board = TappedBoard(facts, Limits(), Counts())
        self.tap: Tap | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coming: deque[Chat] = deque()  # the head may be behind: what it tells now may be of the one before

    def begin(self, ws: web.WebSocketResponse) -> Chat:
        """The server has said that it listens."""
        assert self.tap is not None
        self._loop = asyncio.get_running_loop()
        self._coming.append(Chat(ws))
        self.tap.begin()
        return self._coming[-1]

    def end(self, chat: Chat) -> None:
        """A conversation's connection is closed."""
        assert self.tap is not None
        chat.over = True
        if chat.telling is not None:
            chat.telling.cancel()
        self.tap.end()

    def heard(self, updates: list[Update], heard_s: float, new: bool) -> None:
        """What a tap tells, in any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heard, updates, heard_s, new)

    def _heard(self, updates: list[Update], heard_s: float, new: bool) -> None:
        self.board.heard(updates, heard_s, new)
        if new and self._coming and not (chat := self._coming.popleft()).over:
            chat.telling = asyncio.create_task(self._tell(chat.ws))

    async def _tell(self, ws: web.WebSocketResponse) -> None:
        reader = Reader(self.board, self.board.first + len(self.board.kept))
        reader.replies.append(json.dumps(self.board.ready()))
        self.board.readers.add(reader)

        async def send(text: str) -> None:
            await ws.send_bytes(METADATA + text.encode())

        async def silence() -> None:
            pass

        try:
            await reader.write(send, silence)
        except (ConnectionError, LookupError, RuntimeError, TimeoutError):
            pass  # it left, or takes nothing: that is between it and the server
        finally:
            self.board.readers.discard(reader)


def run(
    made: Diarizer,
    arguments: Sequence[str],
    address: Address,
    told: Callable[[str], None],
    latency_s: float | None = None,
) -> None:
    """Start ``moshi.server`` with these arguments in this process, and a page of ours beside it.

    Parameters
    ----------
    told : gets the address of our page, before Moshi's server is started.

    Raises
    ------
    ValueError : the run does not hear Mimi's frames; Moshi is not installed, or its weights are not to be had.
    """
    try:
        from aiohttp import web
        from huggingface_hub.errors import LocalEntryNotFoundError
        from moshi.models import loaders
    except ImportError:
        raise ValueError("this needs Moshi: pip install -e '.[extract]'") from None
    if FEATURE not in made.run.features:
        raise ValueError(f"run {made.run.path.name} hears {', '.join(made.run.features)}, not {FEATURE}'s frames")
    facts = facts_of(made)
    hub = Hub(_no_session, facts)
    board = TappedBoard(facts, hub.limits, hub.counts)
    hub.boards[board.id] = board
    chats = Chats(facts)
    beside = Beside(hub, address, watch=board.id)
    told(beside.url)

    def heard(updates: list[Update], heard_s: float, new: bool) -> None:
        beside.soon(board.heard, updates, heard_s, new)
        chats.heard(updates, heard_s, new)

    mimis: list[Any] = []
    get_mimi, run_app, send_bytes = loaders.get_mimi, web.run_app, web.WebSocketResponse.send_bytes

    def get_and_keep(filename: Any, *rest: Any, **settings: Any) -> Any:
        if not mimis and filename is not None:
            _check(made, filename, board, chats.board)
        mimis.append(get_mimi(filename, *rest, **settings))
        return mimis[-1]

    def run_tapped(app: web.Application, *rest: Any, **settings: Any) -> None:
        # PersonaPlex has two Mimis that hear the same: the first is tapped.
        tap = attach(mimis[0], made, heard, latency_s=latency_s, gated=True)
        latencies = {"latency_s": tap.live.latency_s, "algorithmic_latency_s": tap.live.algorithmic_latency_s}
        for each in (board, chats.board):
            each.facts |= latencies
            each.tap = tap
        chats.tap = tap
        app.middlewares.append(_watching(chats))
        try:
            run_app(app, *rest, **settings)
        finally:
            tap.detach()

    async def send_and_see(ws: web.WebSocketResponse, data: bytes, *rest: Any, **settings: Any) -> None:
        await send_bytes(ws, data, *rest, **settings)
        answered = _answered.get()
        if data == HANDSHAKE and answered is not None:
            answered.append(chats.begin(ws))

    before = sys.argv
    patched: list[tuple[Any, str, Any]] = [
        (loaders, "get_mimi", get_and_keep),
        (web, "run_app", run_tapped),
        (web.WebSocketResponse, "send_bytes", send_and_see),
    ]
    for of, name, new in patched:
        setattr(of, name, new)
    try:
        sys.argv = ["moshi.server", *arguments]
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a paragraph for each of its tries
        runpy.run_module("moshi.server", run_name="__main__", alter_sys=True)
    except LocalEntryNotFoundError:
        raise ValueError(
            "Moshi's weights are not in the Hub's cache, and the Hub cannot be reached: connect this machine, or name "
            "files: whowhen moshi -- --moshi-weight FILE --mimi-weight FILE --tokenizer FILE"
        ) from None
    finally:
        sys.argv = before
        for (of, name, _), old in zip(patched, (get_mimi, run_app, send_bytes), strict=True):
            setattr(of, name, old)
        beside.close()


def _no_session(latency_s: float | None) -> Any:
    raise ValueError("this server hears Moshi alone: whowhen serve is for others")


def _watching(chats: Chats) -> Any:
    """Middleware that knows which connections are conversations, and when they are over."""
    from aiohttp import web

    @web.middleware
    async def watching(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path != PATH:
            return await handler(request)
        answered: list[Chat] = []
        _answered.set(answered)
        try:
            return await handler(request)
        finally:
            for chat in answered:  # none of who still waited for the one before to end
                chats.end(chat)

    return watching


def _check(made: Diarizer, weights: Any, *boards: Board) -> None:
    """Refuse other weights than the run's; a run on demo weights, which says so anyway, says this too."""
    expected, found = made.run.features[FEATURE].weights_sha256, file_sha256(weights)
    if expected == found:
        return
    text = f"Moshi's Mimi has weights {found[:12]}…, the run was trained on {expected[:12]}…: its turns mean nothing"
    if not made.warnings:
        raise ValueError(f"{text}. Take the Mimi that the run was trained on, or train on this one")
    print(f"warning: {text}", file=sys.stderr)
    for board in boards:
        board.facts["warnings"] = [*board.facts["warnings"], text]
