"""Audio out: FLAC and Ogg Opus files, whole or not there, the same bytes for the same samples."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from featstore.files import write_atomically

_OPUS_LEVEL = 0.975  # libsndfile's scale of 0 to 1: 12 kbit/s, at which Opus codes speech up to 8 kHz
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # the bits of a byte in the other order


def write_audio(
    path: str | os.PathLike[str], wave: NDArray[np.float32], sample_rate_hz: int, audio_format: str
) -> None:
    """Write mono audio as "flac" (16 bit) or "opus" (Ogg, 12 kbit/s); the same samples give the same bytes.

    Parameters
    ----------
    wave : shape ``(samples,)``, full scale is 1.

    Raises
    ------
    ValueError : another format.
    OSError : the file cannot be written.
    """
    if audio_format not in ("flac", "opus"):
        raise ValueError(f'audio_format must be "flac" or "opus", found {audio_format!r}')
    buffer = io.BytesIO()
    if audio_format == "flac":
        soundfile.write(buffer, wave, sample_rate_hz, format="FLAC", subtype="PCM_16")
    else:
        soundfile.write(buffer, wave, sample_rate_hz, format="OGG", subtype="OPUS", compression_level=_OPUS_LEVEL)
    data = buffer.getvalue() if audio_format == "flac" else _with_fixed_serial(buffer.getvalue())
    write_atomically(Path(path), data)


def _with_fixed_serial(data: bytes) -> bytes:
    """Set the stream's serial number to 1: libsndfile draws it from the clock, and files would differ.

    Source: RFC 3533, section 6 (page header: serial number at byte 14, CRC at 22, segment table from 26).
    """
    out, at = bytearray(data), 0
    while at < len(out):
        segments = out[at + 26]
        end = at + 27 + segments + sum(out[at + 27 : at + 27 + segments])
        out[at + 14 : at + 18] = (1).to_bytes(4, "little")
        out[at + 22 : at + 26] = bytes(4)
        out[at + 22 : at + 26] = _ogg_crc(out[at:end])
        at = end
    return bytes(out)


def _ogg_crc(page: bytes | bytearray) -> bytes:
    """Ogg's CRC is zlib's polynomial with the bits of every byte in the other order, begun and ended with no ones."""
    mirrored = zlib.crc32(page.translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return mirrored.to_bytes(4, "big").translate(_MIRROR)
