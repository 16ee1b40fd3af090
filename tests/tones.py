"""Recordings in which every speaker is a tone, and a cascade that tells tones apart: all of diarizer in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import featstore
from featstore import Turn, Utterance
from tests.fakes import FakeExtractor
from tests.sessions import random_turns

RATE_HZ, POOL = 8000, 6
TINY = ("when=fake", "who=fake", "width=24", "steps=150", "batch_size=6", "crop_s=8", "lr=1e-2", "device=cpu")
TINY += ("clustering=average", "thresholds=0.3,0.5,0.7", "blends=0,25")


def sound_of(turns: tuple[Turn, ...], seconds: float, seed: int = 0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """(samples,) of turns of speakers ``s0`` (250 Hz), ``s1`` (750 Hz), … and a little noise."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = 0.001 * np.random.default_rng(seed).standard_normal(len(time_s))
    for turn in turns:
        here = (time_s >= turn.start_s) & (time_s < turn.end_s)
        wave[here] += 0.2 * np.sin(2 * np.pi * (250 + 500 * int(turn.speaker[1:])) * time_s[here])
    return wave.astype(np.float32)


def voice(speaker: int, seconds: float = 6.0) -> np.ndarray:
    """One speaker alone, with silence around."""
    return sound_of((Turn(0.5, seconds - 0.5, f"s{speaker}"),), seconds)


def write(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    sf.write(path, wave, rate_hz)
    return path


def turns_of(seed: int, seconds: float, speakers: int = 3) -> tuple[Turn, ...]:
    return random_turns(np.random.default_rng(seed), speakers, seconds, POOL)


@pytest.fixture(scope="session")
def tone_store(tmp_path_factory) -> featstore.Store:
    path, encoder = tmp_path_factory.mktemp("tones") / "store", FakeExtractor()
    with featstore.writer(path, encoder.spec) as writer:
        for split, count in (("train", 8), ("dev", 2), ("test", 2)):
            for i in range(count):
                seed = {"train": 0, "dev": 50, "test": 90}[split] + i
                turns = turns_of(seed, 30.0, 2 + i % 2)
                utterance = Utterance(f"{split}/{i}", "x.wav", 0.0, 30.0, f"{split}{i}", None, split, turns)
                writer.add(utterance, encoder.extract([sound_of(turns, 30.0, seed)])[0])
    return featstore.open(path)


@pytest.fixture(scope="session")
def tone_run(tone_store, tmp_path_factory) -> Path:
    """A cascade's run; its encoder is called ``fake``, and `knows_fakes` makes it known."""
    from trainers.cascade.fit import fit_cascade
    from trainers.config import FitConfig
    from trainers.runs import Run

    path = tmp_path_factory.mktemp("tones") / "run"
    fit_cascade(Run.create(path, FitConfig.make("cascade", settings=TINY), tone_store), tone_store)
    return path


@pytest.fixture
def knows_fakes(monkeypatch) -> None:
    import featstore.extractors

    monkeypatch.setitem(featstore.extractors._BUILT_IN, "fake", ("tests.fakes", "FakeExtractor", ()))
