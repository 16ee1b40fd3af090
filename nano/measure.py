"""EERs of titanet, the probe and raw mimi on one trial list, with intervals by speaker and paired differences.

``python -m nano.measure --store STORE --probe RUN --trials FILE`` prints the table of MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import featstore
from evaluation.bootstrap import eer_intervals
from evaluation.trials import read_trials, score_trials


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="store with the features mimi and titanet")
    parser.add_argument("--probe", type=Path, required=True, help="run of `trainers fit probe` on that store")
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=2000)
    args = parser.parse_args(arguments)
    trials, store = read_trials(args.trials), featstore.open(args.store)
    systems = {
        "titanet": score_trials(store, "titanet", trials),
        "probe": score_trials(featstore.open(args.probe / "outputs"), "probe", trials),
        "mimi": score_trials(store, "mimi", trials),
    }
    worse = dict(zip(systems, [*list(systems)[1:], None], strict=True))
    for name, scored in systems.items():
        interval, difference = eer_intervals(
            scored.scores,
            scored.trials.same,
            scored.left_speakers,
            scored.right_speakers,
            np.random.default_rng(0),
            baseline=None if worse[name] is None else systems[worse[name]].scores,
            num_resamples=args.resamples,
        )
        line = f"{name:8} EER {_percent(interval)}"
        print(line + (f"; minus {worse[name]}: {_percent(difference)}" if difference is not None else ""))


def _percent(interval: object) -> str:
    return f"{100 * interval.estimate:.2f} % [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


if __name__ == "__main__":
    main()
