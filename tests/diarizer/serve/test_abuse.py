"""Clients that are slow, broken or hostile: they lose what is theirs, and nobody else loses anything."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest

from diarizer.serve.board import Board, Counts, Limits, Reader
from diarizer.serve.sound import Opus, Pcm
from tests.diarizer.serve import FACTS, RATE_HZ, TinyUpdate, served, sound

TALK = sound((1, 1.0), (0, 0.5), (2, 1.5), (1, 0.5))
TURNS = [(0.0, 1.0, "speaker1"), (1.5, 3.0, "speaker2"), (3.0, 3.5, "speaker1")]


def run(work):
    return asyncio.run(asyncio.wait_for(work, 30))


def turn(k: int) -> dict:
    return {"start_s": float(k), "end_s": k + 0.5, "speaker": "speaker1", "sure": 1.0}


def test_a_slow_reader_loses_partials_never_finals_and_no_memory():
    async def work():
        counts = Counts()
        board = Board(FACTS, Limits(messages=50), counts)
        quick, slow = Reader(board), Reader(board)
        for k in range(40):
            board.publish([TinyUpdate(2 * k, k + 0.2, (), (turn(k),)), TinyUpdate(2 * k + 1, k + 0.9, (turn(k),), ())])
            board.publish([TinyUpdate(99, k + 0.95, (), (turn(k + 1),))])
            while quick.take():
                pass
            board.clock(k + 1.0, k + 1.0)
        told = [json.loads(message) for message in iter(slow.take, None)]
        finals = [t["final"][0]["start_s"] for t in told if t["type"] == "turns" and t["final"]]
        assert finals == [float(k) for k in range(40)]
        assert [t["n"] for t in told if "n" in t] == list(range(40))
        assert len([t for t in told if t["type"] == "turns" and not t["final"]]) == 1  # the last partial alone
        assert [t["time_s"] for t in told if t["type"] == "clock"] == [40.0]
        assert counts.partials_dropped == 79 + 40  # the slow one's, and those that were final in the same breath
        sleeper = Reader(board)
        for k in range(40, 80):
            board.publish([TinyUpdate(k, k + 0.9, (turn(k),), ())])
        assert (len(board.kept), board.first) == (50, 30)
        with pytest.raises(LookupError, match="30 messages behind"):
            sleeper.take()

    run(work())


def test_twenty_clients_of_which_one_never_reads_and_one_dies_mid_frame():
    """The nineteenth asks and never reads again, the twentieth is gone after half of a message."""

    async def good(there, k):
        async with there.client() as client:
            await client.until("ready")
            for _ in range(5):
                await client.push(TALK, 400 + 37 * k)
                await asyncio.sleep(0.01)
            await client.say(type="finalize")
            await client.rest()
            return client.final

    def raw(there, rate_hz) -> socket.socket:
        where = urlsplit(there.url)
        bare = socket.create_connection((where.hostname, where.port))
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bare.sendall(
            f"GET /api/live HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        bare.sendall(frame(json.dumps({"type": "start", "rate_hz": rate_hz}).encode(), 1))
        assert bare.recv(12) == b"HTTP/1.1 101"
        return bare

    async def deaf(there):
        """Turns of a frame each: more than sockets hold, and nobody takes them."""
        bare = await asyncio.to_thread(raw, there, 1000)
        some = np.tile(np.repeat(np.float32([0.1, 0.2]), 100), 50)  # 10 s
        named = [{"type": "rename", "speaker": f"speaker{k}", "name": str(k) + 79 * "é"} for k in (1, 2)]
        try:
            for told in named:
                await asyncio.to_thread(bare.sendall, frame(json.dumps(told).encode(), 1))
            for _ in range(1000):
                await asyncio.to_thread(bare.sendall, frame(some.tobytes(), 2))
        except OSError:
            return  # let go
        finally:
            bare.close()
        raise AssertionError("nobody minded")

    async def dying(there):
        bare = await asyncio.to_thread(raw, there, RATE_HZ)
        await asyncio.to_thread(bare.sendall, frame(TALK.tobytes(), 2)[:1000])
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        bare.close()

    async def work():
        async with served(sessions=20, stall_s=0.5, messages=100_000) as there:
            found = await asyncio.gather(*(good(there, k) for k in range(18)), deaf(there), dying(there))
            first = found[0]
            assert len(first) == 11 and first[-1] == (17.0, 17.5, "speaker1")  # neighbours are one
            assert all(turns == first for turns in found[:18])
            assert there.hub.counts.sessions == 20
            assert there.hub.counts.failed == 0
            async with there.http.get(there.url + "health") as answer:
                assert answer.status == 200
            while any(board.readers for board in there.hub.boards.values()):
                await asyncio.sleep(0.05)
            assert there.hub.counts.stalled == 1

    run(work())


def frame(payload: bytes, kind: int) -> bytes:
    """A WebSocket frame of a client, masked with zeros."""
    length = len(payload)
    size = (
        bytes([0x80 | length])
        if length < 126
        else b"\xfe" + length.to_bytes(2)
        if length < 65536
        else b"\xff" + length.to_bytes(8)
    )
    return bytes([0x80 | kind]) + size + bytes(4) + payload


def test_a_thousand_malformed_messages(caplog):
    """Each is answered, after twenty the connection closes, and who behaves beside them notices nothing."""
    draw = random.Random(0)
    texts = [
        "",
        "x",
        "[]",
        "null",
        '"finalize"',
        "{}",
        '{"type": 1}',
        '{"type": "rename"}',
        "[" * 5000,
        '{"type": "start"}',
    ]
    texts += [
        '{"type": "rename", "speaker": ["a"], "name": {}}',
        '{"type": "rename", "speaker": "speaker1", "name": "\\u0000"}',
    ]

    async def bad(there, kind):
        sent = 0
        async with there.client(format=kind) as client:
            await client.until("ready")
            for _ in range(20):
                if draw.random() < 0.5:
                    await client.ws.send_str(draw.choice(texts))
                else:
                    noise = b"\x00\x00\xc0\x7f" if kind == "f32" else 100 * b"nope"
                    await client.ws.send_bytes(noise + draw.randbytes(4 * draw.randrange(50) + (kind == "i16")))
                sent += 1
            heard = await client.rest()
            assert len([told for told in heard if told["type"] == "error"]) == 20
            assert heard[-1]["fatal"] or heard[-2]["fatal"]
            assert client.ws.close_code == 1008
        return sent

    async def work():
        async with served(sessions=60) as there, there.client() as client:
            sent = sum([await bad(there, ("f32", "i16", "opus")[k % 3]) for k in range(50)])
            assert sent == there.hub.counts.faults == 1000
            await client.push(TALK)
            await client.say(type="finalize")
            await client.rest()
            assert client.final == TURNS
            async with there.client() as huge:  # a megabyte is too much
                await huge.ws.send_bytes(bytes(there.hub.limits.message_bytes + 1))
                await huge.rest()

    run(work())
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "channels", "data", "message"),
    [
        ("f32", 1, b"123", "multiple of 4 bytes a message, found 3"),
        ("i16", 3, bytes(8), "multiple of 6"),
        ("f32", 1, np.float32([0, np.inf]).tobytes(), "NaN or infinity"),
    ],
)
def test_samples_that_are_none(kind, channels, data, message):
    with pytest.raises(ValueError, match=message):
        list(Pcm(kind, RATE_HZ, channels).decode(data))


def test_opus_as_moshis_clients_send_it_and_what_is_none():
    sphn = pytest.importorskip("sphn")
    wave = (0.1 * np.random.default_rng(0).standard_normal(3000).repeat(16)).astype(np.float32)
    writer, opus = sphn.OpusStreamWriter(24_000), Opus()
    pages = [writer.append_pcm(wave[at : at + 1920]) for at in range(0, len(wave), 1920)]
    heard = np.concatenate([piece for page in pages for piece in opus.decode(page)])
    assert len(heard) == len(wave)
    late = max(range(2000), key=lambda late: float(heard[late:24_000] @ wave[: 24_000 - late]))
    assert np.corrcoef(heard[late:24_000], wave[: 24_000 - late])[0, 1] > 0.7  # it is noise
    with pytest.raises(ValueError, match="not Ogg-Opus"):
        list(opus.decode(b"x" * 100))
    with pytest.raises(ValueError, match="broke before"):
        list(opus.decode(pages[0]))


def test_a_stock_moshi_client_gets_turns_as_metadata():
    sphn = pytest.importorskip("sphn")

    async def work():
        async with served() as there, there.client(path="api/chat", raw=True) as client:
            assert (await client.hear())["type"] == "handshake"
            assert (await client.until("ready"))["session"]
            writer = sphn.OpusStreamWriter(24_000)
            wave = np.zeros(48_000, np.float32)
            await client.ws.send_bytes(b"\x03\x00")  # control is not for us
            for at in range(0, len(wave), 1920):
                await client.ws.send_bytes(b"\x01" + writer.append_pcm(wave[at : at + 1920]))
            while (await client.until("clock"))["time_s"] < 1.5:
                pass

    run(work())
