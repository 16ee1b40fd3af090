"""Audio in: decode, downmix, resample; every defect is a clear error, never a silent guess."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from featstore.types import Utterance

#: How far a manifest's duration may pass the end of the file: rounding, not a mistake.
TOLERANCE_S = 0.05
#: Below this peak (full scale is 1) there is nothing to hear, not even dither.
SILENCE = 1e-5
#: Slower than any speech was ever sampled: a damaged header, which would become hours of audio.
MIN_RATE_HZ = 1000
_BLOCK_S = 30
#: A header may claim any length: beyond this, memory is taken as samples come.
_BELIEVED_SAMPLES = 1 << 24
T = TypeVar("T")


def load(
    source: Utterance | str | PathLike[str], sample_rate_hz: int, *, silence_ok: bool = False
) -> NDArray[np.float32]:
    """Decode an utterance (or a whole file) to mono at a sample rate.

    Channels are averaged; the rate is changed by soxr in blocks, so that besides the result only a block is held.

    Returns
    -------
    (samples,) float32

    Raises
    ------
    ValueError : missing, empty, not audio, cut short, no samples, NaN or infinite samples, silence (unless
        `silence_ok`), more than the memory holds, or a manifest's duration that passes the file's end.
    OSError : the file may not be read, or the disk fails, twice.
    """
    utterance = source if isinstance(source, Utterance) else None
    name = utterance.audio if utterance else str(source)
    return _twice(name, lambda: _load(utterance, name, sample_rate_hz, silence_ok))


def _load(utterance: Utterance | None, name: str, sample_rate_hz: int, silence_ok: bool) -> NDArray[np.float32]:
    with _open(name) as file:
        return _read(file, name, *_part(file, name, utterance), sample_rate_hz, silence_ok)


def _part(file: sf.SoundFile, name: str, utterance: Utterance | None) -> tuple[int, int]:
    """The first sample of an utterance in its file, and how many there are."""
    rate, total = file.samplerate, file.frames
    if total <= 0:
        raise ValueError(f"{name}: no samples in it")
    first, count = 0, total
    if utterance:
        first = round(utterance.start_s * rate)
        if not math.isnan(utterance.duration_s):
            count = round(utterance.duration_s * rate)
        elif first < total:
            count = total - first
        if first + count > total + TOLERANCE_S * rate or first >= total:
            raise ValueError(
                f"{name}: the manifest says {utterance.start_s:g} s + {utterance.duration_s:g} s, "
                f"the file ends at {total / rate:.3f} s; correct offset and duration, or fetch the file again"
            )
        count = min(count, total - first)
    if count < 1:
        raise ValueError(f"{name}: the utterance is shorter than one sample")
    return first, count


def pieces(source: Utterance | str | PathLike[str], sample_rate_hz: int, samples: int) -> Iterator[NDArray[np.float32]]:
    """`load` in pieces of `samples`, of which the last is shorter: memory does not grow with the recording's length.

    Raises
    ------
    ValueError, OSError : like `load`, when the defect is met; that all of it is silent, at the end.
    """
    utterance = source if isinstance(source, Utterance) else None
    name = utterance.audio if utterance else str(source)
    with _open(name) as file:
        waiting: list[NDArray[np.float32]] = []
        for block in _blocks(file, name, *_part(file, name, utterance), sample_rate_hz, silence_ok=False):
            waiting.append(block)
            if sum(map(len, waiting)) >= samples:
                whole = np.concatenate(waiting)
                cut = len(whole) // samples * samples
                yield from np.split(whole[:cut], cut // samples)
                waiting = [whole[cut:]]
        if len(rest := np.concatenate(waiting)):
            yield rest


def duration_s(name: str) -> float:
    """A file's duration from its header, in seconds.

    Raises
    ------
    ValueError, OSError : like `load`.
    """

    def read() -> float:
        with _open(name) as file:
            seconds: float = file.frames / file.samplerate
            return seconds

    return _twice(name, read)


def _twice(name: str, read: Callable[[], T]) -> T:
    """`read`, and again where it failed: to libsndfile a disk that fails is bad audio, so ask the disk in between."""
    try:
        return read()
    except (ValueError, OSError):
        if not name.startswith("datasets:") and Path(name).is_file():
            with open(name, "rb") as file:
                while file.read(1 << 24):
                    pass
        return read()


def _open(name: str) -> sf.SoundFile:
    if name.startswith("datasets:"):
        from featstore.corpora.hf import audio_bytes

        return _decoder(io.BytesIO(audio_bytes(name)), name)
    path = Path(name)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{name}: {what}; {_hint(name)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{name}: the file is empty (0 bytes); fetch it again")
    _check_wav_is_whole(path)
    return _decoder(path, name)


def _hint(name: str) -> str:
    """Why a file may not be there: macOS writes é as e and an accent, others as one letter, and they look the same."""
    for form, words in (("NFC", "letters in one piece"), ("NFD", "letters and accents apart")):
        other = unicodedata.normalize(form, name)  # type: ignore[arg-type]
        if other != name and Path(other).is_file():
            return f"but one that looks the same is there, written with {words} ({form}): write the manifest's names so too"
    return (
        "check the path (those of a manifest are relative to it); if audio of a store has moved: "
        "featstore relabel STORE --audio-root OLD=NEW"
    )


def _decoder(file: Path | io.BytesIO, name: str) -> sf.SoundFile:
    try:
        opened = sf.SoundFile(file)
    except (sf.LibsndfileError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: not audio that libsndfile can read ({_reason(error)})") from None
    if opened.samplerate < MIN_RATE_HZ:
        opened.close()
        raise ValueError(f"{name}: sampled at {opened.samplerate} Hz, expected {MIN_RATE_HZ} Hz or more")
    return opened


def _reason(error: Exception) -> str:
    return getattr(error, "error_string", str(error)).strip().rstrip(".")


def _check_wav_is_whole(path: Path) -> None:
    """libsndfile reads a cut WAV as a shorter one; the header knows better."""
    with open(path, "rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return
        end = path.stat().st_size
        while len(header := file.read(8)) == 8:
            size = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                # 0 and 0xFFFFFFFF: written to a pipe, length unknown.
                if 0 < size < 0xFFFFFFFF and file.tell() + size > end:
                    raise ValueError(
                        f"{path}: cut short: the header promises {size} bytes of samples, "
                        f"the file holds {end - file.tell()}; fetch it again"
                    )
                return
            file.seek(size + size % 2, 1)


def _read(file: sf.SoundFile, name: str, first: int, count: int, rate_hz: int, silence_ok: bool) -> NDArray[np.float32]:
    filled = 0
    claimed = math.ceil(count * rate_hz / file.samplerate) + 1
    try:
        out = np.empty(min(claimed, _BELIEVED_SAMPLES), dtype=np.float32)
        for piece in _blocks(file, name, first, count, rate_hz, silence_ok):
            if filled + len(piece) > len(out):
                out.resize(min(claimed, max(2 * len(out), filled + len(piece))), refcheck=False)
            out[filled : filled + len(piece)] = piece[: len(out) - filled]
            filled += len(piece)
    except MemoryError:
        raise ValueError(
            f"{name}: more audio than this machine's memory holds, after {filled / rate_hz:.0f} s"
        ) from None
    return out[: min(filled, len(out))]


def _blocks(
    file: sf.SoundFile, name: str, first: int, count: int, rate_hz: int, silence_ok: bool
) -> Iterator[NDArray[np.float32]]:
    """The samples from `first` on, `count` of them, as mono blocks at another rate."""
    rate = file.samplerate
    stream = None if rate == rate_hz else soxr.ResampleStream(rate, rate_hz, 1, dtype="float32", quality="HQ")
    filled = taken = 0
    peak = 0.0
    try:
        if first:
            file.seek(first)
        while taken < count:
            block = file.read(min(_BLOCK_S * rate, count - taken), dtype="float32", always_2d=True)
            if not len(block):
                raise ValueError(
                    f"{name}: cut short: {count} samples expected, {taken} could be decoded; fetch the file again"
                )
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
            largest = float(np.abs(mono).max())
            if not math.isfinite(largest):
                bad = taken + int(np.flatnonzero(~np.isfinite(mono))[0])
                raise ValueError(f"{name}: a sample is NaN or infinite at {(first + bad) / rate:.3f} s")
            peak = max(peak, largest)
            taken += len(block)
            piece = mono if stream is None else stream.resample_chunk(np.ascontiguousarray(mono), last=taken >= count)
            filled += len(piece)
            yield piece
    except (sf.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{name}: damaged audio at about {taken / rate:.1f} s ({_reason(error)})") from None
    if peak < SILENCE and not silence_ok:
        raise ValueError(f"{name}: silent (largest sample {peak:g} of full scale): there is no speech in it")
    if not filled:
        raise ValueError(f"{name}: too short: {count} samples at {rate} Hz give none at {rate_hz} Hz")
