"""Audio as it comes over a WebSocket: a message at a time to samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.corpora.audio import MIN_RATE_HZ

MAX_RATE_HZ, MAX_CHANNELS = 384_000, 16
MOSHI_RATE_HZ = 24_000
# A page of Ogg holds at most 255 packets of 120 ms: so little at a time, and a message of a megabyte that stands for
# hours waits its turn.
_OPUS_BYTES = 4096


class Decoder(Protocol):
    """Messages in, samples out."""

    rate_hz: int

    def decode(self, message: bytes) -> Iterator[NDArray[Any]]:
        """Samples (n,) or (n, channels) of a message, in pieces.

        Raises
        ------
        ValueError : the message is no audio of this kind.
        """


class Pcm:
    """Little-endian samples, ``f32`` (full scale ±1) or ``i16``, channels side by side."""

    def __init__(self, kind: str, rate_hz: int, channels: int) -> None:
        self.rate_hz, self._channels = rate_hz, channels
        self._dtype = np.dtype("<f4" if kind == "f32" else "<i2")

    def decode(self, message: bytes) -> Iterator[NDArray[Any]]:
        """See `Decoder.decode`."""
        frame = self._dtype.itemsize * self._channels
        if len(message) % frame:
            raise ValueError(f"audio: expected a multiple of {frame} bytes a message, found {len(message)}")
        samples = np.frombuffer(message, self._dtype)
        if self._dtype.kind == "f" and not np.isfinite(samples).all():
            raise ValueError("audio: samples hold NaN or infinity")
        yield samples.reshape(-1, self._channels) if self._channels > 1 else samples


class Opus:
    """Pages of one Ogg-Opus stream, as Moshi's clients send them; mono."""

    def __init__(self, rate_hz: int = MOSHI_RATE_HZ) -> None:
        try:
            import sphn
        except ImportError:
            raise ValueError("Ogg-Opus needs sphn: pip install -e '.[serve]'") from None
        self.rate_hz, self._reader, self._broken = rate_hz, sphn.OpusStreamReader(rate_hz), False

    def decode(self, message: bytes) -> Iterator[NDArray[Any]]:
        """See `Decoder.decode`; what follows broken pages is refused too, as their reader finds no way back."""
        for at in range(0, len(message), _OPUS_BYTES):
            if self._broken:
                raise ValueError("audio: the Ogg-Opus stream broke before: connect again and begin another")
            try:
                yield self._reader.append_bytes(message[at : at + _OPUS_BYTES])
            except Exception as error:
                self._broken = True
                raise ValueError(f"audio: not Ogg-Opus: {error}") from None


def decoder(kind: str, rate_hz: int, channels: int) -> Decoder:
    """What reads messages of a kind: ``f32``, ``i16`` or ``opus``.

    Raises
    ------
    ValueError : another kind, rate or number of channels than there can be; Ogg-Opus without its library.
    """
    if kind not in ("f32", "i16", "opus"):
        raise ValueError(f"start: format: expected f32, i16 or opus, found {kind!r}")
    if type(rate_hz) is not int or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise ValueError(f"start: rate_hz: expected {MIN_RATE_HZ} to {MAX_RATE_HZ}, found {rate_hz!r}")
    if type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"start: channels: expected 1 to {MAX_CHANNELS}, found {channels!r}")
    if kind == "opus":
        return Opus()
    return Pcm(kind, rate_hz, channels)
