"""What every Extractor must hold, for the tests of packages that bring one.

``from featstore.testing import check_extractor``, then ``check_extractor(featstore.extractors.create("mine"))``.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from featstore.extractors import Extractor
from featstore.types import FeatureSpec


def speech_like(sample_rate_hz: int, seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """A pulse train of gliding pitch under syllables, with soft noise: ``(samples,)``."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    phase = 2 * np.pi * np.cumsum(110 + 60 * rng.random() + 30 * np.sin(4 * time_s)) / sample_rate_hz
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    wave = 0.1 * voice * np.clip(np.sin(19 * time_s + rng.random()), 0, 1) + 0.002 * rng.standard_normal(time_s.size)
    return wave.astype(np.float32)


def check_extractor(extractor: Extractor) -> None:
    """Every check below, one after the other; each is also a function of its own.

    Raises
    ------
    AssertionError : the first thing that does not hold.
    """
    _holds(isinstance(extractor, Extractor), f"expected `spec` and `extract`, found {extractor!r}")
    for check in (
        check_spec,
        check_frames,
        check_repeatable,
        check_waves_do_not_depend_on_each_other,
        check_input_is_left_alone,
        check_silence_and_very_short_waves,
        check_bad_input_is_refused,
    ):
        check(extractor)


def check_spec(extractor: Extractor) -> None:
    """The spec survives a JSON round trip and names no file of this machine."""
    spec = extractor.spec
    _holds(isinstance(spec, FeatureSpec), f"expected a FeatureSpec as `spec`, found {type(spec).__name__}")
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    _holds(again == spec and again.fingerprint == spec.fingerprint, f"the spec read back from JSON is another: {again}")
    _holds(len(spec.fingerprint) == 16, f"expected a fingerprint of 16 digits, found {spec.fingerprint}")
    for key, value in spec.settings.items():
        _holds(not str(value).startswith("/"), f"setting {key!r} is a path of this machine: {value}")


def check_frames(extractor: Extractor) -> None:
    """float32 (of codes int16) ``(frames, dim)`` that fits the store's type, one frame a step, over the whole wave."""
    spec = extractor.spec
    for seconds in (0.5, 1.0, 3.3):
        (frames,) = extractor.extract([speech_like(spec.sample_rate_hz, seconds)])
        _holds(isinstance(frames, np.ndarray), f"expected frames as an array, found {type(frames).__name__}")
        dtype = np.int16 if spec.whole else np.float32
        _holds(frames.dtype == dtype, f"expected frames in {np.dtype(dtype)}, found {frames.dtype}")
        _holds(
            frames.ndim == 2 and frames.shape[1] == spec.dim,
            f"expected frames of shape (frames, {spec.dim}), found {frames.shape}",
        )
        _holds(np.isfinite(frames).all(), "a frame is NaN or infinite")
        largest = (np.iinfo if spec.whole else np.finfo)(spec.dtype).max
        _holds(np.abs(frames).max() <= largest, f"a frame does not fit into {spec.dtype}")
        wanted, end_s = seconds / spec.grid.step_s, spec.grid.centres_s(0, len(frames))[-1]
        _holds(
            abs(len(frames) - wanted) <= 2, f"expected about {wanted:.0f} frames in {seconds} s, found {len(frames)}"
        )
        _holds(end_s <= seconds + spec.grid.step_s, f"the last frame is centred at {end_s} s of {seconds} s")
    _holds(np.ptp(frames, axis=0).max() > 0, "frames of changing speech are all the same")
    _holds(extractor.extract([]) == [], "expected no frames of no waves")


def check_repeatable(extractor: Extractor) -> None:
    """The same wave gives the same bytes: a resumed extraction equals an uninterrupted one."""
    wave = speech_like(extractor.spec.sample_rate_hz, 2.0)
    first, second = extractor.extract([wave])[0], extractor.extract([wave])[0]
    _holds(first.tobytes() == second.tobytes(), "the same wave gives other frames the second time")


def check_waves_do_not_depend_on_each_other(extractor: Extractor) -> None:
    """Batches keep their order, and a wave's frames are the same bytes alone and in company."""
    waves = [speech_like(extractor.spec.sample_rate_hz, seconds, seed) for seed, seconds in enumerate((1.2, 0.3, 2.5))]
    alone = [extractor.extract([wave])[0].tobytes() for wave in waves]
    together = [frames.tobytes() for frames in extractor.extract(waves)]
    _holds(alone == together, "a wave's frames are others in a batch than alone")


def check_input_is_left_alone(extractor: Extractor) -> None:
    """Waves are not written to; read-only and strided ones are taken."""
    wave = speech_like(extractor.spec.sample_rate_hz, 1.0)
    locked = wave.copy()
    locked.flags.writeable = False
    strided = np.repeat(wave, 2)[::2]
    expected = extractor.extract([wave.copy()])[0]
    for what, given in (("a plain", wave.copy()), ("a read-only", locked), ("a strided", strided)):
        _holds(np.array_equal(extractor.extract([given])[0], expected), f"{what} wave gives other frames")
        _holds(np.array_equal(given, wave), f"{what} wave was written to")


def check_silence_and_very_short_waves(extractor: Extractor) -> None:
    """Finite frames, at least one, from digital silence and from a single sample."""
    hz = extractor.spec.sample_rate_hz
    for what, wave in {
        "silence": np.zeros(hz, np.float32),
        "a single sample": np.zeros(1, np.float32),
        "20 ms": speech_like(hz, 0.02),
        "full scale": np.ones(hz // 2, np.float32),
    }.items():
        (frames,) = extractor.extract([wave])
        _holds(len(frames) >= 1 and np.isfinite(frames).all(), f"{what}: expected one finite frame or more")


def check_bad_input_is_refused(extractor: Extractor) -> None:
    """A ValueError in one line, for each kind of wave that is none."""
    good = speech_like(extractor.spec.sample_rate_hz, 0.5)
    bad = {
        "empty": good[:0],
        "two channels": np.stack([good, good]),
        "NaN": np.where(np.arange(good.size) == 7, np.nan, good).astype(np.float32),
        "infinite": np.where(np.arange(good.size) == 7, np.inf, good).astype(np.float32),
    }
    for what, wave in bad.items():
        says = None
        try:
            extractor.extract([good, wave])
        except ValueError as error:
            says = str(error)
        _holds(says is not None, f"a wave that is {what}: expected a ValueError, found frames")
        _holds(says and "\n" not in says, f"a wave that is {what}: expected one line, found {says!r}")


def _holds(holds: object, otherwise: str) -> None:
    """`assert`, which says what is wrong without pytest's help and stays where Python is told to drop assertions."""
    if not holds:
        raise AssertionError(otherwise)
