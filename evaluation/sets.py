"""Row 6's figures: runs that take mixtures apart, beside what was not trained to, with intervals. All are errors: less is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Interval, ratio_intervals
from evaluation.rows import Row, RunFacts

#: What a run compares itself with, in words.
SYSTEMS = {
    "unmix": "the set",
    "windows": "windows of the teacher, grouped (k-means)",
    "parts": "separated first, the teacher on each part",
    "mean": "the teacher's mean of the mixture, once a voice",
    "constant": "a constant set",
    "tracks": "ceiling: the teacher on each voice alone",
}
#: What is compared with the windows.
RIVAL = "windows"

BySpeaker = Mapping[str, Mapping[str, float]]


def set_figures(row: Row | RunFacts, num_resamples: int, rng: np.random.Generator) -> None:
    """Fill ``row.figures`` of a run (or row) of kind unmix.

    By system: "missed" (voices whose name is not among those nearest to the set, told how many there are), "cosine",
    "twice" (mixtures of several voices in which one name came twice), "clusters"; where a system counts "miscounted" and
    "wrong" (1 - F1 of the names it gave). ``figures["memory"]`` has 1 - F1 by system, switches a person, and numbers given
    beside people. Each error has its interval, by speaker or by recording, and ``…_gap``, the difference to the windows.
    """
    result = row.result
    sets = result["sets"]
    row.figures = {"majority": 1 - result["majority"], "systems": {}}
    for name, told in sets.items():
        rival = sets.get(RIVAL) if name == "unmix" else None
        figures: dict[str, Any] = {"name": SYSTEMS[name], "cosine": told["cosine"], "clusters": told["clusters"]}
        figures |= _error(told, rival, "identified", "hits", "voices", "missed", num_resamples, rng)
        figures["twice"] = _share(told["identified"], "twice", "several")
        if told["counting"]:
            figures |= _error(told, rival, "counting", "right", "mixtures", "miscounted", num_resamples, rng)
            own = told["own"].values()
            hits, all_of = sum(s["hits"] for s in own), sum(s["voices"] + s["given"] for s in own)
            figures["wrong"] = 1 - 2 * hits / all_of if all_of else None
        row.figures["systems"][name] = figures
    row.figures["memory"] = _memory(result.get("memory") or {}, num_resamples, rng)


def _error(
    told: Mapping[str, Any],
    rival: Mapping[str, Any] | None,
    what: str,
    right: str,
    of: str,
    name: str,
    num_resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    errors, totals = _sums(told[what], right, of)
    other = None if rival is None else _sums(rival[what], right, of)[0]
    value = float(errors.sum() / totals.sum()) if totals.sum() else None
    figures: dict[str, Any] = {name: value, f"{name}_interval": None, f"{name}_gap": None}
    if len(totals) > 1 and totals.sum():
        interval, gap = ratio_intervals(errors, totals, rng, baseline=other, num_resamples=num_resamples)
        figures[f"{name}_interval"] = interval.to_json()
        figures[f"{name}_gap"] = gap.to_json() if gap else None
    return figures


def _sums(by_speaker: BySpeaker, right: str, of: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    totals = np.array([by_speaker[name][of] for name in sorted(by_speaker)])
    return totals - np.array([by_speaker[name][right] for name in sorted(by_speaker)]), totals


def _share(by_speaker: BySpeaker, over: str, under: str) -> float | None:
    whole = sum(sums[under] for sums in by_speaker.values())
    return sum(sums[over] for sums in by_speaker.values()) / whole if whole else None


def _memory(memory: Mapping[str, Any], num_resamples: int, rng: np.random.Generator) -> dict[str, Any]:
    figures = {}
    for name, told in memory.items():
        recordings = [told["recordings"][id] for id in sorted(told["recordings"])]
        rival = memory.get(RIVAL) if name == "unmix" else None
        errors, totals = _of_memory(recordings)
        other = _of_memory([rival["recordings"][id] for id in sorted(told["recordings"])]) if rival else None
        interval: Interval | None = None
        gap: Interval | None = None
        if len(recordings) > 1 and totals.sum():
            theirs, of = (None, None) if other is None else other
            interval, gap = ratio_intervals(
                errors, totals, rng, baseline=theirs, baseline_totals=of, num_resamples=num_resamples
            )
        people = sum(r["people"] for r in recordings)
        figures[name] = {
            "name": SYSTEMS[name],
            "lost": float(errors.sum() / totals.sum()) if totals.sum() else None,
            "lost_interval": interval.to_json() if interval else None,
            "lost_gap": gap.to_json() if gap else None,
            "switches": sum(r["switches"] for r in recordings) / people if people else None,
            "numbers": sum(r["numbers"] for r in recordings) / max(1, len(recordings)),
            "people": people / max(1, len(recordings)),
            "off": sum(abs(r["numbers"] - r["people"]) for r in recordings) / max(1, len(recordings)),
            "recordings": len(recordings),
        }
    return figures


def _of_memory(recordings: Sequence[Mapping[str, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1 - F1 as a ratio: (present + given - 2 · hits) / (present + given)."""
    totals = np.array([r["present"] + r["given"] for r in recordings])
    return totals - 2 * np.array([r["hits"] for r in recordings]), totals
