"""Where there is speech in an utterance, and the pieces it is cut into; how long how many voices speak at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.simulation.recipe import Recipe
from featstore.types import Turn

_STEP_S = 0.01  # of the energy detector
_MIN_SPEECH_S = 0.05  # shorter bursts are clicks
_MARGIN_S = 0.02  # added at both ends of detected speech: onsets and releases are weak
PAD_S = 0.05  # of sound kept, and faded, on both sides of a piece of speech
SPEECH_LEVEL_DB = -26.0  # RMS of speech in a session, relative to full scale


def speech_segments_s(wave: NDArray[np.float32], sample_rate_hz: int, pause_s: float) -> NDArray[np.float64]:
    """Where there is speech, by energy.

    The level of 30 ms windows every 10 ms is compared with a threshold 6 dB above the recording's floor (its 5th
    percentile), but 10 to 40 dB below its loud parts (95th percentile). Gaps up to `pause_s` are filled, bursts
    under 50 ms dropped, and 20 ms added at both ends.

    Parameters
    ----------
    wave : shape ``(samples,)``.

    Returns
    -------
    shape ``(segments, 2)``: start and end in seconds, by time. Empty where all is silent.
    """
    step = max(1, round(_STEP_S * sample_rate_hz))
    frames = len(wave) // step
    if frames == 0:
        return np.empty((0, 2))
    power = np.square(wave[: frames * step], dtype=np.float64).reshape(frames, step).mean(axis=1)
    power = np.convolve(np.pad(power, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    if power.max() < 1e-10:  # -100 dB: digital silence
        return np.empty((0, 2))
    level_db = 10 * np.log10(np.maximum(power, 1e-12))
    floor_db, top_db = np.percentile(level_db, [5, 95])
    active = level_db > np.clip(floor_db + 6, top_db - 40, top_db - 10)
    edges = np.diff(np.concatenate([[0], active.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    long = (ends - starts) * _STEP_S >= _MIN_SPEECH_S
    starts_s, ends_s = starts[long] * step / sample_rate_hz, ends[long] * step / sample_rate_hz
    if len(starts_s) == 0:
        return np.empty((0, 2))
    starts_s, ends_s = np.maximum(starts_s - _MARGIN_S, 0), np.minimum(ends_s + _MARGIN_S, len(wave) / sample_rate_hz)
    apart = starts_s[1:] - ends_s[:-1] > pause_s
    return np.stack([starts_s[np.r_[True, apart]], ends_s[np.r_[apart, True]]], axis=1)


def seconds_by_voices(turns: Sequence[Turn]) -> NDArray[np.float64]:
    """Seconds in which so many speakers speak at once: the first of one, the second of two, …; empty without turns."""
    events: list[tuple[float, int]] = []
    for speaker in {turn.speaker for turn in turns}:
        for start_s, end_s in merge([(t.start_s, t.end_s) for t in turns if t.speaker == speaker], 0.0):
            events += [(start_s, 1), (end_s, -1)]
    if not events:
        return np.zeros(0)
    times, steps = np.array(sorted(events)).T
    seconds: NDArray[np.float64] = np.bincount(np.cumsum(steps)[:-1].astype(int), np.diff(times)).astype(np.float64)
    return seconds[1:]


def speech_and_overlap_s(turns: Sequence[Turn]) -> tuple[float, float]:
    """Seconds in which anybody, and in which two or more speakers, speak."""
    seconds = seconds_by_voices(turns)
    return float(seconds.sum()), float(seconds[1:].sum())


def merge(spans: Iterable[tuple[float, float]], gap_s: float) -> list[tuple[float, float]]:
    """Spans as (start, end) by time, those that overlap or have at most `gap_s` between them joined."""
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s - merged[-1][1] <= gap_s:
            merged[-1] = merged[-1][0], max(merged[-1][1], end_s)
        else:
            merged.append((start_s, end_s))
    return merged


class Piece(NamedTuple):
    """Speech of one utterance between two pauses; times in seconds from the start of its first segment."""

    wave: NDArray[np.float32]
    lead_s: float  # sound before the first segment
    segments: NDArray[np.float64]

    @property
    def length_s(self) -> float:
        return float(self.segments[-1, 1])

    @property
    def speech_s(self) -> float:
        return float((self.segments[:, 1] - self.segments[:, 0]).sum())


def cut(wave: NDArray[np.float32], recipe: Recipe) -> list[Piece]:
    """An utterance as pieces of at most `max_turn_s` (its upper end), cut at pauses (at none for pairs and mixtures).

    Raises
    ------
    ValueError : there is no speech in it.
    """
    rate = recipe.sample_rate_hz
    segments = speech_segments_s(wave, rate, recipe.pause_s)
    if len(segments) == 0:
        raise ValueError("no speech found: the audio is silent or too short")
    speaking = np.concatenate([wave[round(a * rate) : round(b * rate)] for a, b in segments])
    rms = max(float(np.sqrt(np.mean(np.square(speaking, dtype=np.float64)))), 1e-6)
    wave = wave * np.float32(10 ** (SPEECH_LEVEL_DB / 20) / rms)
    groups = [[0]]
    for k in range(1, len(segments)):
        if recipe.layout != "conversation" or segments[k, 1] - segments[groups[-1][0], 0] <= recipe.max_turn_s[1]:
            groups[-1].append(k)
        else:
            groups.append([k])
    pieces = []
    for group in groups:
        start_s, end_s = segments[group[0], 0], segments[group[-1], 1]
        first, last = max(round((start_s - PAD_S) * rate), 0), min(round((end_s + PAD_S) * rate), len(wave))
        pieces.append(Piece(_faded(wave[first:last], rate), start_s - first / rate, segments[group] - start_s))
    return pieces


def crop(piece: Piece, first_s: float, length_s: float, sample_rate_hz: int) -> Piece:
    """What is heard of a piece from `first_s` on for `length_s`; its times are from there on. May be without speech."""
    first = round((piece.lead_s + first_s) * sample_rate_hz)
    sound = _faded(piece.wave[first : first + round(length_s * sample_rate_hz)], sample_rate_hz)
    segments = np.clip(piece.segments - first_s, 0, length_s)
    return Piece(sound, 0.0, segments[segments[:, 1] - segments[:, 0] >= _MIN_SPEECH_S])


def _faded(sound: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
    sound = sound.copy()
    fade = np.linspace(0, 1, min(round(PAD_S * sample_rate_hz), len(sound) // 2), dtype=np.float32)
    sound[: len(fade)] *= fade
    sound[len(sound) - len(fade) :] *= fade[::-1]
    return sound
