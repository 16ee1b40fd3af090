"""How well a voice was taken out of a mixture: SI-SDR, how it sounds, whether the voice changes with who is asked for.

What a run writes, a line a voice, becomes figures with intervals by speaker here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import Interval, median_interval

#: Ways to say whom to take out, with the name the report gives them, in the order of its table.
SYSTEMS = {
    "mixture": "the mixture itself",
    "wrong": "asked for somebody who is not in it",
    "none": "asked for nobody: all voices at once, matched to the truth",
    "memory": "asked for by the predicted set, the memory chooses",
    "predicted": "asked for by the predicted set, the clean voice chooses",
    "enrolled": "asked for by another utterance",
    "oracle": "asked for by the clean voice itself",
}
#: Softer than this (mean square) a voice is silence: there is nothing to scale to.
SILENCE = 1e-9
#: What a voice sounds like, by package: only where it is installed.
PACKAGES = {"estoi": "pystoi", "pesq": "pesq", "dnsmos": "speechmos"}


def si_sdr(estimate: ArrayLike, reference: ArrayLike) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of (samples,); both without their means.

    Source: Le Roux et al., “SDR – half-baked or well done?”, arXiv 1811.02508.

    Raises
    ------
    ValueError : shapes differ, or the reference is silent: then it is not defined.
    """
    found, truth = (np.asarray(wave, np.float64) for wave in (estimate, reference))
    if found.ndim != 1 or found.shape != truth.shape:
        raise ValueError(f"estimate and reference must be waves of one length, found {found.shape} and {truth.shape}")
    if silent(truth):
        raise ValueError("the reference is silent: SI-SDR is not defined")
    found, truth = found - found.mean(), truth - truth.mean()
    target = (found @ truth) / (truth @ truth) * truth
    signal, noise = float(target @ target), float(((found - target) ** 2).sum())
    # Nothing came out, or exactly the reference: as bad and as good as a float can say.
    floor = float(np.finfo(np.float64).eps) ** 2
    if not signal and not noise:
        return 10 * math.log10(floor)
    return 10 * math.log10(max(signal / (signal + noise), floor) / max(noise / (signal + noise), floor))


def silent(wave: ArrayLike) -> bool:
    """Whether there is nothing to hear."""
    return bool(np.mean(np.square(np.asarray(wave, np.float64))) <= SILENCE)


def raters() -> dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], float]]:
    """What can be rated here, each (estimate, reference) at 16 kHz → figure: those whose packages are installed.

    estoi 0 to 1 (Jensen and Taal 2016); pesq 1 to 4.64 (wide band, ITU-T P.862.2); dnsmos 1 to 5, of the estimate alone
    (overall; Reddy et al., arXiv 2010.15258). NaN where a package refuses, as PESQ does where it hears no speech.
    """
    made: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], float]] = {
        "estoi": _estoi,
        "pesq": _pesq,
        "dnsmos": _dnsmos,
    }
    return {name: rate for name, rate in made.items() if find_spec(PACKAGES[name]) is not None}


def _estoi(estimate: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    from pystoi import stoi

    with warnings.catch_warnings():  # too short for it: it says so, and 1e-5
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(stoi(reference, estimate, 16000, extended=True))
        except RuntimeWarning:
            return float("nan")


def _pesq(estimate: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    from pesq import PesqError, pesq

    found = pesq(16000, reference, estimate, "wb", on_error=PesqError.RETURN_VALUES)
    return float(found) if found >= 1 else float("nan")


def _dnsmos(estimate: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    from speechmos import dnsmos

    loudest = float(np.abs(estimate).max(initial=0))
    if loudest == 0:
        return float("nan")
    return float(dnsmos.run(estimate / max(1.0, loudest), 16000)["ovrl_mos"])


def swapped(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the voice changes with who is asked for.

    Parameters
    ----------
    first, second : SI-SDR of what came out when the first (second) of two voices was asked for, to the one and to the other.
    """
    return first[0] > first[1] and second[1] > second[0]


def figures(voices: Mapping[str, Sequence[Any]], num_resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Of each system that voices.parquet has: SI-SDRi, its median by speaker's interval, and how it sounds.

    Figures are of all voices; "several" has those of mixtures of two and more, which is what published ones are of: a voice that
    is alone in its mixture, often without noise, can hardly be improved and easily be harmed.

    Parameters
    ----------
    voices : columns "speaker", "voices", and of each system "SYSTEM si_sdr", "SYSTEM estoi" and so on.

    Returns
    -------
    dict : by system, "name", "si_sdr" and "si_sdri" (medians, dB), "interval" of the latter, "better" (share of voices that
    are improved by more than 1 dB), "over_wrong" (median of the difference to the wrong speaker, with its interval),
    "num_voices", "several" (these six of mixtures of several voices; None where there are none), "sounds" (means), "by_voices"
    (medians by how many talk).
    """
    count, speakers = np.asarray(voices["voices"]), np.asarray(voices["speaker"])
    column = {name: np.asarray(values, np.float64) for name, values in voices.items() if " " in name}
    told: dict[str, dict[str, Any]] = {}
    for system, name in SYSTEMS.items():
        if f"{system} si_sdr" not in column:
            continue
        values = column[f"{system} si_sdr"]
        gain, there = values - column["mixture si_sdr"], ~np.isnan(values)
        wrong = None if system in ("mixture", "wrong") else column.get("wrong si_sdr")
        table = np.stack([values, gain, np.full_like(values, np.nan) if wrong is None else values - wrong], 1)
        several = count > 1
        told[system] = {
            "name": name,
            **_medians(table, speakers, num_resamples, seed),
            "several": _medians(table[several], speakers[several], num_resamples, seed) if several.any() else None,
            "by_voices": {
                str(n): float(np.median(gain[there & (count == n)])) for n in np.unique(count[there]).tolist()
            },
            "sounds": {
                what: float(np.nanmean(rated))
                for what in PACKAGES
                if (rated := column.get(f"{system} {what}")) is not None and not np.isnan(rated).all()
            },
        }
    return told


def _medians(table: NDArray[np.float64], speakers: NDArray[Any], num_resamples: int, seed: int) -> dict[str, Any]:
    """Of voices (voices, 3): what came out, by how much that is better than the mixture and than the wrong speaker's, in dB."""
    values, gain, over_wrong = table.T
    there = ~np.isnan(values)
    return {
        "num_voices": int(there.sum()),
        "si_sdr": float(np.median(values[there])) if there.any() else None,
        "si_sdri": float(np.median(gain[there])) if there.any() else None,
        "interval": _interval(gain, speakers, num_resamples, seed),
        "better": float(np.mean(gain[there] > 1)) if there.any() else None,
        "over_wrong": _interval(over_wrong, speakers, num_resamples, seed),
    }


def judged_by(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The medians by which one of `figures` is judged: of mixtures of several voices, as everywhere in the field; of all voices
    where there are none, and of runs from before these were told apart."""
    return told.get("several") or told


def _interval(
    values: NDArray[np.float64], speakers: NDArray[Any], num_resamples: int, seed: int
) -> dict[str, Any] | None:
    there = ~np.isnan(values)
    if len(np.unique(speakers[there])) < 2:
        return None
    found: Interval = median_interval(
        values[there], speakers[there], np.random.default_rng(seed), num_resamples=num_resamples
    )
    return found.to_json()
