"""What the report says of runs, from runs made of a few numbers: figures, intervals, differences, sentences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation.bootstrap import eer_intervals, ratio_intervals
from evaluation.diarization import DiarizationErrors
from evaluation.findings import findings
from evaluation.results import (
    Plotted,
    RunFacts,
    diarization_figures,
    find_run,
    paired_difference,
    verification_figures,
)
from evaluation.verification import evaluate_scores


def facts(experiment: str, protocol: str = "sound", features: tuple[str, ...] = ("mimi",), **result: Any) -> RunFacts:
    files = SimpleNamespace(path=Path(f"{experiment}-{protocol}"), protocol=protocol, features=dict.fromkeys(features))
    return RunFacts(files, {"kind": "adapter", "steps": 10, **result}, experiment)


def diarizer(errors: dict[str, tuple[float, ...]], experiment: str = "2", protocol: str = "sound") -> RunFacts:
    """`errors` by recording: missed, false alarm, confusion, confusion in fixed channels; out of 100 s, 50 s, 50 s, …"""
    each = {
        name: DiarizationErrors(100.0 if name == "a" else 50.0, *seconds, scored_s=120.0)
        for name, seconds in errors.items()
    }
    corpus = sum(each.values(), DiarizationErrors()).to_json()
    return facts(experiment, protocol, test=corpus, recordings={name: e.to_json() for name, e in each.items()})


BASELINE = {"a": (1.0, 2.0, 4.0, 40.0), "b": (3.0, 5.0, 7.0, 20.0), "c": (2.0, 3.0, 1.0, 9.0)}


def test_each_rate_has_the_interval_of_its_own_errors() -> None:
    run = diarizer(BASELINE)
    diarization_figures(run, 30, np.random.default_rng(3))
    rng, totals = np.random.default_rng(3), [100, 50, 50]
    for name, errors in (("der", [7, 15, 6]), ("detection", [3, 8, 5]), ("fixed_der", [43, 28, 14])):
        expected, _ = ratio_intervals(errors, totals, rng, num_resamples=30)
        assert run.figures[f"{name}_interval"] == expected.to_json()
        assert run.figures[f"{name}_interval"]["estimate"] == pytest.approx(run.figures[name])
    assert (run.figures["der"], run.figures["fixed_der"]) == pytest.approx((28 / 200, 85 / 200))
    assert run.figures["num_recordings"] == 3
    two = diarizer({name: BASELINE[name] for name in "ab"})
    diarization_figures(two, 30, np.random.default_rng(3))
    assert two.figures["der_interval"]["num_units"] == 2
    alone = diarizer({"a": (1.0, 2.0, 4.0, 40.0)})
    diarization_figures(alone, 30, np.random.default_rng(3))
    assert not [key for key in alone.figures if "interval" in key] and alone.figures["num_recordings"] == 1


def test_two_runs_are_compared_recording_by_recording_whatever_their_order() -> None:
    """6 s less of 100 s in a, 5 s more of 50 s in b, as much in c: by name; by position it would be something else."""
    other = {"c": (2.0, 3.0, 1.0, 0.0), "a": (1.0, 0.0, 0.0, 0.0), "b": (3.0, 10.0, 7.0, 0.0)}
    run, baseline = diarizer(other, "3"), diarizer(BASELINE)
    found = paired_difference(run, baseline, 50, seed=4)
    rng = np.random.default_rng(4)
    _, expected = ratio_intervals([1, 20, 6], [100, 50, 50], rng, baseline=[7, 15, 6], num_resamples=50)
    assert found == expected
    assert found.estimate == pytest.approx(-1 / 200)
    back = paired_difference(baseline, run, 50, seed=4)
    assert back.estimate == pytest.approx(1 / 200)
    assert paired_difference(run, baseline, 50, seed=5) != found
    assert paired_difference(diarizer({"a": other["a"], "b": other["b"]}), baseline, 50, 4) is None
    assert paired_difference(diarizer({**other, "d": other["c"]}), baseline, 50, 4) is None
    assert paired_difference(diarizer({"a": other["a"]}), diarizer({"a": other["a"]}), 50, 4) is None


def scores(**systems: np.ndarray) -> SimpleNamespace:
    left, right = np.triu_indices(24, 1)
    speakers = np.repeat([f"s{i}" for i in range(8)], 3)
    same = speakers[left] == speakers[right]
    return SimpleNamespace(
        same=same, left_speakers=speakers[left].tolist(), right_speakers=speakers[right].tolist(), systems=systems
    )


def probe(gains: dict[str, float], protocol: str = "sound", features: tuple[str, ...] = ("mimi",)) -> RunFacts:
    """A run whose systems tell same from different speakers by `gains` standard deviations."""
    run, found = facts("1.5", protocol, features, kind="probe"), scores()
    noise = np.random.default_rng(0).normal(size=len(found.same))
    found.systems.update({name: noise + gain * found.same for name, gain in gains.items()})
    run.files.scores = lambda: found
    return run


def test_a_system_stands_against_raw_cosine_on_the_same_trials() -> None:
    run = probe({"raw": 1.0, "probe": 3.0, "unheard of": 9.0})
    plotted, found = Plotted(), run.files.scores()
    verification_figures(run, 20, np.random.default_rng(1), plotted)
    assert list(run.figures) == ["raw", "probe"]
    rng, sides = np.random.default_rng(1), (found.same, found.left_speakers, found.right_speakers)
    raw, none = eer_intervals(found.systems["raw"], *sides, rng, num_resamples=20)
    trained, gap = eer_intervals(found.systems["probe"], *sides, rng, baseline=found.systems["raw"], num_resamples=20)
    assert none is None and run.figures["raw"]["against_raw"] is None
    assert run.figures["raw"]["interval"] == raw.to_json()
    assert (run.figures["probe"]["interval"], run.figures["probe"]["against_raw"]) == (trained.to_json(), gap.to_json())
    eers = [evaluate_scores(found.systems[name], found.same).eer for name in ("raw", "probe")]
    assert gap.estimate == pytest.approx(eers[1] - eers[0]) and gap.estimate < -0.1
    assert list(plotted.curves) == ["raw cosine", "linear probe (sound)"]
    assert [curve.eer[0] for curve in plotted.curves.values()] == pytest.approx(eers)
    for name, (values, same) in zip(("raw", "probe"), plotted.scores.values(), strict=True):
        assert values is found.systems[name] and same is found.same


def test_without_every_speaker_there_is_no_interval() -> None:
    run = probe({"raw": 1.0})
    run.files.scores().right_speakers[-1] = None
    verification_figures(run, 20, np.random.default_rng(1), Plotted())
    assert run.figures["raw"]["interval"] is None and 0.2 < run.figures["raw"]["eer"] < 0.5


def test_the_experiment_is_found_by_protocol_and_needs_mimi() -> None:
    runs = [
        facts("1.5", "sound", ("titanet",)),
        facts("1.5", "reference"),
        facts("1.5", "sound"),
        facts("3", "sound", ("mimi", "titanet")),
        facts("3", "sound", ("mimi",)),
    ]
    assert find_run(runs, "1", "sound") is find_run(runs, "1.5", "sound") is runs[2]
    assert find_run(runs, "1.5", "reference") is runs[1]
    assert find_run(runs, "3", "sound") is runs[3]
    assert find_run(runs, "3", "reference") is find_run(runs, "2", "sound") is None


def test_the_sentences_say_which_way_a_difference_goes() -> None:
    """The fusion errs 10 points less and the unfrozen Mimi 5 points more, in every recording alike."""
    adapter = diarizer({"a": (0.0, 20.0, 0.0, 0.0), "b": (0.0, 10.0, 0.0, 0.0)})
    fusion = diarizer({"b": (0.0, 5.0, 0.0, 0.0), "a": (10.0, 0.0, 0.0, 0.0)}, "3")
    unfrozen = diarizer({"a": (0.0, 0.0, 25.0, 0.0), "b": (0.0, 0.0, 12.5, 0.0)}, "2.5")
    reference = diarizer({"a": (0.0, 20.0, 0.0, 30.0), "b": (0.0, 10.0, 0.0, 15.0)}, protocol="reference")
    for run in (adapter, fusion, unfrozen, reference):
        diarization_figures(run, 20, np.random.default_rng(0))
    sound, own = probe({"raw": 0.5, "probe": 4.0}), probe({"raw": 0.5, "probe": 6.0}, "reference")
    for run in (sound, own):
        verification_figures(run, 20, np.random.default_rng(0), Plotted())
    told = findings([own, fusion, reference, unfrozen, sound, adapter], 20, 0)
    assert told[3:] == [
        "Unfreezing Mimi's top layers is 5.0 points (95 % interval of the difference 5.0 … 5.0) worse than the adapter "
        "alone (DER).",
        "Adding TitaNet is 10.0 points (95 % interval of the difference -10.0 … -10.0) better than the adapter alone (DER).",
        "Of the 50.0 % that the reference protocol reports for experiment 2, 30.0 points are its scoring with fixed "
        "channels.",
    ]
    raw, trained, learnt = (
        100 * run.figures[name]["eer"] for run, name in ((sound, "raw"), (sound, "probe"), (own, "probe"))
    )
    assert told[0].startswith(f"Untrained cosine on mean-pooled latents errs at {raw:.1f} % [")
    assert told[1].startswith(f"A linear probe, trained on other speakers, errs at {trained:.1f} % [")
    gap = sound.figures["probe"]["against_raw"]
    assert gap["high"] < 0 and f"{raw - trained:.1f} points (95 % interval" in told[1]
    assert told[1].endswith(f"{100 * gap['low']:.1f} … {100 * gap['high']:.1f}) better than raw cosine.")
    assert told[2].endswith(f"errs at {learnt:.1f} % instead of {trained:.1f} %.")


@pytest.mark.parametrize(("steps", "against", "fair"), [(5, 10, True), (20, 10, True), (4, 10, False), (21, 10, False)])
def test_runs_are_compared_up_to_twice_the_training(steps: int, against: int, fair: bool) -> None:
    adapter, fusion = diarizer(BASELINE), diarizer(BASELINE, "3")
    adapter.result["steps"], fusion.result["steps"] = against, steps
    for run in (adapter, fusion):
        diarization_figures(run, 20, np.random.default_rng(0))
    (told,) = findings([adapter, fusion], 20, 0)
    unfair = f"Adding TitaNet cannot be judged from these runs: {steps} training steps against the adapter's {against}."
    assert (told != unfair) is fair
