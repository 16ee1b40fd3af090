"""Scoring speed in one run: DER of 16 AMI meetings beside pyannote.metrics and spyder, and EER of VoxCeleb1-O.

    python benchmarks/scoring.py --speech ../shared/data/speech [--repeats 5]

The references are AMI's own dev RTTMs, repeated to 16 recordings (the test RTTMs are not at hand); the hypotheses
are these with boundaries moved, turns dropped and split, speakers mistaken and false alarms added. Each figure is the
best of the repeats; scorers take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluation.bootstrap import eer_intervals
from evaluation.diarization import score
from evaluation.rttm import read_rttm, write_rttm
from evaluation.trials import read_trials
from evaluation.turns import Turns
from evaluation.verification import cosine_scores, evaluate_scores

RECORDINGS = 16


def system_like(turns: Turns, rng: np.random.Generator) -> Turns:
    """A hypothesis with errors of the kinds and sizes that systems make (DER about 25 %)."""
    count = len(turns)
    start = (turns.start_s + rng.normal(0, 0.15, count)).clip(0)
    end = np.maximum(turns.end_s + rng.normal(0, 0.15, count), start + 0.1)
    label = np.where(rng.random(count) < 0.1, rng.integers(0, 5, count), turns.speaker)
    keep = rng.random(count) > 0.05
    extra = rng.uniform(0, turns.end_s.max(), count // 10)
    start, end = np.append(start[keep], extra), np.append(end[keep], extra + rng.uniform(0.2, 2, len(extra)))
    label = np.append(label[keep], rng.integers(0, 5, len(extra)))
    return Turns.from_arrays(start, end, [f"SPEAKER_{i:02d}" for i in label]).merged()


def best_of(contenders: dict[str, Callable[[], float]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Shortest time and the last value of each, run in turns."""
    seconds: dict[str, float] = dict.fromkeys(contenders, float("inf"))
    values: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            values[name] = run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds, values


def diarization(speech: Path, repeats: int) -> None:
    """Print the DER table, from turns in memory and from RTTM files."""
    from pyannote.core import Annotation
    from pyannote.database.util import load_rttm
    from pyannote.metrics.diarization import DiarizationErrorRate
    from spyder import DER

    rng = np.random.default_rng(0)
    dev = list(read_rttm(speech / "ami" / "only_words" / "rttms" / "dev").values())
    reference = {f"meeting{i:02d}": dev[i % len(dev)] for i in range(RECORDINGS)}
    hypothesis = {name: system_like(turns, rng) for name, turns in reference.items()}

    def annotations(turns: dict[str, Turns]) -> dict[str, Annotation]:
        return {name: t.to_annotation(name) for name, t in turns.items()}

    def tuples(turns: dict[str, Turns]) -> dict[str, list[tuple[str, float, float]]]:
        return {name: [(t.speaker, t.start_s, t.end_s) for t in side.to_turns()] for name, side in turns.items()}

    def pyannote(sides: Callable[[], tuple[dict, dict]]) -> float:
        metric = DiarizationErrorRate()
        left, right = sides()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in left:
                metric(left[name], right[name])
        return abs(metric)

    def spyder(sides: Callable[[], tuple[dict, dict]]) -> float:
        return DER(*sides())["Overall"].der

    def spyder_read(path: Path) -> dict[str, list[tuple[str, float, float]]]:
        found: dict[str, list[tuple[str, float, float]]] = {}
        for line in path.read_text().splitlines():
            row = line.split()
            found.setdefault(row[1], []).append((row[7], float(row[3]), float(row[3]) + float(row[4])))
        return found

    in_memory = (annotations(reference), annotations(hypothesis)), (tuples(reference), tuples(hypothesis))
    turns = sum(map(len, reference.values())) + sum(map(len, hypothesis.values()))
    print(f"DER of {RECORDINGS} meetings, {turns} turns")
    with tempfile.TemporaryDirectory() as folder:
        ref, hyp = Path(folder) / "ref.rttm", Path(folder) / "hyp.rttm"
        write_rttm(ref, reference)
        write_rttm(hyp, hypothesis)
        for title, contenders in (
            (
                "turns in memory",
                {
                    "whowhen": lambda: score(reference, hypothesis).corpus.der,
                    "spyder": lambda: spyder(lambda: in_memory[1]),
                    "pyannote.metrics": lambda: pyannote(lambda: in_memory[0]),
                },
            ),
            (
                "from RTTM files",
                {
                    "whowhen": lambda: score(read_rttm(ref), read_rttm(hyp)).corpus.der,
                    "spyder": lambda: spyder(lambda: (spyder_read(ref), spyder_read(hyp))),
                    "pyannote.metrics": lambda: pyannote(lambda: (load_rttm(ref), load_rttm(hyp))),
                },
            ),
        ):
            seconds, values = best_of(contenders, repeats)
            for name in contenders:
                ratio = seconds[name] / seconds["whowhen"]
                print(f"  {title}: {name:17s} {1000 * seconds[name]:9.1f} ms  {ratio:7.1f} x   DER {values[name]:.6f}")
            if abs(values["whowhen"] - values["pyannote.metrics"]) > 1e-6:
                raise SystemExit("the scorers disagree")


def verification(speech: Path, repeats: int) -> None:
    """Print EER timings on the VoxCeleb1-O list with random 512-d vectors."""
    from sklearn.metrics import roc_curve

    path = speech / "voxceleb" / "veri_test2.txt"
    trials = read_trials(path)
    rng = np.random.default_rng(0)
    speaker = np.array([name.split("/")[0] for name in trials.names])
    of_speaker = rng.normal(size=(len(set(speaker)), 512))[np.unique(speaker, return_inverse=True)[1]]
    vectors = (rng.normal(size=(len(speaker), 512)) + 0.3 * of_speaker).astype(np.float32)
    scores = cosine_scores(vectors, trials.left, trials.right)

    def scikit() -> float:
        false_alarm, hit, _ = roc_curve(trials.same, scores)
        return float(false_alarm[np.argmin(np.abs(1 - hit - false_alarm))])

    def loop() -> float:
        return float(
            np.mean(
                [
                    np.dot(vectors[a], vectors[b]) / (np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b]))
                    for a, b in zip(trials.left, trials.right, strict=True)
                ]
            )
        )

    left, right = speaker[trials.left], speaker[trials.right]
    seconds, values = best_of(
        {
            "read the list": lambda: float(len(read_trials(path))),
            "cosine": lambda: float(cosine_scores(vectors, trials.left, trials.right).mean()),
            "EER, minDCF, statistics": lambda: evaluate_scores(scores, trials.same).eer,
            "EER alone, scikit-learn": scikit,
            "cosine, a loop over trials": loop,
        },
        repeats,
    )
    print(f"EER of {len(trials)} trials, {len(trials.names)} utterances, 512-d")
    for name, took in seconds.items():
        print(f"  {name:27s} {1000 * took:9.1f} ms   ({values[name]:.4f})")
    start = time.perf_counter()
    interval, _ = eer_intervals(scores, trials.same, left, right, rng, num_resamples=1000)
    took = time.perf_counter() - start
    print(f"  1000 resamples by speaker   {1000 * took:9.1f} ms   ({interval.low:.4f} … {interval.high:.4f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder with ami/ and voxceleb/")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    diarization(given.speech, given.repeats)
    verification(given.speech, given.repeats)
