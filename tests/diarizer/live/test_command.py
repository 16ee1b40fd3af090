"""``whowhen live``: files, pipes and a microphone, what stays of them, and what is proved of a file."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

import diarizer.live.certificate
from cli.whowhen import app
from cli.whowhen.live import _View
from diarizer import load
from diarizer.live import Live, LiveTurn, Update
from diarizer.live.certificate import _apart, _first, certify, go_on
from diarizer.live.recorded import Recorded
from diarizer.live.sources import Microphone, of_file, of_stdin
from evaluation.rttm import read_rttm
from tests.terminal import on_terminal
from tests.tones import RATE_HZ, write

pytestmark = pytest.mark.usefixtures("knows_fakes")


def live(*words, stdin: bytes | None = None):
    return CliRunner().invoke(app, ["live", *map(str, words)], input=stdin)


class Told:
    """In place of a run and its engine: what it is asked for; after a second, Ann is over and Bob speaks."""

    algorithmic_latency_s, warnings = 0.32, ()

    def __init__(self) -> None:
        self.asked: list = []
        self.heard: list = []

    def opened(self, *options: object) -> Told:
        self.asked.append(options)
        return self

    def live(self, latency_s: float) -> Told:
        self.asked.append(latency_s)
        self.heard.clear()
        return self

    def push(self, samples: np.ndarray, rate_hz: int) -> list[Update]:
        before = sum(self.heard)
        self.heard.append(len(samples) / rate_hz)
        new = before < 1 <= sum(self.heard) + 1e-9
        return [Update(0, 1.0, (LiveTurn(0.25, 0.5, "Ann", 0.9),), (LiveTurn(0.75, 1.0, "Bob", 0.5),))] if new else []

    def finalize(self) -> list[Update]:
        return [Update(1, 12.5, (LiveTurn(0.75, 12.5, "Bob", 0.5),), ())]


@pytest.fixture
def engine(monkeypatch, tmp_path) -> Told:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.wav", np.zeros(12_000, np.float32))  # 1.5 s
    made = Told()
    monkeypatch.setattr("cli.whowhen.live.opened", made.opened)
    return made


def test_options_reach_the_engine_and_turns_are_told_a_line_each(engine, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("diarizer.live.sources.time", SimpleNamespace(monotonic=lambda: 7.0, sleep=slept.append))
    words = ("--run", "r", "--weights", "a=b", "--device", "cuda:1", "--enrol", "Ann=a.wav", "--latency", 0.5)
    ended = live("x.wav", *words, "--fast")
    assert engine.asked == [(Path("r"), ["a=b"], "cuda:1", ["Ann=a.wav"]), 0.5]
    assert ended.exit_code == 0 and ended.stdout == "    0.25     0.50  Ann\n    0.75    12.50  Bob\n"
    assert slept == [] and ended.stderr == ""
    ended = live("x.wav", "--out", "told", "--json")
    assert engine.asked[2:] == [(None, None, None, None), 1.04]
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(len(t["final"]), len(t["partial"]), t["time_s"]) for t in told] == [(1, 1, 1.0), (1, 0, 12.5)]
    assert slept == pytest.approx([0.04 * k for k in range(1, 38)] + [1.5])  # at its own speed, block by block
    assert ended.stderr == "1.5 s heard; told/x.rttm, told/x.jsonl\n"
    assert Path("told/x.rttm").read_text().splitlines()[1] == "SPEAKER x 1 0.750 11.750 <NA> <NA> Bob <NA> <NA>"


def test_sound_of_a_microphone_or_a_pipe_is_named_by_its_time(engine, monkeypatch):
    asked = []

    class Lossy:
        lost_s = 1.25

        def __init__(self, device: str | None) -> None:
            asked.append(device)

        def __iter__(self):
            yield np.zeros((8000, 1), np.float32), 4000

    monkeypatch.setattr("diarizer.live.sources.Microphone", Lossy)
    ended = live("--microphone", "USB", "--out", "told")
    assert (ended.exit_code, asked) == (0, ["USB"])
    lost, written = ended.stderr.splitlines()
    assert lost == "warning: 1.2 s of sound were lost: this machine is slower than speech"
    assert re.fullmatch(r"2\.0 s heard; told/(live-\d{8}-\d{6})\.rttm, told/\1\.jsonl", written)
    ended = live("-", "--rate", 4000, "--out", "told", stdin=bytes(4000))
    assert re.fullmatch(r"0\.5 s heard; told/(stdin-\d{8}-\d{6})\.rttm, told/\1\.jsonl\n", ended.stderr)


def test_stopped_from_outside_it_closes_what_is_open(engine, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def stopped(path, fast):
        yield np.zeros(8000, np.float32), 8000
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("diarizer.live.sources.of_file", stopped)
    try:
        ended = live("x.wav")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.exit_code == 0 and ended.stdout.splitlines()[-1] == "    0.75    12.50  Bob"


def test_a_terminal_shows_what_is_open_and_how_far_behind_it_is(engine, monkeypatch, capsys):
    class Screen:
        def __init__(self, **settings: object) -> None:
            self.calls: list = []
            self.console = SimpleNamespace(print=lambda text, **_: self.calls.append(text))

        def start(self) -> None:
            self.calls.append("start")

        def stop(self) -> None:
            self.calls.append("stop")

        def update(self, picture) -> None:
            self.calls.append(picture.plain)

    now = iter((100.0, 115.0))
    monkeypatch.setattr("rich.live.Live", Screen)
    monkeypatch.setattr("cli.whowhen.live.time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with _View(engine, as_json=False) as view:
        calls = view._screen.calls
        view.take(engine.push(np.zeros(12), 12), 12.5)
        view.take([], 13.0)
    turn, picture = "    0.25     0.50  Ann", "    12.5 s heard, 2.5 s behind, latency 0.32 s\n    0.75        …  Bob\n"
    assert calls == ["start", turn, picture, "stop"] and capsys.readouterr().out == ""


@pytest.mark.parametrize("holds", [True, False])
def test_a_certificate_says_what_holds(engine, monkeypatch, holds):
    asked = []
    found = {"heard_s": 60.0, "updates": 7, "sizes": True, "process": holds, "frames": {"mimi": 2e-5}, "tap": {"mimi": 3e-2}}  # fmt: skip
    found["holds"] = holds
    monkeypatch.setattr("diarizer.live.certificate.certify", lambda *words: asked.append(words) or found)
    ended = live("--certify", "x.wav", "--latency", 0.32)
    assert ended.exit_code == (0 if holds else 1) and asked == [(engine, Path("x.wav"), 0.32)]
    assert ended.stdout.splitlines() == [
        "x.wav: 60 s, 7 updates",
        "pushes of 1 to 200,000 samples: the same, byte for byte",
        f"saved, and gone on in another process: {'the same' if holds else 'DIFFERENT'}, byte for byte",
        "mimi: frames of the stream are the recording's but for 2.0e-05 of their deviation (at most 0.001)",
        "mimi as a running Moshi streams it, where a tap hears it: 3.0e-02",
        "holds" if holds else "DOES NOT HOLD",
    ]
    ended = live("--certify", "x.wav", "--json")
    assert json.loads(ended.stdout) == found and ended.exit_code == (0 if holds else 1)
    assert asked[1][2] == 1.04


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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("x.wav", "--rate", 8000), "--rate is of a pipe, but a file is to be heard"),
        (("x.wav", "--microphone", "USB"), "--microphone is of the microphone, but a file"),
        (("-", "--fast"), "--fast is of a file, but a pipe"),
        (("--fast",), "--fast is of a file, but the microphone"),
        (("x.wav", "--certify", "y.wav"), "--certify hears y.wav and nothing else"),
        (("--certify", "y.wav", "--out", "told"), "leave out FILE and --out"),
        (("nosuch.wav", "--out", "told"), "nosuch.wav: No such file or directory; check the path, which is seen from"),
        ((".", "--out", "told"), ".: Is a directory; a folder, where a file is expected"),
        (("x.wav", "--out", "x.wav"), "x.wav: a file, where a folder is expected; choose another --out"),
    ],
)
def test_what_would_go_unheard_is_refused_and_nothing_is_written(engine, words, expected):
    ended = live(*words)
    assert ended.exit_code == 2 and ended.stderr.startswith("error: ") and expected in ended.stderr
    assert ended.stderr.count("\n") == 1 and not Path("told").exists()


def test_a_file_that_is_damaged_in_the_middle_ends_in_one_line(engine, monkeypatch):
    def blocks(self, *arguments, **settings):
        yield np.zeros((8000, 1), np.float32)
        raise sf.LibsndfileError(7)

    monkeypatch.setattr(sf.SoundFile, "blocks", blocks)
    ended = live("x.wav", "--fast")
    assert ended.exit_code == 2 and "error: x.wav: damaged after 1.0 s: " in ended.stderr


def test_a_terminal_is_no_pipe(engine, monkeypatch):
    monkeypatch.setattr("cli.whowhen.live.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    ended = live("-")
    assert ended.exit_code == 2 and "-: standard input is a terminal; pipe sound into it" in ended.stderr


VIEW = """
from types import SimpleNamespace as Named
from cli.whowhen.live import _View

def turn(start_s, speaker):
    return Named(start_s=start_s, end_s=start_s + 1, speaker=speaker)

with _View(Named(algorithmic_latency_s=0.72), False) as view:
    for k in range(3):
        view.take([Named(final=[turn(k, "somebody with a long name of two rows")], partial=[turn(k + 1, "speaker2" * 9)])], 12.0)
"""


@pytest.mark.parametrize(
    ("columns", "heard"), [(40, "12.0 s heard, 0.0 s behind, latency…"), (100, "0.0 s behind, latency 0.72 s")]
)
def test_on_a_terminal_what_is_open_keeps_a_row_each(columns, heard):
    code, shown = on_terminal(VIEW, columns=columns)
    assert code == 0 and heard in shown
    rows = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "").split("\n")
    assert (
        sum("somebody with a long name of two rows" in row for row in rows) == 3
    )  # a terminal may wrap them, we do not
    assert all(len(row) <= columns for row in rows if "speaker2" in row or "heard" in row)


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
    asked = []

    class Stream:
        def __init__(self, callback, blocksize, **settings):
            self._callback, self._blocksize = callback, blocksize
            asked.append((settings["device"], settings["samplerate"], settings["channels"], settings["dtype"]))

        def __enter__(self):
            for k in range(1000):  # 40 s at once: more than is kept
                self._callback(np.full((self._blocksize, 1), k / 1000, np.float32), self._blocksize, None, None)

        def __exit__(self, *error):
            pass

    def query(device, kind):
        if device == "none":
            raise RuntimeError("no such device")
        asked.append((device, kind))
        return {"default_samplerate": 16000.0}

    fake = SimpleNamespace(InputStream=Stream, PortAudioError=RuntimeError, query_devices=query)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    heard = Microphone("3")
    sounding = iter(heard)
    samples, rate_hz = next(sounding)
    assert samples.shape == (640, 1) and rate_hz == 16000 and heard.lost_s == pytest.approx(10.0)
    assert [float(s[0, 0]) for s, _ in (next(sounding), next(sounding))] == pytest.approx([0.001, 0.002])
    assert asked == [(3, "input"), (3, 16000, 1, "float32")]  # a number is one, a name is a name
    Microphone("USB"), Microphone(None)
    assert [device for device, kind in (asked[2], asked[4])] == ["USB", None]
    with pytest.raises(ValueError, match="no microphone none: no such device; python -m sounddevice lists devices"):
        Microphone("none")


def test_without_a_microphone_it_says_what_to_install(tone_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    ended = live("--run", tone_run)
    assert ended.exit_code == 2 and "pip install -e '.[live]'" in ended.stderr


def test_samples_come_as_they_are_in_the_file_and_in_the_pipe(tmp_path):
    """Three channels of 24 bits in a WAVE_FORMAT_EXTENSIBLE header, 32 bits, floats of 64: exactly."""
    wave = np.round(np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 3)) * 2**23) / 2**23
    for kind in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        for form in ("WAV", "WAVEX"):
            sound = io.BytesIO()
            sf.write(sound, wave, 12_345, kind, format=form)
            pieces, rates = zip(*of_stdin(io.BytesIO(sound.getvalue()), None), strict=True)
            found = np.concatenate(pieces)
            full = 1.0 if found.dtype.kind == "f" else 2.0**31
            np.testing.assert_array_equal(found / full, np.float32(wave) if kind == "FLOAT" else wave)
            assert set(rates) == {12_345}
            (tmp_path / "x.wav").write_bytes(sound.getvalue())
            heard = np.concatenate([block for block, _ in of_file(tmp_path / "x.wav", True)])
            np.testing.assert_array_equal(heard, np.float32(wave))


@pytest.mark.parametrize(("kind", "rate_hz"), [("ULAW", 8000), ("PCM_16", 0), ("PCM_16", 2**31)])
def test_a_pipe_that_is_not_understood_says_what_is(kind, rate_hz):
    sound = io.BytesIO()
    sf.write(sound, np.zeros(80), 8000, subtype=kind, format="WAV")
    header = bytearray(sound.getvalue())
    header[24:28] = rate_hz.to_bytes(4, "little")
    with pytest.raises(ValueError, match=rf"1 channels and {rate_hz} Hz; expected PCM or float .*: ffmpeg -i FILE"):
        next(iter(of_stdin(io.BytesIO(bytes(header)), None)))


def test_what_stays_of_a_session_is_a_line_a_turn_at_once(tmp_path):
    turn = LiveTurn(1.23456, 3.0, "Ann  Lee\tx", 0.98765)
    with Recorded(tmp_path / "new", " a  b ") as recorded:
        assert [path.name for path in recorded.paths] == ["a_b.rttm", "a_b.jsonl"]
        recorded.take([Update(0, 1.0, (turn,), (LiveTurn(0, 1, "Bob", 1.0),)), Update(1, 3.0, (), ())])
        rttm, lines = (path.read_text() for path in recorded.paths)  # a crash later loses nothing
        assert rttm == "SPEAKER a_b 1 1.235 1.765 <NA> <NA> Ann_Lee_x <NA> <NA>\n"
        assert json.loads(lines) == {"start_s": 1.235, "end_s": 3.0, "speaker": "Ann  Lee\tx", "sure": 0.988}
        with pytest.raises(
            ValueError, match=r"a_b.rttm: is there already, and a live session's file is never rewritten"
        ):
            Recorded(tmp_path / "new", "a b")
    (tmp_path / "new" / "a_b.rttm").unlink()
    with pytest.raises(ValueError, match=r"a_b.jsonl: is there already"):
        Recorded(tmp_path / "new", "a b")
    assert not (tmp_path / "new" / "a_b.rttm").exists()  # none that is empty, which the next try would stumble on
    with Recorded(tmp_path, "  ") as recorded:
        assert recorded.name == "live"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/x: cannot be written into: .*; choose another --out"):
        Recorded(tmp_path / "file" / "x", "a")


def test_the_first_minute_of_a_file_is_certified(tmp_path):
    sf.write(tmp_path / "x.wav", np.stack([np.full(70_000, 0.5), np.full(70_000, 0.25)], 1), 1000, "FLOAT")
    samples, rate_hz = _first(tmp_path / "x.wav")
    assert (len(samples), rate_hz, samples.dtype) == (60_000, 1000, np.float32) and set(samples.tolist()) == {0.375}
    sf.write(tmp_path / "y.wav", np.zeros(999), 1000)
    with pytest.raises(ValueError, match="expected a second of sound or more, found 1.00 s"):
        _first(tmp_path / "y.wav")
    (tmp_path / "z.wav").touch()
    with pytest.raises(ValueError, match="z.wav: cannot be heard"):
        _first(tmp_path / "z.wav")
    with pytest.raises(FileNotFoundError):
        _first(tmp_path / "none.wav")
    whole = np.float32([[0.0, 1.0], [2.0, 3.0]])
    assert _apart(whole + np.float32([[0, 0], [0, -0.5]]), whole) == pytest.approx(0.5 / whole.std())
    assert _apart(whole[:1], whole) == float("inf")


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
    monkeypatch.setattr(diarizer.live.certificate, "OTHER", "raise ValueError('no process')")
    with pytest.raises(ValueError, match="^the other process failed: ValueError: no process$"):
        certify(load(tone_run), path, 0.48)
    monkeypatch.setattr("subprocess.run", lambda command, **_: go_on(command[-1]) or SimpleNamespace(returncode=0))
    found = certify(load(tone_run), path, 0.48)
    assert not found["sizes"] and not found["holds"]
