"""What a tap costs the program whose Mimi it hears: ``encode`` frame by frame, with and without, side by side.

python benchmarks/tap_step.py --frames 400 [--full]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import diarizer
from diarizer.serve.tap import Tap
from featstore.extractors.mimi import MIMI_FULL, MIMI_NANO, build_mimi


class Deaf:
    """A head that does nothing: what is left is the tap's own cost."""

    def push_frames(self, *_: Any) -> list[Any]:
        return []

    push = finalize = reset = push_frames


def steps(mimi: Any, frames: int, wave: torch.Tensor) -> np.ndarray:
    """(frames, 2) seconds of each call: by the clock, and of this thread on a processor."""
    taken = np.empty((frames, 2))
    for k in range(frames):
        began = time.perf_counter(), time.thread_time()
        mimi.encode(wave[..., 1920 * k : 1920 * (k + 1)])
        taken[k] = time.perf_counter() - began[0], time.thread_time() - began[1]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--full", action="store_true", help="Mimi's full size, with random weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mimi = build_mimi(MIMI_FULL if arguments.full else MIMI_NANO).eval()
    made = diarizer.load()
    wave = 0.1 * torch.randn(1, 1, 1920 * 25)
    kinds: dict[str, Callable[[], Tap | None]] = {
        "no tap": lambda: None,
        "tap, a head that does nothing": lambda: Tap(mimi, Deaf(), lambda *_: None, audio=False),  # type: ignore[arg-type]
        "tap, sound too": lambda: Tap(mimi, Deaf(), lambda *_: None, audio=True),  # type: ignore[arg-type]
        "the demo's cascade beside it": lambda: diarizer.attach(mimi, lambda _: None, made),
    }
    taken: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    with torch.no_grad(), mimi.streaming(1):
        steps(mimi, 25, wave)
        for turn in range(max(arguments.frames // 25, 1)):  # in turn, so that the machine's other work meets all
            for at in range(len(kinds)):
                kind, attach = list(kinds.items())[(at + turn) % len(kinds)]
                tap = attach()
                taken[kind].append(steps(mimi, 25, wave))
                if tap is not None:
                    tap.detach()
    told = {kind: 1000 * np.median(np.concatenate(rows), axis=0) for kind, rows in taken.items()}
    plain = told["no tap"]
    print("| | by the clock, ms | ratio | this thread's processor time, ms | more, ms |\n|---|---|---|---|---|")
    for kind, (clock, own) in told.items():
        print(f"| {kind} | {clock:.2f} | {clock / plain[0]:.2f} | {own:.2f} | {own - plain[1]:+.3f} |")


if __name__ == "__main__":
    main()
