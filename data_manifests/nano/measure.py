"""EERs of titanet, the probe and raw mimi on one trial list, with intervals by speaker and paired differences.

``python -m data_manifests.nano.measure --store STORE --probe RUN --trials FILE`` prints the table of MODEL_CARD.md; with
``--diarization RUN …`` also how well those runs find who spoke when, and speech at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import featstore
from evaluation import runs
from evaluation.bootstrap import eer_intervals
from evaluation.diarization import score
from evaluation.frames import frames_to_turns
from evaluation.trials import read_trials, score_trials
from evaluation.turns import Turns


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="store with the features mimi and titanet")
    parser.add_argument("--probe", type=Path, required=True, help="run of `trainers fit probe` on that store")
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--diarization", type=Path, nargs="*", default=[], help="runs of adapter, fusion or unfreeze")
    parser.add_argument("--resamples", type=int, default=2000)
    args = parser.parse_args(arguments)
    trials, store = read_trials(args.trials), featstore.open(args.store)
    systems = {
        "titanet": score_trials(store, "titanet", trials),
        "probe": score_trials(featstore.open(args.probe / runs.OUTPUTS), "probe", trials),
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
    for run in args.diarization:
        print(diarization(run))


def diarization(run: Path) -> str:
    """DER of a run, its missed and false speaker time, and the same for speech at all, whoever and how many speak.

    A model that does not know which of two channels a voice is on gives each a half, and neither may reach the
    threshold. That somebody speaks it knows all the same: with probability ``1 - Π (1 - activity)``.
    """
    reference, hypothesis, uem = runs.open(run).diarization()
    who = score(reference, hypothesis, uem=uem).corpus
    outputs = featstore.open(run / runs.OUTPUTS)
    found = {}
    for id in outputs.ids:
        anybody = 1 - np.prod(1 - outputs.frames("activity", id).astype(np.float64), axis=1)
        found[id] = frames_to_turns(anybody[:, None] >= 0.5, outputs.features["activity"].grid, ["speech"])
    windows = {name: found[runs.session_of(name)] for name in reference}
    speech = score({name: _speech(turns) for name, turns in reference.items()}, windows, uem=uem).corpus
    return f"{run.name:8} DER {who.der:.1%}, FA + miss {who.detection:.1%}; of speech at all {speech.detection:.1%}"


def _speech(turns: Turns) -> Turns:
    return Turns.from_arrays(turns.start_s, turns.end_s, ["speech"] * len(turns)).merged()


def _percent(interval: object) -> str:
    return f"{100 * interval.estimate:.2f} % [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


if __name__ == "__main__":
    main()
