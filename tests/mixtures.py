"""Made-up mixtures in a store: a frame is the sum of what each voice adds to it, and the teacher knows each voice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import featstore
from featstore import Store, Turn, Utterance
from tests.sessions import spec

SIZE, DIM, FRAMES = 8, 16, 20


def make_store(
    path: Path,
    speakers: dict[str, int] | None = None,
    mixtures: int = 12,
    most: int = 3,
    recordings: int = 2,
    parts: int = 0,
) -> Store:
    """Features "mimi" (16-d) and "titanet" (8-d, of tracks, mixtures and recordings) of mixtures of 1 to `most` voices.

    Parameters
    ----------
    speakers : of each split, how many. mixtures : of each split. recordings : of dev and test, 8 chunks of 20 frames.
    parts : into which the mixtures of dev and test were separated, of which "titanet" is: voice after voice, all over again.
    """
    rng = np.random.default_rng(0)
    speakers = speakers or {"train": 6, "dev": 4, "test": 4}
    added = rng.standard_normal((SIZE, DIM)).astype(np.float32)
    voice = {
        f"{split}{k}": rng.standard_normal(SIZE).astype(np.float32) for split, n in speakers.items() for k in range(n)
    }

    def heard(names: list[str]) -> np.ndarray:
        gain = rng.uniform(0.5, 1.0, (FRAMES, len(names))).astype(np.float32)
        frames = sum(gain[:, k, None] * (voice[name] @ added) for k, name in enumerate(names))
        return frames + 0.05 * rng.standard_normal((FRAMES, DIM))

    def known(names: list[str]) -> np.ndarray:
        loudest = rng.integers(len(names), size=FRAMES)
        return np.stack([voice[names[k]] for k in loudest]) + 0.05 * rng.standard_normal((FRAMES, SIZE))

    step_s = 0.08
    with featstore.writer(path, spec("mimi", DIM)) as mimi, featstore.writer(path, spec("titanet", SIZE)) as titanet:
        for split, count in speakers.items():
            names = [f"{split}{k}" for k in range(count)]
            for n in range(mixtures):
                chosen = [names[k] for k in rng.choice(count, 1 + n % most, replace=False)]
                id, length_s = f"mix-{split}-{n}", FRAMES * step_s
                turns = tuple(Turn(0.0, length_s, name) for name in sorted(chosen))
                mixture = Utterance(id, "x.wav", 0.0, length_s, id, None, split, turns)
                mimi.add(mixture, heard(chosen))
                titanet.add(mixture, known(chosen))
                for name in chosen:
                    track = Utterance(f"{id}/{name}-{n % 4}", "x.wav", 0.0, length_s, id, name, split)
                    titanet.add(track, known([name]))
                for k in range(0 if split == "train" else parts):
                    part = Utterance(f"{id}/part-{k}", "x.wav", 0.0, length_s, id, None, split)
                    titanet.add(part, known([chosen[k % len(chosen)]]))
            for n in range(0 if split == "train" else recordings):
                who = [[names[k] for k in rng.choice(count, 1 + k % 2, replace=False)] for k in range(8)]
                turns = tuple(
                    Turn(k * FRAMES * step_s, (k + 1) * FRAMES * step_s, name)
                    for k, own in enumerate(who)
                    for name in own
                )
                talk = Utterance(
                    f"talk-{split}-{n}", "x.wav", 0.0, 8 * FRAMES * step_s, f"talk-{split}-{n}", None, split, turns
                )
                mimi.add(talk, np.concatenate([heard(own) for own in who]))
                titanet.add(talk, np.concatenate([known(own) for own in who]))
    return featstore.open(path)
