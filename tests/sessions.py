"""Made-up sessions for tests: features in which the speaker is plainly encoded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import featstore
from featstore import MIMI_GRID, FeatureSpec, Turn, Utterance


def spec(name: str = "mimi", dim: int = 8, **changes) -> FeatureSpec:
    facts = {"dtype": "float16", "sample_rate_hz": 24000, "grid": MIMI_GRID, "model": "one-hot speakers"}
    return FeatureSpec(name=name, dim=dim, **{**facts, "weights_sha256": "", "settings": {}, **changes})


def random_turns(rng: np.random.Generator, num_speakers: int, seconds: float, pool: int) -> tuple[Turn, ...]:
    """Turns of 1 to 4 s by `num_speakers` out of `pool`, with pauses and overlaps of up to a second."""
    who = rng.permutation(pool)[:num_speakers]
    turns: list[Turn] = []
    time_s = rng.uniform(0, 1)
    while time_s < seconds - 1:
        others = [w for w in who if not turns or f"s{w}" != turns[-1].speaker] or list(who)
        end_s = min(time_s + rng.uniform(1, 4), seconds)
        turns.append(Turn(time_s, end_s, f"s{rng.choice(others)}"))
        time_s = max(end_s + rng.uniform(-0.6, 1.0), time_s + 0.3)
    return tuple(turns)


def meetings(seed: int = 0, minutes: float = 2.0) -> dict[str, tuple[Turn, ...]]:
    """Made-up meetings of four: turns of any length, pauses, overlaps, and somebody who comes late."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in ("m1", "m2", "m3"):
        turns, time_s = [], rng.uniform(0, 3)
        while time_s < 60 * minutes:
            of = 4 if time_s > 20 * minutes else 3
            end_s = time_s + rng.gamma(1.5, 2.0) + 0.1
            turns.append(Turn(time_s, end_s, f"{name}-{rng.integers(of)}"))
            time_s = max(end_s + rng.normal(0.2, 0.8), time_s + 0.05)
        found[name] = tuple(turns)
    return found


def one_hot(rng: np.random.Generator, turns, num_frames: int, dim: int, noise: float) -> np.ndarray:
    """Frames (num_frames, dim): 1 in the column of each active speaker, and noise."""
    frames = noise * rng.standard_normal((num_frames, dim))
    centres_s = MIMI_GRID.centres_s(0, num_frames)
    for turn in turns:
        frames[(centres_s >= turn.start_s) & (centres_s < turn.end_s), int(turn.speaker[1:])] += 1
    return frames


def make_store(
    path: Path,
    counts: Mapping[str, int],
    *,
    seconds: float = 12.0,
    dim: int = 8,
    pool: int = 6,
    noise: float = 0.15,
    seed: int = 0,
) -> Path:
    """A store of `counts` sessions by split with a `mimi` feature of one-hot speakers."""
    rng = np.random.default_rng(seed)
    with featstore.writer(path, spec(dim=dim)) as writer:
        for split, count in counts.items():
            for i in range(count):
                turns = random_turns(rng, int(rng.integers(2, 5)), seconds, pool)
                utterance = Utterance(f"{split}/{i}", "none.wav", 0.0, seconds, f"{split}-{i}", None, split, turns)
                writer.add(utterance, one_hot(rng, turns, int(seconds / 0.08), dim, noise))
    return path
