"""What else is heard in a session: coloured noise, mains hum, the babble of other voices, recordings of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.corpora import audio
from featstore.corpora.manifest import read_manifest
from featstore.simulation.recipe import Noise
from featstore.types import Utterance

_BLOCK_S = 20.0  # noise is made in blocks that fade into each other, so that hours need no more memory than their sum
_HARMONICS = 8
_FLAT_BELOW_HZ = 50.0  # or the power of brown noise would all be where nobody hears it
_FAR_S = 0.3  # voices that babble come by way of the walls


def energy(wave: NDArray[np.float32]) -> float:
    """The sum of the squares, with no copy of the whole."""
    step = 1 << 20
    return sum(float(np.square(wave[k : k + step], dtype=np.float64).sum()) for k in range(0, len(wave), step))


def add_noise(
    session: NDArray[np.float32],
    speech_power: float,
    noise: Noise,
    rng: np.random.Generator,
    sample_rate_hz: int,
    others: Sequence[Utterance],
    failures: list[dict[str, str]],
) -> dict[str, Any]:
    """Add to a session, in place, the kinds of noise that are drawn for it.

    Parameters
    ----------
    session : shape ``(samples,)``, the voices.
    speech_power : mean square of the voices while anybody speaks.
    others : utterances of speakers that are not in the session.
    failures : noise that could not be used is appended, as ``{"id": …, "error": …}``.

    Returns
    -------
    of each kind ``{"snr_db": …}``, ``asked_snr_db`` of all kinds together and the measured ``snr_db``; empty where none
    was drawn.

    Raises
    ------
    ValueError : none of the recordings can be used.
    """
    facts: dict[str, Any] = {}
    total = None
    shares = {"coloured": noise.coloured, "hum": noise.hum, "babble": noise.babble, "recorded": noise.recorded}
    for (kind, share), own in zip(shares.items(), rng.spawn(len(shares)), strict=True):  # one kind changes no other
        if own.random() >= share:
            continue
        snr_db = float(own.uniform(*noise.snr_db))
        wave = _make(kind, noise, own, len(session), sample_rate_hz, others, failures)
        wave *= np.float32(np.sqrt(speech_power * 10 ** (-snr_db / 10) * len(wave) / energy(wave)))
        facts[kind] = {"snr_db": round(snr_db, 3)}
        total = wave if total is None else total + wave
    if total is None:
        return {}
    asked = -10 * np.log10(sum(10 ** (-fact["snr_db"] / 10) for fact in facts.values()))
    got = 10 * np.log10(speech_power * len(total) / energy(total))
    session += total
    return {**facts, "asked_snr_db": round(float(asked), 3), "snr_db": round(float(got), 3)}


def _make(
    kind: str,
    noise: Noise,
    rng: np.random.Generator,
    samples: int,
    rate: int,
    others: Sequence[Utterance],
    failures: list[dict[str, str]],
) -> NDArray[np.float32]:
    if kind == "hum":
        return hum(rng, samples, rate)
    if kind == "coloured":
        slope = float(rng.uniform(*noise.slope))
        return _stretched(lambda size: coloured(rng, size, rate, slope), samples, rate)
    if kind == "babble":
        voices = _Sounds(others, rng, rate, failures)
        return _stretched(lambda size: _babble(voices, noise.babble_voices, rng, size, rate), samples, rate)
    assert noise.manifest is not None  # no recipe that asks for recorded noise is without
    recordings = _Sounds(read_manifest(noise.manifest), rng, rate, failures)
    return _stretched(recordings.next, samples, rate)


def _stretched(make: Callable[[int], NDArray[Any]], samples: int, rate: int) -> NDArray[np.float32]:
    """Blocks of `make`, each fading into the next so that the power stays the same."""
    half = round(_BLOCK_S / 2 * rate)
    if samples <= half:
        return make(samples).astype(np.float32)
    fade = np.sin(np.pi / 2 * (np.arange(half) + 0.5) / half)
    out = np.zeros(-(-samples // half) * half + half, np.float32)
    for first in range(0, samples, half):
        block = make(2 * half)
        out[first : first + half] += block[:half] * (fade if first else 1.0)
        out[first + half : first + 2 * half] += block[half:] * fade[::-1]
    return out[:samples]


def coloured(rng: np.random.Generator, samples: int, rate: int, slope: float) -> NDArray[np.float64]:
    """Noise whose power falls as 1/f^slope, flat below 50 Hz; its power is 1 on average."""
    frequencies = np.fft.rfftfreq(samples, 1 / rate)
    gain = np.maximum(frequencies, _FLAT_BELOW_HZ) ** (-slope / 2)
    spectrum = np.fft.rfft(rng.standard_normal(samples)) * (gain / np.sqrt(np.mean(gain**2)))
    return np.fft.irfft(spectrum, samples)


def hum(rng: np.random.Generator, samples: int, rate: int) -> NDArray[np.float32]:
    """50 or 60 Hz and harmonics of random strength; one second of it is the same as the next."""
    base = int(rng.choice([50, 60]))
    multiples = np.arange(1, min(_HARMONICS, (rate // 2 - 1) // base) + 1)
    strength, phase = rng.random((2, len(multiples)))
    time = np.arange(rate)[:, None] / rate
    waves = np.sin(2 * np.pi * (base * multiples * time + phase))
    return np.resize((waves @ (strength / multiples)).astype(np.float32), samples)


def _babble(voices: _Sounds, count: int, rng: np.random.Generator, samples: int, rate: int) -> NDArray[np.float64]:
    from scipy.signal import oaconvolve  # slow to import, and workers start often

    total = np.zeros(samples)
    for _ in range(count):
        total += np.roll(voices.next(samples), int(rng.integers(samples)))
    time = np.arange(round(2 * _FAR_S * rate)) / rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / _FAR_S)
    return np.asarray(oaconvolve(total, tail)[:samples])


class _Sounds:
    """Stretches of random utterances, as loud as each other; those that cannot be used are listed and left."""

    def __init__(
        self, utterances: Sequence[Utterance], rng: np.random.Generator, rate: int, failures: list[dict[str, str]]
    ) -> None:
        self.utterances, self.rng, self.rate, self.failures = list(utterances), rng, rate, failures

    def next(self, samples: int) -> NDArray[np.float32]:
        """A random stretch; shorter utterances come again and again."""
        while self.utterances:
            utterance = self.utterances[int(self.rng.integers(len(self.utterances)))]
            try:
                wave = audio.load(self._stretch(utterance, samples / self.rate), self.rate)
                return np.resize(wave / np.float32(np.sqrt(energy(wave) / len(wave))), samples)
            except (ValueError, OSError, RuntimeError) as error:  # soundfile raises RuntimeErrors
                self.utterances.remove(utterance)
                self.failures.append({"id": utterance.id, "error": " ".join(str(error).split())})
        raise ValueError("no noise can be used: every utterance of it is in failures.jsonl")

    def _stretch(self, utterance: Utterance, seconds: float) -> Utterance:
        length_s = utterance.duration_s
        if not length_s >= seconds:  # shorter, or not known
            return utterance
        start_s = utterance.start_s + float(self.rng.uniform(0, length_s - seconds))
        return replace(utterance, start_s=start_s, duration_s=seconds, turns=())
