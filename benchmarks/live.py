"""The live engine against its own run on whole recordings: what latency costs, what a step costs, whether hours change that.

    python benchmarks/live.py STORE --run RUN --ahead resemblyzer=10 [--split dev] [--hours 24]
    python benchmarks/live.py --sound FILE

STORE holds the run's features of sessions with turns; --ahead says how many frames of sound a feature's frame waits
for. DER is of turns as they were first shown, and of those that were settled on. FILE goes through the whole chain of the
run that comes along.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

import diarizer
import featstore
from diarizer.frames import StoredFrames
from diarizer.live import Live
from evaluation.diarization import DiarizationErrors, score
from evaluation.frames import frames_to_turns
from evaluation.turns import Turns

LATENCIES_S = (0.32, 1.04, 4.0)


class Watched:
    """A live head, and what it said of each answer when it first did; processor time of each step."""

    def __init__(self, live: Live) -> None:
        self.live, self.head, self.said, self.seconds = live, live._head, [], []
        self.settled = 0
        self._step, self.head.step = self.head.step, self.step

    def step(self, *how: Any) -> Any:
        began = time.process_time()
        said, same = self._step(*how)
        self.seconds.append(time.process_time() - began)
        for row in said.active[len(self.said) - self.settled :]:
            self.said.append({voice for voice, on in zip(said.voices, row, strict=True) if on})
        self.settled += said.settled
        return said, same

    def first_said(self) -> Turns:
        names = sorted(set().union(*self.said)) or [0]
        active = np.array([[name in row for name in names] for row in self.said]).reshape(-1, len(names))
        return frames_to_turns(active, self.head.grid, [f"v{name}" for name in names])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("store", nargs="?")
    asked.add_argument("--run")
    asked.add_argument("--ahead", nargs="*", default=[])
    asked.add_argument("--split", default="dev")
    asked.add_argument("--most", type=int, default=1000)
    asked.add_argument("--latencies", type=float, nargs="*", default=LATENCIES_S)
    asked.add_argument("--hours", type=float, default=0)
    asked.add_argument("--sound", type=Path)
    options = asked.parse_args()
    made = diarizer.load(options.run, device="cpu")
    given = dict.fromkeys(made.run.features, 0) | {k: int(v) for k, v in (pair.split("=") for pair in options.ahead)}
    if options.store:
        store = featstore.open(options.store)
        ids = list(store.select(split=options.split).ids)[: options.most]
        compare(made, store, ids, given, options.latencies)
        if options.hours:
            hours(made, store, ids, given, options.hours)
    if options.sound:
        chain(made, options.sound, options.latencies)


def compare(made: Any, store: Any, ids: list[str], given: dict[str, int], latencies: list[float]) -> None:
    """DER of whole recordings, and of the same live."""
    truth = {id: Turns.of(store.utterance(id).turns) for id in ids}
    uem = {id: np.array([[0.0, store.utterance(id).duration_s]]) for id in ids}

    def told(found: dict[str, Turns]) -> str:
        errors: DiarizationErrors = score(truth, found, uem=uem).corpus
        parts = (errors.missed_s, errors.false_alarm_s, errors.confusion_s)
        return f"{errors.der:.1%} = " + " + ".join(f"{part / errors.total_s:.1%}" for part in parts)

    print(f"{len(ids)} sessions, whole: {told({id: made.diarize_stored(store, id).turns for id in ids})}", flush=True)
    for latency_s in latencies:
        first, settled, spent, heard_s, right = {}, {}, 0.0, 0.0, 0
        for id in ids:
            watched = Watched(made.live(latency_s, given=given))
            frames = StoredFrames(store, tuple(given), id)
            updates = watched.live.push_frames({name: frames.read([name], 0, frames.num_frames) for name in given})
            turns = [turn for update in updates + watched.live.finalize() for turn in update.final]
            first[id] = watched.first_said()
            settled[id] = Turns.from_arrays(
                [t.start_s for t in turns], [t.end_s for t in turns], [t.speaker for t in turns]
            )
            spent, heard_s = spent + sum(watched.seconds), heard_s + store.utterance(id).duration_s
            right += len(settled[id].speakers) == len(truth[id].speakers)
        print(
            f"live at {latency_s:g} s: as first shown {told(first)}; settled {told(settled)}; "
            f"number of speakers right in {right}; a step {spent / heard_s:.2%} of real time",
            flush=True,
        )


def hours(made: Any, store: Any, ids: list[str], given: dict[str, int], many: float) -> None:
    """Frames round and round: memory and step time of the first tenth against the last."""
    watched = Watched(made.live(1.04, given=given))
    parts = [StoredFrames(store, tuple(given), id) for id in ids]
    session = {n: np.concatenate([p.read([n], 0, p.num_frames) for p in parts]) for n in given}
    length, step_s = len(next(iter(session.values()))), store.features[next(iter(given))].grid.step_s
    rounds = max(10, round(many * 3600 / step_s / length))
    memory: list[int] = []
    sizes: list[int] = []
    times: list[float] = []
    for _ in range(rounds):
        for at in range(0, length, 1250):
            watched.live.push_frames({name: frames[at : at + 1250] for name, frames in session.items()})
        times.append(float(np.median(watched.seconds)))
        watched.seconds.clear()
        watched.settled -= len(watched.said) - 1000  # what is watched must not grow either
        watched.said = watched.said[-1000:]
        gc.collect()
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        sizes.append(len(watched.live.save()))
    tenth = max(1, rounds // 10)
    heard_h = rounds * length * step_s / 3600
    print(
        f"{heard_h:.1f} h: a step takes {np.median(times[-tenth:]) / np.median(times[:tenth]):.2f} of what it took at first, "
        f"peak memory grew by {(memory[-1] - memory[tenth - 1]) / 1024:.1f} MiB, a saved session from {sizes[tenth - 1]} "
        f"to {sizes[-1]} bytes; voices seen: {watched.head.vectors[0]}"
    )


def chain(made: Any, path: Path, latencies: list[float]) -> None:
    """Sound to turns with all encoders: processor time against real time."""
    samples, rate_hz = sf.read(path, dtype="float32")
    for latency_s in latencies:
        watched = Watched(made.live(latency_s))
        watched.live.push(samples[: 3 * rate_hz], rate_hz)
        watched.seconds.clear()
        began = time.process_time()
        for at in range(3 * rate_hz, len(samples), rate_hz // 25):
            watched.live.push(samples[at : at + rate_hz // 25], rate_hz)
        spent, real_s = time.process_time() - began, len(samples) / rate_hz - 3
        print(
            f"{latency_s:g} s: the whole chain takes {spent / real_s:.1%} of real time, "
            f"the head {sum(watched.seconds) / real_s:.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
