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
    diarization_figures,
    find,
    paired_difference,
    plot_scores,
    verification_figures,
)
from evaluation.rows import Row, RunFacts
from evaluation.runs import RunError
from evaluation.verification import evaluate_scores


def facts(experiment: str, protocol: str = "sound", features: tuple[str, ...] = ("mimi",), **result: Any) -> Row:
    files = SimpleNamespace(path=Path(f"{experiment}-{protocol}"), protocol=protocol, features=dict.fromkeys(features))
    files.config = {"config": {}, "store": "store"}
    result = {"kind": "adapter", "steps": 10, **result}
    return Row([RunFacts(files, result, experiment)], result)


def diarizer(
    errors: dict[str, tuple[float, ...]],
    experiment: str = "2",
    protocol: str = "sound",
    features: tuple[str, ...] = ("mimi",),
) -> Row:
    """`errors` by recording: missed, false alarm, confusion, confusion in fixed channels; out of 100 s, 50 s, 50 s, …"""
    each = {
        name: DiarizationErrors(100.0 if name == "a" else 50.0, *seconds, scored_s=120.0)
        for name, seconds in errors.items()
    }
    corpus = sum(each.values(), DiarizationErrors()).to_json()
    return facts(
        experiment, protocol, features, test=corpus, recordings={name: e.to_json() for name, e in each.items()}
    )


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


def probe(gains: dict[str, float], protocol: str = "sound", features: tuple[str, ...] = ("mimi",)) -> Row:
    """A run whose systems tell same from different speakers by `gains` standard deviations."""
    run, found = facts("1.5", protocol, features, kind="probe"), scores()
    run.runs[0].result["systems"] = gains
    noise = np.random.default_rng(0).normal(size=len(found.same))
    found.systems.update({name: noise + gain * found.same for name, gain in gains.items()})
    run.files.scores = lambda: found
    return run


def test_a_system_stands_against_raw_cosine_on_the_same_trials() -> None:
    run = probe({"raw": 1.0, "probe": 3.0, "unheard of": 9.0})
    plotted, found = Plotted(), run.files.scores()
    verification_figures(run, 20, np.random.default_rng(1))
    plot_scores(run, plotted)
    assert list(run.figures) == ["raw", "probe"]
    rng, sides = np.random.default_rng(1), (found.same, found.left_speakers, found.right_speakers)
    raw, none = eer_intervals(found.systems["raw"], *sides, rng, num_resamples=20)
    trained, gap = eer_intervals(found.systems["probe"], *sides, rng, baseline=found.systems["raw"], num_resamples=20)
    assert none is None and run.figures["raw"]["against_raw"] is None
    assert run.figures["raw"]["interval"] == raw.to_json()
    assert (run.figures["probe"]["interval"], run.figures["probe"]["against_raw"]) == (trained.to_json(), gap.to_json())
    eers = [evaluate_scores(found.systems[name], found.same).eer for name in ("raw", "probe")]
    assert gap.estimate == pytest.approx(eers[1] - eers[0]) and gap.estimate < -0.1
    assert list(plotted.curves) == ["raw cosine, Mimi", "linear probe, Mimi (sound)"]
    assert [curve.eer[0] for curve in plotted.curves.values()] == pytest.approx(eers)
    for name, (values, same) in zip(("raw", "probe"), plotted.scores.values(), strict=True):
        assert values is found.systems[name] and same is found.same


def test_forms_of_a_proxy_stand_against_codes_and_seeds_are_averaged() -> None:
    """Two seeds: the mean of their EERs and of all else, one interval of both, each form paired with codes of its seed."""
    names = ("raw", "proxy", "proxy_soft", "proxy_doubtful", "titanet")
    gains = {"raw": 0.5, "proxy": 3.0, "proxy_soft": 2.0, "proxy_doubtful": 1.0, "titanet": 4.0}
    first = probe(gains)
    other = probe({name: gain + 1 for name, gain in gains.items()})
    other.runs[0].files.scores().systems["titanet"] = first.files.scores().systems["titanet"]
    row = Row([first.runs[0], other.runs[0]], first.result)
    verification_figures(row, 20, np.random.default_rng(7))
    tables = [run.files.scores() for run in row.runs]
    rng, sides = np.random.default_rng(7), (tables[0].same, tables[0].left_speakers, tables[0].right_speakers)
    stacked = {name: np.stack([table.systems[name] for table in tables]) for name in names}
    assert list(row.figures) == list(names)
    for name in names:
        told = row.figures[name]
        each = [evaluate_scores(values, tables[0].same) for values in stacked[name]]
        assert told["eer"] == pytest.approx(np.mean([e.eer for e in each])) and told["seeds"] == 2
        assert told["spread"] == pytest.approx(sorted(e.eer for e in each))
        assert told["mean_same"] == pytest.approx(np.mean([e.mean_same for e in each]))
        assert told["min_dcf"]["0.05"] == pytest.approx(np.mean([e.min_dcf[0.05] for e in each]))
        if name == "proxy_soft":
            gap = eer_intervals(stacked[name], *sides, rng, baseline=stacked["proxy"], num_resamples=20)[1]
            assert told["against_codes"] == gap.to_json() and gap.estimate > 0
        else:
            assert "against_codes" not in told
        raw = None if name == "raw" else stacked["raw"]
        interval, gap = eer_intervals(stacked[name], *sides, rng, baseline=raw, num_resamples=20)
        assert (told["interval"], told["against_raw"]) == (interval.to_json(), gap.to_json() if gap else None)
    tables[1].same = ~tables[1].same
    with pytest.raises(RunError, match=r"was scored on other trials than .*, of another seed"):
        verification_figures(row, 20, np.random.default_rng(7))


def test_what_is_drawn_of_each_protocol_once() -> None:
    plotted, gains = Plotted(), {"raw": 1.0, "probe": 3.0, "lda": 2.0, "logreg": 2.5}
    sound, own, again = probe(gains), probe(gains, "reference"), probe(gains)
    again.variant = "lr=1"
    for row in (sound, own, again):
        verification_figures(row, 20, np.random.default_rng(0))
        plot_scores(row, plotted)
    drawn = [
        "raw cosine, Mimi", "linear probe, Mimi (sound)", "LDA (scikit-learn), Mimi (sound)", "linear probe, Mimi (reference)",
        "linear probe, Mimi (lr=1)", "LDA (scikit-learn), Mimi (lr=1)",
    ]  # fmt: skip
    assert list(plotted.curves) == drawn and list(plotted.scores) == [name for name in drawn if "LDA" not in name]


def test_without_every_speaker_there_is_no_interval() -> None:
    run = probe({"raw": 1.0})
    run.files.scores().right_speakers[-1] = None
    verification_figures(run, 20, np.random.default_rng(1))
    assert run.figures["raw"]["interval"] is None and 0.2 < run.figures["raw"]["eer"] < 0.5


def test_a_row_is_found_by_experiment_protocol_and_encoders() -> None:
    rows = [
        facts("1.5", "sound", ("titanet",)),
        facts("1.5", "reference"),
        facts("1.5", "sound"),
        facts("3", "sound", ("mimi", "titanet")),
        facts("3", "sound", ("mimi",)),
    ]
    assert find(rows, "1") is find(rows, "1.5") is rows[0]
    assert find(rows, "1", features=("mimi",)) is rows[2]
    assert find(rows, "1.5", "reference") is rows[1]
    assert find(rows, "3", features=("titanet", "mimi")) is rows[3]
    assert find(rows, "3", "reference") is find(rows, "2") is find(rows, "3", features=("titanet",)) is None


BOTH = ("mimi", "titanet")


def test_the_sentences_say_which_way_a_difference_goes() -> None:
    """The fusion errs 10 points less and the unfrozen Mimi 5 points more, in every recording alike."""
    adapter = diarizer({"a": (0.0, 20.0, 0.0, 0.0), "b": (0.0, 10.0, 0.0, 0.0)})
    fusion = diarizer({"b": (0.0, 5.0, 0.0, 0.0), "a": (10.0, 0.0, 0.0, 0.0)}, "3", features=BOTH)
    unfrozen = diarizer({"a": (0.0, 0.0, 25.0, 0.0), "b": (0.0, 0.0, 12.5, 0.0)}, "2.5")
    reference = diarizer({"a": (0.0, 20.0, 0.0, 30.0), "b": (0.0, 10.0, 0.0, 15.0)}, protocol="reference")
    for run in (adapter, fusion, unfrozen, reference):
        diarization_figures(run, 20, np.random.default_rng(0))
    trivial = {"a": {"total_s": 100.0, **SILENT, "missed_s": 60.0}, "b": {"total_s": 50.0, **SILENT, "missed_s": 30.0}}
    adapter.trivial[("one speaker throughout", False)] = trivial
    sound, own = probe({"raw": 0.5, "probe": 4.0}), probe({"raw": 0.5, "probe": 6.0}, "reference")
    for run in (sound, own):
        verification_figures(run, 20, np.random.default_rng(0))
    told = findings([own, fusion, reference, unfrozen, sound, adapter], 20, 0)
    assert [(f["experiment"], f["measure"]) for f in told] == [
        ("1", "EER"), ("1.5", "EER"), ("1.5", "EER"), ("2", "DER"), ("2", "DER"), ("2.5", "DER"), ("2.5", "DER"),
        ("3", "DER"), ("3", "DER"),
    ]  # fmt: skip
    texts = [f["text"] for f in told]
    assert texts[3:] == [
        "The adapter on Mimi, reference protocol: of its DER with fixed channels, 50.0 %, 30.0 points are that way of "
        "scoring.",
        "The adapter on Mimi: DER 20.0 % [20.0 … 20.0] (one speaker throughout: 60.0 %), −40.0 points [−40.0 … −40.0] "
        "against that: better.",
        "The adapter on Mimi, top layers unfrozen: DER 25.0 % [25.0 … 25.0].",
        "The adapter on Mimi, top layers unfrozen, DER against the adapter on Mimi +5.0 points [5.0 … 5.0]: worse.",
        "The fusion of Mimi and TitaNet: DER 10.0 % [10.0 … 10.0].",
        "The fusion of Mimi and TitaNet, DER against the adapter on Mimi −10.0 points [−10.0 … −10.0]: better.",
    ]
    raw, trained, learnt = (
        100 * run.figures[name]["eer"] for run, name in ((sound, "raw"), (sound, "probe"), (own, "probe"))
    )
    of_probe = {text.split(",")[0]: text for text in texts[:3]}
    assert f"EER {raw:.1f} % [" in texts[0] and "(random cosine: 50 %)" in texts[0]
    honest, in_sample = of_probe["A linear probe on Mimi"], of_probe["The same probe on Mimi"]
    gap = sound.figures["probe"]["against_raw"]
    assert gap["high"] < 0 and f"EER {trained:.1f} % [" in honest and "(random cosine: 50 %)" in honest
    ends = f"[−{-100 * gap['low']:.1f} … −{-100 * gap['high']:.1f}]"
    assert honest.endswith(f", −{raw - trained:.1f} points {ends} against raw cosine: better.")
    assert f"EER {learnt:.1f} % instead of {trained:.1f} %" in in_sample


SILENT = {"missed_s": 0.0, "false_alarm_s": 0.0, "confusion_s": 0.0}


@pytest.mark.parametrize(("steps", "against", "fair"), [(5, 10, True), (20, 10, True), (4, 10, False), (21, 10, False)])
def test_runs_are_compared_up_to_twice_the_training(steps: int, against: int, fair: bool) -> None:
    adapter, fusion = diarizer(BASELINE), diarizer(BASELINE, "3", features=BOTH)
    adapter.result["steps"], fusion.result["steps"] = against, steps
    for run in (adapter, fusion):
        diarization_figures(run, 20, np.random.default_rng(0))
    (told,) = [f["text"] for f in findings([adapter, fusion], 20, 0) if "against" in f["text"]]
    unfair = f"cannot be judged: {steps} training steps against {against}."
    assert told.endswith(unfair) is not fair
