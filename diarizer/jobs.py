"""Many recordings, one after the other: files out, what is there already left, what is broken listed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diarizer.answer import Answer
from diarizer.diarizer import Diarizer, limits_of
from diarizer.inputs import Recording
from diarizer.page import write_page
from diarizer.sound import Sound
from evaluation.runs import MODEL
from featstore import Store, Utterance

#: done (s), of (s), a note.
Shown = Callable[[float, float, str], None]


@dataclass
class Outcome:
    """What came of many recordings.

    Attributes
    ----------
    told : what the JSON of each says, by name; of those that were there already, too.
    there : names of these.
    failed : name → why.
    audio_s, seconds : what was heard now, and how long that took.
    """

    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    audio_s: float = 0.0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.audio_s / self.seconds if self.seconds else 0.0


def diarize_all(
    diarizer: Diarizer,
    recordings: Sequence[Recording],
    out: Path,
    *,
    store: Store | None = None,
    limits: dict[str, int | None] | None = None,
    shown: Shown = lambda done, of, note: None,
) -> Outcome:
    """Diarize each recording into ``NAME.rttm``, ``NAME.html`` and, last, ``NAME.json``.

    A recording whose JSON says that it was made from the same sound by the same run is left as it is; one that cannot
    be used costs itself only.

    Raises
    ------
    ValueError : limits that are none; a folder that cannot be written into.
    """
    limits = limits or {}
    limits_of(*(limits.get(key) for key in ("speakers", "min_speakers", "max_speakers")))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written into: {error.strerror}; choose another --out") from None
    outcome = Outcome()
    how = _how(diarizer, limits)
    todo: list[tuple[Recording, float, str]] = []
    for recording in recordings:
        try:
            seconds = _duration_s(recording, store)
            key = hashlib.sha256(f"{how} {_what(recording, store)}".encode()).hexdigest()
        except (ValueError, OSError, KeyError) as error:
            outcome.failed[recording.name] = _why(error)
            continue
        if (told := _there(out, recording.name, key)) is not None:
            outcome.told[recording.name] = told
            outcome.there.append(recording.name)
        else:
            todo.append((recording, seconds, key))
    if todo and store is None:
        diarizer.encoders  # noqa: B018  # made before the clock runs; what fails here fails for all
    if store is not None:
        diarizer.run.check(store)
    began, before_s, total_s = time.perf_counter(), 0.0, sum(seconds for _, seconds, _ in todo)
    for recording, seconds, key in todo:

        def told_s(done_s: float, before_s: float = before_s, name: str = recording.name) -> None:
            spent = max(time.perf_counter() - began, 1e-9)
            shown(before_s + done_s, total_s, f"{name}, {(before_s + done_s) / spent:.1f} × real time")

        try:
            answer = _one(diarizer, recording, out, key, store, limits, told_s)
            outcome.told[recording.name] = answer.to_json()
            outcome.audio_s += answer.duration_s
        except (ValueError, OSError, KeyError) as error:
            outcome.failed[recording.name] = _why(error)
        before_s += seconds
    outcome.seconds = time.perf_counter() - began
    return outcome


def _one(
    diarizer: Diarizer,
    recording: Recording,
    out: Path,
    key: str,
    store: Store | None,
    limits: dict[str, int | None],
    told: Callable[[float], None],
) -> Answer:
    sound = None
    if store is not None:
        answer = diarizer.diarize_stored(store, str(recording.source), recording=recording.name, **limits)
    else:
        sound = Sound(recording.source)
        answer = diarizer.diarize(recording.source, recording=recording.name, told=told, **limits)
    answer.facts["key"] = key
    answer.write_rttm(out / f"{recording.name}.rttm")
    write_page(out / f"{recording.name}.html", answer, sound)
    answer.write_json(out / f"{recording.name}.json")
    return answer


def _duration_s(recording: Recording, store: Store | None) -> float:
    return (
        store.utterance(str(recording.source)).duration_s if store is not None else Sound(recording.source).duration_s
    )


def _how(diarizer: Diarizer, limits: dict[str, int | None]) -> str:
    """What beside the sound decides the answer."""
    weights = hashlib.sha256((diarizer.run.path / MODEL).read_bytes()).hexdigest()
    voices = {name: hashlib.sha256(voice.vector.tobytes()).hexdigest() for name, voice in diarizer.voices.items()}
    return json.dumps([weights, limits, voices], sort_keys=True)


def _what(recording: Recording, store: Store | None) -> str:
    """What tells a recording's sound from another: path, size, time of change, and which part of it."""
    source = recording.source
    if store is not None:
        return f"{store.address} {source}"
    path = Path(source.audio if isinstance(source, Utterance) else source)
    part = (source.start_s, source.duration_s) if isinstance(source, Utterance) else ()
    if not path.exists():
        return f"{path} {part}"
    facts = path.stat()
    return f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {part}"


def _there(out: Path, name: str, key: str) -> dict[str, Any] | None:
    if not all((out / f"{name}{suffix}").exists() for suffix in (".rttm", ".html", ".json")):
        return None
    try:
        told: dict[str, Any] = json.loads((out / f"{name}.json").read_bytes())
    except ValueError:
        return None
    return told if isinstance(told, dict) and told.get("key") == key else None


def _why(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
