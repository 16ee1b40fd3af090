"""Eight speakers who are tones: who is heard in a mixture, its frequencies tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featstore.corpora.manifest import read_manifest
from featstore.types import Utterance

RATE = 8_000
TONE_HZ = {f"s{k}": 300.0 + 250 * k for k in range(8)}  # a speaker is a tone: audible in a mixture by its frequency


def tone(hz: float, spans: list[tuple[float, float]], length_s: float, level: float = 0.2) -> np.ndarray:
    time = np.arange(round(length_s * RATE)) / RATE
    wave = np.zeros_like(time)
    for start, end in spans:
        inside = (time >= start) & (time < end)
        wave[inside] = level * np.sin(2 * np.pi * hz * time[inside])
    return wave.astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Eight tone speakers, four utterances each of 1.5 to 4 s, silence at both ends, a pause inside some."""
    folder, rng, rows = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), []
    for speaker, hz in TONE_HZ.items():
        for n in range(4):
            end = float(rng.uniform(1.2, 3.6))
            spans = [(0.2, end)] if n % 2 else [(0.2, 0.2 + end / 3), (0.7 + end / 3, 0.7 + end)]
            wave = tone(hz, spans, spans[-1][1] + 0.3, level=float(rng.uniform(0.05, 0.4)))
            soundfile.write(folder / f"{speaker}-{n}.wav", wave, RATE)
            row = {"audio_filepath": f"{speaker}-{n}.wav", "speaker": speaker, "utt_id": f"{speaker}-{n}"}
            rows.append({**row, "duration": len(wave) / RATE, "split": "train" if speaker < "s5" else "test"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(folder / "manifest.jsonl")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
