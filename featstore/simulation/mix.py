"""Placed pieces of speech become a session's sound: through a room, with noise under them, over a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.simulation.channel import band_limited, coded
from featstore.simulation.noise import add_noise, energy
from featstore.simulation.recipe import Recipe
from featstore.simulation.rooms import Response, in_room
from featstore.simulation.speech import SPEECH_LEVEL_DB, Piece, merge
from featstore.types import Turn, Utterance

Placed = tuple[float, str, Piece]  # start of the first segment in seconds, speaker, piece
_PEAK = 0.99


def mix(
    placed: list[Placed],
    recipe: Recipe,
    rng: np.random.Generator,
    samples: int,
    others: Sequence[Utterance],
    failures: list[dict[str, str]],
    tracks: dict[str, NDArray[np.float32]] | None = None,
    told: Callable[[float], None] = lambda share: None,
) -> tuple[NDArray[np.float32], list[Turn], dict[str, Any]]:
    """Mix a session.

    Parameters
    ----------
    others : what may babble: utterances of speakers that are not in the session.
    failures : noise that could not be used is appended, as ``{"id": …, "error": …}``.
    tracks : filled with each voice alone, as it is in the mixture: in the room, at its level, before band limit and codec.
        With the noise they add up to what the channel was given.
    told : called with the share of the pieces that are in.

    Returns
    -------
    samples, shape ``(samples,)``; the turns by time; what was drawn and measured, empty where the recipe is a dry one.

    Raises
    ------
    ValueError : no such room; no noise that can be used.
    """
    rate = recipe.sample_rate_hz
    session: NDArray[np.float32] = np.zeros(samples, np.float32)
    names = sorted({name for _, name, _ in placed})
    # Each effect draws for itself: who adds noise to a recipe keeps its talk and its rooms.
    room_rng, noise_rng, channel_rng = rng.spawn(3)
    facts: dict[str, Any] = {}
    responses: dict[str, Response] = {}
    if recipe.rooms is not None and room_rng.random() < recipe.rooms.share:
        responses, facts["room"] = in_room(recipe.rooms, names, room_rng, rate)
    gains = dict(zip(names, 10 ** (rng.normal(0, recipe.level_sd_db, len(names)) / 20), strict=True))
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number, (start_s, name, piece) in enumerate(placed):
        told(number / len(placed))
        first = round((start_s - piece.lead_s) * rate)
        sound, lead = _heard(piece.wave, responses.get(name))
        first -= lead
        sound = sound[max(-first, 0) :]
        first = max(first, 0)
        sound = sound[: max(samples - first, 0)]
        for out in (session,) if tracks is None else (session, tracks.setdefault(name, np.zeros_like(session))):
            out[first : first + len(sound)] += sound * np.float32(gains[name])
        spans[name] += [(start_s + a, min(start_s + b, samples / rate)) for a, b in piece.segments.tolist()]
    turns = [Turn(a, b, name) for name in names for a, b in merge(spans[name], recipe.pause_s) if b - a >= 0.001]
    if recipe.noise_snr_db is not None:
        from scipy.signal import lfilter  # slow to import, and workers start often

        noise = lfilter([1], [1, -0.9], rng.standard_normal(samples))  # falls off towards high frequencies, as rooms do
        level = 10 ** ((SPEECH_LEVEL_DB - rng.uniform(*recipe.noise_snr_db)) / 20)
        session += (noise * (level / noise.std())).astype(np.float32)
    if recipe.noise is not None and turns:
        power = _power_of_speech(session, turns, rate)
        if found := add_noise(session, power, recipe.noise, noise_rng, rate, others, failures):
            facts["noise"] = found
    session, transmitted = _transmitted(session, recipe, channel_rng, list((tracks or {}).values()))
    return session, sorted(turns, key=lambda turn: (turn.start_s, turn.end_s)), facts | transmitted


def _heard(wave: NDArray[np.float32], response: Response | None) -> tuple[NDArray[np.float32], int]:
    """A piece at the microphone, and how many samples of it are before the dry one would begin."""
    if response is None:
        return wave, 0
    from scipy.signal import oaconvolve  # slow to import, and workers start often

    return oaconvolve(wave, response.taps).astype(np.float32), response.lead_samples


def _power_of_speech(session: NDArray[np.float32], turns: Sequence[Turn], rate: int) -> float:
    spans = merge([(t.start_s, t.end_s) for t in turns], 0.0)
    parts = [session[round(a * rate) : round(b * rate)] for a, b in spans]
    return sum(map(energy, parts)) / sum(map(len, parts))


def _transmitted(
    session: NDArray[np.float32], recipe: Recipe, rng: np.random.Generator, tracks: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    facts: dict[str, Any] = {}
    codec = "none"
    if recipe.channel is not None:
        low_hz, high_hz = recipe.channel.bands_hz[rng.integers(len(recipe.channel.bands_hz))]
        codec = recipe.channel.codecs[rng.integers(len(recipe.channel.codecs))]
        facts["channel"] = {"band_hz": [low_hz, min(high_hz, recipe.sample_rate_hz / 2)], "codec": codec}
        session = band_limited(session, recipe.sample_rate_hz, low_hz, high_hz)
    if recipe.level_db is not None and session.any():
        gain = np.float32(10 ** (rng.uniform(*recipe.level_db) / 20) / np.sqrt(energy(session) / len(session)))
        for wave in (session, *tracks):
            wave *= gain
    peak = max(float(np.abs(wave).max(initial=0)) for wave in (session, *tracks))
    if peak > _PEAK:
        for wave in (session, *tracks):
            wave *= np.float32(_PEAK / peak)
    session = coded(session, recipe.sample_rate_hz, codec)
    if not recipe.is_dry:
        facts["level_db"] = round(10 * float(np.log10(max(energy(session) / len(session), 1e-12))), 2)
    return session, facts
