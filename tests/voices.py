"""Made-up voices in a store: each a chord of its own, mixtures of them as sound files, and embeddings that know the chord."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf

import featstore
from featstore import Store, Turn, Utterance
from tests.sessions import spec

SIZE, RATE_HZ = 8, 16000


def make_voices(
    path: Path, speakers: dict[str, int] | None = None, mixtures: int = 6, most: int = 2, seconds: float = 0.6
) -> Store:
    """Feature "titanet" (8-d) of mixtures of 1 to `most` voices, of their tracks, and of two more utterances a speaker."""
    rng = np.random.default_rng(0)
    speakers = speakers or {"train": 4, "dev": 3, "test": 3}
    samples = round(seconds * RATE_HZ)
    time_s = np.arange(samples) / RATE_HZ
    names = {split: [f"{split}{k}" for k in range(n)] for split, n in speakers.items()}
    every = [name for of in names.values() for name in of]
    pitch = {name: 150 * 1.3 ** (k % 7) for k, name in enumerate(every)}
    known = {name: rng.standard_normal(SIZE).astype(np.float32) for name in every}

    def sung(name: str) -> np.ndarray:
        wave = sum(np.sin(2 * np.pi * (h * pitch[name] * time_s + rng.random())) / h for h in (1, 2, 3, 5))
        return (0.1 * wave * (1 + 0.5 * np.sin(2 * np.pi * 3 * time_s + 6 * rng.random()))).astype(np.float32)

    def written(id: str, wave: np.ndarray) -> str:
        file = path.parent / "sound" / f"{id}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        sf.write(file, wave, RATE_HZ, subtype="FLOAT")
        return str(file)

    with featstore.writer(path, spec("titanet", SIZE)) as writer:

        def add(utterance: Utterance, names: list[str]) -> None:
            frames = sum(known[name] for name in names) + 0.1 * rng.standard_normal((7, SIZE))
            writer.add(utterance, frames.astype(np.float32))

        for split, of in names.items():
            for name in of:
                for k in range(2):
                    id = f"{name}-alone{k}"
                    add(Utterance(id, written(id, sung(name)), 0.0, seconds, id, name, split), [name])
            for n in range(mixtures):
                chosen = [of[k] for k in rng.choice(len(of), 1 + n % most, replace=False)]
                id = f"mix-{split}-{n}"
                tracks = [sung(name) for name in chosen]
                turns = tuple(Turn(0.0, seconds, name) for name in sorted(chosen))
                noisy = sum(tracks) + 0.01 * rng.standard_normal(samples)
                add(Utterance(id, written(id, noisy), 0.0, seconds, id, None, split, turns), chosen)
                for k, (name, track) in enumerate(zip(chosen, tracks, strict=True)):
                    file = written(f"{id}-{k}", track)
                    add(Utterance(f"{id}/{name}-{n % 3}", file, 0.0, seconds, id, name, split), [name])
    return featstore.open(path)
