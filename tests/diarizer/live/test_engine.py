"""The live engine: turns while they are spoken, the same for pushes of any size, from any process on."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from diarizer import load
from diarizer.live import Live, Update
from evaluation.diarization import score
from evaluation.turns import Turns
from tests.conftest import ROOT
from tests.diarizer.live.conftest import SECONDS
from tests.fakes import FakeExtractor
from tests.tones import RATE_HZ, sound_of, voice, write

pytestmark = pytest.mark.usefixtures("knows_fakes")


@pytest.fixture
def live(tone_run) -> Live:
    return load(tone_run).live(latency_s=0.48)


def heard(live: Live, wave: np.ndarray, sizes=(800,), rate_hz: int = RATE_HZ, end: bool = True) -> list[Update]:
    updates, at, k = [], 0, 0
    while at < len(wave):
        size = sizes[k % len(sizes)]
        updates += live.push(wave[at : at + size], rate_hz)
        at, k = at + size, k + 1
    return updates + (live.finalize() if end else [])


def final(updates: list[Update]) -> Turns:
    turns = [turn for update in updates for turn in update.final]
    return Turns.from_arrays([t.start_s for t in turns], [t.end_s for t in turns], [t.speaker for t in turns])


def der(turns, found: Turns) -> float:
    return score({"x": Turns.of(turns)}, {"x": found}, uem={"x": np.array([[0.0, SECONDS]])}).corpus.der


def test_turns_come_while_they_are_spoken(live, wave, turns):
    updates = heard(live, wave)
    assert der(turns, final(updates)) < 0.08
    assert [update.seq for update in updates] == list(range(len(updates)))
    assert updates[-1].time_s == SECONDS and updates[-1].partial == ()
    for update in updates[:-1]:
        for turn in update.final:
            assert turn.end_s <= update.time_s - 0.08 * live.timing.settle + 1e-6
        for turn in update.partial:
            assert turn.end_s <= update.time_s - 0.08 * live.timing.ahead + 1e-6
    starts = {turn.speaker: turn.start_s for update in updates for turn in reversed(update.final)}
    assert sorted(starts) == [f"speaker{k + 1}" for k in range(3)]


def test_the_last_turn_ends_with_the_sound_and_not_with_its_frame(live):
    wave = voice(2, 9.0)[: 7 * RATE_HZ + 123]  # somebody speaks from 0.5 s to the end, which is within a frame
    (update,) = heard(live, wave)[-1:]
    assert update.time_s == pytest.approx(7 + 123 / RATE_HZ, abs=1e-6) == update.final[-1].end_s
    assert update.final[-1].start_s == pytest.approx(0.5, abs=0.05)


def test_an_update_says_something_new(live, wave):
    updates = heard(live, wave)
    for before, after in pairwise(updates):
        assert after.final or after.partial != before.partial
    told = updates[3].json()
    assert set(told) == {"type", "seq", "time_s", "final", "partial"} and told["type"] == "turns"


@pytest.mark.parametrize("sizes", [(1, 7, 123), (200_000,), (0, 640, 5000, 1)])
def test_sizes_of_pushes_change_nothing(tone_run, wave, sizes):
    whole = load(tone_run).live(latency_s=0.48)
    assert heard(whole, wave[: 12 * RATE_HZ]) == heard(load(tone_run).live(latency_s=0.48), wave[: 12 * RATE_HZ], sizes)


@pytest.mark.parametrize("rate_hz", [16000, 11025])
def test_any_rate_and_any_channels(live, turns, rate_hz):
    wave = np.repeat((sound_of(turns, SECONDS, rate_hz=rate_hz)[:, None] * 32767).astype(np.int16), 2, axis=1)
    updates = heard(live, wave, (441, 10_000), rate_hz)
    assert der(turns, final(updates)) < 0.08


def test_another_process_goes_on(tone_run, live, wave, tmp_path):
    """What is saved in the middle, of sound too, goes on to the same updates in a process that knows nothing else."""
    at = len(wave) // 2 + 137
    (tmp_path / "rest.bin").write_bytes(np.repeat(wave[at:], 2).tobytes())
    heard(live, np.repeat(wave[:at], 2), rate_hz=2 * RATE_HZ, end=False)
    (tmp_path / "saved").write_bytes(live.save())
    expected = heard(live, np.repeat(wave[at:], 2), rate_hz=2 * RATE_HZ)
    script = f"""
import numpy as np, featstore.extractors
featstore.extractors._BUILT_IN["fake"] = ("tests.fakes", "FakeExtractor", ())
from diarizer import load
live = load({str(tone_run)!r}).live(latency_s=0.48)
live.restore(open({str(tmp_path / "saved")!r}, "rb").read())
print([u.json() for u in live.push(np.fromfile({str(tmp_path / "rest.bin")!r}, np.float32), {2 * RATE_HZ}) + live.finalize()])
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str([update.json() for update in expected])


def test_what_is_no_saved_session_is_refused(tone_run, live, wave):
    live.push(wave[:8000], RATE_HZ)
    with pytest.raises(ValueError, match="another latency"):
        load(tone_run).live(latency_s=1.04).restore(live.save())
    for blob in (b"", b"PK nonsense", live.save()[:-100]):
        with pytest.raises(ValueError, match="damaged"):
            live.restore(blob)


def test_frames_from_elsewhere_give_the_same_turns(tone_run, live, wave):
    frames = FakeExtractor().extract([wave])[0]
    given = load(tone_run).live(latency_s=0.48, given={"fake": 0})
    updates = [u for at in range(0, len(frames), 7) for u in given.push_frames({"fake": frames[at : at + 7]})]
    assert updates + given.finalize() == heard(live, wave)
    live.reset()
    with pytest.raises(ValueError, match="no feature, found fake"):
        live.push_frames({"fake": frames})


def test_reset_begins_anew(live, wave):
    first = heard(live, wave[: 10 * RATE_HZ])
    with pytest.raises(ValueError, match="reset"):
        live.push(wave, RATE_HZ)
    live.reset()
    assert heard(live, wave[: 10 * RATE_HZ]) == first


def test_names_that_are_enrolled_or_typed(live, tmp_path, turns, wave):
    live.enrol("Ann", str(write(tmp_path / "ann.wav", voice(int(turns[0].speaker[1:]), 12.0))))
    half = len(wave) // 2
    updates = heard(live, wave[:half], end=False)
    assert updates[-1].final or updates[-1].partial
    assert next(turn for u in updates for turn in u.final).speaker == "Ann"
    live.rename("speaker2", "Bob")
    with pytest.raises(ValueError, match="nobody|there are"):
        live.rename("speaker2", "Eve")
    names = {turn.speaker for u in heard(live, wave[half:]) for turn in u.final}
    assert "Bob" in names and "speaker2" not in names


def test_silence_says_nothing(live):
    assert heard(live, np.zeros(10 * RATE_HZ, np.float32)) == []
    live.reset()
    assert live.finalize() == []


@pytest.mark.parametrize(("latency_s", "frames"), [(0.16, 2), (0.32, 4), (1.04, 13), (10.0, 125)])
def test_latency_is_what_was_asked(tone_run, latency_s, frames):
    live = load(tone_run).live(latency_s=latency_s)
    assert live.algorithmic_latency_s == pytest.approx(0.08 * frames) == pytest.approx(latency_s)


def test_what_is_no_latency_is_refused(tone_run):
    for latency_s in (0.1, 11.0, float("nan")):
        with pytest.raises(ValueError, match="latency"):
            load(tone_run).live(latency_s=latency_s)
