"""What an extraction did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Result:
    """What an extraction did. Times in seconds; `busy_s` says how long each stage worked or waited.

    `asked` utterances = `skipped` (in the store already) + `done` + failures + `put_off` (not failed, but of a batch with
    a file that the disk did not give; the next run does them); of the skipped, the store knows `changed` with another
    recording, speaker, split or turns, and keeps what it has; `audio_s` of `total_s` seconds of audio went through the
    encoder. `writers` ran side by side, each with `decoders` decoding threads.
    """

    feature: str
    asked: int = 0
    skipped: int = 0
    done: int = 0
    put_off: int = 0
    changed: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    audio_s: float = 0.0
    total_s: float = 0.0
    wall_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)
    writers: int = 1
    decoders: int = 1

    @property
    def busy(self) -> dict[str, float]:
        """The share of the time each stage worked or waited, 0 to 1; over all threads that did it."""
        if not self.wall_s:
            return {}
        threads = {stage: self.writers * (self.decoders if stage == "decode" else 1) for stage in self.busy_s}
        return {stage: s / (self.wall_s * threads[stage]) for stage, s in self.busy_s.items()}

    def to_json(self) -> dict[str, object]:
        speed = self.audio_s / self.wall_s if self.wall_s else None
        return {**vars(self), "times_real_time": speed, "busy": self.busy}
