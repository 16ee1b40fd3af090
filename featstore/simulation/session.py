"""One simulated session: find the speech in utterances, place it, mix it.

The conversation model is that of NeMo's ``MultiSpeakerSimulator``: one sentence after another, and before each a
silence or an overlap, drawn so that the session's running ratios move to what was asked. It needs no word alignments:
turns follow an energy detector. ``docs/decisions/0003-simulation-engine.md`` says why NeMo is not called itself.

Source: Park et al., “Property-Aware Multi-Speaker Data Simulation”, arXiv 2310.12371.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.corpora import audio
from featstore.simulation.recipe import Recipe
from featstore.types import Turn, Utterance

_STEP_S = 0.01  # of the energy detector
_MIN_SPEECH_S = 0.05  # shorter bursts are clicks
_MARGIN_S = 0.02  # added at both ends of detected speech: onsets and releases are weak
_PAD_S = 0.05  # of sound kept, and faded, on both sides of a piece of speech
_SPEECH_LEVEL_DB = -26.0  # RMS of speech in a session, relative to full scale


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


def speech_and_overlap_s(turns: Sequence[Turn]) -> tuple[float, float]:
    """Seconds in which anybody, and in which two or more speakers, speak."""
    events: list[tuple[float, int]] = []
    for speaker in {turn.speaker for turn in turns}:
        for start_s, end_s in _merge([(t.start_s, t.end_s) for t in turns if t.speaker == speaker], 0.0):
            events += [(start_s, 1), (end_s, -1)]
    if not events:
        return 0.0, 0.0
    times, steps = np.array(sorted(events)).T
    lengths, talking = np.diff(times), np.cumsum(steps)[:-1]
    return float(lengths[talking >= 1].sum()), float(lengths[talking >= 2].sum())


def _merge(spans: Sequence[tuple[float, float]], gap_s: float) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s - merged[-1][1] <= gap_s:
            merged[-1] = merged[-1][0], max(merged[-1][1], end_s)
        else:
            merged.append((start_s, end_s))
    return merged


class _Piece(NamedTuple):
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


class _Source:
    """One speaker's pieces, utterances in random order, all of them before any comes again."""

    def __init__(
        self,
        speaker: str,
        utterances: list[Utterance],
        recipe: Recipe,
        rng: np.random.Generator,
        failures: list[dict[str, str]],
    ) -> None:
        self.speaker, self.utterances, self.recipe, self.failures = speaker, list(utterances), recipe, failures
        self.rng = np.random.default_rng(rng.integers(2**63))  # of its own: how often it is asked changes nothing else
        self.order: deque[Utterance] = deque()
        self.pieces: deque[_Piece] = deque()

    def next(self) -> _Piece:
        """Raises ValueError where no utterance of the speaker can be used."""
        while not self.pieces:
            if not self.utterances:
                raise ValueError(f"speaker {self.speaker!r} has no utterance that can be used")
            if not self.order:
                self.order.extend(self.utterances[k] for k in self.rng.permutation(len(self.utterances)))
            utterance = self.order.popleft()
            try:
                self.pieces.extend(_cut(audio.load(utterance, self.recipe.sample_rate_hz), self.recipe))
            except (ValueError, OSError, RuntimeError) as error:  # soundfile raises RuntimeErrors
                self.utterances.remove(utterance)
                self.failures.append({"id": utterance.id, "error": " ".join(str(error).split())})
        return self.pieces.popleft()


def _cut(wave: NDArray[np.float32], recipe: Recipe) -> list[_Piece]:
    """An utterance as pieces of at most `max_turn_s`, cut at pauses (at none where a pair is made)."""
    rate = recipe.sample_rate_hz
    segments = speech_segments_s(wave, rate, recipe.pause_s)
    if len(segments) == 0:
        raise ValueError("no speech found: the audio is silent or too short")
    speaking = np.concatenate([wave[round(a * rate) : round(b * rate)] for a, b in segments])
    rms = max(float(np.sqrt(np.mean(np.square(speaking, dtype=np.float64)))), 1e-6)
    wave = wave * np.float32(10 ** (_SPEECH_LEVEL_DB / 20) / rms)
    groups = [[0]]
    for k in range(1, len(segments)):
        if recipe.layout == "pair" or segments[k, 1] - segments[groups[-1][0], 0] <= recipe.max_turn_s:
            groups[-1].append(k)
        else:
            groups.append([k])
    pieces = []
    for group in groups:
        start_s, end_s = segments[group[0], 0], segments[group[-1], 1]
        first, last = max(round((start_s - _PAD_S) * rate), 0), min(round((end_s + _PAD_S) * rate), len(wave))
        sound = wave[first:last].copy()
        fade = np.linspace(0, 1, min(round(_PAD_S * rate), len(sound) // 2), dtype=np.float32)
        sound[: len(fade)] *= fade
        sound[len(sound) - len(fade) :] *= fade[::-1]
        pieces.append(_Piece(sound, start_s - first / rate, segments[group] - start_s))
    return pieces


_Placed = tuple[float, str, _Piece]  # start of the first segment in seconds, speaker, piece


def make_session(
    speakers: dict[str, list[Utterance]], recipe: Recipe, rng: np.random.Generator, failures: list[dict[str, str]]
) -> tuple[NDArray[np.float32], list[Turn]]:
    """Draw, place and mix one session.

    Parameters
    ----------
    speakers : speaker → utterances; at least as many as the recipe's sessions have.
    failures : utterances that could not be used are appended, as ``{"id": …, "error": …}``.

    Returns
    -------
    samples at the recipe's rate, shape ``(samples,)``, and the turns by time.

    Raises
    ------
    ValueError : a speaker has no utterance that can be used.
    """
    count = int(rng.integers(int(recipe.speakers[0]), int(recipe.speakers[1]) + 1))
    names = [sorted(speakers)[k] for k in rng.choice(len(speakers), count, replace=False)]
    sources = {name: _Source(name, speakers[name], recipe, rng, failures) for name in names}
    if recipe.layout == "pair":
        placed, length_s = _pair(sources, recipe, rng)
    else:
        assert recipe.duration_s is not None  # no recipe of a conversation is without
        length_s = float(rng.uniform(*recipe.duration_s))
        placed = _conversation(sources, recipe, rng, length_s)
    return _mix(placed, recipe, rng, round(length_s * recipe.sample_rate_hz))


def _pair(sources: dict[str, _Source], recipe: Recipe, rng: np.random.Generator) -> tuple[list[_Placed], float]:
    (a, first), (b, second) = ((name, source.next()) for name, source in sources.items())
    shared_s = float(rng.uniform(*recipe.overlap)) * min(first.length_s, second.length_s)
    start_s = _PAD_S
    second_start_s = start_s + first.length_s - shared_s
    return [(start_s, a, first), (second_start_s, b, second)], second_start_s + second.length_s + _PAD_S


def _conversation(
    sources: dict[str, _Source], recipe: Recipe, rng: np.random.Generator, length_s: float
) -> list[_Placed]:
    """Sentence after sentence until `length_s` is full; the last may stick out and is cut when mixed."""
    overlap, silence = (float(rng.uniform(*asked)) for asked in (recipe.overlap, recipe.silence))
    names = list(sources)
    shares = np.clip(rng.normal(1 / len(names), recipe.dominance_sd, len(names)), 0.05, None)
    ends_s = dict.fromkeys(names, 0.0)  # where each speaker's last sentence ends
    placed: list[_Placed] = []
    turns: list[Turn] = []
    previous = None
    while (now_s := max(ends_s.values())) < length_s:
        name = _next_speaker(names, shares, previous, recipe, rng, ends_s, now_s, len(placed), length_s)
        piece = sources[name].next()
        speech_s, overlap_s = speech_and_overlap_s(turns)
        # What is missing once this sentence is there: (overlap + x) / (speech + new - x) = asked, and
        # (silence + x) / (session + new + x) = asked, both solved for x.
        missing_overlap_s = (overlap * (speech_s + piece.speech_s) - overlap_s) / (1 + overlap)
        missing_silence_s = (silence * (now_s + piece.length_s) - (now_s - speech_s)) / (1 - silence)
        if previous not in (None, name) and missing_overlap_s > 0 and missing_overlap_s >= missing_silence_s:
            # Never three at once, never over the speaker's own last words.
            earliest_s = max(ends_s[name], sorted(ends_s.values())[-2])
            start_s = max(now_s - rng.gamma(4, missing_overlap_s / 4), earliest_s)
        else:
            start_s = now_s + (rng.gamma(4, missing_silence_s / 4) if missing_silence_s > 0 else 0.0)
        placed.append((start_s, name, piece))
        turns += [Turn(start_s + a, start_s + b, name) for a, b in piece.segments.tolist()]
        ends_s[name] = start_s + piece.length_s
        previous = name
    return placed


def _next_speaker(
    names: list[str],
    shares: NDArray[np.float64],
    previous: str | None,
    recipe: Recipe,
    rng: np.random.Generator,
    ends_s: dict[str, float],
    now_s: float,
    sentences: int,
    length_s: float,
) -> str:
    stays, chance = rng.random(2)
    # Everybody shall speak: when time runs short for those who have not, it is their turn.
    unheard = np.array([ends_s[name] == 0 for name in names])
    if unheard.any() and sentences and length_s - now_s < 3 * unheard.sum() * now_s / sentences:
        open_to = unheard
    elif previous is not None and (stays >= recipe.turn_prob or len(names) == 1):
        return previous
    else:
        open_to = np.array([name != previous for name in names])
    weights = np.where(open_to, shares, 0)
    return names[int(np.searchsorted(np.cumsum(weights) / weights.sum(), chance, side="right"))]


def _mix(
    placed: list[_Placed], recipe: Recipe, rng: np.random.Generator, samples: int
) -> tuple[NDArray[np.float32], list[Turn]]:
    rate, session = recipe.sample_rate_hz, np.zeros(samples, np.float32)
    names = sorted({name for _, name, _ in placed})
    gains = dict(zip(names, 10 ** (rng.normal(0, recipe.level_sd_db, len(names)) / 20), strict=True))
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for start_s, name, piece in placed:
        first = round((start_s - piece.lead_s) * rate)
        sound = piece.wave[max(-first, 0) :]
        first = max(first, 0)
        sound = sound[: max(samples - first, 0)]
        session[first : first + len(sound)] += sound * np.float32(gains[name])
        spans[name] += [(start_s + a, min(start_s + b, samples / rate)) for a, b in piece.segments.tolist()]
    if recipe.noise_snr_db is not None:
        from scipy.signal import lfilter  # slow to import, and workers start often

        noise = lfilter([1], [1, -0.9], rng.standard_normal(samples))  # falls off towards high frequencies, as rooms do
        level = 10 ** ((_SPEECH_LEVEL_DB - rng.uniform(*recipe.noise_snr_db)) / 20)
        session += (noise * (level / noise.std())).astype(np.float32)
    peak = float(np.abs(session).max(initial=0))
    if peak > 0.99:
        session *= np.float32(0.99 / peak)
    turns = [Turn(a, b, name) for name in names for a, b in _merge(spans[name], recipe.pause_s) if b - a >= 0.001]
    return session, sorted(turns, key=lambda turn: (turn.start_s, turn.end_s))
