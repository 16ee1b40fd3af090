"""Between a Moshi server and its clients: nothing that they say is changed, and turns come beside it."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from tests.diarizer.serve import served

sphn = pytest.importorskip("sphn")


@contextlib.asynccontextmanager
async def moshi(heard: list[bytes], asked: list[dict] | None = None):
    """A server that talks as Moshi's does and answers each message with its size."""

    async def chat(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        (asked if asked is not None else []).append(dict(request.query))
        await ws.prepare(request)
        await ws.send_bytes(b"\x00")
        async for message in ws:
            heard.append(message.data)
            if isinstance(message.data, str):
                await ws.send_str(message.data[::-1])
                continue
            await ws.send_bytes(b"\x02%d" % len(message.data))
            if message.data == b"\x03bye":
                break
        return ws

    app = web.Application()
    app.router.add_get("/api/chat", chat)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0).start()
    yield f"ws://localhost:{runner.addresses[0][1]}"
    await runner.cleanup()


async def conversation(there, wave) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """What is said, what comes back of Moshi's, and what comes beside it."""
    writer, said, back, beside = sphn.OpusStreamWriter(24_000), [b"\x03\x01", b"\x07unknown"], [], []
    said += [b"\x01" + writer.append_pcm(wave[at : at + 1920]) for at in range(0, len(wave), 1920)]
    said += [b"\x01not opus at all", b"\x03bye"]
    async with there.http.ws_connect(there.url + "api/chat?voice=x") as ws:
        for message in said:
            await ws.send_bytes(message)
        async for message in ws:
            (beside if message.data[:1] == b"\x04" else back).append(message.data)
    return said, back, beside


@pytest.mark.parametrize("sessions", [8, 1], ids=["heard", "no room to hear it"])
def test_what_they_say_passes_unchanged(sessions, caplog):
    async def work():
        heard: list[bytes] = []
        # The other takes the room, where there is one.
        async with moshi(heard) as url, served(beside=url, sessions=sessions) as there, there.client() as other:
            await other.until("ready")
            said, back, beside = await conversation(there, np.zeros(48_000, np.float32))
            assert heard == said
            assert back == [b"\x00"] + [b"\x02%d" % len(message) for message in said]
            assert bool(beside) == (sessions > 1)
            if sessions > 1:
                assert b'"type": "ready"' in beside[0]
                async with there.http.get(there.url) as answer:
                    assert f'watched = "{list(there.hub.boards)[-1]}"' in await answer.text()

    asyncio.run(asyncio.wait_for(work(), 30))


@pytest.mark.parametrize("behind", ["", "/", "/api/chat"])
def test_a_conversation_is_heard_asks_as_its_client_asks_and_ends_its_session(behind):
    """The token is ours and goes no further; text passes as text."""
    token, asked, heard = "0123456789abcdef", [], []

    async def work():
        async with moshi(heard, asked) as url, served(beside=url + behind, token=token) as there:
            writer, back, beside = sphn.OpusStreamWriter(24_000), [], []
            async with there.http.ws_connect(there.url + f"api/chat?voice=a%26b+c&token={token}&seed=1") as ws:
                await ws.send_str("abc")
                for _ in range(25):
                    await ws.send_bytes(b"\x01" + writer.append_pcm(np.zeros(1920, np.float32)))
                while not there.hub.boards:
                    await asyncio.sleep(0.01)
                (session,) = there.hub.boards.values()
                while session.received_s < 1.9 or not back:
                    message = await ws.receive()
                    if message.type is aiohttp.WSMsgType.TEXT:
                        back.append(message.data)
                    elif message.data[:1] == b"\x04":
                        beside.append(message.data)
                assert session.ended is False
            while not session.ended:
                await asyncio.sleep(0.01)
            assert back == ["cba"] and heard[0] == "abc" and asked == [{"voice": "a&b c", "seed": "1"}]
            assert b'"type": "ready"' in beside[0] and not session.readers

    asyncio.run(asyncio.wait_for(work(), 30))


def test_a_server_that_does_not_answer_is_told():
    async def work():
        async with served(beside="ws://localhost:9") as there, there.http.ws_connect(there.url + "api/chat") as ws:
            message = await ws.receive()
            assert message.data[:1] == b"\x04" and b"does not answer" in message.data
            assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)

    asyncio.run(asyncio.wait_for(work(), 30))
