"""What every Extractor must hold. For your own encoder: ``check_extractor(featstore.extractors.create("mine"))``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.extractors import Extractor
from featstore.types import FeatureSpec


def speech_like(sample_rate_hz: int, seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """A pulse train of gliding pitch under syllables, with soft noise: (samples,)."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    phase = 2 * np.pi * np.cumsum(110 + 60 * rng.random() + 30 * np.sin(4 * time_s)) / sample_rate_hz
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    wave = 0.1 * voice * np.clip(np.sin(19 * time_s + rng.random()), 0, 1) + 0.002 * rng.standard_normal(time_s.size)
    return wave.astype(np.float32)


def check_extractor(extractor: Extractor) -> None:
    """Every check below, one after the other; each is also a function of its own."""
    assert isinstance(extractor, Extractor)
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
    assert isinstance(spec, FeatureSpec)
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.fingerprint == spec.fingerprint
    assert len(spec.fingerprint) == 16
    assert not any(str(value).startswith("/") for value in spec.settings.values())


def check_frames(extractor: Extractor) -> None:
    """float32 ``(frames, dim)`` that fits the store's type, one frame a step, over the whole wave."""
    spec = extractor.spec
    for seconds in (0.5, 1.0, 3.3):
        (frames,) = extractor.extract([speech_like(spec.sample_rate_hz, seconds)])
        assert isinstance(frames, np.ndarray) and frames.dtype == np.float32
        assert frames.ndim == 2 and frames.shape[1] == spec.dim
        assert np.isfinite(frames).all() and np.abs(frames).max() <= np.finfo(spec.dtype).max
        assert abs(len(frames) - seconds / spec.grid.step_s) <= 2
        assert spec.grid.centres_s(0, len(frames))[-1] <= seconds + spec.grid.step_s
    assert np.ptp(frames, axis=0).max() > 0, "frames of changing speech are all the same"
    assert extractor.extract([]) == []


def check_repeatable(extractor: Extractor) -> None:
    """The same wave gives the same bytes: a resumed extraction equals an uninterrupted one."""
    wave = speech_like(extractor.spec.sample_rate_hz, 2.0)
    first, second = extractor.extract([wave])[0], extractor.extract([wave])[0]
    assert first.tobytes() == second.tobytes()


def check_waves_do_not_depend_on_each_other(extractor: Extractor) -> None:
    """Batches keep their order, and a wave's frames are the same bytes alone and in company."""
    waves = [speech_like(extractor.spec.sample_rate_hz, seconds, seed) for seed, seconds in enumerate((1.2, 0.3, 2.5))]
    alone = [extractor.extract([wave])[0] for wave in waves]
    together = extractor.extract(waves)
    assert [frames.tobytes() for frames in alone] == [frames.tobytes() for frames in together]


def check_input_is_left_alone(extractor: Extractor) -> None:
    """Read-only and strided waves are taken and not written to."""
    wave = speech_like(extractor.spec.sample_rate_hz, 1.0)
    locked = wave.copy()
    locked.flags.writeable = False
    strided = np.repeat(wave, 2)[::2]
    expected = extractor.extract([wave.copy()])[0]
    for given in (locked, strided):
        np.testing.assert_array_equal(extractor.extract([given])[0], expected)
        np.testing.assert_array_equal(given, wave)


def check_silence_and_very_short_waves(extractor: Extractor) -> None:
    """Finite frames, at least one, from digital silence and from a single sample."""
    hz = extractor.spec.sample_rate_hz
    for wave in (
        np.zeros(hz, np.float32),
        np.zeros(1, np.float32),
        speech_like(hz, 0.02),
        np.ones(hz // 2, np.float32),
    ):
        (frames,) = extractor.extract([wave])
        assert len(frames) >= 1 and np.isfinite(frames).all()


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
        with pytest.raises(ValueError) as caught:
            extractor.extract([good, wave])
        assert str(caught.value) and "\n" not in str(caught.value), what
