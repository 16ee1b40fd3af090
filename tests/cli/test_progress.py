"""What a bar shows on terminals of several widths, and that its time left can be believed."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from cli.progress import Left, bar, clock, one_line
from featstore import MIMI_GRID, FeatureSpec, Utterance, writer
from featstore.jobs.extract import extract
from featstore.remote import client, transfer
from featstore.simulation.recipe import read_recipe
from featstore.simulation.simulate import simulate
from tests.fakes import FakeExtractor, tone
from tests.terminal import on_terminal

FIT = "epoch 3/120 loss 0.4312 dev DER 31.2% 1.25 steps/s, input 0.3%"


@pytest.mark.parametrize("width", [39, 59, 79, 119, 200])
@pytest.mark.parametrize("note", ["", "8.1 × real time", FIT])
@pytest.mark.parametrize("title", ["adapter", "pushing a-store-with-a-name-that-is-rather-long"])
def test_columns_stay_apart_and_in_the_line(title: str, note: str, width: int) -> None:
    line = one_line(title, 0.456, note, "1:02:03", width)
    assert len(line) <= width and line.endswith("  1:02:03 left")
    cells = re.split(" {2,3}", line)
    assert "45 %" in cells and title.startswith(cells[0].rstrip("…"))
    assert title in cells or cells[0].endswith("…") or width < 40
    if width == 200:
        assert [title, note] == [cells[0], cells[3] if note else ""] and set(cells[1]) == {"━", "─"}


def test_time_left_is_unknown_first_and_then_only_falls() -> None:
    left, rng = Left(), np.random.default_rng(0)
    now = done = 0.0
    assert math.isinf(left.at(now)) and clock(left.at(now)) == "?"
    seen: list[float] = []
    left.heard(now, 0, 1000)
    while done < 1000:
        now += float(rng.uniform(0.2, 1.4))  # steps of one size at an uneven pace
        seen.append(left.at(now))
        done += 1
        left.heard(now, done, 1000)
        seen.append(left.at(now))
    known = [s for s in seen if math.isfinite(s)]
    assert math.isinf(seen[10]) and len(known) > 0.95 * len(seen) and known[-1] == 0
    assert all(b <= a for a, b in pairwise(known))
    assert 700 < known[0] < 900


def test_time_left_goes_up_where_work_slows_down_or_stalls() -> None:
    left = Left()
    for second in range(101):
        left.heard(second, second, 200)
    assert left.at(100) == pytest.approx(100)
    for second in range(10, 111, 10):  # ten times slower from here
        left.heard(100 + second, 100 + second / 10, 200)
    assert 600 < left.at(210) < 900
    assert left.at(5000) > 60  # nothing was heard for long: it is not as good as done
    left.heard(5001, 1, 200)  # the next seed
    assert math.isinf(left.at(5001))


_SCRIPT = """
import sys, time
from cli.progress import bar
with bar("pushing a-store") as shown:
    for step in range(8):
        shown.update(step / 7 * 1e9, 1e9, "epoch 1/12 loss 0.5 dev DER 31.2% 1.25 steps/s")
        time.sleep(0.06)
    shown.line("a line that stays")
"""


@pytest.mark.parametrize("columns", [80, 60])
def test_on_a_terminal_the_bar_takes_one_line(columns: int) -> None:
    code, shown = on_terminal(_SCRIPT, columns=columns)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = [line for line in re.split("[\r\n]+", plain) if line.strip()]
    assert code == 0 and "a line that stays" in lines
    bars = [line for line in lines if line.startswith("pushing")]
    assert bars and all(len(line) < columns and line.endswith(" left") for line in bars) and "100 %" in bars[-1]
    assert len(bars) + 1 == len(lines), lines  # nothing of a bar fell on another line


def test_a_log_file_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cli import progress

    now = 0.0
    monkeypatch.setattr("cli.progress.time.monotonic", lambda: now)
    with progress.bar("work") as shown:
        for now in (0.0, 10.0, 20.0, 30.0, 40.0):
            shown.update(now, 40)
    assert capsys.readouterr().err == "work: 50% 0:20 left\nwork: 100% 0:00 left\n"
    now = 0.0
    with progress.bar("work") as shown:
        for now in (0.0, 10.0, 20.0):
            shown.update(now, 4000, "8 × real time")
        shown.line("seed 1 [of 2]")
        for now, of in ((35.0, 10), (50.0, 0)):  # more than there was to do, and nothing
            shown.update(now, of)
    assert capsys.readouterr() == ("", "work: 0% 8 × real time, 1:06:20 left\nseed 1 [of 2]\nwork: 100% 0:00 left\nwork: 100% 0:00 left\n")  # fmt: skip


def test_times_left_by_hand() -> None:
    assert [clock(s) for s in (0, 59.4, 59.6, 61, 3599.6, 3725, math.inf)] == [
        *("0:00", "0:59", "1:00", "1:01", "1:00:00", "1:02:05", "?")
    ]


def test_of_several_processes_the_first_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    screen = SimpleNamespace(start=lambda: started.append("start"), stop=lambda: started.append("stop"))
    monkeypatch.setattr("rich.live.Live", lambda *_, **__: screen)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for rank, expected in ((None, ["start", "stop"]), ("0", ["start", "stop"]), ("1", [])):
        monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
        started.clear()
        with bar("work"):
            pass
        assert started == expected


class Telling(FakeExtractor):
    """An encoder that tells of each second that it has heard."""

    told: Callable[[float], None]

    def __init__(self) -> None:
        super().__init__()
        self.told = lambda seconds: None

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        for wave in waves:
            for _ in range(0, len(wave), 8000):
                self.told(1.0)
        return super().extract(waves)


def test_one_long_file_moves(tmp_path: Path) -> None:
    sf.write(tmp_path / "long.wav", tone(5.0), 8000)
    utterance = Utterance("long", str(tmp_path / "long.wav"), 0.0, 5.0, "long", None, "", ())
    seen: list[float] = []
    encoder = Telling()
    result = extract([utterance], encoder, tmp_path / "s", progress=lambda r: seen.append(r.audio_s))
    assert seen == [1, 2, 3, 4, 5, 5, 5] and result.audio_s == 5


def test_one_large_part_moves_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PART_BYTES", 5 << 10)
    monkeypatch.setattr(client, "_SIP_BYTES", 5 << 10)
    monkeypatch.setattr(transfer, "_LOOK_EVERY_S", 0.002)
    spec = FeatureSpec("fake", 64, "float16", 24000, MIMI_GRID, "fake", "0" * 64, {})
    with writer(tmp_path / "s", spec) as out:
        out.add(Utterance("u", "x", 0.0, 80.0, "u", None, "", ()), np.ones((1000, 64), np.float16))
    moved = client.Remote._moved
    monkeypatch.setattr(client.Remote, "_moved", lambda *a: (time.sleep(0.004), moved(*a)))
    far = f"file://{tmp_path}/far"
    for how, begin, end in ((transfer.push, tmp_path / "s", far), (transfer.pull, far, tmp_path / "copy")):
        seen: list[tuple[int, int]] = []
        how(begin, end, progress=lambda *numbers, seen=seen: seen.append(numbers))
        assert seen == sorted(seen) and len(set(seen)) > 15, how


def test_one_long_session_moves(tmp_path: Path) -> None:
    utterances = []
    for k in range(6):
        sf.write(tmp_path / f"{k}.wav", tone(2.0, hz=200 + 50 * k), 8000)
        utterances.append(Utterance(f"u{k}", str(tmp_path / f"{k}.wav"), 0.0, 2.0, f"u{k}", f"s{k % 2}", "", ()))
    recipe = replace(read_recipe("2spk"), sessions=1, duration_s=(20.0, 20.0), sample_rate_hz=8000, min_utterances=1)
    seen: list[float] = []
    simulate(utterances, recipe, tmp_path / "out", progress=lambda done, of, seconds: seen.append(done))
    assert seen == sorted(seen) and len(seen) > 10 and seen[-1] == 1
