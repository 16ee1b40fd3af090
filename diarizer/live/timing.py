"""Latency: what is asked for, in frames."""

from __future__ import annotations

from dataclasses import dataclass

MIN_S, MAX_S = 0.16, 10.0
#: A turn that is over is settled on so long after it was heard, or after the latency where that is more.
SETTLE_S = 4.0
_MOST_STEP = 12


@dataclass(frozen=True)
class Timing:
    """Frames between hearing and answering.

    Attributes
    ----------
    step : that are heard before the head answers.
    ahead : that an answer waits for after its own.
    settle : the same of an answer that never changes.
    """

    step: int
    ahead: int
    settle: int

    @classmethod
    def of(cls, latency_s: float, step_s: float, waits: int) -> Timing:
        """For a latency and frames of `step_s`; an answer that never changes waits for `waits` frames at least.

        Raises
        ------
        ValueError : less than 0.16 s, more than 10 s.
        """
        if not MIN_S <= latency_s <= MAX_S:
            raise ValueError(f"latency: expected {MIN_S:g} to {MAX_S:g} s, found {latency_s:g}")
        frames = max(1, int(latency_s / step_s + 1e-6))
        # Half of it, but six frames (0.48 s) are often enough, unless answers wait for seconds and steps are dear.
        step = min(max(1, frames // 2), max(6, frames // 8), _MOST_STEP)
        ahead = frames - step
        return cls(step, ahead, max(ahead, waits, round(SETTLE_S / step_s)))
