"""People followed through recordings: sets of voices chunk by chunk, and the memory that numbers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.unmixing import Vectors, f1, followed
from featstore import Store, Turn
from trainers.unmix.config import UnmixConfig
from trainers.unmix.data import on_grid, read_all, towards
from trainers.unmix.loop import predict
from trainers.unmix.measure import existing
from trainers.unmix.memory import Memory
from trainers.unmix.network import Unmixer
from trainers.unmix.rivals import Grouping, unit

#: Who says less than this in a chunk is not expected to be heard in it.
LEAST_S = 0.5
#: Chunks in which a voice must have been heard before it has a number; dev chooses.
CONFIRM = (1, 2, 3)


@dataclass(frozen=True, eq=False)
class Talk:
    """A recording in chunks: who speaks in each, and each system's voices there."""

    truth: list[frozenset[str]]
    voices: dict[str, list[Vectors]]


def talk_of(
    store: Store,
    id: str,
    turns: Sequence[Turn],
    network: Unmixer,
    config: UnmixConfig,
    threshold: float,
    grouping: Grouping | None,
    device: torch.device,
) -> Talk:
    """Cut a recording into chunks, the last one half as long at least, and let each system hear them.

    Systems: "unmix"; where the store has the windows' feature of it "windows" (grouped within the chunk) and "mean".
    """
    grid = store.features[config.inputs[0]].grid
    size = max(1, round(config.chunk_s / grid.step_s))
    frames = read_all(store, config.inputs, id)
    starts = [first for first in range(0, len(frames), size) if first == 0 or len(frames) - first >= size / 2]
    sets, existence = predict(network, [frames[first : first + size] for first in starts], device)
    voices = {"unmix": [existing(s, x, threshold) for s, x in zip(sets, existence, strict=True)]}
    if grouping is not None and id in store.index(config.heard_in).rows:
        heard = on_grid(store, config.heard_in, id, grid, len(frames))
        windows = towards(heard, network.windows_centre.cpu().numpy())
        chunks = [_once(windows[first : first + size]) for first in starts]
        voices["windows"] = [grouping(chunk, config.slots) for chunk in chunks]
        voices["mean"] = [unit(chunk.mean(0))[None] for chunk in chunks]
    truth = [_who(turns, first * grid.step_s, (first + size) * grid.step_s) for first in starts]
    return Talk(truth, voices)


def _once(windows: Vectors) -> Vectors:
    """A teacher that answers less often than the frames come is here more than once: without what comes again."""
    new = np.concatenate([[True], (windows[1:] != windows[:-1]).any(1)])
    return windows[new]


def _who(turns: Sequence[Turn], start_s: float, end_s: float) -> frozenset[str]:
    spoken: dict[str, float] = {}
    for turn in turns:
        inside = min(turn.end_s, end_s) - max(turn.start_s, start_s)
        if inside > 0:
            spoken[turn.speaker] = spoken.get(turn.speaker, 0.0) + inside
    return frozenset(name for name, seconds in spoken.items() if seconds >= LEAST_S)


def remembered(talk: Talk, system: str, threshold: float, confirm: int) -> dict[str, float]:
    """What `followed` says of a memory that hears a system's voices of a recording."""
    memory = Memory(threshold, confirm)
    heard = [[n for n in memory.hear(voices) if n is not None] for voices in talk.voices[system]]
    return followed(talk.truth, heard) | {"numbers": float(len(memory))}


def try_memory(
    dev: dict[str, Talk], test: dict[str, Talk], thresholds: Sequence[float], most: int
) -> dict[str, dict[str, Any]]:
    """By system: threshold and confirmation of the largest F1 on dev, that F1, and what came of each test recording.

    "constant" gives the same numbers in every chunk, 1 to `most` of them as dev chooses: where many speak all the time, that
    alone is often right.
    """
    told: dict[str, dict[str, Any]] = {}
    systems = set.intersection(*(set(talk.voices) for talk in (*dev.values(), *test.values())))
    for system in (s for s in ("unmix", "windows", "mean") if s in systems):
        best, kept = -1.0, (thresholds[0], CONFIRM[0])
        for threshold in thresholds:
            for confirm in CONFIRM:
                sums = [remembered(talk, system, threshold, confirm) for talk in dev.values()]
                if (value := f1({key: sum(s[key] for s in sums) for key in sums[0]})) > best:
                    best, kept = value, (threshold, confirm)
        told[system] = {
            "threshold": kept[0],
            "confirm": kept[1],
            "dev_f1": best,
            "recordings": {id: remembered(talk, system, *kept) for id, talk in test.items()},
        }
    by_number = [[_always(talk, k + 1) for talk in dev.values()] for k in range(most)]
    values = [f1({key: sum(s[key] for s in sums) for key in sums[0]}) for sums in by_number]
    best_number = 1 + values.index(max(values))
    always = {id: _always(talk, best_number) for id, talk in test.items()}
    told["constant"] = {"always": best_number, "dev_f1": max(values), "recordings": always}
    return told


def _always(talk: Talk, count: int) -> dict[str, float]:
    return followed(talk.truth, [list(range(count))] * len(talk.truth))
