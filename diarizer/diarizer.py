"""A run put to use: recordings in, who spoke when out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path

from numpy.typing import ArrayLike

from diarizer.answer import Answer
from diarizer.encoders import encoders_of
from diarizer.frames import Frames, StoredFrames, hear
from diarizer.heads import head_of
from diarizer.live.engine import Live
from diarizer.live.heads import live_head
from diarizer.live.streams import reach_of
from diarizer.sound import Sound
from diarizer.voices import Voice, enrolled, named
from evaluation.turns import Turns
from featstore import Store, Utterance
from featstore.extractors import Extractor
from featstore.extractors.device import pick_device
from trainers.cascade.clusters import Limits
from trainers.runs import Run

#: The run that comes along: a small cascade on the demo's encoders.
DEMO = Path(__file__).parent / "demo"
Audio = str | PathLike[str] | Utterance | ArrayLike


class Diarizer:
    """A trained run and its encoders; `diarizer.load` makes one.

    Attributes
    ----------
    run : its folder.
    voices : enrolled ones, by name; `enrol` adds.
    weights, device : where encoders' weights lie that moved, and what all runs on, as asked.
    warnings : what must stand beside every answer; empty for properly trained weights.
    """

    def __init__(self, run: Run, weights: Mapping[str, str], device: str) -> None:
        self.run = run
        self.head = head_of(run, pick_device(device))
        self.voices: dict[str, Voice] = {}
        self._reaches: dict[str, tuple[int, int]] = {}
        self.weights, self.device = dict(weights), device
        self.warnings = tuple(run.warnings)
        if run.path.resolve() == DEMO.resolve():
            self.warnings = ("demo weights: the run that comes along, small and made to be tried", *self.warnings)

    @cached_property
    def encoders(self) -> dict[str, Extractor]:
        """Encoders by feature, made when they are first needed; see `encoders_of` for what it raises."""
        return encoders_of(self.run, self.weights, self.device)

    def __call__(
        self,
        audio: Audio,
        rate_hz: int | None = None,
        *,
        speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> Turns:
        """Who spoke when: `diarize`, its turns alone. ``.to_annotation()`` gives pyannote's Annotation of them."""
        return self.diarize(
            audio, rate_hz, speakers=speakers, min_speakers=min_speakers, max_speakers=max_speakers
        ).turns

    def diarize(
        self,
        audio: Audio,
        rate_hz: int | None = None,
        *,
        recording: str = "",
        speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        told: Callable[[float], None] = lambda _: None,
    ) -> Answer:
        """Who spoke when in a recording of any length.

        Parameters
        ----------
        audio : a file's path, an `Utterance`, or samples (samples,) or (samples, channels) with their `rate_hz`.
        recording : what it is called \\[the file's name without its ending].
        speakers : how many there are, or `min_speakers` and `max_speakers`; otherwise they are counted.
        told : hears how many seconds have been heard.

        Raises
        ------
        ValueError, OSError : the audio cannot be used; the limits are none.
        """
        limits = limits_of(speakers, min_speakers, max_speakers)
        sound = _sound(audio, rate_hz)
        duration_s, encoders, began = sound.duration_s, self.encoders, time.perf_counter()
        with hear(sound, encoders, told) as frames:
            return self._answer(frames, recording or _name(audio), duration_s, limits, began)

    def diarize_stored(
        self,
        store: Store,
        id: str,
        *,
        recording: str = "",
        speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> Answer:
        """`diarize` with an utterance's frames in a store in place of its audio.

        Raises
        ------
        RunError : the store holds other features than the run was trained on.
        KeyError : no such utterance.
        """
        limits, began = limits_of(speakers, min_speakers, max_speakers), time.perf_counter()
        self.run.check(store)
        frames = StoredFrames(store, self.head.features, id)
        duration_s = frames.num_frames * store.features[self.head.features[0]].grid.step_s
        known_s = store.utterance(id).duration_s
        return self._answer(frames, recording or id, known_s if known_s > 0 else duration_s, limits, began)

    def enrol(self, name: str, audio: Audio, rate_hz: int | None = None) -> Voice:
        """Call a voice by its name from now on, in every recording.

        Raises
        ------
        ValueError : too short, silent, or of two people; says which.
        """
        self.voices[name] = self._voice(name, audio, rate_hz)
        return self.voices[name]

    def live(self, latency_s: float = 1.04, *, slots: int = 8, given: Mapping[str, int] | None = None) -> Live:
        """Who speaks, on the fly; voices that are enrolled here are known there.

        Parameters
        ----------
        latency_s : 0.16 to 10; see `Live`.
        slots : voices at once; of more, who was silent longest is known by one vector only until heard again.
        given : features that `Live.push_frames` brings, with how many frames of sound each of their frames waits for.

        Raises
        ------
        ValueError : a latency that is none; a head that cannot be used live.
        """
        return Live(
            self.run.features,
            lambda: self.encoders,
            self.reach,
            lambda timing: live_head(self.head, timing, slots),
            self._voice,
            latency_s=latency_s,
            given=given or {},
            voices=self.voices,
        )

    def reach(self, name: str) -> tuple[int, int]:
        """See `reach_of`, which may have to try the encoder: once, however many listen."""
        if name not in self._reaches:
            self._reaches[name] = reach_of(name, self.encoders[name])
        return self._reaches[name]

    def _voice(self, name: str, audio: Audio, rate_hz: int | None) -> Voice:
        sound = _sound(audio, rate_hz)
        where = f"voice of {name!r}" + (f" ({audio})" if isinstance(audio, str | PathLike) else "")
        sound.duration_s  # noqa: B018  # refuses what is far too short
        with hear(sound, self.encoders) as frames:
            return enrolled(self.head, frames, where)

    def _answer(self, frames: Frames, recording: str, duration_s: float, limits: Limits, began: float) -> Answer:
        told = self.head.tell(frames, limits)
        names = named(told.voices, self.voices, self.head.same)
        seconds = time.perf_counter() - began
        facts = {
            "run": str(self.run.path),
            "seconds": round(seconds, 3),
            "speed": round(duration_s / seconds, 1),
        }
        more = {"warnings": (*self.warnings, *told.notes), "facts": facts, "energy": frames.energy}
        return Answer.of(told, recording, duration_s, names, **more)


def limits_of(speakers: int | None, least: int | None, most: int | None) -> Limits:
    """Limits on the number of voices.

    Raises
    ------
    ValueError : below 1, contradicting, or more than anyone can mean.
    """
    for name, value in (("speakers", speakers), ("min-speakers", least), ("max-speakers", most)):
        if value is not None and not 1 <= value <= 100:
            raise ValueError(f"--{name}: expected 1 to 100, found {value}")
    if speakers is not None:
        if least is not None or most is not None:
            raise ValueError("--speakers says how many there are; leave out --min-speakers and --max-speakers")
        return Limits(speakers, speakers)
    if least is not None and most is not None and least > most:
        raise ValueError(f"--min-speakers {least} is more than --max-speakers {most}")
    return Limits(least or 1, most)


def _sound(audio: Audio, rate_hz: int | None) -> Sound:
    if isinstance(audio, Utterance):
        return Sound(audio)
    if isinstance(audio, str | PathLike):
        return Sound(str(audio))
    return Sound.of_samples(audio, rate_hz or 0)


def _name(audio: Audio) -> str:
    if isinstance(audio, Utterance):
        return audio.id
    return Path(audio).stem if isinstance(audio, str | PathLike) else "recording"
