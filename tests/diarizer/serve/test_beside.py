"""Beside Moshi's own server, which is a few lines here: what is tapped, who is told what, and that all is left as it was."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
import sys
import threading
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

import diarizer.serve.moshi as beside_moshi
from diarizer.serve.address import Address
from diarizer.serve.board import Counts, Limits
from diarizer.serve.moshi import Chats, TappedBoard, _check, _watching
from diarizer.serve.run import Beside, facts_of, hub_of
from diarizer.serve.session import Hub
from tests.diarizer.serve import FACTS, TinyLive, TinyUpdate

TURN = {"start_s": 0.0, "end_s": 0.5, "speaker": "speaker1", "sure": 1.0}
UPDATE = TinyUpdate(0, 0.5, (TURN,), ())


def made(*warnings: str, weights: str = "a" * 64) -> Any:
    run = SimpleNamespace(path=Path("runs/cascade"), features={"mimi": SimpleNamespace(weights_sha256=weights)})
    return SimpleNamespace(run=run, warnings=warnings)


class Tap:
    """What is asked of a tap."""

    def __init__(self, *asked: object, **settings: object) -> None:
        self.calls: list = [(asked, settings)]
        self.live = SimpleNamespace(latency_s=0.5, algorithmic_latency_s=0.48)

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> None:
        self.calls.append("end")

    def detach(self) -> None:
        self.calls.append("detach")

    def rename(self, speaker: str, name: str, done: Any) -> None:
        fault = None if speaker == "speaker1" else ValueError(f"nobody is called {speaker}")
        threading.Thread(target=done, args=(fault,)).start()


class Socket:
    def __init__(self) -> None:
        self.sent: list[dict] = []

    async def send_bytes(self, data: bytes) -> None:
        assert data[:1] == b"\x04"
        self.sent.append(json.loads(data[1:]))


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_a_tapped_board_names_voices_through_its_tap_and_begins_anew() -> None:
    async def work() -> None:
        board = TappedBoard(FACTS, Limits(), Counts())
        with pytest.raises(ValueError, match="nobody has spoken yet"):
            await board.rename("speaker1", "Ann")
        board.tap = Tap()
        await board.rename("speaker1", "Ann")
        with pytest.raises(ValueError, match="nobody is called x"):
            await board.rename("x", "Bob")
        assert [(told["type"], told["name"]) for told in map(json.loads, board.kept)] == [("renamed", "Ann")]
        board.heard([UPDATE], 0.6, False)
        assert (board.epoch, board.time_s, board.received_s) == (0, 0.6, 0.6)
        board.heard([], 0.0, True)
        assert (board.epoch, board.time_s) == (1, 0.0) and len(board.kept) == 3

    run(work())


def test_each_client_of_moshi_gets_the_turns_of_its_own_conversation() -> None:
    """The head is behind: it tells of the first when the second has begun; who left before it was told gets nothing."""

    async def work() -> None:
        chats, one, two, left = Chats(FACTS), Socket(), Socket(), Socket()
        chats.heard([UPDATE], 0.5, False)  # of nobody's conversation
        chats.tap = Tap()
        first, second = chats.begin(one), chats.begin(two)
        gone = chats.begin(left)
        chats.end(gone)
        assert chats.tap.calls[1:] == ["begin"] * 3 + ["end"]
        await asyncio.to_thread(chats.heard, [], 0.0, True)
        await asyncio.to_thread(chats.heard, [UPDATE], 0.5, False)
        while not any(told["type"] == "turns" for told in one.sent):
            await asyncio.sleep(0.01)
        assert [(told["type"], told["epoch"]) for told in one.sent] == [("ready", 1), ("turns", 1), ("clock", 1)][: len(one.sent)]  # fmt: skip
        chats.end(first)
        for new in (True, False, True, False):
            await asyncio.to_thread(chats.heard, [] if new else [UPDATE], 0.0 if new else 0.5, new)
        while not any(told["type"] == "turns" for told in two.sent):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        assert first.telling.done() and not second.telling.done() and gone.telling is None
        assert {told["epoch"] for told in one.sent} == {1} and left.sent == []
        assert [(told["type"], told["epoch"]) for told in two.sent][:2] == [("ready", 2), ("turns", 2)]
        assert len(chats.board.readers) == 1
        chats.end(second)
        await asyncio.sleep(0.02)
        assert not chats.board.readers

    run(work())


def test_conversations_are_watched_until_they_are_over() -> None:
    async def work() -> None:
        ended: list = []
        watching = _watching(SimpleNamespace(end=ended.append))

        async def handler(request: Any) -> str:
            if (answered := beside_moshi._answered.get()) is not None:
                answered.append(request.path)
            if request.fails:
                raise ConnectionError
            return "done"

        assert await watching(SimpleNamespace(path="/", fails=False), handler) == "done" and ended == []
        assert await watching(SimpleNamespace(path="/api/chat", fails=False), handler) == "done"
        with pytest.raises(ConnectionError):
            await watching(SimpleNamespace(path="/api/chat", fails=True), handler)
        assert ended == ["/api/chat"] * 2

    run(work())


def test_other_weights_than_the_runs_are_refused_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    (tmp_path / "w").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    board, other = (TappedBoard(FACTS, Limits(), Counts()) for _ in range(2))
    _check(made(weights=sha256), tmp_path / "w", board)
    assert board.facts["warnings"] == FACTS["warnings"]
    with pytest.raises(ValueError, match=f"Mimi has weights {sha256[:12]}…, the run was trained on a{{12}}…"):
        _check(made(), tmp_path / "w", board)
    _check(made("demo weights"), tmp_path / "w", board, other)
    assert board.facts["warnings"] == other.facts["warnings"] != FACTS["warnings"]
    assert capsys.readouterr().err == f"warning: {board.facts['warnings'][-1]}\n"


def test_moshis_server_is_started_as_it_is_with_a_tap_on_its_mimi(monkeypatch: pytest.MonkeyPatch) -> None:
    models, loaders = ModuleType("moshi.models"), ModuleType("moshi.models.loaders")
    loaders.get_mimi = lambda filename, *rest, **more: ("mimi of", filename, rest, more)
    models.loaders = loaders
    for name, module in (("moshi", ModuleType("moshi")), ("moshi.models", models), ("moshi.models.loaders", loaders)):
        monkeypatch.setitem(sys.modules, name, module)
    taps, seen, told, checked = [], {}, [], []
    monkeypatch.setattr(
        beside_moshi, "attach", lambda *asked, **settings: taps.append(Tap(*asked, **settings)) or taps[0]
    )
    monkeypatch.setattr(beside_moshi, "_check", lambda made, weights, *boards: checked.append((weights, len(boards))))

    def run_app(app: web.Application, port: int) -> None:
        seen["app"], seen["port"] = app, port
        (_, _, heard), settings = taps[0].calls[0]
        heard([], 0.0, True)
        heard([UPDATE], 0.5, False)
        seen["page"] = urllib.request.urlopen(told[0]).read().decode()
        seen["settings"] = settings

    def module(name: str, run_name: str, alter_sys: bool) -> None:
        seen["argv"], seen["name"] = list(sys.argv), name
        seen["mimi"] = loaders.get_mimi("first", "cpu", num_codebooks=8)
        loaders.get_mimi("second")
        web.run_app(web.Application(), port=8998)
        raise SystemExit(3)

    monkeypatch.setattr(web, "run_app", run_app)
    monkeypatch.setattr(runpy, "run_module", module)
    before = (loaders.get_mimi, web.run_app, web.WebSocketResponse.send_bytes, sys.argv)
    with pytest.raises(SystemExit):
        beside_moshi.run(made("toys"), ["--port", "8998"], Address(port=0), told.append, 0.5)
    assert (loaders.get_mimi, web.run_app, web.WebSocketResponse.send_bytes, sys.argv) == before
    assert (seen["argv"], seen["name"], seen["port"]) == (["moshi.server", "--port", "8998"], "moshi.server", 8998)
    assert seen["mimi"] == ("mimi of", "first", ("cpu",), {"num_codebooks": 8}) and len(seen["app"].middlewares) == 1
    assert (
        seen["settings"] == {"latency_s": 0.5, "gated": True}
        and taps[0].calls[0][0][0] == seen["mimi"]
        and taps[0].calls[1:] == ["detach"]
    )
    assert "toys" in seen["page"] and 'watched = "' in seen["page"] and checked == [("first", 2)]
    with pytest.raises(OSError):
        urllib.request.urlopen(told[0])  # its page is gone too
    with pytest.raises(ValueError, match="run cascade hears fake, not mimi's frames"):
        fake = SimpleNamespace(path=Path("cascade"), features={"fake": None})
        beside_moshi.run(SimpleNamespace(run=fake), [], Address(port=0), told.append)
    monkeypatch.setitem(sys.modules, "moshi.models", None)
    with pytest.raises(ValueError, match="this needs Moshi: pip install"):
        beside_moshi.run(made(), [], Address(port=0), told.append)


def test_a_server_in_a_thread_of_its_own() -> None:
    hub = Hub(TinyLive, FACTS)
    board = TappedBoard(FACTS, hub.limits, hub.counts)
    hub.boards[board.id] = board
    beside = Beside(hub, Address(port=0), watch=board.id)
    with urllib.request.urlopen(beside.url) as answer:
        page = answer.read().decode()
        policy = answer.headers["Content-Security-Policy"]
    assert f'watched = "{board.id}"' in page and "needsToken = false" in page
    nonces = set(re.findall('nonce="([^"]+)"', page))
    assert len(nonces) == 1 and f"script-src 'nonce-{nonces.pop()}'" in policy
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    here: list[str] = []
    beside.soon(lambda text: here.append(text + threading.current_thread().name), "in ")
    while not here:
        pass
    assert here == ["in whowhen"]
    beside.close()
    beside.soon(here.append, "late")  # the program ends: nobody minds
    assert here == ["in whowhen"] and not beside._thread.is_alive()


def test_what_a_hub_makes_of_a_run() -> None:
    asked: list[tuple] = []
    there = SimpleNamespace(
        live=lambda *latency: asked.append(latency) or TinyLive(*latency), run=made().run, warnings=("toys",)
    )
    assert facts_of(there) == {"run": "cascade", "warnings": ["toys"]}
    hub = hub_of(there, None, Limits(sessions=2))
    assert hub.facts == facts_of(there) and hub.limits.sessions == 2 and asked == [()]
    hub._make(0.5)
    usual = hub_of(there, 2.0)
    usual._make(None), usual._make(0.5)
    assert asked[1:] == [(0.5,), (2.0,), (2.0,), (0.5,)] and usual.limits == Limits()
    with pytest.raises(ValueError, match="latency_s: expected"):
        hub_of(there, 99.0)  # is refused before anybody comes


def test_what_is_heard_of_moshi_is_no_session_of_ours() -> None:
    with pytest.raises(ValueError, match="this server hears Moshi alone: whowhen serve is for others"):
        beside_moshi._no_session(None)
