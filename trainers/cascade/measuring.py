"""How well whole recordings are told: no collar, overlap scored, one identity throughout, sums before rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.diarization import DiarizationErrors, score
from evaluation.runs import Diarization, write_diarization
from evaluation.turns import Turns
from featstore import FrameGrid
from trainers.diarization.sessions import Session


class Truth:
    """Who really spoke when in some sessions, each scored from its first frame to its last."""

    def __init__(self, sessions: Sequence[Session], grid: FrameGrid) -> None:
        self.sessions = list(sessions)
        self.reference = {s.id: Turns.of(s.turns) for s in sessions}
        start_s = max(0.0, grid.first_centre_s - grid.step_s / 2)
        end_s = grid.first_centre_s - grid.step_s / 2
        self.uem = {s.id: np.array([[start_s, end_s + s.num_frames * grid.step_s]]) for s in sessions}

    def _named(self, turns: Sequence[Turns]) -> dict[str, Turns]:
        return {s.id: each for s, each in zip(self.sessions, turns, strict=True)}

    def score(self, turns: Sequence[Turns]) -> dict[str, DiarizationErrors]:
        """Errors by recording of turns by session; a recording that was cut into sessions has their sum."""
        found = score(self.reference, self._named(turns), uem=self.uem).recordings
        sums: dict[str, DiarizationErrors] = {}
        for session in self.sessions:
            sums[session.recording] = sums.get(session.recording, DiarizationErrors()) + found[session.id]
        return sums

    def total(self, turns: Sequence[Turns]) -> DiarizationErrors:
        """Errors over all."""
        return summed(self.score(turns))

    def write(self, run: Path, turns: Sequence[Turns]) -> None:
        """Write truth, answer and what is scored into a run's folder, one entry and one region a session."""
        write_diarization(run, Diarization(self.reference, self._named(turns), self.uem))


def summed(recordings: Mapping[str, DiarizationErrors]) -> DiarizationErrors:
    """Errors over all recordings."""
    return sum(recordings.values(), DiarizationErrors())
