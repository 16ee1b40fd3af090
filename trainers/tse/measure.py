"""Every way to say whom to take out, on every voice of the test mixtures: what came out, and how good it is."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf
import torch
from numpy.typing import NDArray
from torch.nn import functional

from evaluation.extraction import raters, si_sdr, silent, swapped
from featstore.files import write_atomically
from trainers.progress import Progress
from trainers.runs import Run
from trainers.tse.config import TseConfig
from trainers.tse.data import Mixture, TseData
from trainers.tse.network import RATE_HZ, Extractor

if TYPE_CHECKING:
    from trainers.tse.choices import Choices

#: Mixtures of several voices that can be listened to: the first ones, not the best.
EXAMPLES = 3
_NOWHERE = float("nan")
Wave = NDArray[np.float32]


@dataclass
class Measured:
    """What came out.

    Attributes
    ----------
    rows : one a voice: columns of voices.parquet.
    swaps : by system: "pairs" of voices of one mixture that were both asked for, and how many of them "swapped".
    silent : voices that say nothing, on which nothing is measured.
    unknown : by system: voices for which it knew nobody to ask for; what came out is the mixture.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    swaps: dict[str, dict[str, int]] = field(default_factory=dict)
    silent: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


def extract(network: Extractor, wave: Wave, vectors: NDArray[np.float32], device: torch.device) -> Wave:
    """One voice a vector (voices, size) out of a wave (samples,): (voices, samples).

    The mean of two answers whose spectra begin half a hop apart: they err differently, so it is nearer to the voice than either.
    """
    network.eval()
    hop = network.hop
    with torch.inference_mode():
        mixtures = torch.from_numpy(wave).to(device).expand(len(vectors), -1)
        told = torch.from_numpy(vectors).to(device)
        found = torch.zeros_like(mixtures, memory_format=torch.contiguous_format)
        for late in (0, hop // 2):
            answer = network(functional.pad(mixtures, (late, hop - late)), told)
            found += answer[:, late : late + len(wave)] / 2
    waves: Wave = found.cpu().numpy()
    return waves


def separate(network: Extractor, wave: Wave, device: torch.device) -> Wave:
    """All voices of a wave (samples,) at once: (voices, samples)."""
    network.eval()
    with torch.inference_mode():
        found: Wave = network(torch.from_numpy(wave)[None].to(device))[0].cpu().numpy()
    return found


def measure(
    run: Run[TseConfig],
    data: TseData,
    network: Extractor,
    choices: Choices | None,
    device: torch.device,
    shown: Progress,
) -> Measured:
    """Listen to the test mixtures.

    Parameters
    ----------
    choices : of the predicted sets; None where no run of fit unmix was named.
    """
    config, found = run.config, Measured()
    rng = np.random.default_rng([config.seed, 3])
    mixtures = data.splits["test"][: config.test_mixtures]
    total = sum(len(mixture.voices) for mixture in mixtures)
    rated = set(np.random.default_rng([config.seed, 4]).permutation(total)[: config.rated].tolist())
    every = raters() if config.rated else {}
    number = 0
    for done, mixture in enumerate(mixtures):
        wave = mixture.sound(mixture.utterance)
        references = [_fitted(mixture.sound(voice.track), len(wave)) for voice in mixture.voices]
        heard = [k for k, reference in enumerate(references) if not silent(reference)]
        found.silent += len(references) - len(heard)
        out = _systems(data, network, mixture, wave, references, choices, rng, device, found)
        for k in heard:
            voice = mixture.voices[k]
            row: dict[str, Any] = {"mixture": mixture.utterance.id, "track": voice.track.id, "speaker": voice.speaker}
            row["voices"] = len(mixture.voices)
            for system, waves in out.items():
                one = waves[k]
                row[f"{system} si_sdr"] = _NOWHERE if one is None else si_sdr(one, references[k])
                for name, rate in every.items() if number in rated else ():
                    row[f"{system} {name}"] = _NOWHERE if one is None else rate(one, references[k])
            found.rows.append(row)
            number += 1
        _count_swaps(found, out, references, heard)
        if len(heard) > 1 and len(found.examples) < EXAMPLES:
            found.examples.append(_example(run, len(found.examples), mixture, wave, references, out))
        shown.update(done + 1, len(mixtures), "listening to the test mixtures")
    return found


def _systems(
    data: TseData,
    network: Extractor,
    mixture: Mixture,
    wave: Wave,
    references: list[Wave],
    choices: Choices | None,
    rng: np.random.Generator,
    device: torch.device,
    found: Measured,
) -> dict[str, list[Wave | None]]:
    """By system what came out for each voice; None where it could not be asked for."""
    voices = mixture.voices
    out: dict[str, list[Wave | None]] = {"mixture": [wave] * len(voices)}
    if not network.size:
        apart = separate(network, wave, device)
        out["none"] = [None if k is None else apart[k] for k in _matched(apart, references)]
        return out
    strangers = sorted(data.speakers("test") - {voice.speaker for voice in voices})
    asked: dict[str, list[NDArray[np.float32] | None]] = {"oracle": [data.vectors.get(v.track.id) for v in voices]}
    asked["enrolled"] = [data.vectors[v.others[int(rng.integers(len(v.others)))]] if v.others else None for v in voices]
    asked["wrong"] = [
        _of(data, strangers[int(rng.integers(len(strangers)))], rng) if strangers else None for _ in voices
    ]
    if choices is not None:
        asked["predicted"], asked["memory"] = choices.of(mixture, asked["oracle"])
    for system, vectors in asked.items():
        known = {k: vector for k, vector in enumerate(vectors) if vector is not None}
        came: list[Wave | None] = [None] * len(voices)
        if known:
            waves = extract(network, wave, np.stack(list(known.values())), device)
            for k, one in zip(known, waves, strict=True):
                came[k] = one
        if system in ("predicted", "memory"):
            # Whoever has nobody to ask for is left with the mixture.
            came = [wave if one is None else one for one in came]
        out[system] = came
        found.unknown[system] = found.unknown.get(system, 0) + len(voices) - len(known)
    return out


def _of(data: TseData, speaker: str, rng: np.random.Generator) -> NDArray[np.float32] | None:
    said = {id for m in data.splits["test"] for v in m.voices if v.speaker == speaker for id in (v.track.id, *v.others)}
    known = sorted(id for id in said if id in data.vectors)
    return data.vectors[known[int(rng.integers(len(known)))]] if known else None


def _fitted(wave: Wave, samples: int) -> Wave:
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))


def _matched(apart: Wave, references: list[Wave]) -> list[int | None]:
    """Which of the voices that came out is which: the assignment of the largest SI-SDRs in all."""
    from scipy.optimize import linear_sum_assignment

    known = [k for k, reference in enumerate(references) if not silent(reference)]
    table = np.array([[si_sdr(one, references[k]) for k in known] for one in apart])
    told: list[int | None] = [None] * len(references)
    for row, column in zip(*linear_sum_assignment(table, maximize=True), strict=True):
        told[known[column]] = int(row)
    return told


def _count_swaps(found: Measured, out: dict[str, list[Wave | None]], references: list[Wave], heard: list[int]) -> None:
    for system in ("oracle", "enrolled", "predicted", "memory"):
        sums = found.swaps.setdefault(system, {"pairs": 0, "swapped": 0}) if system in out else None
        for at, a in enumerate(heard):
            for b in heard[at + 1 :]:
                first, second = (out[system][a], out[system][b]) if sums is not None else (None, None)
                if sums is None or first is None or second is None:
                    continue
                sums["pairs"] += 1
                to_first, to_second = ([si_sdr(one, references[k]) for k in (a, b)] for one in (first, second))
                sums["swapped"] += swapped(to_first, to_second)


def _example(
    run: Run[TseConfig],
    number: int,
    mixture: Mixture,
    wave: Wave,
    references: list[Wave],
    out: dict[str, list[Wave | None]],
) -> dict[str, Any]:
    """Write a mixture, and of each voice its reference and what came out, as small files."""
    told: dict[str, Any] = {"mixture": mixture.utterance.id, "file": f"examples/{number}-mixture.mp3", "voices": []}
    (run.path / "examples").mkdir(exist_ok=True)
    write_atomically(run.path / told["file"], _mp3(wave))
    for k, (voice, reference) in enumerate(zip(mixture.voices, references, strict=True)):
        if silent(reference):
            continue
        files = {"reference": f"examples/{number}-{k}-reference.mp3"}
        write_atomically(run.path / files["reference"], _mp3(reference))
        gains = {}
        for system, waves in out.items():
            one = waves[k]
            if system not in ("enrolled", "memory", "none") or one is None:
                continue
            files[system] = f"examples/{number}-{k}-{system}.mp3"
            write_atomically(run.path / files[system], _mp3(one))
            gains[system] = si_sdr(one, reference) - si_sdr(wave, reference)
        told["voices"].append({"speaker": voice.speaker, "files": files, "si_sdri": gains})
    return told


def _mp3(wave: Wave) -> bytes:
    sink = io.BytesIO()
    loudest = max(1.0, float(np.abs(wave).max(initial=0)))
    with sf.SoundFile(
        sink, "w", RATE_HZ, 1, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.9, bitrate_mode="CONSTANT"
    ) as file:
        for at in range(0, len(wave), RATE_HZ):  # the encoder takes little at a time on its stack
            file.write(wave[at : at + RATE_HZ] / loudest)
    return sink.getvalue()
