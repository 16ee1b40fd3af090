"""Between a Moshi server and its clients: what they say passes unchanged, and what the user says is heard here too.

For servers that show neither latents nor Python (Rust, MLX, somebody else's): the sound is encoded here once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from diarizer.serve.board import Reader
from diarizer.serve.sound import Opus

if TYPE_CHECKING:
    from aiohttp import web

    from diarizer.serve.session import Hub, Session

AUDIO, METADATA = b"\x01", b"\x04"
#: Messages that may wait for the engine, a minute of Moshi's; what comes then is not heard, but passes all the same.
_WAITING = 750
logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def dialled(url: str, query: str) -> AsyncIterator[Any]:
    """A connection to the server behind.

    Raises
    ------
    ValueError : it does not answer.
    """
    import aiohttp

    async with aiohttp.ClientSession() as http:
        address = f"{url.rstrip('/').removesuffix('/api/chat')}/api/chat" + (f"?{query}" if query else "")
        try:
            moshi = await http.ws_connect(address, max_msg_size=0, autoping=True)
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(f"the Moshi server at {url} does not answer: {error}") from None
        try:
            yield moshi
        finally:
            await moshi.close()


async def between(ws: web.WebSocketResponse, moshi: Any, session: Session | None) -> None:
    """Pass messages both ways until either side ends; turns go to the client as metadata.

    Parameters
    ----------
    session : None where there is no room for another: the conversation goes on without.
    """
    heard: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)

    async def up() -> None:
        async for message in ws:
            await _pass(message, moshi)
            if isinstance(message.data, bytes) and message.data[:1] == AUDIO:
                with contextlib.suppress(asyncio.QueueFull):
                    heard.put_nowait(message.data[1:])

    async def down() -> None:
        async for message in moshi:
            await _pass(message, ws)

    async def hear(session: Session) -> None:
        opus = Opus()
        while True:
            try:
                for samples in opus.decode(await heard.get()):
                    await session.push(samples, opus.rate_hz)
            except ValueError as error:
                logger.warning("a conversation is heard no more: %s", error)
                return

    async def send(text: str) -> None:
        await ws.send_bytes(METADATA + text.encode())

    ways = [asyncio.create_task(up()), asyncio.create_task(down())]
    tasks = list(ways)
    reader = None
    if session is not None:
        reader = Reader(session)
        reader.replies.append(json.dumps(session.ready()))
        session.readers.add(reader)
        tasks += [asyncio.create_task(hear(session)), asyncio.create_task(reader.write(send, ws.ping))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            session.readers.discard(reader)
            await session.close()
        await ws.close()


async def _pass(message: Any, to: Any) -> None:
    if isinstance(message.data, bytes):
        await to.send_bytes(message.data)
    elif isinstance(message.data, str):
        await to.send_str(message.data)


async def converse(ws: web.WebSocketResponse, url: str, query: str, hub: Hub, begun: Callable[[str], None]) -> None:
    """A conversation through this server; `begun` gets its session's id.

    Raises
    ------
    ValueError : the server behind does not answer.
    """
    async with dialled(url, query) as moshi:
        session: Session | None = None
        try:
            session = await hub.begin()
            begun(session.id)
        except ValueError as error:
            logger.warning("a conversation is not heard: %s", error)
        await between(ws, moshi, session)
