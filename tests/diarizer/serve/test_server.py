"""Sessions over WebSockets: what comes out, that none knows of another, and who is turned away."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
import subprocess
from importlib.metadata import version

import aiohttp
import numpy as np
import pytest
import soundfile as sf

from diarizer.serve.address import Address, is_local
from diarizer.serve.run import listening
from diarizer.serve.server import Server
from diarizer.serve.session import Hub
from tests.conftest import ROOT
from tests.diarizer.serve import FACTS, RATE_HZ, Client, TinyLive, served, sound

TALK = sound((1, 1.0), (0, 0.5), (2, 1.5), (1, 0.5))
TURNS = [(0.0, 1.0, "speaker1"), (1.5, 3.0, "speaker2"), (3.0, 3.5, "speaker1")]


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("kind", ["f32", "i16", "stereo", "44100"])
def test_audio_in_turns_out(kind):
    async def work():
        async with served() as there:
            start = {"format": "i16" if kind == "i16" else "f32", "channels": 2 if kind == "stereo" else 1}
            if kind == "44100":
                start["rate_hz"] = 44100
            async with there.client(**start) as client:
                ready = await client.until("ready")
                assert (ready["run"], ready["warnings"], ready["latency_s"]) == ("tiny", FACTS["warnings"], 1.04)
                assert (ready["epoch"], ready["time_s"], ready["next"], ready["partial"]) == (0, 0.0, 0, [])
                wave = (TALK * 32767).astype("<i2") if kind == "i16" else TALK
                wave = np.stack([TALK, TALK], 1) if kind == "stereo" else wave
                wave = TALK[np.arange(len(TALK) * 441 // 80) * 80 // 441] if kind == "44100" else wave
                await client.push(wave, 1000)
                await client.say(type="finalize")
                heard = await client.rest()
                assert client.final == TURNS
                assert heard[-1] == {"type": "ended", "epoch": 0, "time_s": heard[-1]["time_s"], "n": heard[-1]["n"]}
                numbers = [told["n"] for told in heard if "n" in told]
                assert numbers == list(range(len(numbers)))
                assert client.ws.close_code == 1000

    run(work())


def test_sessions_have_clocks_of_their_own():
    async def work():
        async with served() as there, there.client() as one:
            await one.push(sound((1, 5.0)))
            async with there.client(latency_s=0.32) as two:
                ready = await two.until("ready")
                assert (ready["time_s"], ready["latency_s"]) == (0.0, 0.32)
                await two.push(TALK)
                await two.say(type="finalize")
                await two.rest()
                assert two.final == TURNS
            await one.say(type="finalize")
            await one.rest()
            assert one.final == [(0.0, 5.0, "speaker1")]

    run(work())


def test_who_comes_back_goes_on_and_gets_what_was_missed():
    async def work():
        async with served() as there:
            async with there.client() as first:
                session = (await first.until("ready"))["session"]
                await first.push(TALK[: 2 * RATE_HZ])
                while not first.final:
                    await first.hear()
                last = max(told.get("n", -1) for told in first.heard)
            async with there.client(session=session, after=last) as second:
                ready = await second.until("ready")
                has = round(ready["received_s"] * RATE_HZ)
                assert has <= 2 * RATE_HZ
                await second.push(TALK[has:])
                await second.say(type="finalize")
                await second.rest()
            assert first.final + second.final == TURNS
            async with there.client(session=session, watch=True) as later:  # it is over, and can be read still
                await later.rest()
                assert later.final == TURNS
            async with there.client(session=session, watch=True, after=10**6) as late:  # there is no more than there is
                assert [told["type"] for told in await late.rest()] == ["ready"]


def test_who_watches_hears_all_and_says_nothing():
    async def work():
        async with served() as there, there.client() as speaking:
            session = (await speaking.until("ready"))["session"]
            board = there.hub.boards[session]
            async with there.client(session=session, watch=True) as watching:
                await watching.until("ready")
                await watching.push(TALK[:800])
                assert (await watching.until("error"))["message"] == "audio: this connection watches"
                await speaking.push(TALK[: 2 * RATE_HZ])
                while not watching.final:
                    await watching.hear()
                assert watching.final == TURNS[:1]
                there_s = board.left_s
            while len(board.readers) > 1:
                await asyncio.sleep(0.01)
            assert board.left_s > there_s and board.received_s == pytest.approx(2.0)
            await speaking.push(TALK[2 * RATE_HZ :])  # and the one who speaks goes on
            await speaking.say(type="finalize")
            await speaking.rest()
            assert speaking.final == TURNS

    run(work())

    run(work())


def test_a_connection_that_comes_back_takes_over_from_the_lost_one():
    async def work():
        async with served() as there, there.client() as lost:
            session = (await lost.until("ready"))["session"]
            await lost.push(TALK[:RATE_HZ])
            async with there.client(session=session) as back:
                has = round((await back.until("ready"))["received_s"] * RATE_HZ)
                await lost.rest()  # it is closed
                await back.push(TALK[has:])
                await back.say(type="finalize")
                await back.rest()
                assert back.final == TURNS

    run(work())


def test_names_resets_and_their_faults():
    async def work():
        async with served() as there, there.client() as client:
            await client.push(sound((1, 1.0)))
            while not (await client.until("turns"))["partial"]:
                pass
            await client.say(type="rename", speaker="speaker1", name=" Ann ")
            assert (await client.until("renamed"))["name"] == "Ann"
            await client.push(sound((2, 1.0)))
            while not client.final:
                await client.hear()
            assert client.final == [(0.0, 1.0, "Ann")]
            await client.say(type="rename", speaker="nobody", name="Bob")
            assert "nobody is called 'nobody'" in (await client.until("error"))["message"]
            await client.say(type="rename", speaker="speaker1", name="")
            assert "1 to 80" in (await client.until("error"))["message"]
            await client.say(type="reset")
            assert (await client.until("reset"))["epoch"] == 1
            del client.heard[:]
            await client.push(sound((2, 0.5)))
            await client.say(type="finalize")
            heard = await client.rest()
            assert client.final == [(0.0, 0.5, "speaker2")]
            assert {told["epoch"] for told in heard if "epoch" in told} == {1}

    run(work())


def test_an_engine_that_fails_ends_its_session_alone(caplog):
    async def work():
        async with served() as there, there.client() as bad, there.client() as good:
            await bad.push(sound((90, 0.2)))
            assert "engine failed" in (await bad.until("ended"))["why"]
            await bad.rest()
            await good.push(TALK)
            await good.say(type="finalize")
            await good.rest()
            assert good.final == TURNS
            assert there.hub.counts.failed == 1

    run(work())
    assert "the engine broke" in caplog.text


def test_a_long_message_waits_its_turn():
    async def work():
        async with served(backlog_s=1.0) as there, there.client() as client:
            wave = np.tile(TALK, 8)  # 28 s, in messages of 10 s
            await client.push(wave, 10 * RATE_HZ)
            await client.say(type="finalize")
            await client.rest()
            assert len(client.final) == 17  # the first and the last of neighbours are one
            assert client.final[-1][1] == 28.0

    run(work())


# ---- who is turned away


def test_no_more_sessions_than_there_may_be():
    async def work():
        async with served(sessions=1) as there, there.client() as one:
            await one.until("ready")
            async with there.client() as two:
                told = await two.until("error")
                assert "no more" in told["message"] and told["fatal"]
                assert await two.hear() is None and two.ws.close_code == 1013
                assert (there.hub.counts.refused, there.hub.counts.faults) == (1, 0)
            async with there.client(path="api/chat", raw=True) as chat:
                assert "no more" in (await chat.until("error"))["message"]
                assert await chat.hear() is None and chat.ws.close_code == 1013
            await one.say(type="finalize")
            await one.rest()
            async with there.client() as three:  # what is over makes room
                await three.until("ready")

    run(work())


def test_no_more_connections_than_there_may_be():
    async def work():
        async with served(connections=1) as there, there.client() as one:
            await one.until("ready")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with there.client():
                    pass
            assert refused.value.status == 503 and there.hub.counts.refused == 1

    run(work())


def test_what_idles_ends_and_what_is_left_is_forgotten():
    async def work():
        async with served(idle_s=0.2, keep_s=0.2) as there:
            async with there.client() as client:
                await client.until("ready")
                assert (await client.until("ended"))["why"] == "no audio came"
                assert await client.hear() is None
            async with there.client() as client:
                await client.until("ready")
            while there.hub.boards:
                await asyncio.sleep(0.05)
            assert there.hub.counts.sessions == 2

    run(work())


def test_who_says_nothing_is_let_go():
    async def work():
        async with served(start_s=0.05) as there, there.client(raw=True) as client:
            assert (await client.until("error"))["message"] == "no start message within 0.05 s"
            assert await client.hear() is None and client.ws.close_code == 1008

    run(work())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("nonsense", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ('{"type": "begin"}', "first message"),
        ('{"type": "start", "rate": 8000}', "unknown field 'rate'"),
        ('{"type": "start", "rate_hz": "8000"}', "rate_hz: expected int"),
        ('{"type": "start", "rate_hz": true}', "rate_hz: expected int"),
        ('{"type": "start", "rate_hz": 10}', "expected 1000 to 384000"),
        ('{"type": "start", "format": "mp3"}', "expected f32, i16 or opus"),
        ('{"type": "start", "channels": 0}', "channels"),
        ('{"type": "start", "session": "x"}', "no such session"),
        ('{"type": "start", "watch": true}', "which session"),
        ('{"type": "start", "latency_s": 99}', "expected 0.16 to 10"),
        ('{"type": "start", "latency_s": NaN}', "expected seconds"),
    ],
)
def test_a_start_that_is_none_has_one_clear_line(start, message):
    async def work():
        async with served() as there, there.client(raw=True) as client:
            await client.ws.send_str(start)
            told = await client.until("error")
            assert message in told["message"] and told["fatal"]
            assert await client.hear() is None and client.ws.close_code == 1008 and there.hub.counts.faults == 1

    run(work())


def test_a_token_where_there_is_one():
    token = "0123456789abcdef"

    async def work():
        async with served(token=token) as there:
            for wrong in ({}, {"token": "x"}, {"token": token + "0"}):
                async with there.client(**wrong) as client:
                    assert "token" in (await client.until("error"))["message"]
            async with there.client(token=token) as client:
                await client.until("ready")
            for path in (f"api/chat?token={token}", "api/chat"):
                async with there.client(path=path, raw=True) as client:
                    assert (await client.hear())["type"] == ("handshake" if "token" in path else "error")
            async with there.http.get(there.url) as answer:
                assert "needsToken = true" in await answer.text()
            async with there.http.get(there.url + "metrics") as answer:
                assert answer.status == 401
            async with there.http.get(there.url + "metrics", headers={"Authorization": f"Bearer {token}"}) as answer:
                assert "whowhen_sessions_total 2\n" in await answer.text()
            async with there.http.get(there.url + "health") as answer:
                assert (await answer.json())["status"] == "ok"

    run(work())


def test_pages_of_others_and_other_names_of_this_machine_are_turned_away():
    async def work():
        async with served() as there:
            for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
                async with there.http.get(there.url, headers=headers) as answer:
                    assert answer.status == 403
                with pytest.raises(aiohttp.WSServerHandshakeError):
                    await there.http.ws_connect(there.url + "api/live", headers=headers)
            async with there.http.get(there.url, headers={"Origin": there.url.rstrip("/")}) as answer:
                assert answer.status == 200

    run(work())


def test_where_a_server_may_listen():
    for host in ("localhost", "localhost:8765", "127.0.0.1", "127.8.8.8:1", "[::1]:80"):
        assert is_local(host)
    for host in ("0.0.0.0", "[::]", "example.org", "localhost.example.org", "10.0.0.1", "127.0.0.1.example.org", ""):
        assert not is_local(host)
    token = "0123456789abcdef"
    for lacks in ({}, {"token": token}, {"certificate": "c", "key": "k"}):
        with pytest.raises(ValueError, match=r"--host 0.0.0.0.*token.*TLS"):
            Address("0.0.0.0", **lacks)
    Address("0.0.0.0", token=token, certificate="c", key="k")
    with pytest.raises(ValueError, match="expected 16 or more"):
        Address(token="short")
    with pytest.raises(ValueError, match="both"):
        Address(certificate="c")
    for port in (-1, 65536, 99999999):  # which a socket would take for another
        with pytest.raises(ValueError, match=f"--port must be 0 to 65535, found {port}; 0 takes any"):
            Address(port=port)
    with pytest.raises(ValueError, match=r"--beside: expected ws://HOST:PORT or wss://…, found 'localhost:8998'"):
        Server(Hub(TinyLive, {}), beside="localhost:8998")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_read_is_no_port_that_is_taken(tmp_path, content):
    if content:
        (tmp_path / "c").write_text(content)
    address = Address(certificate=str(tmp_path / "c"), key=str(tmp_path / "k"))
    with pytest.raises(
        ValueError, match=r"--tls-cert .*/c, --tls-key .*/k: .*; expected a certificate and its key, both as PEM$"
    ):
        asyncio.run(listening(Server(Hub(TinyLive, {})), address))


def test_numbers_for_monitoring():
    async def work():
        async with served() as there, there.client() as client:
            await client.push(TALK)
            await client.say(type="finalize")
            await client.rest()
            async with there.http.get(there.url + "metrics") as answer:
                text = await answer.text()
            assert "whowhen_audio_seconds_total 3.5\n" in text
            assert "# TYPE whowhen_backlog_seconds gauge\n" in text
            async with there.http.get(there.url + "health") as answer:
                told = await answer.json()
            expected = {"status": "ok", "version": version("whowhen"), "sessions": 0, "sessions_max": 8, **FACTS}
            assert told == expected

    run(work())


def test_the_client_in_the_guide(tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    client = re.search(r"```python\n(import asyncio.*?)```", guide, re.DOTALL)[1]
    sf.write(tmp_path / "meeting.wav", TALK, RATE_HZ, "FLOAT")
    monkeypatch.chdir(tmp_path)

    async def work():
        async with served() as there:
            here = client.replace("ws://localhost:8765/", there.url.replace("http", "ws"))
            await asyncio.to_thread(exec, here, {})

    run(work())
    assert capsys.readouterr().out == "".join(f"{start} {end} {who}\n" for start, end, who in TURNS)


def test_engines_step_in_threads():
    """While one engine thinks, the server answers."""
    import threading

    go, at_work = threading.Event(), threading.Event()

    class Slow(TinyLive):
        def push(self, samples, rate_hz):
            at_work.set()
            go.wait(20)
            return super().push(samples, rate_hz)

    async def work():
        async with served(Slow) as there, there.client() as client:
            await client.push(TALK)
            await asyncio.to_thread(at_work.wait, 20)
            async with there.http.get(there.url + "health") as answer:
                assert json.loads(await answer.text())["sessions"] == 1
            go.set()
            await client.say(type="finalize")
            await client.rest()
            assert client.final == TURNS

    run(work())


def test_over_tls(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(made.split(), cwd=tmp_path, check=True, capture_output=True)
    token = "0123456789abcdef"
    address = Address("0.0.0.0", 0, token, str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))

    async def work():
        url, cleanup = await listening(Server(Hub(TinyLive, FACTS), token), address)
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        trusted.check_hostname = False
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as http:
            here = url.replace("0.0.0.0", "localhost")
            assert here.startswith("https://")
            async with http.ws_connect(here + "api/live") as ws:
                client = Client(ws)
                await client.say(type="start", token=token, rate_hz=RATE_HZ)
                await client.push(TALK)
                await client.say(type="finalize")
                await client.rest()
                assert client.final == TURNS
        await cleanup()

    run(work())


@pytest.mark.slow
def test_real_engines_side_by_side_are_as_alone():
    """The demo's run, three sessions at once, in pieces of other lengths."""
    import diarizer

    made = diarizer.load()
    made.live()  # encoders are made once, and now
    clips = sorted((ROOT / "data_manifests" / "demo" / "audio").rglob("*.opus"))[:40:8]
    wave, rate_hz = np.concatenate([sf.read(clip, dtype="float32")[0] for clip in clips]), sf.info(clips[0]).samplerate
    wave = wave[: 10 * rate_hz]

    async def one(there, piece):
        async with there.client(rate_hz=rate_hz) as client:
            await client.push(wave, piece)
            await client.say(type="finalize")
            await client.rest()
            return client.final

    async def work():
        async with served(lambda latency_s: made.live()) as there:
            alone = await one(there, 4000)
            assert alone
            assert await asyncio.gather(*(one(there, piece) for piece in (1000, 3777, 16_000))) == 3 * [alone]

    asyncio.run(asyncio.wait_for(work(), 300))
