"""Where sound comes from: a microphone, a file at its own speed or as fast as it goes, standard input."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

_BLOCK_S = 0.04
#: More than this is not kept of what a microphone hears while the head is busy.
_WAITING_S = 30.0

Sounding = Iterator[tuple[NDArray[Any], int]]


class Microphone:
    """Samples of a microphone, as long as somebody takes them.

    Attributes
    ----------
    lost_s : what nobody took in time.

    Raises
    ------
    ValueError : sounddevice is not installed, or there is no such device.
    """

    def __init__(self, device: str | None) -> None:
        try:
            import sounddevice
        except (ModuleNotFoundError, OSError) as error:  # OSError: PortAudio itself is missing
            raise ValueError(
                f"a microphone needs sounddevice and PortAudio ({error}); where whowhen was cloned: "
                "pip install -e '.[live]' (Debian: apt-get install libportaudio2)"
            ) from None
        number = int(device) if device and device.isdecimal() else device
        self.lost_s = 0.0
        try:
            self.rate_hz = int(sounddevice.query_devices(number, "input")["default_samplerate"])
            self._queue: queue.Queue[NDArray[Any]] = queue.Queue(round(_WAITING_S / _BLOCK_S))
            self._stream = sounddevice.InputStream(
                samplerate=self.rate_hz,
                blocksize=round(_BLOCK_S * self.rate_hz),
                device=number,
                channels=1,
                dtype="float32",
                callback=self._take,
            )
        except (sounddevice.PortAudioError, ValueError) as error:
            raise ValueError(f"no microphone {device or ''}: {error}; python -m sounddevice lists devices") from None

    def _take(self, samples: NDArray[Any], frames: int, *_: object) -> None:
        try:
            self._queue.put_nowait(samples.copy())
        except queue.Full:
            self.lost_s += frames / self.rate_hz

    def __iter__(self) -> Sounding:
        with self._stream:
            while True:
                try:
                    yield self._queue.get(timeout=0.2), self.rate_hz  # a timeout lets Ctrl-C through
                except queue.Empty:
                    continue


def of_file(path: Path, fast: bool) -> Sounding:
    """A file's samples, no sooner than they would sound.

    Raises
    ------
    ValueError, OSError : not a file that can be heard; at once, before anything is written of it.
    """
    return _at_its_speed(path, opened(path), fast)


def opened(path: Path) -> sf.SoundFile:
    """A file that can be heard.

    Raises
    ------
    ValueError, OSError : it is none.
    """
    with open(path, "rb"):  # of a file that is not there libsndfile says no more than "System error"
        pass
    try:
        return sf.SoundFile(path)
    except sf.SoundFileError as error:
        raise ValueError(f"{path}: cannot be heard, expected audio: {error}") from None


def _at_its_speed(path: Path, file: sf.SoundFile, fast: bool) -> Sounding:
    began, heard = time.monotonic(), 0
    with file:
        blocks = file.blocks(round(_BLOCK_S * file.samplerate), dtype="float32", always_2d=True)
        while True:
            try:
                block = next(blocks, None)
            except sf.SoundFileError as error:
                raise ValueError(f"{path}: damaged after {heard / file.samplerate:.1f} s: {error}") from None
            if block is None:
                return
            heard += len(block)
            if not fast:
                time.sleep(max(0.0, began + heard / file.samplerate - time.monotonic()))
            yield block, file.samplerate


def of_stdin(stream: BinaryIO, rate_hz: int | None) -> Sounding:
    """Samples from a pipe as they come: WAV, or with `rate_hz` mono PCM of 16 bits, little-endian, without a header.

    Raises
    ------
    ValueError : neither.
    """
    channels, kind, width = 1, "<i2", 2
    if rate_hz is None:
        rate_hz, channels, kind, width = _wav_header(stream)
    left = b""
    size = width * channels
    while chunk := stream.read1(1 << 16) if hasattr(stream, "read1") else stream.read(1 << 12):
        data = left + chunk
        cut = len(data) // size * size
        left = data[cut:]
        if width == 3:
            wide = np.frombuffer(data[:cut], np.uint8).reshape(-1, 3)
            samples = (np.pad(wide, ((0, 0), (1, 0))).copy().view("<i4")).reshape(-1, channels)
        else:
            samples = np.frombuffer(data[:cut], kind).reshape(-1, channels)
        yield samples, rate_hz


def _wav_header(stream: BinaryIO) -> tuple[int, int, str, int]:
    """Rate, channels, type and bytes of a sample; the stream then stands at the first sample.

    libsndfile would look for the end of a pipe, which has none yet.
    """
    if stream.read(4) != b"RIFF" or not stream.read(4) or stream.read(4) != b"WAVE":
        raise ValueError("-: expected WAV on standard input, or --rate for PCM of 16 bits (ffmpeg … -f wav -)")
    found: tuple[int, int, str, int] | None = None
    while len(head := stream.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            break
        body = stream.read(size + size % 2)
        if name == b"fmt " and len(body) >= 16:
            tag, channels = int.from_bytes(body[:2], "little"), int.from_bytes(body[2:4], "little")
            rate, bits = int.from_bytes(body[4:8], "little"), int.from_bytes(body[14:16], "little")
            tag = int.from_bytes(body[24:26], "little") if tag == 0xFFFE and len(body) >= 26 else tag
            kinds = {(1, 16): "<i2", (1, 24): "<i4", (1, 32): "<i4", (3, 32): "<f4", (3, 64): "<f8"}
            if (tag, bits) not in kinds or not 1 <= channels <= 64 or not 1000 <= rate <= 384_000:
                raise ValueError(
                    f"-: WAV of format {tag} with {bits} bits, {channels} channels and {rate} Hz; expected PCM or float at "
                    "1000 to 384000 Hz: ffmpeg -i FILE -f wav -c:a pcm_s16le - | whowhen live -"
                )
            found = rate, channels, kinds[tag, bits], bits // 8
    if found is None:
        raise ValueError("-: a WAV without a format chunk")
    return found
