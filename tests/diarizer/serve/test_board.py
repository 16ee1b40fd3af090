"""What a session has said, without a server: which messages a reader gets, and which are overtaken."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from diarizer.serve import board as boards
from diarizer.serve.board import Board, Counts, Limits, Reader
from diarizer.serve.messages import command, start_of
from diarizer.serve.sound import Pcm, decoder
from tests.diarizer.serve import FACTS, TinyUpdate

TURN = {"start_s": 0.0, "end_s": 0.5, "speaker": "speaker1", "sure": 1.0}


def told(reader: Reader) -> list[dict[str, Any]]:
    return [json.loads(message) for message in iter(reader.take, None)]


def test_a_partial_turn_is_not_told_after_it_became_final() -> None:
    board = Board(FACTS, Limits(), Counts())
    reader = Reader(board)
    board.publish([TinyUpdate(0, 0.5, (), (TURN,)), TinyUpdate(1, 0.9, (TURN,), ())])
    assert [message["seq"] for message in told(reader)] == [1]
    assert board.ready()["partial"] == [] and board.counts.partials_dropped == 0
    board.publish([TinyUpdate(2, 1.0, (), (TURN,))])
    assert told(Reader(board, 1)) == []  # who comes now has it in the first message
    assert [message["seq"] for message in told(reader)] == [2] and board.ready()["partial"] == [TURN]


def test_a_reset_and_an_end_leave_nothing_of_before_to_be_told() -> None:
    for close, kind in ((Board.restarted, "reset"), (Board.end, "ended")):
        board = Board(FACTS, Limits(), Counts())
        reader = Reader(board)
        board.publish([TinyUpdate(0, 0.5, (), (TURN,))])
        board.clock(0.5, 0.6)
        close(board)
        assert [message["type"] for message in told(reader)] == [kind]
        assert board.ready()["partial"] == [] and board.ready()["ended"] == (kind == "ended")
    board.end("again")
    assert told(reader) == []  # it ends once


def test_what_a_reader_is_told_to_the_letter() -> None:
    board = Board(FACTS, Limits(messages=3), Counts())
    reader, expected = Reader(board), []
    facts = {"type": "ready", "protocol": 1, "session": board.id, **FACTS, "partial": [], "ended": False}
    assert board.ready() == {**facts, "epoch": 0, "time_s": 0.0, "received_s": 0.0, "first": 0, "next": 0}
    for time_s, received_s in ((0.4, 0.6), (0.5, 0.71239), (0.9, 1.0), (1.0, 1.25)):  # twice a second of sound
        board.clock(time_s, received_s)
        if time_s in (0.5, 1.0):
            expected = [{"type": "clock", "epoch": 0, "time_s": time_s, "received_s": round(received_s, 3)}]
            assert told(reader) == expected
    board.clock(1.23456, 1.2345678)
    board.publish([TinyUpdate(0, 1.1, (TURN,), (TURN,))])  # settled on later than it was heard
    board.renamed("speaker1", "Ann")
    assert told(reader) == [
        {"type": "turns", "seq": 0, "time_s": 1.1, "final": [TURN], "partial": [TURN], "epoch": 0, "n": 0},
        {"type": "renamed", "epoch": 0, "speaker": "speaker1", "name": "Ann", "n": 1},
    ]
    ready = {**facts, "epoch": 0, "time_s": 1.235, "received_s": 1.234568, "first": 0, "next": 2, "partial": [TURN]}
    assert board.ready() == ready
    board.restarted()
    assert told(reader) == [{"type": "reset", "epoch": 1, "n": 2}]
    assert board.ready() == {**facts, "epoch": 1, "time_s": 0.0, "received_s": 0.0, "first": 0, "next": 3}
    board.clock(0.75, 0.75)  # the clock is told anew
    assert [message["epoch"] for message in told(reader)] == [1]
    board.end("the reason")
    assert told(reader) == [{"type": "ended", "epoch": 1, "time_s": 0.75, "why": "the reason", "n": 3}]
    ready = {**facts, "epoch": 1, "time_s": 0.75, "received_s": 0.75, "first": 1, "next": 4, "ended": True}
    assert board.ready() == ready  # of four messages three are kept
    other = Board(FACTS, Limits(), Counts())
    other.end()
    assert json.loads(other.kept[0]) == {"type": "ended", "epoch": 0, "time_s": 0.0, "n": 0}
    assert other.id != board.id and len(other.id) >= 20  # nobody guesses it


def test_limits_are_those_of_the_guide() -> None:
    limits = {"sessions": 8, "connections": 64, "message_bytes": 2**20, "backlog_s": 30, "idle_s": 300, "keep_s": 60}
    assert Limits() == Limits(**limits, stall_s=30, start_s=10, messages=20_000, faults=20) and boards.PING_S == 20


def test_a_reader_is_sent_all_until_the_end_and_pinged_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "PING_S", 0.02)
    board, sent, pings = Board(FACTS, Limits(), Counts()), [], []

    async def send(text: str) -> None:
        sent.append(json.loads(text)["type"])

    async def ping() -> None:
        pings.append(len(sent))
        if len(pings) == 2:
            board.renamed("a", "b")
            board.end()

    async def never(*_: object) -> None:
        await asyncio.sleep(60)

    async def work() -> None:
        reader = Reader(board)
        board.readers.add(reader)
        board.restarted()
        await asyncio.wait_for(reader.write(send, ping), 10)
        assert (sent, pings) == (["reset", "renamed", "ended"], [1, 1])
        slow = Board(FACTS, Limits(stall_s=0.02), Counts())
        for takes, pinged in ((send, never), (never, ping)):  # in silence nobody takes a ping, then no message
            writing = asyncio.create_task(Reader(slow).write(takes, pinged))
            await asyncio.wait({writing}, timeout=5)
            assert writing.done() and isinstance(writing.exception(), TimeoutError)
            slow.restarted()

    asyncio.run(work())


def test_a_start_says_what_it_says_and_else_what_the_guide_says() -> None:
    usual = {
        "token": "",
        "session": None,
        "after": -1,
        "watch": False,
        "format": "f32",
        "rate_hz": 24_000,
        "channels": 1,
    }
    assert start_of('{"type": "start"}') == {**usual, "latency_s": None}
    said = {"token": "t", "session": "s", "after": 7, "watch": True, "format": "i16", "rate_hz": 8000, "channels": 2}
    assert start_of(json.dumps({"type": "start", **said, "latency_s": 1})) == {**said, "latency_s": 1}
    assert start_of(json.dumps({"type": "start", "session": None, "latency_s": None}))["session"] is None
    with pytest.raises(ValueError, match="start: token: expected str, found None"):
        start_of(json.dumps({"type": "start", "token": None}))


def test_samples_are_what_their_kind_says() -> None:
    data = bytes(range(1, 13))
    ((samples,), (pairs,)) = (Pcm("i16", 8000, channels).decode(data) for channels in (1, 2))
    assert samples.tolist() == [0x0201, 0x0403, 0x0605, 0x0807, 0x0A09, 0x0C0B]
    assert pairs.tolist() == [[0x0201, 0x0403], [0x0605, 0x0807], [0x0A09, 0x0C0B]]
    assert next(Pcm("f32", 8000, 1).decode(b"\0\0\x80\x3f")).tolist() == [1.0]
    for kind, rate_hz, channels in (("i16", 1000, 1), ("f32", 384_000, 16)):
        assert decoder(kind, rate_hz, channels).rate_hz == rate_hz
    for rate_hz, channels, says in ((999, 1, "rate_hz: expected 1000 to 384000"), (384_001, 1, "rate_hz"), (8000, 17, "channels: expected 1 to 16, found 17"), (8000, True, "channels")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            decoder("f32", rate_hz, channels)


def test_a_session_without_an_engine_of_its_own_takes_names_only() -> None:
    async def work() -> None:
        board = Board(FACTS, Limits(), Counts())
        await command(board, json.dumps({"type": "rename", "speaker": "speaker1", "name": " " + "é" * 78 + " "}))
        assert json.loads(board.kept[0])["name"] == "é" * 78
        for kind in ("finalize", "reset"):
            with pytest.raises(ValueError, match=f"{kind}: this session's audio comes from elsewhere"):
                await command(board, json.dumps({"type": kind}))
        for name in ("é" * 81, "a\nb", " "):
            with pytest.raises(ValueError, match="rename: name: expected 1 to 80 printable characters"):
                await command(board, json.dumps({"type": "rename", "speaker": "a", "name": name}))

    asyncio.run(work())
