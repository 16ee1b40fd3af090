"""What is said of a recording: turns, who spoke how long, who at once, how sure; and how it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diarizer.heads import Told
from evaluation.frames import frames_to_turns
from evaluation.turns import Turns
from featstore.corpora.rttm import write_rttm
from featstore.files import write_atomically


@dataclass(frozen=True, eq=False)
class Answer:
    """Who spoke when in one recording.

    Attributes
    ----------
    recording : its name.
    turns : by start; speakers are ``speaker1``, ``speaker2``, … by their first turn, or the names they were enrolled by.
    sure : (turns,) 0 to 1: how sure each turn is. An estimate of the head's own, not a promise.
    known : names among the speakers that enrolled voices gave.
    """

    recording: str
    duration_s: float
    turns: Turns
    sure: NDArray[np.float32]
    known: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    energy: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, told: Told, recording: str, duration_s: float, names: dict[int, str], **more: Any) -> Answer:
        """From what a head tells; `names` gives voices their names."""
        labels = [f"voice {k}" for k in range(len(told.voices))]
        turns = frames_to_turns(told.active, told.grid, labels)
        turns = Turns.from_arrays(
            turns.start_s.clip(max=duration_s),
            turns.end_s.clip(max=duration_s),
            [turns.speakers[k] for k in turns.speaker.tolist()],
        )
        column = np.array([labels.index(name) for name in turns.speakers], np.int64)
        first, last = told.grid.active(turns.start_s, turns.end_s)
        sums = np.concatenate([np.zeros((1, len(labels))), np.cumsum(told.sure, axis=0, dtype=np.float64)])
        first, last = first.clip(max=len(sums) - 1), last.clip(max=len(sums) - 1)
        which = column[turns.speaker]
        sure = (sums[last, which] - sums[first, which]) / np.maximum(last - first, 1)
        called: dict[str, str] = {}
        for name in turns.speakers:
            known = names.get(labels.index(name))
            called[name] = known or f"speaker{sum(v not in names.values() for v in called.values()) + 1}"
        enrolled = tuple(name for name in called.values() if name in names.values())
        return cls(recording, duration_s, turns.renamed(called), sure.astype(np.float32), enrolled, **more)

    # ---- figures

    def speakers(self) -> list[dict[str, Any]]:
        """One row a speaker, by arrival: name, speaking time, turns, how sure."""
        length = self.turns.end_s - self.turns.start_s
        total = float(length.sum())
        rows = []
        for k, name in enumerate(self.turns.speakers):
            own = self.turns.speaker == k
            rows.append(
                {
                    "name": name,
                    "enrolled": name in self.known,
                    "speaking_s": round(float(length[own].sum()), 3),
                    "share": round(float(length[own].sum()) / total, 4) if total else 0.0,
                    "turns": int(own.sum()),
                    "longest_s": round(float(length[own].max()), 3),
                    "confidence": round(float(np.average(self.sure[own], weights=length[own])), 3),
                }
            )
        return rows

    def overlaps(self) -> NDArray[np.float64]:
        """Where two or more speak at once, (regions, 2) seconds."""
        edges = np.concatenate([self.turns.start_s, self.turns.end_s])
        step = np.repeat([1, -1], len(self.turns))
        order = np.lexsort((step, edges))  # ends before starts
        many = np.cumsum(step[order])
        begins = np.flatnonzero((many >= 2) & (np.concatenate([[0], many[:-1]]) < 2))
        ends = np.flatnonzero((many < 2) & (np.concatenate([[0], many[:-1]]) >= 2))
        found = np.stack([edges[order][begins], edges[order][ends]], axis=1)
        return found[found[:, 1] > found[:, 0]]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON; times in seconds."""
        overlap = self.overlaps()
        overlap_s = float((overlap[:, 1] - overlap[:, 0]).sum())
        merged = _covered_s(self.turns)
        return {
            "recording": self.recording,
            "duration_s": round(self.duration_s, 3),
            "warnings": list(self.warnings),
            "speakers": self.speakers(),
            "speech_s": round(merged, 3),
            "overlap_s": round(overlap_s, 3),
            "turns": [
                {
                    "start_s": round(t.start_s, 3),
                    "end_s": round(t.end_s, 3),
                    "speaker": t.speaker,
                    "confidence": round(sure, 3),
                }
                for t, sure in zip(self.turns, self.sure.tolist(), strict=True)
            ],
            "whowhen": metadata.version("whowhen"),
            **self.facts,
        }

    def write_rttm(self, path: Path) -> None:
        """Write the turns as RTTM; `evaluation der` takes it. White space in names becomes ``_``: RTTM holds none."""
        turns = self.turns.renamed({name: "_".join(name.split()) for name in self.turns.speakers})
        write_rttm(path, {"_".join(self.recording.split()): turns})

    def write_json(self, path: Path) -> None:
        """Write `to_json`, whole or not at all."""
        write_atomically(path, (json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n").encode())


def _covered_s(turns: Turns) -> float:
    """Seconds in which anybody speaks."""
    covered = Turns.from_arrays(turns.start_s, turns.end_s, ["all"] * len(turns)).merged()
    return float((covered.end_s - covered.start_s).sum())
