"""What the demo networks are trained on: LibriSpeech mini's train split and eSpeak NG voices, never anything else."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

#: Every eighth training speaker (in the order of their numbers) is kept out of training for all decisions.
DEV_EVERY = 8

#: Speed factors. A voice played faster or slower has other formants and pitch, so it counts as another speaker.
SPEEDS = (1.0, 0.9, 1.1)

#: eSpeak NG accents and variants of the synthetic training voices. None of them is the variant of a dev or test
#: speaker of ``data_manifests/demo`` (a test compares the lists).
ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029")
ESPEAK_VARIANTS = (
    "Alex Andrea Andy Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen Storm Tweaky anika "
    "announcer antonio aunty benjamin caleb edward f2 f4 iven klatt2 linda m1 m4 m7 michel pablo pedro sandro shelby "
    "travis victor zac"
).split()

_SENTENCES = (
    "The morning train was late again, so we walked along the river.",
    "Nobody had told her that the library would be closed on Thursday.",
    "Seven grey geese flew over the harbour and vanished in the fog.",
    "Please put the blue box next to the window before you leave.",
    "He measured the length of the rope twice and cut it only once.",
    "A quiet voice in the corridor asked whether anyone was at home.",
    "They baked bread, peeled apples and told each other long stories.",
    "Our neighbour keeps bees, and every autumn he gives us a jar of honey.",
    "The judge thought for a while and then shook his head.",
    "If the weather holds, the children will build a shelter in the woods.",
    "Which of these roads goes to the old mill behind the hill?",
    "You should choose the smaller one; it is lighter and costs less.",
    "Thirty thousand people crossed the bridge during the first weekend.",
    "The violin was found in an attic, wrapped in a yellow newspaper.",
    "I would rather finish this today than worry about it tomorrow.",
    "Fresh snow covered the garage, the garden path and the washing line.",
)


@dataclass(frozen=True, slots=True)
class Voice:
    """One speaker's audio. `samples` is int16, shape ``(samples,)``, at `sample_rate_hz`."""

    speaker: str
    split: str
    samples: NDArray[np.int16]
    sample_rate_hz: int


def librispeech_voices(speech: Path, sample_rate_hz: int, speeds: Sequence[float] = SPEEDS) -> Iterator[Voice]:
    """LibriSpeech mini's *train* speakers; every eighth is split "dev" (at normal speed only), the others "train".

    Raises
    ------
    ValueError : the manifest in `speech` has no training utterances.
    """
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    if not rows:
        raise ValueError(f"{speech / 'manifest.jsonl'}: no utterance with split 'train'")
    rows.sort(key=lambda row: int(row["speaker"]))
    for index, row in enumerate(rows):
        dev = index % DEV_EVERY == 0
        wave, rate_hz = soundfile.read(speech / row["audio_filepath"], dtype="float32")
        for speed in (1.0,) if dev else speeds:
            name = f"librispeech-{row['speaker']}" + ("" if speed == 1.0 else f"-x{speed}")
            yield Voice(
                name, "dev" if dev else "train", _resample(wave, rate_hz * speed, sample_rate_hz), sample_rate_hz
            )


def espeak_voices(sample_rate_hz: int, sentences: int = 4) -> Iterator[Voice]:
    """Synthetic speakers: one per variant, accents in turn, with a pitch and a rate of their own; every eighth is dev.

    Raises
    ------
    OSError : the program espeak-ng is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise OSError("espeak-ng is not installed: install it (Debian: apt-get install espeak-ng) or use --espeak 0")
    for index, variant in enumerate(ESPEAK_VARIANTS):
        accent = ESPEAK_ACCENTS[index % len(ESPEAK_ACCENTS)]
        rng = np.random.default_rng(zlib.crc32(variant.encode()))
        text = " ".join(rng.permutation(_SENTENCES)[:sentences])
        pitch, words_per_minute = int(rng.integers(25, 75)), int(rng.integers(140, 190))
        voice = ["-v", f"{accent}+{variant}", "-p", str(pitch), "-s", str(words_per_minute)]
        done = subprocess.run([program, *voice, "--stdout", text], capture_output=True, check=True, timeout=60)
        wave, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        split = "dev" if index % DEV_EVERY == 0 else "train"
        yield Voice(f"espeak-{accent}-{variant}", split, _resample(wave, rate_hz, sample_rate_hz), sample_rate_hz)


def load_voices(
    speech: Path, sample_rate_hz: int, speeds: Sequence[float] = SPEEDS, espeak: bool = True
) -> list[Voice]:
    """All voices, LibriSpeech's first."""
    voices = list(librispeech_voices(speech, sample_rate_hz, speeds))
    return voices + (list(espeak_voices(sample_rate_hz)) if espeak else [])


def crop(samples: NDArray, length: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random piece of `length` samples as float32 in [-1, 1]; a shorter recording gets silence behind it."""
    start = int(rng.integers(0, max(1, len(samples) - length + 1)))
    piece = samples[start : start + length].astype(np.float32) / 32768
    return np.pad(piece, (0, length - len(piece)))


def _resample(wave: NDArray[np.float32], from_hz: float, to_hz: float) -> NDArray[np.int16]:
    """int16 at `to_hz`; half of full scale is left as headroom only where the signal needs it."""
    wave = soxr.resample(wave, from_hz, to_hz) if from_hz != to_hz else wave
    return (np.clip(wave, -1, 1) * 32767).astype(np.int16)
