"""A recipe, its corpus and a seed mean the same samples for ever: sessions that others have made can be made again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featstore.simulation.recipe import Recipe
from featstore.simulation.simulate import simulate
from featstore.types import Utterance

RATE = 8_000
TALK = Recipe("talk", 2, speakers=(2, 3), duration_s=12, overlap=(0.1, 0.3), silence=0.1, sample_rate_hz=RATE)


@pytest.fixture
def corpus(tmp_path: Path) -> list[Utterance]:
    """Three speakers of three utterances: whole numbers of 1/32768, which no computer rounds."""
    rng, found = np.random.default_rng(0), []
    for k in range(9):
        wave = rng.integers(-3000, 3000, RATE * (2 + k % 3), dtype=np.int16)
        wave[: RATE // 4] //= 1024
        wave[RATE : RATE + RATE // 2] //= 1024
        path = str(tmp_path / f"{k}.wav")
        soundfile.write(path, wave, RATE)
        found.append(Utterance(f"u{k}", path, 0.0, len(wave) / RATE, f"u{k}", f"s{k % 3}", "train"))
    return found


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (TALK, "a62c5618cd0fd964"),
        (
            Recipe("noisy", 2, 2, 0.2, 12, sample_rate_hz=RATE, noise_snr_db=[10, 20], max_turn_s=1.5),
            "833e983e13bba6ee",
        ),
        (Recipe("pairs", 2, 2, [0.1, 0.5], layout="pair", sample_rate_hz=RATE, level_sd_db=6.0), "108ed389cfbb7d57"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_dry_recipe_sounds_as_it_did_before_there_were_rooms(
    tmp_path: Path, corpus: list[Utterance], recipe: Recipe, expected: str
) -> None:
    simulate(corpus, recipe, tmp_path / "out", seed=3)
    found = hashlib.sha256()
    for path in sorted((tmp_path / "out" / "audio").iterdir()):
        found.update(soundfile.read(path, dtype="int16")[0].tobytes())
        found.update((tmp_path / "out" / "rttm" / f"{path.stem}.rttm").read_bytes())
    assert found.hexdigest()[:16] == expected
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "audio",
        "manifest.jsonl",
        "rttm",
        "simulation.json",
    ]
