"""Of a server that speaks to Moshi's clients, what is a conversation; the whole of it is in test_moshi.py, which takes minutes."""

from __future__ import annotations

import asyncio
import logging
import sys
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from diarizer.serve.address import Address
from diarizer.serve.moshi import run as start

SERVER = """
from aiohttp import web
from moshi.models import loaders

async def chat(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    for data in (b"\\x01before", b"\\x00", b"\\x01sound", b"\\x01sound"):
        await ws.send_bytes(data)
    await ws.receive()
    return ws

app = web.Application()
app.router.add_get("/api/chat", chat)
app.router.add_get("/elsewhere", chat)
loaders.get_mimi(None)
web.run_app(app)
"""


ALONE = """
import logging
from huggingface_hub.errors import LocalEntryNotFoundError
logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 2s")
raise LocalEntryNotFoundError("no network")
"""


@pytest.fixture
def moshi(tmp_path, monkeypatch):
    """A package of this name whose server is the text given."""

    def write(server: str) -> SimpleNamespace:
        (tmp_path / "moshi").mkdir()
        (tmp_path / "moshi" / "__init__.py").touch()
        (tmp_path / "moshi" / "models.py").write_text(
            "class loaders:\n    get_mimi = staticmethod(lambda file: file)\n"
        )
        (tmp_path / "moshi" / "server.py").write_text(server)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.split(".")[0] == "moshi"]:
            monkeypatch.delitem(sys.modules, name)
        return SimpleNamespace(run=SimpleNamespace(path=tmp_path, features=["mimi"]), warnings=[])

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "moshi"]:
        monkeypatch.delitem(sys.modules, name)


def test_without_network_it_says_so_once(moshi, caplog):
    hub = logging.getLogger("huggingface_hub")
    hub.setLevel(logging.NOTSET)
    with pytest.raises(
        ValueError, match="the Hub cannot be reached: connect this machine, or name files: .* --mimi-weight"
    ):
        start(moshi(ALONE), [], Address(port=0), lambda url: None)
    assert not caplog.records


def test_a_conversation_begins_with_the_handshake_alone(moshi, monkeypatch):
    told = []

    class Tap:
        live = SimpleNamespace(latency_s=1.04, algorithmic_latency_s=1.0)
        begin, end, detach = (lambda self, what=what: told.append(what) for what in ("begin", "end", "detach"))

    async def talk(app: web.Application) -> None:
        async with TestClient(TestServer(app)) as client:
            for path in ("/elsewhere", "/api/chat"):
                async with client.ws_connect(path) as ws:
                    heard = [(await ws.receive_bytes())[:1] for _ in range(4)]
                assert heard == [b"\x01", b"\x00", b"\x01", b"\x01"]
                told.append(path)

    monkeypatch.setattr(web, "run_app", lambda app: asyncio.run(talk(app)))
    monkeypatch.setattr("diarizer.serve.moshi.attach", lambda *_, **__: Tap())
    start(moshi(SERVER), [], Address(port=0), lambda url: None)
    assert told[:2] == ["/elsewhere", "begin"] and sorted(told[2:]) == ["/api/chat", "detach", "end"]
