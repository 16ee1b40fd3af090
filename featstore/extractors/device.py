"""Which device an encoder runs on, and the lowest precision that leaves its features as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.extractors import ExtractorError

#: On a CPU, for encoders that take a wave a thread: seconds of audio a batch, so that some waves share the cores; half
#: a minute of work for one slow core.
SIDE_BY_SIDE_S = 180.0
A = TypeVar("A")
B = TypeVar("B")

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Half precision is used on its own accord only where every frame keeps this cosine to float32's.
MIN_COSINE = 0.999
#: Asked for, it may cost more, but a frame below this is no rounding: some libraries' kernels for half precision return
#: plainly wrong numbers for some shapes (oneDNN 3.7's bfloat16 convolutions on CPUs with AMX, for one).
WORST_COSINE = 0.9


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA (the current one), then Apple's MPS, then the CPU.

    Raises
    ------
    ExtractorError : unknown, or not on this machine.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}
    try:
        device = torch.device(("mps" if mps else "cpu") if name == "auto" else name)
        count = there[device.type]
    except (RuntimeError, KeyError):
        raise ExtractorError(f"device must be auto, cpu, cuda, cuda:N or mps, found {name!r}") from None
    if (device.index or 0) >= count:
        raise ExtractorError(f"device {name!r} is not on this machine ({count} of that kind found); use auto")
    return device


def choose_device(name: str) -> torch.device:
    """`pick_device`, and how encoders compute there.

    Raises
    ------
    ExtractorError : unknown, or not on this machine.
    """
    chosen = pick_device(name)
    if chosen.type == "cuda":
        # TF32 keeps 10 bits of the mantissa in products and sums in float32: far below the 1e-3 that matters here.
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return chosen


def choose_precision(wanted: str, device: torch.device, encode: Callable[[str], NDArray[np.float32]]) -> str:
    """The precision to run in.

    Parameters
    ----------
    wanted : "float32", "float16", "bfloat16", or "auto": float32, except float16 on CUDA where `agreement` of the
        features of a probe signal is at least `MIN_COSINE`.
    encode : features ``(frames, dim)`` of the probe signal in the named precision; not called for float32.

    Raises
    ------
    ExtractorError : unknown name, or this machine's `wanted` gives other features than float32.
    """
    if wanted not in ("auto", *PRECISIONS):
        raise ExtractorError(f"precision {wanted!r}: expected auto, {', '.join(PRECISIONS)}")
    half = wanted if wanted != "auto" else "float16" if device.type == "cuda" else "float32"
    if half == "float32":
        return half
    cosine = agreement(encode("float32"), encode(half))
    if wanted == "auto":
        return half if cosine >= MIN_COSINE else "float32"
    if cosine < WORST_COSINE:
        raise ExtractorError(
            f"precision {wanted!r}: on this machine ({device}) a frame's cosine to float32 is {cosine:.3f}, expected at "
            f"least {WORST_COSINE}: more than rounding; use --precision float32"
        )
    return wanted


def each(function: Callable[[A], B], items: Sequence[A], device: torch.device) -> list[B]:
    """`function` of every item, in order, without gradients; on a CPU side by side.

    The encoders' operations are too small to be shared among cores: an item a thread, each computing alone, is faster,
    and makes the result independent of the number of cores. `torch.get_num_threads` says how many.
    """

    def run(item: A) -> B:
        with torch.inference_mode():
            return function(item)

    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [run(item) for item in items]
    pool, interrupted = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)), False
    try:
        return list(pool.map(run, items))
    except KeyboardInterrupt:
        interrupted = True  # an item may be hours of audio
        raise
    finally:
        pool.shutdown(wait=not interrupted, cancel_futures=True)
        torch.set_num_threads(threads)


def agreement(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The smallest cosine between equal frames of two ``(frames, dim)`` arrays; -1 if `found` is not finite."""
    if not np.isfinite(found).all():
        return -1.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    # Two frames of zeros agree; one of zeros and one of something does not.
    same = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), (a == b).all(axis=1))
    return float(same.min())


def probe_wave(sample_rate_hz: int, seconds: float = 4.0) -> NDArray[np.float32]:
    """A fixed speech-like signal: a gliding pulse train through moving resonances, syllables, pauses, soft noise."""
    rng = np.random.default_rng(0)
    time_s = np.arange(int(seconds * sample_rate_hz)) / sample_rate_hz
    pitch_hz = 130 + 40 * np.sin(2 * np.pi * 0.6 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / sample_rate_hz
    voice = np.zeros_like(time_s)
    for harmonic in range(1, 30):
        hz = harmonic * pitch_hz
        first = 500 + 250 * np.sin(2 * np.pi * 1.7 * time_s)
        second = 1500 + 600 * np.sin(2 * np.pi * 1.1 * time_s + 1)
        gain = np.exp(-(((hz - first) / 200) ** 2)) + 0.5 * np.exp(-(((hz - second) / 300) ** 2)) + 0.02
        voice += gain * np.sin(harmonic * phase) * (hz < 0.45 * sample_rate_hz)
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time_s) + 0.4, 0, 1)
    return (0.1 * voice * syllables + 0.003 * rng.standard_normal(time_s.size)).astype(np.float32)
