"""``whowhen live``: files, pipes and a microphone, what stays of them, and what is proved of a file."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

import diarizer.live.certificate
from cli.whowhen import app
from diarizer import load
from diarizer.live import Live
from diarizer.live.certificate import certify, go_on
from diarizer.live.sources import Microphone, of_stdin
from evaluation.rttm import read_rttm
from tests.tones import RATE_HZ, write

pytestmark = pytest.mark.usefixtures("knows_fakes")


def live(*words, stdin: bytes | None = None):
    return CliRunner().invoke(app, ["live", *map(str, words)], input=stdin)


def test_a_file_leaves_rttm_and_json_a_line_a_turn(tone_run, wave, tmp_path):
    path = write(tmp_path / "x.wav", wave)
    ended = live(path, "--run", tone_run, "--fast", "--out", tmp_path / "told", "--json")
    assert ended.exit_code == 0, ended.output
    updates = [json.loads(line) for line in ended.stdout.splitlines()]
    final = [turn for update in updates for turn in update["final"]]
    assert [json.loads(line) for line in (tmp_path / "told/x.jsonl").read_text().splitlines()] == final
    (told,) = read_rttm(tmp_path / "told/x.rttm").values()
    assert len(told) == len(final) > 3 and updates[-1]["partial"] == []
    again = live(path, "--run", tone_run, "--fast", "--out", tmp_path / "told")
    assert again.exit_code == 2 and "never rewritten" in again.stderr


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "FLOAT", "raw"])
def test_a_pipe_says_the_same_as_its_file(tone_run, wave, tmp_path, kind):
    sound = io.BytesIO()
    sf.write(sound, wave, RATE_HZ, kind if kind != "raw" else "PCM_16", format="WAV" if kind != "raw" else "RAW")
    raw = ("--rate", RATE_HZ) if kind == "raw" else ()
    piped = live("-", "--run", tone_run, *raw, stdin=sound.getvalue())
    named = live(write(tmp_path / "x.wav", wave), "--run", tone_run, "--fast")
    assert piped.exit_code == 0 and piped.stdout == named.stdout != ""


def test_what_is_no_sound_is_refused(tone_run, tmp_path):
    (tmp_path / "x.wav").write_text("no sound")
    for words, stdin, expected in (
        ((tmp_path / "x.wav",), None, "cannot be heard"),
        (("-",), b"no WAV at all", "expected WAV on standard input"),
        (("-",), b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x07\0\x01\0" + b"\0" * 12, "format 7"),
        (("x", "--latency", "60"), None, "0.16 to 10 s"),
    ):
        ended = live(*words, "--run", tone_run, stdin=stdin)
        assert ended.exit_code == 2 and expected in ended.stderr, ended.output


def test_ctrl_c_closes_what_is_open(tone_run, wave, tmp_path, monkeypatch):
    def until_ctrl_c(path, fast):
        yield wave[: 9 * RATE_HZ], RATE_HZ
        raise KeyboardInterrupt

    monkeypatch.setattr("diarizer.live.sources.of_file", until_ctrl_c)
    ended = live(tmp_path / "x.wav", "--run", tone_run, "--out", tmp_path)
    assert ended.exit_code == 0
    turns = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert turns and turns[-1]["end_s"] > 8


def test_a_microphone_is_heard_as_it_comes(monkeypatch):
    class Stream:
        def __init__(self, callback, blocksize, **settings):
            self._callback, self._blocksize = callback, blocksize

        def __enter__(self):
            for k in range(1000):  # 40 s at once: more than is kept
                self._callback(np.full((self._blocksize, 1), k / 1000, np.float32), self._blocksize, None, None)

        def __exit__(self, *error):
            pass

    fake = SimpleNamespace(
        InputStream=Stream, PortAudioError=RuntimeError, query_devices=lambda *_: {"default_samplerate": 16000.0}
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    heard = Microphone("3")
    samples, rate_hz = next(iter(heard))
    assert samples.shape == (640, 1) and rate_hz == 16000 and heard.lost_s == pytest.approx(10.0)


def test_without_a_microphone_it_says_what_to_install(tone_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    ended = live("--run", tone_run)
    assert ended.exit_code == 2 and "pip install -e '.[live]'" in ended.stderr


def test_a_pipe_may_end_anywhere():
    (first, _), *rest = of_stdin(io.BytesIO(b"\1\0\2\0\3"), 8000)
    assert first.tolist() == [[1], [2]] and rest == []


def test_what_is_certified_holds(tone_run, wave, tmp_path, monkeypatch):
    fakes = (
        'import featstore.extractors; featstore.extractors._BUILT_IN["fake"] = ("tests.fakes", "FakeExtractor", ());'
    )
    monkeypatch.setattr(diarizer.live.certificate, "OTHER", fakes + diarizer.live.certificate.OTHER)
    path = write(tmp_path / "x.wav", wave[: 6 * RATE_HZ])
    found = certify(load(tone_run), path, 0.48)
    assert found["holds"] and found["sizes"] and found["process"] and found["frames"] == {"fake": 0.0}
    # A fault: what is heard depends on how much comes at once.
    push = Live.push
    monkeypatch.setattr(Live, "push", lambda self, x, hz: push(self, x * (len(x) != 1600), hz))
    monkeypatch.setattr(diarizer.live.certificate, "OTHER", "raise SystemExit('no process')")
    with pytest.raises(ValueError, match="no process"):
        certify(load(tone_run), path, 0.48)
    monkeypatch.setattr("subprocess.run", lambda command, **_: go_on(command[-1]) or SimpleNamespace(returncode=0))
    found = certify(load(tone_run), path, 0.48)
    assert not found["sizes"] and not found["holds"]
