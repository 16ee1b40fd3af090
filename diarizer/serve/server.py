"""The server: WebSockets for audio in and turns out, the page, and what watches over both."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from diarizer.serve.address import is_local
from diarizer.serve.board import Board, Reader
from diarizer.serve.messages import command, error, start_of
from diarizer.serve.page import render
from diarizer.serve.proxy import converse
from diarizer.serve.session import Full, Hub, Session
from diarizer.serve.sound import Decoder, decoder

if TYPE_CHECKING:
    from aiohttp import web

_CLOSE_DONE, _CLOSE_FAULT, _CLOSE_LATER = 1000, 1008, 1013
logger = logging.getLogger(__name__)


class Server:
    """A hub's doors.

    Parameters
    ----------
    token : who does not know it is turned away; without one, who does not come to localhost is.
    beside : a Moshi server's address, ``ws://HOST:PORT``, to stand in front of; see `diarizer.serve.proxy`.
    watch : a session to show on the page; then there is no other, and audio comes from elsewhere.

    Raises
    ------
    ValueError : `beside` is no such address.
    """

    def __init__(self, hub: Hub, token: str | None = None, beside: str | None = None, watch: str | None = None) -> None:
        if beside is not None and not beside.startswith(("ws://", "wss://")):
            raise ValueError(f"--beside: expected ws://HOST:PORT or wss://…, found {beside!r}")
        self.hub, self.token, self.beside, self.watch = hub, token, beside, watch
        self._connections = 0

    def application(self) -> web.Application:
        """aiohttp's application, to run alone or inside of another."""
        from aiohttp import web

        @web.middleware
        async def guard(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            self._guard(request)
            return await handler(request)

        app = web.Application(middlewares=[guard])
        app.router.add_get("/", self.page)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/api/live", self.live)
        app.router.add_get("/api/chat", self.chat)
        app.cleanup_ctx.append(self._tidying)
        app.on_shutdown.append(self._stop)  # type: ignore[arg-type]
        return app

    async def _tidying(self, app: web.Application) -> AsyncIterator[None]:
        tidying = asyncio.create_task(self.hub.tidy())
        yield
        tidying.cancel()

    async def _stop(self, app: web.Application) -> None:
        await self.hub.close()  # who reads a session hears of its end, and goes

    def _guard(self, request: web.Request) -> None:
        """A page of somebody else's in the user's browser must not reach a server on localhost, by whatever name."""
        from aiohttp import web

        if self.token is None and not is_local(request.host):
            raise web.HTTPForbidden(text=f"{request.host}: without a token this server is for localhost alone\n")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"a page of {origin} may not use this server\n")

    def _known(self, token: object) -> bool:
        return self.token is None or hmac.compare_digest(str(token).encode(), self.token.encode())

    # ---- to look at

    async def page(self, request: web.Request) -> web.Response:
        """The page; what it asks for and shows is in page.html.j2."""
        from aiohttp import web

        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}' blob:; style-src 'nonce-{nonce}'; media-src blob:; "
            f"connect-src 'self' ws://{request.host} wss://{request.host}; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff"}
        text = render(self.hub.facts, nonce, needs_token=self.token is not None, watch=self.watch)
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def health(self, request: web.Request) -> web.Response:
        """Whether the server lives, and what it serves."""
        from aiohttp import web

        now = sum(not board.ended for board in self.hub.boards.values())
        there = {"status": "ok", "version": metadata.version("whowhen"), "sessions": now}
        return web.json_response(there | {"sessions_max": self.hub.limits.sessions} | self.hub.facts)

    async def metrics(self, request: web.Request) -> web.Response:
        """Numbers as Prometheus reads them; with the token as ``Authorization: Bearer`` where there is one."""
        from aiohttp import web

        if not self._known(request.headers.get("Authorization", "").removeprefix("Bearer ")):
            raise web.HTTPUnauthorized(text="the token, please\n")
        return web.Response(text=self.hub.metrics(), content_type="text/plain", charset="utf-8")

    # ---- to talk to

    async def live(self, request: web.Request) -> web.WebSocketResponse:
        """A connection of our own protocol: docs/serve.md."""
        async with self._socket(request) as ws:
            try:
                async with asyncio.timeout(self.hub.limits.start_s):
                    said = await ws.receive()
            except TimeoutError:
                await _refuse(ws, f"no start message within {self.hub.limits.start_s:g} s", _CLOSE_FAULT)
                return ws
            try:
                start = start_of(said.data)
                if not self._known(start["token"]):
                    raise ValueError("start: token: not the server's")
                board, decoding = await self._board(start)
            except ValueError as why:
                self.hub.counts.faults += not isinstance(why, Full)
                await _refuse(ws, str(why), _CLOSE_LATER if isinstance(why, Full) else _CLOSE_FAULT)
                return ws
            await self._talk(ws, board, decoding, after=start["after"])
        return ws

    async def chat(self, request: web.Request) -> web.WebSocketResponse:
        """A connection as Moshi's clients make them: kind 1 Ogg-Opus in, kind 4 JSON out; or Moshi's own, through us."""
        async with self._socket(request) as ws:
            try:
                if not self._known(request.query.get("token", "")):
                    raise ValueError("token: not the server's")
                if self.beside is not None:
                    query = urlencode([(key, value) for key, value in request.query.items() if key != "token"])
                    await converse(ws, self.beside, query, self.hub, self._show)
                    return ws
                board, decoding = await self._board({**start_of('{"type": "start"}'), "format": "opus"})
            except ValueError as why:
                await _refuse(ws, str(why), _CLOSE_LATER if isinstance(why, Full) else _CLOSE_FAULT, kinds=True)
                return ws
            await ws.send_bytes(b"\x00")
            await self._talk(ws, board, decoding, kinds=True)
        return ws

    def _show(self, session: str) -> None:
        self.watch = session  # the page has the latest conversation

    @contextlib.asynccontextmanager
    async def _socket(self, request: web.Request) -> AsyncIterator[web.WebSocketResponse]:
        from aiohttp import web

        if self._connections >= self.hub.limits.connections:
            self.hub.counts.refused += 1
            raise web.HTTPServiceUnavailable(text="too many connections: try again later\n")
        self._connections += 1
        ws = web.WebSocketResponse(max_msg_size=self.hub.limits.message_bytes, compress=False, timeout=2.0)
        try:
            try:
                await ws.prepare(request)
            except ConnectionError:
                raise web.HTTPBadRequest from None  # gone already: nobody reads this
            with contextlib.suppress(ConnectionError):
                yield ws
        finally:
            self._connections -= 1

    async def _board(self, start: dict[str, Any]) -> tuple[Board, Decoder | None]:
        """The session that a start message asks for, and what reads its audio."""
        decoding = None if start["watch"] else decoder(start["format"], start["rate_hz"], start["channels"])
        if start["session"] is None:
            if start["watch"]:
                raise ValueError("start: watch: which session?")
            latency_s = start["latency_s"]
            if latency_s is not None and not math.isfinite(latency_s):
                raise ValueError(f"start: latency_s: expected seconds, found {latency_s}")
            return await self.hub.begin(latency_s), decoding
        board = self.hub.boards.get(start["session"])
        if board is None:
            raise ValueError("start: session: there is no such session, or no more")
        if isinstance(board, Session) and decoding is not None and board.source is not None:
            board.source.cancel()  # the connection that was lost may not know yet; what it still holds comes again
            await asyncio.wait([board.source])
        return board, decoding if isinstance(board, Session) else None

    async def _talk(
        self,
        ws: web.WebSocketResponse,
        board: Board,
        decoding: Decoder | None,
        *,
        after: int = -1,
        kinds: bool = False,
    ) -> None:
        reader = Reader(board, min(max(after + 1, board.first), board.first + len(board.kept)))
        board.readers.add(reader)
        reader.replies.append(json.dumps(board.ready()))

        async def send(text: str) -> None:
            await (ws.send_bytes(b"\x04" + text.encode()) if kinds else ws.send_str(text))

        hearing = asyncio.create_task(self._hear(ws, reader, decoding, kinds))
        telling = asyncio.create_task(reader.write(send, ws.ping))
        if isinstance(board, Session) and decoding is not None:
            board.source = hearing
        try:
            await asyncio.wait({hearing, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            board.readers.discard(reader)
            board.left_s = time.monotonic()
            for task in (hearing, telling):
                task.cancel()
            heard, told = await asyncio.gather(hearing, telling, return_exceptions=True)
        for fault in (heard, told):
            if isinstance(fault, Exception) and not isinstance(fault, ConnectionError | TimeoutError | LookupError):
                logger.error("a connection failed", exc_info=fault)
        if isinstance(told, TimeoutError | LookupError):
            self.hub.counts.stalled += 1
            _abort(ws)
        else:
            await ws.close(code=_CLOSE_FAULT if heard is True else _CLOSE_DONE)

    async def _hear(self, ws: web.WebSocketResponse, reader: Reader, decoding: Decoder | None, kinds: bool) -> bool:
        """Take messages until the connection closes, or is no use: whether it is that."""
        from aiohttp import WSMsgType

        board, faults = reader.board, 0
        async for message in ws:
            try:
                if message.type is WSMsgType.BINARY:
                    data: bytes = message.data
                    if kinds:
                        if data[:1] != b"\x01":
                            continue  # Moshi's other kinds are not for us
                        data = data[1:]
                    if decoding is None or not isinstance(board, Session):
                        raise ValueError("audio: this connection watches")
                    for samples in decoding.decode(data):
                        await board.push(samples, decoding.rate_hz)
                elif message.type is WSMsgType.TEXT:
                    await command(board, message.data)
            except ValueError as why:
                faults += 1
                self.hub.counts.faults += 1
                fatal = faults >= self.hub.limits.faults
                reader.replies.append(error(str(why), fatal))
                reader.wake.set()
                if fatal:
                    while reader.replies:  # for the last to go; a reader that takes none is let go by who writes
                        await asyncio.sleep(0.01)
                    return True
        return False


async def _refuse(ws: web.WebSocketResponse, message: str, code: int, kinds: bool = False) -> None:
    text = error(message, True)
    await (ws.send_bytes(b"\x04" + text.encode()) if kinds else ws.send_str(text))
    await ws.close(code=code)


def _abort(ws: web.WebSocketResponse) -> None:
    """Without a goodbye, which would wait for a reader that does not read."""
    writer = ws._req.transport if ws._req is not None else None
    if writer is not None:
        writer.abort()
