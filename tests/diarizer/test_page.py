"""The page of a recording, and the figures on it, by hand."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile as sf

import diarizer.page
from diarizer.answer import Answer
from diarizer.page import render, write_page
from diarizer.sound import Sound
from evaluation.turns import Turns
from tests.browser import needs_browser, violations
from tests.tones import voice, write


def answer(**changes) -> Answer:
    turns = Turns.from_arrays([0.0, 2.0, 5.0, 9.0], [3.0, 4.0, 8.0, 9.5], ["a", "b", "a", "a"])
    facts = {"recording": "x", "duration_s": 10.0, "turns": turns, "sure": np.array([1, 0.5, 0.8, 0.2], np.float32)}
    return Answer(**{**facts, **changes})


def test_figures_by_hand():
    told = answer().to_json()
    assert told["speakers"] == [
        {"name": "a", "enrolled": False, "speaking_s": 6.5, "share": 0.7647, "turns": 3, "longest_s": 3.0, "confidence": 0.846},
        {"name": "b", "enrolled": False, "speaking_s": 2.0, "share": 0.2353, "turns": 1, "longest_s": 2.0, "confidence": 0.5},
    ]  # fmt: skip
    assert (told["speech_s"], told["overlap_s"]) == (7.5, 1.0)
    assert answer().overlaps().tolist() == [[2.0, 3.0]]
    three = Turns.from_arrays([0.0, 1.0, 2.0, 4.0], [5.0, 3.0, 6.0, 6.0], ["a", "b", "c", "b"])
    assert answer(turns=three, sure=np.ones(4)).overlaps().tolist() == [[1.0, 6.0]]


def test_the_page_holds_what_it_shows():
    page = render(answer(energy=np.linspace(0, 1, 125, dtype=np.float32)), None)
    data = json.loads(re.search(r"const data = (\{.*\});", page)[1])
    assert data["turns"] == [[0.0, 3.0, 0, 1.0], [2.0, 4.0, 1, 0.5], [5.0, 8.0, 0, 0.8], [9.0, 9.5, 0, 0.2]]
    assert [s["name"] for s in data["speakers"]] == ["a", "b"]
    assert data["overlaps"] == [[2.0, 3.0]] and data["duration"] == 10.0
    assert [s["colour"] for s in data["speakers"]] == ["--p0", "--p1"]
    assert (data["energy"][0], data["energy"][-1], len(data["energy"])) == (0, 255, 125)
    assert "http" not in page  # nothing is fetched


def test_names_are_text_wherever_they_stand():
    evil = '</script><img src=x onerror="alert(1)">'
    named = Turns.from_arrays([0.0], [1.0], [evil])
    page = render(answer(recording=evil, turns=named, sure=np.ones(1), warnings=(evil,), facts={"run": evil}), None)
    assert page.count("</script>") == 1
    assert "<img" not in page


def test_colours_begin_again_after_eight():
    names = [f"v{k}" for k in range(10)]
    turns = Turns.from_arrays(np.arange(10.0), np.arange(10) + 0.5, names)
    page = render(answer(turns=turns, sure=np.ones(10)), None)
    data = json.loads(re.search(r"const data = (\{.*\});", page)[1])
    assert [s["colour"] for s in data["speakers"]] == [f"--p{k % 8}" for k in range(10)]
    assert [row[2] for row in data["turns"]] == list(range(10))


def test_the_sound_is_as_loud_as_it_was(tmp_path):
    """Half an hour is inside of the page; a tone of 0.2 is one, at 16 kHz, second by second."""
    assert diarizer.page.EMBEDDED_S == 1800.0
    time_s = np.arange(3 * 22_050) / 22_050
    wave = np.float32(0.2 * np.sin(2 * np.pi * 440 * time_s))
    wave[2 * 22_050 :] *= 8  # beyond full scale: cut off, and not wrapped round
    sf.write(tmp_path / "x.wav", wave, 22_050, "FLOAT")
    write_page(tmp_path / "x.html", answer(), Sound(str(tmp_path / "x.wav")))
    sound = re.search(r'src="data:audio/mpeg;base64,([^"]+)"', (tmp_path / "x.html").read_text())[1]
    heard, rate_hz = sf.read(io.BytesIO(base64.b64decode(sound)))
    assert rate_hz == 16_000 and len(heard) == pytest.approx(48_000, abs=4000)
    assert np.abs(np.fft.rfft(heard[8000:24_000])).argmax() == 440
    assert np.sqrt(np.mean(heard[8000:24_000] ** 2)) == pytest.approx(0.2 / 2**0.5, rel=0.1)
    assert np.sqrt(np.mean(heard[36_000:44_000] ** 2)) > 0.7


def test_warnings_stand_on_it():
    assert "Not to be relied on" not in render(answer(), None)
    assert "demo weights: toys" in render(answer(warnings=("demo weights: toys",)), None)


@pytest.mark.parametrize(("most_s", "inside"), [(60.0, True), (1.0, False)])
def test_short_sound_is_inside_and_long_sound_beside(tmp_path, monkeypatch, most_s, inside):
    monkeypatch.setattr(diarizer.page, "EMBEDDED_S", most_s)
    wave = voice(1, 10.0)
    write_page(tmp_path / "a b.html", answer(), Sound(str(write(tmp_path / "x.wav", wave))))
    page = (tmp_path / "a b.html").read_text()
    assert ("data:audio/mpeg;base64," in page) == inside
    assert ('src="a%20b.mp3"' in page) == (not inside)
    if not inside:
        heard, rate_hz = sf.read(tmp_path / "a b.mp3")
        assert rate_hz == 16000
        assert len(heard) / rate_hz == pytest.approx(10.0, abs=0.2)
        assert np.abs(heard[rate_hz : 9 * rate_hz]).max() > 0.1 > np.abs(heard[:4000]).max()


def test_a_recording_in_which_nobody_speaks():
    page = render(answer(turns=Turns.from_arrays([], [], []), sure=np.zeros(0)), None)
    assert "Nobody speaks" in page


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_axe_finds_nothing(tmp_path, width, dark):
    needs_browser()
    page = render(answer(warnings=("demo weights: toys",)), "data:audio/mpeg;base64,")
    assert violations(page, tmp_path, width=width, dark=dark) == []
