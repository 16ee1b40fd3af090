"""What came out of a simulation, beside what was asked: the sessions' manifest and a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from featstore.corpora.rttm import read_rttm
from featstore.files import write_atomically
from featstore.simulation.recipe import Recipe
from featstore.simulation.speech import merge, seconds_by_voices
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
    # None where the recipe asks for no such thing; T60 and SNR are means over the sessions that have them.
    many_voices: float | None = None  # time in which three or more speak / time in which anybody speaks
    asked_to_return: int | None = None  # speakers who leave and come back, in all sessions
    returned: int | None = None
    asked_room_share: float | None = None
    in_room: int | None = None
    asked_t60_s: float | None = None
    got_t60_s: float | None = None
    with_noise: int | None = None
    asked_snr_db: float | None = None
    got_snr_db: float | None = None

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
        if self.many_voices is not None:
            lines.append(f"  three or more at once {self.many_voices:.3f}")
        if self.returned is not None:
            lines.append(f"  {self.returned} speakers back after a long absence (asked {self.asked_to_return})")
        if self.in_room is not None:
            lines.append(f"  {self.in_room} sessions in a room (asked {self.asked_room_share:.2f} of them)")
        if self.got_t60_s is not None:
            lines.append(f"  T60 {self.got_t60_s:.3f} s" + _asked(self.asked_t60_s, "s"))
        if self.with_noise is not None:
            lines.append(f"  {self.with_noise} sessions with noise")
        if self.got_snr_db is not None:
            lines.append(f"  SNR {self.got_snr_db:.1f} dB" + _asked(self.asked_snr_db, "dB"))
        if self.left_out:
            lines.append(f"  {self.left_out} utterances left out: no speaker, or a speaker with too few")
        if self.failures:
            lines.append(f"  {len(self.failures)} failures, listed in failures.jsonl")
        return "\n".join(lines)


def _asked(value: float | None, unit: str) -> str:
    return "" if value is None else f" (asked {value:.3g} {unit})"


def scene_path(out: Path, session: str) -> Path:
    """Where it says what was drawn for a session, and measured, beside its voices."""
    return out / "scenes" / f"{session}.json"


def track_path(out: Path, session: str, number: int, recipe: Recipe) -> Path:
    """Where a mixture's voices are, one by one, in the order of its scene."""
    return out / "tracks" / session / f"{number}.{recipe.audio_format}"


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
    many_s, asked_to_return, returned = 0.0, 0, 0
    scenes: list[dict[str, Any]] = []
    for split, audio_path, rttm_path in sessions:
        if not rttm_path.exists():  # a failed session: it stands in failures.jsonl
            continue
        turns = read_rttm(rttm_path).get(rttm_path.stem, ())
        duration_s = soundfile.info(audio_path).duration
        speakers = {turn.speaker for turn in turns}
        seconds = seconds_by_voices(turns)
        speech_s = float(seconds.sum())
        sums += speech_s, seconds[1:].sum(), max(duration_s - speech_s, 0.0), duration_s
        many_s += float(seconds[2:].sum())
        names |= speakers
        if recipe.absence_s is not None:
            asked_to_return += len(speakers) // 2
            returned += sum(_longest_gap_s(turns, speaker) >= recipe.absence_s[0] - 0.001 for speaker in speakers)
        if recipe.has_scenes:
            scenes.append(json.loads(scene_path(out, rttm_path.stem).read_text(encoding="utf-8")))
        if recipe.layout != "conversation" and len(speakers) > 1:
            shares.append(_overlap_of_shorter(turns))
        row = {"audio_filepath": audio_path.relative_to(out).as_posix(), "offset": 0.0, "duration": duration_s}
        row |= {"label": "infer", "text": "-", "num_speakers": len(speakers), "split": split}
        row |= {"rttm_filepath": rttm_path.relative_to(out).as_posix()}
        rows.append(row | {"session_id": rttm_path.stem, "uniq_id": rttm_path.stem})
        if recipe.layout == "mix":
            rows += _tracks(out, recipe, rttm_path.stem, split, duration_s, scenes[-1]["voices"])
    write_atomically(out / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    speech_s, overlap_s, silence_s, total_s = sums.tolist()
    talk = recipe.layout == "conversation"
    return SimulationReport(
        recipe=recipe.name,
        out_dir=str(out),
        sessions=sum("rttm_filepath" in row for row in rows),  # not their tracks
        made_now=made_now,
        speakers=len(names),
        hours=total_s / 3600,
        asked_overlap=sum(recipe.overlap) / 2,
        got_overlap=float(np.mean(shares)) if shares else overlap_s / speech_s if speech_s and talk else 0.0,
        asked_silence=sum(recipe.silence) / 2 if talk else None,
        got_silence=silence_s / total_s if total_s else 0.0,
        left_out=left_out,
        failures=failures,
        many_voices=None if recipe.voices < 3 else many_s / speech_s if speech_s else 0.0,
        asked_to_return=None if recipe.absence_s is None else asked_to_return,
        returned=None if recipe.absence_s is None else returned,
        **_of_scenes(recipe, scenes),
    )


def _tracks(
    out: Path, recipe: Recipe, session: str, split: str, duration_s: float, voices: Sequence[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """A mixture's voices as lines of the manifest: of its recording, called by it and by the utterance that was cut."""
    for number, voice in enumerate(voices):
        yield {
            "audio_filepath": track_path(out, session, number, recipe).relative_to(out).as_posix(),
            "offset": 0.0,
            "duration": duration_s,
            "speaker": voice["speaker"],
            "split": split,
            "session_id": session,
            "utt_id": f"{session}/{voice['utterance']}",
        }


def _of_scenes(recipe: Recipe, scenes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rooms = [scene["room"] for scene in scenes if "room" in scene]
    noises = [scene["noise"] for scene in scenes if "noise" in scene]

    def mean(found: Sequence[dict[str, Any]], key: str) -> float | None:
        values = [fact[key] for fact in found if key in fact]
        return float(np.mean(values)) if values else None

    facts: dict[str, Any] = {}
    if recipe.rooms is not None:
        facts |= {"asked_room_share": recipe.rooms.share, "in_room": len(rooms)}
        facts |= {"asked_t60_s": mean(rooms, "asked_t60_s"), "got_t60_s": mean(rooms, "t60_s")}
    if recipe.noise is not None:
        facts |= {"with_noise": len(noises)}
        facts |= {"asked_snr_db": mean(noises, "asked_snr_db"), "got_snr_db": mean(noises, "snr_db")}
    return facts


def _longest_gap_s(turns: Sequence[Turn], speaker: str) -> float:
    own = merge([(turn.start_s, turn.end_s) for turn in turns if turn.speaker == speaker], 0.0)
    return max((after[0] - before[1] for before, after in pairwise(own)), default=0.0)


def _overlap_of_shorter(turns: Sequence[Turn]) -> float:
    """What two voices share / the shorter of them; of several, of those two that share least."""
    spans: dict[str, tuple[float, float]] = {}
    for turn in turns:
        start, end = spans.get(turn.speaker, (turn.start_s, turn.end_s))
        spans[turn.speaker] = min(start, turn.start_s), max(end, turn.end_s)
    return min((min(b, d) - max(a, c)) / min(b - a, d - c) for (a, b), (c, d) in combinations(spans.values(), 2))
