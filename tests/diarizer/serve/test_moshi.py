"""A head beside Moshi's own server: its tokens stay, its clients get turns, and what fails fails alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import soundfile as sf
import soxr

from tests import nano_moshi
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
AUDIO = ROOT / "data_manifests" / "demo" / "audio"
BROKEN = """
from diarizer.live import Live
push_frames, calls = Live.push_frames, []
def breaks(self, frames):
    calls.append(1)
    if len(calls) == 20:
        raise RuntimeError("a fault put in")
    return push_frames(self, frames)
Live.push_frames = breaks
"""


def speech(seconds: float) -> np.ndarray:
    """(samples,) at 24 kHz: two of the demo's voices, one after the other."""
    parts = []
    for speaker in sorted(path for path in AUDIO.iterdir() if path.is_dir())[:2]:
        wave, rate_hz = sf.read(sorted(speaker.rglob("*.opus"))[0], dtype="float32")
        parts.append(soxr.resample(wave, rate_hz, 24_000)[: int(24_000 * seconds / 2)])
    return np.concatenate(parts)


class Running:
    """A moshi.server process, plain or with our head."""

    def __init__(self, folder: Path, kind: str, arguments: list[str], more: str = "") -> None:
        self.tokens = folder / f"tokens-{kind}-{len(more)}"
        env = os.environ | {
            "NO_TORCH_COMPILE": "1",
            "NO_CUDA_GRAPH": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        command = nano_moshi.launch(self.tokens, kind, [*arguments, "--port", port], more)
        self.log = self.tokens.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        while not (up := re.search(r"Running on (http\S+)", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.2)
        self.url, page = up[1], re.search(r"who speaks: (\S+)", self.log.read_text())
        self.page = page[1] if page else ""

    def stop(self) -> str:
        self.process.terminate()
        self.process.wait(60)
        return self.log.read_text()


async def talk(url: str, wave: np.ndarray, tokens: Path) -> list[dict]:
    """A conversation as Moshi's client has it; the JSON of kind 4 that came."""
    import sphn

    metadata = []
    before = len(tokens.read_text().splitlines())
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/api/chat") as ws:
        assert (await ws.receive()).data == b"\x00"
        writer = sphn.OpusStreamWriter(24_000)

        async def read() -> None:
            async for message in ws:
                if message.data[:1] == b"\x04":
                    metadata.append(json.loads(message.data[1:]))

        reading = asyncio.create_task(read())
        for at in range(0, len(wave) - 1919, 1920):
            page = writer.append_pcm(wave[at : at + 1920])
            if page:
                await ws.send_bytes(b"\x01" + page)
            await asyncio.sleep(0.02)
        while len(tokens.read_text().splitlines()) - before < len(wave) // 1920 - 2:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        reading.cancel()
    return metadata


async def watched(page: str) -> list[dict]:
    """What a page of ours is told from the beginning."""
    async with aiohttp.ClientSession() as http:
        async with http.get(page) as answer:
            session = re.search(r'watched = "([^"]+)"', await answer.text())[1]
        async with http.ws_connect(page + "api/live") as ws:
            await ws.send_str(json.dumps({"type": "start", "session": session, "watch": True}))
            told = []
            while True:
                try:
                    told.append(json.loads((await asyncio.wait_for(ws.receive(), 1.0)).data))
                except TimeoutError:
                    return told


def finals(told: list[dict]) -> list[tuple]:
    return [
        (t["epoch"], turn["start_s"], turn["end_s"], turn["speaker"])
        for t in told
        if t["type"] == "turns"
        for turn in t["final"]
    ]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    pytest.importorskip("moshi")
    return nano_moshi.write(tmp_path_factory.mktemp("nano"))


def test_tokens_stay_and_turns_come(arguments, tmp_path):
    """Two conversations, one after the other, the second with other sound: the server resets between them."""
    one, two = speech(6.0), speech(4.0)[::-1].copy()

    def both(kind: str, more: str = ""):
        server = Running(tmp_path, kind, arguments, more)
        try:
            first = asyncio.run(talk(server.url, one, server.tokens))
            second = asyncio.run(talk(server.url, two, server.tokens))
            page = asyncio.run(watched(server.page)) if server.page else []
        finally:
            said = server.stop()
        return server.tokens.read_text(), first, second, page, said

    plain, *_ = both("plain")
    assert len(plain.splitlines()) > 100 and len(set(plain.splitlines())) > 50
    tapped, first, second, page, _ = both("tapped")
    assert tapped == plain
    assert first[0]["type"] == "ready" and any("demo weights" in line for line in first[0]["warnings"])
    assert [t for t in first if t["type"] == "turns" and t["partial"]]
    assert {t["epoch"] for t in page if t["type"] == "turns" and t["final"]} == {1, 2}  # closed when the client left
    assert {t["epoch"] for t in first if t["type"] == "turns"} == {1}
    assert {t["epoch"] for t in second if t["type"] == "turns"} == {2}
    assert set(finals(first)) <= set(finals(page))
    assert [t["epoch"] for t in page if t["type"] == "reset"] == [1, 2]
    assert all(0 <= start < end <= 6.1 for _, start, end, _ in finals(page))
    broken, first, second, _, said = both("tapped", BROKEN)
    assert broken == plain
    assert "a fault put in" in said
    assert not [t for t in first if t["type"] == "turns" and t["time_s"] > 2.0]
    assert [t for t in second if t["type"] == "turns"]  # the next conversation is heard again
