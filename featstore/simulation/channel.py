"""What a session goes through after the microphone: band limits, a level, a codec."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

_BLOCK = 1 << 20  # samples filtered at a time
#: libsndfile's container, coding and rate of each codec; the compressed ones at its quality 0.9, 22 to 25 kbit/s.
_CODECS = {
    "ulaw": ("WAV", "ULAW", 8_000),
    "alaw": ("WAV", "ALAW", 8_000),
    "gsm": ("WAV", "GSM610", 8_000),
    "opus": ("OGG", "OPUS", 16_000),
    "mp3": ("MP3", "MPEG_LAYER_III", 16_000),
}
_COMPRESSED = {"opus": 0.9, "mp3": 0.9}


def band_limited(wave: NDArray[np.float32], sample_rate_hz: int, low_hz: float, high_hz: float) -> NDArray[np.float32]:
    """What is between two frequencies, by Butterworth filters of 24 and 48 dB an octave; in place.

    0 and half the sampling rate (or more) cut nothing off.
    """
    from scipy.signal import butter, sosfilt  # slow to import, and workers start often

    sections = []
    if low_hz > 0:
        sections.append(butter(4, low_hz, "highpass", fs=sample_rate_hz, output="sos"))
    if high_hz < sample_rate_hz / 2:
        sections.append(butter(8, high_hz, "lowpass", fs=sample_rate_hz, output="sos"))
    for sos in sections:
        state = np.zeros((len(sos), 2))
        for first in range(0, len(wave), _BLOCK):
            block, state = sosfilt(sos, wave[first : first + _BLOCK].astype(np.float64), zi=state)
            wave[first : first + _BLOCK] = block
    return wave


def coded(wave: NDArray[np.float32], sample_rate_hz: int, codec: str) -> NDArray[np.float32]:
    """Coded and decoded in memory; as many samples, none of them moved.

    Parameters
    ----------
    codec : "none" or a key of ulaw, alaw (G.711), gsm (06.10), opus, mp3.
    """
    if codec == "none":
        return wave
    container, coding, rate = _CODECS[codec]
    buffer = io.BytesIO()
    slow = soxr.resample(wave, sample_rate_hz, rate) if rate != sample_rate_hz else wave
    quality = {"compression_level": _COMPRESSED[codec]} if codec in _COMPRESSED else {}
    soundfile.write(buffer, slow, rate, format=container, subtype=coding, **quality)
    buffer.seek(0)
    decoded, _ = soundfile.read(buffer, dtype="float32")
    back = soxr.resample(decoded, rate, sample_rate_hz) if rate != sample_rate_hz else decoded
    out = np.zeros_like(wave)
    out[: len(back)] = back[: len(out)]
    return out
