"""The page: what it holds, that people who see badly can use it, and a microphone in a real browser, both ends compared."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import subprocess

import aiohttp
import numpy as np
import pytest
import soundfile as sf

from diarizer.serve.page import render
from tests.browser import chromium, look, needs_browser, violations
from tests.conftest import ROOT
from tests.diarizer.serve import FACTS, served

TALK = """
facts = { algorithmic_latency_s: .32, latency_s: 1.04 }; time = 12; captured = 12.4;
hear({ type: "turns", seq: 0, epoch: 0, n: 0, time_s: 10, partial: [],
       final: [{ start_s: 0, end_s: 4, speaker: "speaker1", sure: .9 }, { start_s: 3, end_s: 8, speaker: "speaker2", sure: .4 }] });
hear({ type: "turns", seq: 1, epoch: 0, time_s: 12, final: [], partial: [{ start_s: 9, end_s: 12, speaker: "speaker3", sure: .5 }] });
"""


def test_nothing_is_fetched_and_texts_are_text():
    evil = '</script><img src=x onerror="alert(1)">'
    page = render({"run": evil, "warnings": [evil]}, "n", watch=evil)
    assert page.count("</script>") == 1
    assert "<img" not in page
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:|//)|url\(|@import", page)


def test_demo_weights_are_said():
    assert "demo weights: toys" in render(FACTS)
    assert "Not to be relied on" not in render({"run": "x", "warnings": []})


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_what_axe_says_and_how_it_is_laid_out(tmp_path, width, dark):
    needs_browser()
    page = render(FACTS).replace("</script>\n</body>", f"{TALK}</script>\n</body>")
    assert violations(page, tmp_path, width=width, dark=dark) == []
    found = look(
        page,
        """rename("speaker1", "Ann"); draw();
        return { wide: document.documentElement.scrollWidth - innerWidth, lanes: [...document.querySelectorAll(".who input")].map(x => x.value),
                 rows: [...document.querySelectorAll("#turns tr")].map(r => r.cells[1].textContent), rttm: asRttm(),
                 labels: [...document.querySelectorAll(".who input")].map(x => x.getAttribute("aria-label")),
                 enabled: !document.getElementById("rttm").disabled, nobody: document.getElementById("nobody").hidden };""",
        tmp_path,
        width=width,
        dark=dark,
    )
    assert found["wide"] <= 0
    assert found["lanes"] == ["Ann", "speaker2", "speaker3"]
    assert found["rows"] == ["speaker2", "Ann"]
    assert found["rttm"].splitlines()[0] == "SPEAKER live 1 0.000 4.000 <NA> <NA> Ann <NA> <NA>"
    assert found["labels"][1] == "name of speaker 2"
    assert found["enabled"] and found["nobody"]


@contextlib.asynccontextmanager
async def browsing(wave_file, folder):
    """A browser whose microphone plays a file; gives what opens an address and what runs a script there."""
    command = f"""{chromium()} --headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking
        --use-fake-ui-for-media-stream --use-fake-device-for-media-stream --use-file-for-fake-audio-capture={wave_file}%noloop
        --autoplay-policy=no-user-gesture-required --remote-debugging-port=0 --remote-allow-origins=*
        --user-data-dir={folder / "profile"} about:blank"""
    with subprocess.Popen(command.split(), stderr=subprocess.PIPE, text=True) as process:
        try:
            told = next(line for line in process.stderr if "DevTools listening on" in line)
            port = re.search(r":(\d+)/", told)[1]
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                    tab = next(each for each in await answer.json() if each["type"] == "page")
                async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as ws:
                    number = 0

                    async def call(method: str, **settings):
                        nonlocal number
                        number += 1
                        await ws.send_json({"id": number, "method": method, "params": settings})
                        while (told := json.loads((await ws.receive()).data)).get("id") != number:
                            pass
                        return told["result"]

                    async def script(text: str):
                        given = await call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
                        assert "exceptionDetails" not in given, given
                        return given["result"].get("value")

                    yield lambda url: call("Page.navigate", url=url), script
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("audio", ["ami", "demo"])
def test_a_microphone_in_a_browser(audio, request, tmp_path):
    """The demo's run hears what the browser's microphone plays; what the page has is what the server told."""
    needs_browser()
    if audio == "ami":
        clips = sorted((request.getfixturevalue("speech_dir") / "ami_clips" / "wav").glob("*.wav"))[:1]
    else:  # five voices: in one alone, which is no person's, the toy hears nobody
        clips = sorted((ROOT / "data_manifests" / "demo" / "audio").rglob("*.opus"))[:40:8]
    rate_hz = sf.info(clips[0]).samplerate
    wave = np.concatenate([sf.read(clip, dtype="float32")[0] for clip in clips])
    wave = np.tile(wave, 10)[: 12 * rate_hz] / np.abs(wave).max()
    sf.write(tmp_path / "mic.wav", 0.9 * wave, rate_hz, "PCM_16")

    async def work():
        import diarizer

        made = diarizer.load()
        made.live(2.0)  # encoders are made once, and now
        async with served(lambda asked: made.live(asked or 2.0)) as there:
            async with browsing(tmp_path / "mic.wav", tmp_path) as (go, script):
                await go(there.url)
                while not await script("typeof tick === 'function' && document.readyState === 'complete'"):
                    await asyncio.sleep(0.2)
                await script(
                    "document.getElementById('latency').value = '1.04'; document.getElementById('mic').click()"
                )
                while not await script("captured > 11 && lanes.size > 0"):
                    await asyncio.sleep(0.2)
                await script(
                    "[...lanes.values()][0].input.value = 'Ann'; [...lanes.values()][0].input.onchange(); document.getElementById('mic').click()"
                )
                while not await script("over"):
                    await asyncio.sleep(0.2)
                assert await script("document.getElementById('state').textContent") == "finished"
                assert await script("document.getElementById('say').textContent") == ""
                shown, captured, rttm = [
                    await script(text) for text in ("JSON.stringify(turns)", "captured", "asRttm()")
                ]
                file = base64.b64encode((tmp_path / "mic.wav").read_bytes()).decode()
                await script(f"play(new File([Uint8Array.from(atob('{file}'), c => c.charCodeAt(0))], 'x.wav'))")
                while not await script("over"):
                    await asyncio.sleep(0.2)
                assert await script("Math.abs(captured - 12) < .01 && Math.abs(time - 12) < .2 && turns.length > 0")
                assert await script("document.getElementById('say').textContent") == ""
            board = next(iter(there.hub.boards.values()))
            told = [json.loads(message) for message in board.kept]
            assert board.facts["latency_s"] == 1.04
            assert abs(board.received_s - captured) < 1e-6
        said = []
        for message in told:
            if message["type"] == "renamed":
                said = [t | {"speaker": message["name"]} if t["speaker"] == message["speaker"] else t for t in said]
            said += message.get("final", [])
        assert said and json.loads(shown) == said
        assert any(turn["speaker"] == "Ann" for turn in said)
        assert len(rttm.splitlines()) == len(said)

    asyncio.run(asyncio.wait_for(work(), 240))
