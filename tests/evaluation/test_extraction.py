"""Figures of extracted voices: SI-SDR by hand and against torchmetrics, silence, swaps, medians with intervals by speaker."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import extraction
from evaluation.bootstrap import median_interval
from evaluation.extraction import figures, judged_by, si_sdr, silent, swapped

RNG = np.random.default_rng(0)


def test_si_sdr_by_hand() -> None:
    reference = np.array([1.0, -1.0, 1.0, -1.0])
    noise = np.array([0.1, 0.1, -0.1, -0.1])  # orthogonal to the reference, without a mean
    assert si_sdr(reference + noise, reference) == pytest.approx(20.0)
    assert si_sdr(7 * (reference + noise), reference) == pytest.approx(20.0)  # loudness is nobody's merit
    assert si_sdr(reference + noise + 3, reference) == pytest.approx(20.0)  # nor is a constant
    assert si_sdr(-(reference + noise), reference) == pytest.approx(20.0)


@pytest.mark.slow
def test_si_sdr_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    audio = pytest.importorskip("torchmetrics.functional.audio")
    for level in (0.01, 0.3, 3.0):
        reference = RNG.standard_normal(4000)
        estimate = 0.4 * reference + level * RNG.standard_normal(4000) + 0.2
        theirs = audio.scale_invariant_signal_distortion_ratio(
            torch.from_numpy(estimate), torch.from_numpy(reference), zero_mean=True
        )
        assert si_sdr(estimate, reference) == pytest.approx(float(theirs), abs=1e-6)


def test_what_si_sdr_is_not_defined_for() -> None:
    wave = RNG.standard_normal(100)
    with pytest.raises(ValueError, match="the reference is silent"):
        si_sdr(wave, np.zeros(100))
    with pytest.raises(ValueError, match=r"waves of one length, found \(99,\) and \(100,\)"):
        si_sdr(wave[:99], wave)
    assert si_sdr(np.zeros(100), wave) < -100  # worse than anything that was heard
    assert si_sdr(wave, wave) > 100
    assert silent(np.full(10, 1e-5)) and not silent(np.full(10, 1e-3))


def test_a_voice_has_swapped_only_if_both_came() -> None:
    assert swapped((3, -3), (-2, 2))
    assert not swapped((3, -3), (2, -2))  # the same voice twice
    assert not swapped((-3, 3), (2, -2))  # each the other's


def voices() -> dict[str, list]:
    return {
        "speaker": ["a", "a", "b", "b", "c"],
        "voices": [1, 2, 2, 3, 3],
        "mixture si_sdr": [10.0, 0.0, 0.0, -3.0, -3.0],
        "wrong si_sdr": [5.0, -5.0, -6.0, -8.0, -9.0],
        "oracle si_sdr": [10.0, 4.0, 5.0, 3.0, float("nan")],
        "oracle estoi": [0.9, 0.5, float("nan"), 0.4, float("nan")],
    }


def test_figures_are_medians_of_gains() -> None:
    told = figures(voices(), 200, 0)
    assert list(told) == ["mixture", "wrong", "oracle"]
    oracle = told["oracle"]
    assert (oracle["num_voices"], oracle["si_sdr"], oracle["si_sdri"]) == (4, 4.5, 4.5)  # gains 0, 4, 5, 6
    assert oracle["better"] == 0.75
    assert oracle["by_voices"] == {"1": 0.0, "2": 4.5, "3": 6.0}
    assert oracle["over_wrong"]["estimate"] == 10.0  # 5, 9, 11, 11
    assert oracle["sounds"] == {"estoi": pytest.approx(0.6)}
    assert oracle["interval"]["num_units"] == 2  # c has no figure
    assert told["mixture"]["si_sdri"] == 0 and told["mixture"]["over_wrong"] is None


def test_figures_of_mixtures_of_several_stand_beside_those_of_all() -> None:
    told = figures(voices(), 200, 0)
    several = told["oracle"]["several"]  # without the first voice, which is alone: gains 4, 5, 6
    assert (several["num_voices"], several["si_sdr"], several["si_sdri"]) == (3, 4.0, 5.0)
    assert several["better"] == 1.0 and several["over_wrong"]["estimate"] == 11.0
    assert several["interval"]["num_units"] == 2
    assert judged_by(told["oracle"]) is several
    alone = {name: values[:1] for name, values in voices().items()}
    (own,) = [of for name, of in figures(alone, 200, 0).items() if name == "oracle"]
    assert own["several"] is None and judged_by(own) is own and own["interval"] is None
    assert judged_by({"si_sdri": 1.0}) == {"si_sdri": 1.0}  # of a run from before these were told apart


def test_the_median_of_resampled_speakers_is_that_of_their_copies() -> None:
    values, units = [3.0, 1.0, 2.0, 10.0, 7.0], ["a", "a", "b", "c", "c"]
    found = median_interval(values, units, np.random.default_rng(5), num_resamples=50)
    draws = np.random.default_rng(5).multinomial(3, np.full(3, 1 / 3), size=50)
    by_hand = [
        np.median([v for v, u in zip(values, units, strict=True) for _ in range(row["abc".index(u)])]) for row in draws
    ]
    assert found.estimate == 3.0
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])))


def test_only_what_is_installed_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "find_spec", lambda name: object() if name == "pystoi" else None)
    assert list(extraction.raters()) == ["estoi"]


@pytest.mark.parametrize("name", ["estoi", "pesq", pytest.param("dnsmos", marks=pytest.mark.slow)])
def test_a_noisy_voice_is_rated_lower(name: str) -> None:
    pytest.importorskip(extraction.PACKAGES[name])
    time_s = np.arange(48000) / 16000
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_s), 0, None) ** 2
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time_s)) / 16000
    speech = syllables * sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 30))
    clean = (0.05 * speech).astype(np.float32)
    noisy = (clean + 0.05 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    rate = extraction.raters()[name]
    assert rate(clean, clean) > rate(noisy, clean)


def test_what_cannot_be_rated_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too short for ESTOI, no speech for PESQ, silence for DNSMOS; a wave beyond full scale is turned down for it."""
    for package in extraction.PACKAGES.values():
        pytest.importorskip(package)
    rate = extraction.raters()
    short = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 0.1
    assert np.isnan(rate["estoi"](short, short))
    asked = []
    import pesq
    import pystoi

    monkeypatch.setattr(pesq, "pesq", lambda *a, **k: asked.append((*a, k["on_error"])) or found[0])
    found = [0.0]
    for found[0], expected in ((-1, float("nan")), (1.0, 1.0), (3.5, 3.5)):
        assert rate["pesq"](short, 2 * short) == pytest.approx(expected, nan_ok=True)
    hz, reference, estimate, band, _ = asked[0]
    assert (hz, band) == (16000, "wb") and np.array_equal(reference, 2 * short) and np.array_equal(estimate, short)
    monkeypatch.setattr(pystoi, "stoi", lambda *a, extended: asked.append((*a, extended)) or 0.5)
    assert rate["estoi"](short, 2 * short) == 0.5
    reference, estimate, hz, extended = asked[-1]
    assert (hz, extended) == (16000, True) and np.array_equal(reference, 2 * short) and np.array_equal(estimate, short)
    from speechmos import dnsmos

    monkeypatch.setattr(dnsmos, "run", lambda wave, hz: asked.append((wave, hz)) or {"ovrl_mos": 2.5, "sig_mos": 1.0})
    assert np.isnan(rate["dnsmos"](0 * short, short))
    loud = np.float32([0.5, -4.0, 2.0])
    for given, wave in ((short, short), (loud, loud / 4)):
        assert rate["dnsmos"](given, short[: len(given)]) == 2.5
        np.testing.assert_allclose(asked[-1][0], wave)
        assert asked[-1][1] == 16000


def test_systems_are_called_what_they_are() -> None:
    words = {
        "mixture": "the mixture itself",
        "wrong": "somebody who is not in it",
        "none": "asked for nobody",
        "memory": "the memory chooses",
        "predicted": "the clean voice chooses",
        "enrolled": "another utterance",
        "oracle": "the clean voice itself",
    }
    assert list(extraction.SYSTEMS) == list(words)
    assert all(words[name] in called for name, called in extraction.SYSTEMS.items())
