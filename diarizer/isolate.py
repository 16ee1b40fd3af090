"""One voice out of a recording of any length: who it is comes from a diarization or an enrolment, the sound from a run of fit tse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from diarizer.encoders import encoders_of
from diarizer.sound import Sound
from evaluation.turns import Turns
from featstore.extractors.device import pick_device
from featstore.files import naming
from trainers.runs import Run, RunError
from trainers.tse.measure import extract
from trainers.tse.network import RATE_HZ, Extractor
from trainers.unmix.data import towards

#: What the network hears at once, about as long as what it was trained on, and how much of it the next piece hears again.
PIECE_S, OVERLAP_S = 4.0, 1.0
#: A voice is known from so much of it alone, at most; from less than the least nobody is.
ENOUGH_S, LEAST_S = 30.0, 1.0
#: How fast it comes and goes where somebody else's turn begins.
_RAMP_S = 0.02
Wave = NDArray[np.float32]
Spans = Sequence[tuple[float, float]]


class Isolator:
    """A run of fit tse and its speaker encoder.

    Parameters
    ----------
    weights : where the encoder's weights lie now, by feature.

    Raises
    ------
    RunError : the run is of another kind, was not conditioned on a voice, or is damaged.
    """

    def __init__(self, run: Run, weights: Mapping[str, str], device: str) -> None:
        if run.config.kind != "tse":
            raise RunError(f"{run.path}: is a run of fit {run.config.kind}; isolate needs one of fit tse")
        self.run, self._device = run, pick_device(device)
        self.network = Extractor.load(run, self._device)
        if not self.network.size:
            raise RunError(
                f"{run.path}: was trained with condition=none, so it cannot be told whom to extract; train one without that"
            )
        (self.encoder,) = encoders_of(run, weights, device).values()
        self.warnings = tuple(run.warnings)

    def voice(self, sound: Sound, spans: Spans | None = None) -> Wave:
        """What a voice sounds like: (size,) of length 1, from where it speaks alone, or all of a recording.

        Raises
        ------
        ValueError, OSError : the sound cannot be used; less than `LEAST_S` of it.
        """
        rate_hz = self.encoder.spec.sample_rate_hz
        waves = list(cut(sound, rate_hz, spans if spans is not None else [(0.0, ENOUGH_S)]))
        if sum(map(len, waves)) < LEAST_S * rate_hz:
            raise ValueError(
                f"expected {LEAST_S:g} s or more of the voice alone, found {sum(map(len, waves)) / rate_hz:.1f} s"
            )
        frames = np.concatenate([self.encoder.extract([wave])[0] for wave in waves]).astype(np.float32)
        return towards(frames.mean(0), self.network.centre.cpu().numpy())

    def pieces(self, sound: Sound, voice: Wave, told: Callable[[float], None] = lambda _: None) -> Iterator[Wave]:
        """The voice's sound at 16 kHz, as long as the recording, in consecutive pieces.

        The network says how a voice sounds, not how loud it is: each piece is as loud as explains the mixture best.

        Parameters
        ----------
        told : hears how many seconds are done.
        """
        step, overlap = round((PIECE_S - OVERLAP_S) * RATE_HZ), round(OVERLAP_S * RATE_HZ)
        rise = np.linspace(0, 1, overlap, dtype=np.float32)
        tail: Wave = np.zeros(0, np.float32)
        done = 0
        for wave, last in _overlapping(sound.pieces(RATE_HZ, step), overlap):
            found = extract(self.network, wave, voice[None], self._device)[0]
            found = found * _loudness(found, wave)
            if many := min(len(tail), len(found)):
                found[:many] = tail[:many] * (1 - rise[:many]) + found[:many] * rise[:many]
            done += len(found) if last else step
            told(done / RATE_HZ)
            yield found if last else found[:step]
            tail = found[step:]

    def whose(
        self, sound: Sound, speaker: str, turns: Turns | None, enrolment: Sound | None
    ) -> tuple[Wave, list[tuple[float, float]] | None]:
        """A speaker's voice, and where it speaks; None where nobody said so.

        Parameters
        ----------
        speaker : a name of the turns', or a number by who speaks first.
        enrolment : a recording of that person; without it the voice is what it sounds like where it speaks alone.

        Raises
        ------
        ValueError : nobody is called so, or is never heard alone; as `voice`.
        """
        if turns is None:
            assert enrolment is not None  # the caller has one of them
            return self.voice(enrolment), None
        name = f"speaker{speaker}" if speaker.isdecimal() else speaker
        if name not in turns.speakers:
            there = ", ".join(turns.speakers) or "nobody"
            raise ValueError(
                f"--speaker {speaker}: not heard in this recording; the diarization hears {there}. Name one of them, or give "
                "--enrol NAME=AUDIO and --everywhere, which needs no diarization"
            )
        spans = [(turn.start_s, turn.end_s) for turn in turns if turn.speaker == name]
        if enrolment is not None:
            return self.voice(enrolment), spans
        try:
            return self.voice(sound, alone(turns, name)), spans
        except ValueError as error:
            raise ValueError(
                f"--speaker {speaker}: {error}; give a recording of that person: --enrol NAME=AUDIO"
            ) from None


def _loudness(found: Wave, wave: Wave) -> np.float32:
    power = float(found @ found)
    return np.float32(float(found @ wave) / power if power > 0 else 0.0)


def _overlapping(pieces: Iterable[Wave], overlap: int) -> Iterator[tuple[Wave, bool]]:
    """Each piece with the beginning of the next, and whether it is the last; what is left for a last one is part of the one
    before where that has heard it all."""
    pieces = iter(pieces)
    here = next(pieces)
    for ahead in pieces:
        if len(ahead) <= overlap:
            here = np.concatenate([here, ahead])
            continue
        yield np.concatenate([here, ahead[:overlap]]), False
        here = ahead
    yield here, True


def cut(sound: Sound, rate_hz: int, spans: Spans) -> Iterator[Wave]:
    """The samples of stretches in seconds, in order; what passes the end is left out."""
    wanted = sorted((round(a * rate_hz), round(b * rate_hz)) for a, b in spans)
    parts: list[list[Wave]] = [[] for _ in wanted]
    at = 0
    for piece in sound.pieces(rate_hz, 30 * rate_hz):
        for (a, b), part in zip(wanted, parts, strict=True):
            if a < at + len(piece) and b > at:
                part.append(piece[max(0, a - at) : b - at])
        at += len(piece)
        if wanted and at >= wanted[-1][1] and all(b <= at for _, b in wanted):
            break
    yield from (np.concatenate(part) for part in parts if part)


def alone(turns: Turns, speaker: str) -> list[tuple[float, float]]:
    """Where nobody else speaks: the longest stretches of a speaker in seconds, half a second or more each, up to `ENOUGH_S`."""
    own = turns.speaker == turns.speakers.index(speaker)
    edges = np.unique(np.concatenate([turns.start_s, turns.end_s]))
    found: list[tuple[float, float]] = []
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        there = (turns.start_s <= a) & (turns.end_s >= b)
        if there.any() and not (there & ~own).any():
            if found and found[-1][1] == a:
                found[-1] = (found[-1][0], b)
            else:
                found.append((a, b))
    longest = sorted((span for span in found if span[1] - span[0] >= 0.5), key=lambda span: span[0] - span[1])
    kept, total = [], 0.0
    for a, b in longest:
        if total >= ENOUGH_S:
            break
        b = min(b, a + ENOUGH_S - total)
        kept.append((a, b))
        total += b - a
    return kept


def gain(spans: Spans, at: int, samples: int) -> Wave:
    """(samples,) from sample `at` at 16 kHz: 1 within the stretches, 0 beside them, with ramps."""
    time_s = (at + np.arange(samples)) / RATE_HZ
    out: Wave = np.zeros(samples, np.float32)
    for a, b in spans:
        if b + _RAMP_S >= time_s[0] and a - _RAMP_S <= time_s[-1]:
            rise, fall = (time_s - a) / _RAMP_S + 1, (b - time_s) / _RAMP_S + 1
            out = np.maximum(out, np.clip(np.minimum(rise, fall), 0, 1).astype(np.float32))
    return out


def write(path: Path, pieces: Iterable[Wave], spans: Spans | None) -> float:
    """Write a voice as WAV, 16 kHz, 16 bit, whole or not at all; silence outside of the stretches, where some are given.

    Returns
    -------
    Seconds that were written.
    """
    at = 0
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with naming(path), sf.SoundFile(temporary, "w", RATE_HZ, 1, "PCM_16", format="WAV") as file:
            for piece in pieces:
                heard = piece if spans is None else piece * gain(spans, at, len(piece))
                file.write(heard.clip(-1, 1))
                at += len(piece)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return at / RATE_HZ
