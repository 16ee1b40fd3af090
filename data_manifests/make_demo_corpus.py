"""Makes data_manifests/demo: a small labelled speech corpus, spoken by eSpeak NG.

Only who wants to change the corpus runs this; the demo reads the committed audio. It needs libespeak-ng
(Debian: ``apt install espeak-ng``) and whowhen's base install::

    python data_manifests/make_demo_corpus.py            # into data_manifests/demo
    python data_manifests/make_demo_corpus.py --out DIR

A speaker is an eSpeak voice variant (variants differ in formants, voicing and timbre; pitch and rate alone do not
make speakers) with an accent, pitch, range and rate of its own. Every utterance is another text in another recording:
level, microphone, room and noise are its own, and pitch and rate vary a little, so that what two utterances of a
speaker share is the voice.
Everything is drawn from one seed: the same eSpeak NG version gives the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter

from featstore.simulation.audio_out import write_audio

SEED = 20240
SAMPLE_RATE_HZ = 16_000
UTTERANCES = {"train": 8, "dev": 8, "test": 10}

# Variants that sound like people; near-copies, robots and whispers of eSpeak's list are left out. No variant stands
# in two splits. Four women's variants come twice in train (with another accent and pitch): eSpeak has only these.
FEMALE = {
    "test": ["f3", "belinda", "Annie", "f5", "steph"],
    "dev": ["f1", "Alicia", "grandma"],
    "train": ["f2", "f4", "Andrea", "anika", "aunty", "linda", "shelby", "zac", "f2", "Andrea", "anika", "shelby"],
}
MALE = {
    "test": ["m2", "david", "gustave", "ed", "norbert"],
    "dev": ["m5", "boris", "adam"],
    "train": [
        "m1", "m4", "m7", "Alex", "Lee", "Marco", "Jacky", "Michael", "Tweaky", "iven", "klatt2", "edward",
        "travis", "victor", "sandro", "Denis",
    ],
}  # fmt: skip
ACCENTS = ["en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"]

# Sentences are put together from these: no text of anybody else.
_SUBJECTS = """the old gardener|my neighbour|a patient teacher|the night nurse|our youngest cousin|the bus driver|
a quiet painter|the harbour pilot|her brother|the new librarian|a tired cyclist|the village baker|your doctor|
the chess player|a friendly sailor|the whole choir|their grandmother|the radio engineer""".replace("\n", "").split("|")
_VERBS = """carried|found|repaired|forgot|described|borrowed|painted|returned|measured|hid|counted|bought|
photographed|washed|opened|delivered""".replace("\n", "").split("|")
_OBJECTS = """seven yellow umbrellas|the broken bicycle|a letter from Vienna|the kitchen window|two jars of honey|
an enormous map|the wrong suitcase|a wooden chair|some very old photographs|the blue notebook|a basket of cherries|
the piano keys|every single ticket|a pair of gloves|the garden gate|nine small parcels""".replace("\n", "").split("|")
_ENDINGS = """before the rain began|near the railway bridge|on a windy Thursday|without saying a word|
after the long meeting|behind the yellow house|because nobody else would|just in time for supper|
while the others were asleep|at a quarter past five|in the middle of June|under the chestnut tree|
for the third time this week|as quickly as possible""".replace("\n", "").split("|")


@dataclass(frozen=True)
class Speaker:
    """One made-up person: `pitch`, `range` and `rate` are eSpeak's parameters (50, 50 and 175 are its defaults)."""

    name: str
    sex: str
    split: str
    voice: str
    pitch: int
    range: int
    rate: int


def speakers() -> list[Speaker]:
    """The 44 speakers, always the same ones."""
    people = []
    for split in ("train", "dev", "test"):
        for sex, variants in (("f", FEMALE[split]), ("m", MALE[split])):
            for variant in variants:
                rng = np.random.default_rng([SEED, 1, len(people)])
                people.append(
                    Speaker(
                        name=f"{sex}{len(people):02d}",
                        sex=sex,
                        split=split,
                        voice=f"{ACCENTS[int(rng.integers(len(ACCENTS)))]}+{variant}",
                        pitch=int(rng.integers(35, 66)),
                        range=int(rng.integers(35, 71)),
                        rate=int(rng.integers(155, 206)),
                    )
                )
    return people


def text(rng: np.random.Generator) -> str:
    """A sentence of 2 to 4 s."""

    def pick(words: list[str]) -> str:
        return words[int(rng.integers(len(words)))]

    sentence = f"{pick(_SUBJECTS)} {pick(_VERBS)} {pick(_OBJECTS)}"
    sentence += f" {pick(_ENDINGS)}." if rng.random() < 0.5 else "."
    return sentence[0].upper() + sentence[1:]


def espeak(speaker: Speaker, sentence: str, seed: int) -> NDArray[np.float32]:
    """Speak one sentence; call it once in a process: eSpeak's noise and its state outlive an utterance.

    Returns
    -------
    samples at SAMPLE_RATE_HZ, shape ``(samples,)``.
    """
    library = ctypes.util.find_library("espeak-ng")
    if library is None:
        raise OSError("libespeak-ng not found; install it (Debian: apt install espeak-ng)")
    lib = ctypes.CDLL(library)
    # Its own data path: one of 155 characters or more overruns eSpeak's buffer, and it then finds no voices.
    rate_hz = lib.espeak_Initialize(2, 500, None, 1 << 15)  # 2: synchronous, samples to the callback; never exit()
    if rate_hz <= 0:
        raise OSError(f"eSpeak NG could not start (code {rate_hz}); is the package espeak-ng-data installed?")
    pieces: list[NDArray[np.int16]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(wave, count, events):
        if wave and count > 0:
            pieces.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
        return 0

    lib.espeak_SetSynthCallback(collect)
    if lib.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
        raise OSError(f"eSpeak NG has no voice {speaker.voice!r}")
    for parameter, value in ((1, speaker.rate), (3, speaker.pitch), (4, speaker.range)):
        lib.espeak_SetParameter(parameter, value, 0)
    ctypes.CDLL(None).srand(seed)  # noise of 1.51 and older comes from libc; newer ones have a generator of their own
    if hasattr(lib, "espeak_ng_SetRandSeed"):
        lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    data = sentence.encode()
    if lib.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, 1, None, None) != 0:
        raise OSError(f"eSpeak NG could not speak {sentence!r} as {speaker.voice!r}")
    lib.espeak_Synchronize()
    wave = np.concatenate(pieces).astype(np.float32) / 32768
    return soxr.resample(wave, rate_hz, SAMPLE_RATE_HZ).astype(np.float32)


def _peak_filter(wave: NDArray[np.float32], centre_hz: float, gain_db: float, q: float) -> NDArray[np.float32]:
    """Source: Bristow-Johnson, “Cookbook formulae for audio EQ biquad filter coefficients”, peaking EQ."""
    angle = 2 * np.pi * centre_hz / SAMPLE_RATE_HZ
    alpha, root = np.sin(angle) / (2 * q), 10 ** (gain_db / 40)
    rise, fall = [1 + alpha * root, -2 * np.cos(angle), 1 - alpha * root], [1 + alpha / root, -2 * np.cos(angle)]
    return lfilter(rise, [*fall, 1 - alpha / root], wave)


def record(wave: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Put a clean utterance into a recording of its own: silence around it, microphone, room, noise, level."""
    before, after = (int(rng.uniform(0.1, 0.35) * SAMPLE_RATE_HZ) for _ in range(2))
    wave = np.pad(wave / (np.sqrt(np.mean(wave**2)) + 1e-9), (before, after))
    wave = lfilter([1, rng.uniform(-0.7, 0.7)], [1], wave)  # dark or bright: up to ±15 dB between low and high
    for _ in range(3):
        wave = _peak_filter(wave, rng.uniform(300, 4000), rng.uniform(-10, 10), rng.uniform(0.7, 2))
    decay_s = rng.uniform(0.1, 0.45)  # 60 dB
    tail = rng.standard_normal(int(decay_s * SAMPLE_RATE_HZ))
    tail *= 10 ** (-3 * np.arange(len(tail)) / len(tail))
    room = np.concatenate([[1.0], tail / np.sqrt(np.sum(tail**2)) * 10 ** (rng.uniform(-15, -3) / 20)])
    wave = fftconvolve(wave, room)[: len(wave)]
    noise = lfilter([1], [1, -rng.uniform(0, 0.95)], rng.standard_normal(len(wave)))
    wave = wave / np.std(wave) + noise / np.std(noise) * 10 ** (-rng.uniform(10, 30) / 20)
    wave *= 10 ** (rng.uniform(-32, -18) / 20) / np.std(wave)
    return np.clip(wave, -1, 1).astype(np.float32)


def _make_utterance(job: tuple[Speaker, int, Path]) -> dict[str, object]:
    speaker, number, out = job
    rng = np.random.default_rng([SEED, 2, int(speaker.name[1:]), number])
    sentence = text(rng)
    mood = {"pitch": speaker.pitch + int(rng.integers(-6, 7)), "rate": speaker.rate + int(rng.integers(-12, 13))}
    wave = record(espeak(replace(speaker, **mood), sentence, seed=int(rng.integers(1, 2**31))), rng)
    path = Path("audio") / speaker.name / f"{speaker.name}-{number:02d}.opus"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    write_audio(out / path, wave, SAMPLE_RATE_HZ, "opus")
    return {
        "audio_filepath": path.as_posix(),
        "offset": 0.0,
        "duration": round(len(wave) / SAMPLE_RATE_HZ, 6),
        "label": speaker.name,
        "speaker": speaker.name,
        "split": speaker.split,
        "utt_id": path.stem,
        "text": sentence,
    }


def trials(rows: list[dict[str, object]]) -> list[str]:
    """Same-speaker pairs: all. Different-speaker pairs: as many, spread evenly over the pairs of speakers."""
    by_speaker: dict[str, list[str]] = {}
    for row in rows:
        by_speaker.setdefault(str(row["speaker"]), []).append(str(row["audio_filepath"]))
    same = [(a, b) for paths in by_speaker.values() for a, b in combinations(paths, 2)]
    different = []
    for n, (a, b) in enumerate(combinations(sorted(by_speaker), 2)):
        count = len(by_speaker[b])
        different += [(path, by_speaker[b][(k + n) % count]) for k, path in enumerate(by_speaker[a])]
    return [line for s, d in zip(same, different, strict=True) for line in (f"1 {s[0]} {s[1]}", f"0 {d[0]} {d[1]}")]


def _write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Make the corpus: utterances and trials."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=here / "demo")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    args = parser.parse_args()
    shutil.rmtree(args.out / "audio", ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)

    jobs = [(speaker, n, args.out) for speaker in speakers() for n in range(UTTERANCES[speaker.split])]
    # maxtasksperchild=1: every utterance gets a process of its own (see espeak).
    with multiprocessing.get_context("fork").Pool(args.workers, maxtasksperchild=1) as pool:
        rows = pool.map(_make_utterance, jobs, chunksize=1)
    _write_jsonl(args.out / "manifest.jsonl", rows)
    facts = [{"speaker": s.name, "split": s.split, "sex": s.sex, "voice": s.voice} for s in speakers()]
    _write_jsonl(args.out / "speakers.jsonl", facts)
    lines = trials([row for row in rows if row["split"] == "test"])
    (args.out / "trials.txt").write_text("\n".join(lines) + "\n", encoding="ascii")

    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{len(rows)} utterances, {len(lines)} trials, {size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
