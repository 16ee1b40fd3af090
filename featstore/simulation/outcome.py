"""What came out of a simulation, beside what was asked: the sessions' manifest and a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from featstore.corpora.rttm import read_rttm
from featstore.files import write_atomically
from featstore.simulation.recipe import Recipe
from featstore.simulation.session import speech_and_overlap_s
from featstore.types import Turn


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What was asked and what came out; ratios as in :class:`Recipe`, over all sessions (sums, then division)."""

    recipe: str
    out_dir: str
    sessions: int
    made_now: int
    speakers: int
    hours: float
    asked_overlap: float
    got_overlap: float
    asked_silence: float | None
    got_silence: float
    left_out: int
    failures: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return asdict(self)

    def __str__(self) -> str:
        asked_silence = "" if self.asked_silence is None else f" (asked {self.asked_silence:.3f})"
        lines = [
            f"{self.recipe}: {self.sessions} sessions ({self.made_now} made now), in {self.out_dir}",
            f"  {self.speakers} speakers, {self.hours:.2f} h",
            f"  overlap {self.got_overlap:.3f} (asked {self.asked_overlap:.3f})",
            f"  silence {self.got_silence:.3f}{asked_silence}",
        ]
        if self.left_out:
            lines.append(f"  {self.left_out} utterances left out: no speaker, or a speaker with too few")
        if self.failures:
            lines.append(f"  {len(self.failures)} failures, listed in failures.jsonl")
        return "\n".join(lines)


def finish(
    out: Path,
    recipe: Recipe,
    sessions: Iterable[tuple[str, Path, Path]],
    made_now: int,
    left_out: int,
    failures: list[dict[str, str]],
) -> SimulationReport:
    """Write ``manifest.jsonl`` of the sessions that are there, and measure them.

    Parameters
    ----------
    sessions : split, audio and RTTM of each that was asked for.
    """
    rows, sums, shares, names = [], np.zeros(4), [], set()
    for split, audio_path, rttm_path in sessions:
        if not rttm_path.exists():  # a failed session: it stands in failures.jsonl
            continue
        turns = read_rttm(rttm_path).get(rttm_path.stem, ())
        duration_s = soundfile.info(audio_path).duration
        speakers = {turn.speaker for turn in turns}
        speech_s, overlap_s = speech_and_overlap_s(turns)
        sums += speech_s, overlap_s, max(duration_s - speech_s, 0.0), duration_s
        names |= speakers
        if recipe.layout == "pair" and len(speakers) == 2:
            shares.append(_overlap_of_shorter(turns))
        row = {"audio_filepath": audio_path.relative_to(out).as_posix(), "offset": 0.0, "duration": duration_s}
        row |= {"label": "infer", "text": "-", "num_speakers": len(speakers), "split": split}
        row |= {"rttm_filepath": rttm_path.relative_to(out).as_posix()}
        rows.append(row | {"session_id": rttm_path.stem, "uniq_id": rttm_path.stem})
    write_atomically(out / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    speech_s, overlap_s, silence_s, total_s = sums.tolist()
    pair = recipe.layout == "pair"
    return SimulationReport(
        recipe=recipe.name,
        out_dir=str(out),
        sessions=len(rows),
        made_now=made_now,
        speakers=len(names),
        hours=total_s / 3600,
        asked_overlap=sum(recipe.overlap) / 2,
        got_overlap=float(np.mean(shares)) if shares else overlap_s / speech_s if speech_s and not pair else 0.0,
        asked_silence=None if pair else sum(recipe.silence) / 2,
        got_silence=silence_s / total_s if total_s else 0.0,
        left_out=left_out,
        failures=failures,
    )


def _overlap_of_shorter(turns: Sequence[Turn]) -> float:
    spans: dict[str, tuple[float, float]] = {}
    for turn in turns:
        start, end = spans.get(turn.speaker, (turn.start_s, turn.end_s))
        spans[turn.speaker] = min(start, turn.start_s), max(end, turn.end_s)
    (a, b), (c, d) = spans.values()
    return (min(b, d) - max(a, c)) / min(b - a, d - c)
