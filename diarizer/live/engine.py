"""The live engine: pushes of any size in, an update after each step of the head out; constant memory, constant time a step."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diarizer.live.hearing import Hearing, within
from diarizer.live.streams import stream_of
from diarizer.live.timing import Timing
from diarizer.live.turns import LiveTurn, Open, Said, Turning, Update
from diarizer.voices import Voice, named
from featstore import FeatureSpec, FrameGrid
from featstore.extractors import Extractor
from trainers.cascade.inputs import Read


class LiveHead(Protocol):
    """A head on the fly.

    Attributes
    ----------
    grid : of its answers.
    kept : frames that it reads again after it has heard them.
    same : cosine above which two voices are one.
    """

    grid: FrameGrid
    kept: int
    same: float

    def step(self, read: Read, heard: int, complete: int, last: bool) -> tuple[Said, dict[int, int]]:
        """What is said after `heard` frames, and voices that turned out to be others.

        Parameters
        ----------
        read : frames as a store has them; of a feature that comes late, its last one in place of those that lack.
        complete : frames of which no feature lacks.
        last : no more will come.
        """
        ...

    @property
    def vectors(self) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """Voices' numbers, and what they sound like, (voices, dim) of length 1."""
        ...

    def reset(self) -> None:
        """As new."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What `restore` takes: for JSON, and arrays."""
        ...

    def restore(self, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a `state`."""
        ...


class Live:
    """Who speaks, while they speak; `diarizer.Diarizer.live` makes one.

    Attributes
    ----------
    latency_s : that was asked for.
    algorithmic_latency_s : what an answer waits for: a step, and what comes after it. Sound at another rate than the
        encoders' waits 30 to 50 ms more.
    settled_latency_s : the same of turns that are over: these never change, so they wait longer.
    """

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        encoders: Callable[[], Mapping[str, Extractor]],
        reach: Callable[[str], tuple[int, int]],
        make_head: Callable[[Timing], LiveHead],
        voice_of: Callable[[str, Any, int | None], Voice],
        *,
        latency_s: float,
        given: Mapping[str, int],
        voices: Mapping[str, Voice],
    ) -> None:
        for spec in specs.values():
            samples = spec.grid.step_s * spec.sample_rate_hz
            if spec.grid != next(iter(specs.values())).grid or abs(samples - round(samples)) > 1e-6:
                raise ValueError(f"feature {spec.name!r} cannot be followed live: its frames are not on one clock")
        if unknown := set(given) - set(specs):
            raise ValueError(f"no feature {min(unknown)!r}: the run hears {', '.join(specs)}")
        made = {n: encoder for n, encoder in encoders().items() if n not in given} if set(specs) - set(given) else {}
        ahead = {n: given[n] if n in given else reach(n)[1] for n in specs}
        self._step_s = next(iter(specs.values())).grid.step_s
        self.latency_s, self.timing = latency_s, Timing.of(latency_s, self._step_s, max(ahead.values()))
        self._head = make_head(self.timing)
        streams = {n: stream_of(n, encoder, reach(n), self.timing.step) for n, encoder in made.items()}
        self._hearing = Hearing(specs, ahead, streams, self.timing.step, self._head.kept)
        self._enrolled, self._voice_of = dict(voices), voice_of
        self._clear()

    @property
    def algorithmic_latency_s(self) -> float:
        """See the class."""
        return (self.timing.step + self.timing.ahead) * self._step_s

    @property
    def settled_latency_s(self) -> float:
        """See the class."""
        return (self.timing.step + self.timing.settle) * self._step_s

    def _clear(self) -> None:
        self._turning = Turning(self._head.grid)
        self._over, self._seq = False, 0
        self._partial: tuple[LiveTurn, ...] = ()
        self._names: dict[int, str] = {}
        self._typed: dict[int, str] = {}

    # ---- what a user does

    def push(self, samples: ArrayLike, rate_hz: int) -> list[Update]:
        """Hear samples (n,) or (n, channels), n ≥ 0, full scale ±1, integers that of their type.

        Raises
        ------
        ValueError : samples or a rate that are none; after `finalize`.
        """
        self._going()
        self._hearing.push(samples, int(rate_hz))
        return self._go_on()

    def push_frames(self, frames: Mapping[str, NDArray[Any]]) -> list[Update]:
        """Hear features that somebody else computed, each (frames, dim), as many of each.

        Raises
        ------
        ValueError : not the features that were announced as `given`; another shape; after `finalize`.
        """
        self._going()
        self._hearing.push_frames(frames)
        return self._go_on()

    def finalize(self) -> list[Update]:
        """The end of the stream: everything that is open is closed.

        Raises
        ------
        ValueError : it was closed before.
        """
        self._going()
        self._hearing.drain()
        updates = self._go_on()
        self._hearing.finish()
        self._over = True
        return updates + self._step(last=True)

    def reset(self) -> None:
        """As new, the clock at 0: voices are forgotten but for those that are enrolled."""
        self._hearing.clear()
        self._head.reset()
        self._clear()

    def enrol(self, name: str, audio: Any, rate_hz: int | None = None) -> Voice:
        """Call a voice by its name from now on; see `diarizer.diarizer.Diarizer.enrol`."""
        self._enrolled[name] = self._voice_of(name, audio, rate_hz)
        return self._enrolled[name]

    def rename(self, speaker: str, name: str) -> None:
        """Call a voice otherwise from now on; turns that were given keep its old name.

        Raises
        ------
        ValueError : nobody is called so, or somebody else is called `name`.
        """
        for number, called in self._names.items():
            if called == speaker and name not in self._names.values():
                self._names[number] = self._typed[number] = name
                return
        known = ", ".join(self._names.values()) or "nobody yet"
        raise ValueError(f"{speaker!r} cannot be called {name!r}: there are {known}, and no two have one name")

    # ---- steps

    def _going(self) -> None:
        if self._over:
            raise ValueError("the stream was finalized; reset() begins a new one")

    def _go_on(self) -> list[Update]:
        return [update for _ in self._hearing.steps() for update in self._step(last=False)]

    def _step(self, last: bool) -> list[Update]:
        hearing = self._hearing
        limits = hearing.limits(last)
        said, same = self._head.step(
            lambda names, start, stop: hearing.read(names, start, stop, limits),
            hearing.heard,
            max(0, min(limits.values())),
            last,
        )
        self._turning.joined(same)
        self._call(said.voices, same)
        end_s = hearing.heard * self._step_s
        end_s = min(end_s, hearing.seconds) if last else end_s
        over, open_ = self._turning.take(said, last)
        final, partial = (tuple(self._told(v, turn, end_s) for v, turn in turns) for turns in (over, open_))
        if not final and partial == self._partial:
            return []
        self._partial, self._seq = partial, self._seq + 1
        return [Update(self._seq - 1, round(end_s, 6), final, partial)]

    def _told(self, voice: int, turn: Open, end_s: float) -> LiveTurn:
        return self._turning.told(turn, self._names[voice], end_s)

    def _call(self, said: Sequence[int], same: Mapping[int, int]) -> None:
        """Names for voices: typed, enrolled, or by arrival."""
        for old, new in same.items():
            if old in self._typed:
                self._typed.setdefault(new, self._typed.pop(old))
        numbers, vectors = self._head.vectors
        known = named(vectors, self._enrolled, self._head.same)
        for k, number in enumerate(numbers):
            self._names[number] = self._typed.get(number) or known.get(k) or f"speaker{number + 1}"
        for number in said:
            self._names.setdefault(number, f"speaker{number + 1}")
        for number in set(self._names) - set(numbers) - set(said) - set(self._turning.open) - set(self._typed):
            del self._names[number]

    # ---- to go on elsewhere

    def save(self) -> bytes:
        """All that a `Live` of the same run and latency needs to go on, in any process: `restore` takes it."""
        numbers, arrays = self._head.state()
        hearing, sounds = self._hearing.state()
        arrays = {f"head/{k}": v for k, v in arrays.items()} | {f"hearing/{k}": v for k, v in sounds.items()}
        arrays |= {f"enrolled/{k}": voice.vector for k, voice in enumerate(self._enrolled.values())}
        facts = {
            "run": self._run(),
            "head": numbers,
            "hearing": hearing,
            "turning": self._turning.state(),
            "over": self._over,
            "seq": self._seq,
            "partial": [[t.start_s, t.end_s, t.speaker, t.sure] for t in self._partial],
            "names": list(self._names.items()),
            "typed": list(self._typed.items()),
            "enrolled": [[name, voice.speech_s] for name, voice in self._enrolled.items()],
        }
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        out = io.BytesIO()
        np.savez(out, **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    def restore(self, blob: bytes) -> None:
        """Go on from what `save` gave.

        Raises
        ------
        ValueError : it is damaged, or of another run or latency.
        """
        try:
            with np.load(io.BytesIO(blob)) as file:  # noqa: TID251  # refuses pickles
                arrays = dict(file)
            facts = json.loads(arrays.pop("facts").tobytes())
            of = facts["run"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, TypeError) as error:
            raise ValueError(f"not a saved live session, or damaged: {error}") from None
        if of != self._run():
            raise ValueError(f"saved by another run, or at another latency: {of}, this is {self._run()}")
        self.reset()
        self._hearing.restore(facts["hearing"], within(arrays, "hearing/"))
        self._head.restore(facts["head"], within(arrays, "head/"))
        self._turning.restore(facts["turning"])
        self._over, self._seq = facts["over"], facts["seq"]
        self._partial = tuple(LiveTurn(*turn) for turn in facts["partial"])
        self._names, self._typed = dict(facts["names"]), dict(facts["typed"])
        self._enrolled = {n: Voice(arrays[f"enrolled/{k}"], s) for k, (n, s) in enumerate(facts["enrolled"])}

    def _run(self) -> dict[str, Any]:
        return {
            "features": {name: spec.fingerprint for name, spec in self._hearing.specs.items()},
            "given": sorted(set(self._hearing.specs) - set(self._hearing.streams)),
            "latency_s": self.latency_s,
        }
