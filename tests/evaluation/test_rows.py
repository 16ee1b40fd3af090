"""Which runs are one row, what a row's figures are, what its trivial rivals score, and what the runs answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evaluation import baselines
from evaluation.answer import answer, pairs, part_of, question
from evaluation.bootstrap import ratio_intervals
from evaluation.chart import chart, trivial_systems
from evaluation.chart import test_set as chart_on
from evaluation.facts import gather
from evaluation.findings import findings
from evaluation.flaws import _both_ways, _rival
from evaluation.report import report
from evaluation.results import diarization_figures
from evaluation.rows import Row, RunFacts, expand, mean_result, read_run, rows_of
from evaluation.runs import Diarization, RunError
from evaluation.turns import Turns
from evaluation.words import more_needed, points, span, verdict
from featstore import Turn
from tests.evaluation.test_report import diarization_run, probe_run
from tests.evaluation.test_results import diarizer

SEEDS = (0.2, 0.5, 1.1)  # how late the answers of three seeds are: DER 4, 10 and 22 %


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """What several seeds of one command leave behind."""
    for seed, late_s in enumerate(SEEDS):
        diarization_run(tmp_path / "out" / f"seed{seed}", "adapter", late_s=late_s, seed=seed, lr=1e-3)
    return tmp_path / "out"


def read(*paths: Path) -> list[Row]:
    return rows_of([read_run(path) for path in expand(paths)])


def edit(run: Path, **changes: Any) -> None:
    """Other settings in a run's config.json."""
    config = json.loads((run / "config.json").read_text())
    config["config"] |= changes
    (run / "config.json").write_text(json.dumps(config))


def test_seeds_are_one_row_of_their_mean_and_spread(seeds: Path, tmp_path: Path) -> None:
    facts, (row,), _ = gather([seeds], 20, 0)
    assert [run.seed for run in row.runs] == [0, 1, 2]
    assert row.figures["der"] == pytest.approx((0.04 + 0.10 + 0.22) / 3)
    assert row.figures["spread"] == pytest.approx([0.04, 0.22])
    interval = row.figures["der_interval"]
    assert interval["estimate"] == pytest.approx(row.figures["der"]) and interval["num_units"] == 2
    (bar,) = [bar for bar in facts["chart"] if not bar["published"]]
    assert (bar["seeds"], bar["label"], bar["runs"]) == (3, "adapter on Mimi", ["out/seed0", "out/seed1", "out/seed2"])
    assert bar["der"] == pytest.approx(0.12) and bar["spread"] == pytest.approx([0.04, 0.22])
    (line,) = [line for line in facts["experiments"] if line["id"] == "2"]
    assert line["sound"]["seeds"] == 3 and line["sound"]["lines"][0]["spread"] == pytest.approx([0.04, 0.22])
    texts = [finding["text"] for finding in facts["findings"]]
    assert any("mean of 3 seeds (4.0–22.0 %)" in text for text in texts)
    assert [(run["seed"], run["name"], run["figures"]["der"]) for run in facts["runs"]] == [
        (0, "out/seed0", pytest.approx(0.04)), (1, "out/seed1", pytest.approx(0.10)), (2, "out/seed2", pytest.approx(0.22))
    ]  # fmt: skip
    assert line["sound"]["run"] == "out/seed0"
    last = facts["runs"][2]
    assert last["path"] == str(seeds / "seed2") and last["result"]["steps"] == 10 and last["result"]["test"]["der"]
    assert {key: last[key] for key in ("label", "experiment", "kind", "protocol", "notes", "warnings")} == {
        **{"label": "adapter on Mimi", "experiment": "2", "kind": "adapter", "protocol": "sound", "notes": []},
        "warnings": read_run(seeds / "seed2").files.warnings,
    }
    assert last["weights"]["mimi"]["from"] == "demo" and set(last["features"]) == {"mimi"}
    assert not {"systems", "recordings", "whole"} & set(last["result"])


def test_another_setting_is_another_row_that_says_so(seeds: Path) -> None:
    edit(seeds / "seed2", lr=5e-4)
    first, second = read(seeds)
    assert len(first.runs) == 2
    assert (first.label, second.label) == ("adapter on Mimi (lr=0.001)", "adapter on Mimi (lr=0.0005)")


def test_a_second_run_of_one_seed_is_not_another_seed(seeds: Path, tmp_path: Path) -> None:
    shutil.copytree(seeds / "seed1", tmp_path / "again")
    rows = read(seeds, tmp_path / "again")
    assert [len(row.runs) for row in rows] == [3, 1] and rows[0].label != rows[1].label


def test_runs_measured_on_other_recordings_are_not_seeds_of_one(seeds: Path) -> None:
    path = seeds / "seed2" / "result.json"
    result = json.loads(path.read_text())
    result["recordings"].popitem()
    path.write_text(json.dumps(result))
    assert [len(row.runs) for row in read(seeds)] == [2, 1]


@pytest.mark.parametrize(
    "change", [{"device": "cuda"}, {"resident": "no"}, {"checkpoint_steps": 9}, {"tensorboard": True}]
)
def test_what_decides_nothing_does_not_part_seeds(seeds: Path, change: dict[str, str]) -> None:
    edit(seeds / "seed2", **change)
    assert [len(row.runs) for row in read(seeds)] == [3]


@pytest.mark.parametrize("what", ["store", "protocol", "feature", "trials"])
def test_what_is_not_one_experiment_is_not_one_row(seeds: Path, what: str) -> None:
    """Another store, protocol, encoder or trial list: a mean over these would be of nothing."""
    run = seeds / "seed2"
    config, result = (json.loads((run / name).read_text()) for name in ("config.json", "result.json"))
    if what == "store":
        config["store"] = "another"
    elif what == "protocol":
        config["protocol"] = "reference"
    elif what == "feature":
        config["features"]["mimi"]["spec"]["weights_sha256"] = "f" * 64
    else:
        result["num_trials"] = 7
    (run / "config.json").write_text(json.dumps(config))
    (run / "result.json").write_text(json.dumps(result))
    assert [len(row.runs) for row in read(seeds)] == [2, 1]


def test_means_of_several_results_by_hand() -> None:
    """Everything that is an error, in whatever it is of; what is no number, or is not in all of them, stays the first's."""
    first, second = (
        {
            "kind": "cascade", "seconds": s, "test": {"der": d, "total_s": 10.0, "jer": jer, "words": "x"},
            "recordings": {"a": {"missed_s": s}}, "ceilings": {"c": {"test": {"der": d / 2}}}, "whole": {"der": 2 * d},
        }
        for s, d, jer in ((1.0, 0.2, None), (3.0, 0.4, 0.5))
    )  # fmt: skip
    found = mean_result([first, second])
    assert found["test"] == {"der": pytest.approx(0.3), "total_s": 10.0, "jer": None, "words": "x"}
    assert found["recordings"] == {"a": {"missed_s": 2.0}} and found["whole"] == {"der": pytest.approx(0.6)}
    assert found["ceilings"] == {"c": {"test": {"der": pytest.approx(0.15)}}}
    assert (found["kind"], found["seconds"]) == ("cascade", 1.0)
    del second["whole"]
    assert "whole" not in mean_result([first, second]) and mean_result([first]) is first


def test_seeds_of_a_probe_are_one_row(tmp_path: Path) -> None:
    for seed, gain in enumerate((1.0, 3.0)):
        probe_run(tmp_path / "out" / f"seed{seed}", gain=gain)
        edit(tmp_path / "out" / f"seed{seed}", seed=seed)
    facts, (row,), _ = gather([tmp_path / "out"], 50, 0)
    each = [run.figures["probe"]["eer"] for run in row.runs]
    trained = row.figures["probe"]
    assert each[0] > each[1] and trained["eer"] == pytest.approx(sum(each) / 2)
    assert trained["spread"] == pytest.approx(sorted(each))
    assert trained["interval"]["low"] <= trained["eer"] <= trained["interval"]["high"]
    assert trained["against_raw"]["estimate"] == pytest.approx(trained["eer"] - row.figures["raw"]["eer"])
    assert len(facts["runs"]) == 2


def test_a_folder_of_runs_means_them_and_each_counts_once(seeds: Path, tmp_path: Path) -> None:
    assert expand([seeds, seeds / "seed0", tmp_path / "out"]) == [seeds / f"seed{k}" for k in range(3)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty: not a run"):
        expand([tmp_path / "empty"])
    (tmp_path / "store/features.zarr").mkdir(parents=True)
    with pytest.raises(
        RunError, match=r"store: a store, and no run; trainers fit KIND --store .*store --out RUN makes one"
    ):
        expand([tmp_path / "store"])


def test_shares_of_the_training_data_are_a_curve_not_rows(seeds: Path, tmp_path: Path) -> None:
    edit(seeds / "seed1", seed=0, train_fraction=0.5)
    edit(seeds / "seed2", seed=0, train_fraction=0.25)
    facts = report([seeds], tmp_path / "page", num_resamples=20)
    (curve,) = facts["learning"]
    assert curve["label"] == "adapter on Mimi"
    assert [(p["train_fraction"], p["der"]) for p in curve["points"]] == [
        (0.25, pytest.approx(0.22)), (0.5, pytest.approx(0.10)), (1.0, pytest.approx(0.04))
    ]  # fmt: skip
    assert len([bar for bar in facts["chart"] if not bar["published"]]) == 1
    (line,) = [line for line in facts["experiments"] if line["id"] == "2"]
    assert line["sound"]["lines"][0]["value"] == pytest.approx(0.04)


def test_a_share_belongs_to_the_curve_of_its_settings(seeds: Path) -> None:
    edit(seeds / "seed1", seed=0, lr=5e-4)
    edit(seeds / "seed2", seed=0, lr=5e-4, train_fraction=0.5)
    assert [(row.variant, row.train_fraction) for row in read(seeds)] == [
        ("lr=0.001", 1.0), ("lr=0.0005", 1.0), ("lr=0.0005", 0.5)
    ]  # fmt: skip


def test_a_head_with_a_cache_is_called_so(seeds: Path) -> None:
    """Its figures are not of the same head on other features, which the published rows compare."""
    edit(seeds / "seed0", cache_s=15.0)
    assert [row.variant for row in read(seeds / "seed0")] == ["told of earlier voices"]
    assert [row.phrase for row in read(seeds / "seed0")] == ["the adapter on Mimi (told of earlier voices)"]
    assert [row.variant for row in read(seeds)] == ["cache_s=15.0", "cache_s=None"]
    edit(seeds / "seed1", cache_s=0.0)
    assert [row.variant for row in read(seeds / "seed1")] == [""]


def test_whole_recordings_stand_beside_windows(tmp_path: Path) -> None:
    """4 s of each recording of 10 s are given to another voice than in the other window."""
    diarization_run(tmp_path / "run", "adapter")
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    worse = {
        n: r | {"confusion_s": r["confusion_s"] + 4, "confusion": r["confusion"] + 0.4}
        for n, r in result["recordings"].items()
    }
    total = result["test"]
    whole = {
        **total,
        "confusion_s": total["confusion_s"] + 8,
        "confusion": total["confusion"] + 0.4,
        "der": total["der"] + 0.4,
    }
    path.write_text(json.dumps(result | {"whole": {**whole, "recordings": worse}}))
    facts, _, _ = gather([tmp_path / "run"], 20, 0)
    (split,) = facts["whole"]
    assert (split["per_window"], split["whole"]) == pytest.approx((0.1, 0.5))
    assert (split["difference"], split["identity"], split["rest"]) == pytest.approx((0.4, 0.4, 0.0), abs=1e-9)
    assert [bar["scope"] for bar in facts["chart"] if not bar["published"]] == ["per window", "whole recording"]
    (line,) = [line for line in facts["experiments"] if line["id"] == "2"]
    assert line["sound"]["lines"][-1]["what"] == "DER, whole recordings"
    interval = split["interval"]
    assert [interval[end] for end in ("low", "estimate", "high")] == pytest.approx([0.4] * 3) and interval[
        "num_units"
    ] == 2
    (text,) = [f["text"] for f in facts["findings"] if "windows of the same answer" in f["text"]]
    assert text == (
        "The adapter on Mimi, whole recordings against windows of the same answer: DER +40.0 points [40.0 … 40.0], of which "
        "+40.0 points are identity (who is who across windows) and +0.0 points the rest."
    )


# ---- trivial rivals


def test_trivial_systems_by_hand() -> None:
    """Of 10 s, ann speaks 6, bob 3, one of them under ann; two are silent."""
    turns = Turns.of([Turn(0, 6, "ann"), Turn(5, 8, "bob")])
    answered = Diarization({"m": turns}, {}, {"m": np.array([[0.0, 10.0]])})
    always, speech = baselines.one_speaker(answered), baselines.true_speech(answered)
    # ann is mapped: bob's 2 s alone are confused, 1 s in overlap is missed; then 2 s of silence are false alarms
    assert {k: always["m"][k] for k in ("missed_s", "confusion_s", "false_alarm_s")} == pytest.approx(
        {"missed_s": 1, "confusion_s": 2, "false_alarm_s": 2}
    )
    assert baselines.der(always) == pytest.approx(5 / 9) and baselines.der(speech) == pytest.approx(3 / 9)


def test_windows_are_easier_than_the_recording_that_they_make_up() -> None:
    windows = Diarization(
        {"m@0.00": Turns.of([Turn(0, 5, "ann")]), "m@5.00": Turns.of([Turn(5, 10, "bob")])},
        {},
        {"m@0.00": np.array([[0.0, 5.0]]), "m@5.00": np.array([[5.0, 10.0]])},
    )
    assert baselines.der(baselines.one_speaker(windows)) == 0
    assert baselines.der(baselines.one_speaker(baselines.whole(windows))) == pytest.approx(0.5)
    (summed,) = baselines.one_speaker(windows).values()
    assert list(baselines.one_speaker(windows)) == ["m"] and (summed["total_s"], summed["scored_s"]) == (10, 10)
    row = diarizer({"m": (0.0, 0.0, 0.0, 0.0)})
    row.files.diarization = lambda: windows
    row.result["whole"] = {}
    baselines.look_at_truth(row)
    always, speech = baselines.ONE_SPEAKER, baselines.TRUE_SPEECH
    assert {key: baselines.der(errors) for key, errors in row.trivial.items()} == pytest.approx(
        {(always, False): 0, (speech, False): 0, (always, True): 0.5, (speech, True): 0.5}
    )
    assert row.orders == (1, 2)  # bob is second in the session, first in his window


def test_one_speaker_throughout_speaks_in_silence_too() -> None:
    row = diarizer({"m": (0.0, 0.0, 0.0, 0.0)})
    row.files.diarization = lambda: Diarization(
        {"m": Turns.of([Turn(0, 8, "ann")])}, {}, {"m": np.array([[0.0, 10.0]])}
    )
    baselines.look_at_truth(row)
    assert {key: baselines.der(errors) for key, errors in row.trivial.items()} == pytest.approx(
        {("one speaker throughout", False): 2 / 8, ("true speech, one speaker", False): 0}
    )


# ---- words


def gap(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high, "num_units": 10}


def test_negative_is_better_everywhere() -> None:
    assert points(gap(-0.032, -0.05, -0.014)) == "−3.2 points [−5.0 … −1.4]"
    assert verdict(gap(-0.032, -0.05, -0.014), "recordings") == "better"
    assert verdict(gap(0.032, 0.014, 0.05), "recordings") == "worse"
    # twice as far to 0 as to the end of the interval: four times the recordings
    unclear = gap(-0.02, -0.06, 0.02)
    assert verdict(unclear, "recordings") == "not clearly different (about 40 recordings instead of 10 would tell)"
    assert more_needed(gap(0.02, -0.02, 0.06), "speakers") == "about 40 speakers instead of 10 would tell"
    assert more_needed(gap(0.02, -0.03, 0.03), "speakers") == "about 63 speakers instead of 10 would tell"
    assert more_needed(gap(-0.02, -0.03, 0.0), "speakers") == "about 11 speakers instead of 10 would tell"
    assert more_needed(gap(0.0, -0.1, 0.1), "speakers") == "" and more_needed(gap(1e-4, -0.1, 0.1), "speakers") == ""
    assert span(gap(0, -0.0001, 0.5)) == "0.0 … 50.0"


# ---- the answer


def heads(*, alone: float, both: float, other: float | None = None, count: int = 24, jitter: float = 0.0) -> list[Row]:
    """An adapter on lyra, a fusion with resemblyzer and perhaps one on that alone, by their DER; each recording alike.

    With `jitter`, every second recording is so much harder for the adapter and easier for the fusion, the others reverse.
    """
    rows: list[Row] = []
    for der, experiment, features in (
        (alone, "2", ("lyra",)), (both, "3", ("lyra", "resemblyzer")), (other, "2", ("resemblyzer",))
    ):  # fmt: skip
        if der is None:
            continue
        noise = [jitter * (-1) ** (i + len(rows)) for i in range(count)]
        row = diarizer(
            {f"r{i}": (50 * (der + noise[i]), 0.0, 0.0, 0.0) for i in range(count)}, experiment, features=features
        )
        row.files.warnings = []
        diarization_figures(row, 200, np.random.default_rng(0))
        row.trivial[(baselines.ONE_SPEAKER, False)] = {
            name: {**r, "missed_s": 30.0} for name, r in row.result["recordings"].items()
        }
        rows.append(row)
    return rows


def test_the_answer_says_what_the_intervals_allow() -> None:
    partly = answer(heads(alone=0.4, both=0.3, other=0.35), 200, 0)
    assert partly["verdict"] == "partly"
    assert partly["text"].startswith(
        "lyra alone tells part of it; it needs resemblyzer beside it. The adapter on lyra alone is at DER 40.0 % "
        "[40.0 … 40.0] (one speaker throughout: 60.0 %); the fusion of lyra and resemblyzer 30.0 % [30.0 … 30.0], "
        "−10.0 points [−10.0 … −10.0]."
    )
    assert "lyra in turn helps resemblyzer: the fusion against the adapter on resemblyzer −5.0 points" in partly["text"]
    assert partly["basis"] == "From 24 recordings (48 min of audio)."
    assert answer(heads(alone=0.6, both=0.3), 200, 0)["verdict"] == "no"
    assert answer(heads(alone=0.3, both=0.4), 200, 0)["verdict"] == "yes"
    neither = answer(heads(alone=0.9, both=0.7), 200, 0)
    assert neither["verdict"] == "unclear" and neither["lead"].startswith(
        "Neither lyra alone nor resemblyzer beside it"
    )
    unclear = answer(heads(alone=0.31, both=0.30, jitter=0.03, count=8), 200, 0)
    assert unclear["verdict"] == "unclear" and "do not say" in unclear["lead"]
    assert "recordings instead of 8 would tell" in unclear["detail"]
    assert "fewer than 20" in unclear["basis"]


def test_yes_needs_a_codec_that_tells_something_and_nobody_beside_it_who_is_not_judged() -> None:
    assert answer(heads(alone=0.3, both=0.4), 200, 0)["verdict"] == "yes"
    assert answer([*heads(alone=0.3, both=0.4), cascade(0.5)], 200, 0)["verdict"] == "unclear"  # over whole recordings
    assert answer(heads(alone=0.7, both=0.8), 200, 0)["verdict"] == "unclear"  # one speaker throughout: 60 %
    long = heads(alone=0.3, both=0.4)
    long[1].result["steps"] = 21  # more than twice as many
    assert answer(long, 200, 0)["verdict"] == "unclear"
    for count, told in ((19, "; of fewer than 20 an interval is too narrow"), (20, "")):
        assert answer(heads(alone=0.3, both=0.4, count=count), 200, 0)["basis"] == (
            f"From {count} recordings ({2 * count} min of audio){told}."
        )


def test_without_the_runs_it_takes_there_is_no_answer() -> None:
    alone, both = heads(alone=0.4, both=0.3)
    assert answer([both], 20, 0)["verdict"] == "unknown" and "No head on lyra alone" in answer([both], 20, 0)["text"]
    assert answer([], 20, 0)["verdict"] == answer([alone], 20, 0)["verdict"] == "unknown"


def test_demo_weights_are_said() -> None:
    rows = heads(alone=0.4, both=0.3)
    rows[0].files.warnings = ["lyra: small demo weights"]
    told = answer(rows, 20, 0)
    assert told["demo"] and "says nothing about the published models" in told["text"]
    assert [bar["weights"] for bar in chart(rows)] == ["demo", "", "", ""]


def test_who_is_the_codec_is_known_of_two_and_said_by_runs_of_others() -> None:
    def row(experiment: str, *features: str, **parts: list[str]) -> Row:
        made = diarizer({"a": (0.0, 0.0, 0.0, 0.0)}, experiment, features=features)
        made.result |= parts
        return made

    assert pairs([row("2", "mimi")]) == [(("mimi",), ("titanet",))]
    assert pairs([row("2", "lyra"), row("2", "resemblyzer")]) == []
    assert pairs([row("3", "lyra", "resemblyzer")]) == [(("lyra",), ("resemblyzer",))]
    assert pairs([row("3", "resemblyzer", "mimi")]) == [(("mimi",), ("resemblyzer",))]
    cascade = row("4", "a", "b", when=["b"], who=["a"], ceilings={})
    assert pairs([row("3", "a", "b"), cascade]) == [(("b",), ("a",))]
    assert pairs([row("4", "a", when=["a"], who=["a"], ceilings={})]) == []
    of = pairs([cascade])
    assert [part_of((name,), of) for name in "abc"] == ["speaker encoder alone", "codec alone", "one encoder alone"]


def test_the_question_names_the_encoders() -> None:
    lyra, both = heads(alone=0.4, both=0.3)
    of = pairs([lyra, both])
    assert question(of, [lyra, both]) == (
        "Can lyra tell who speaks when, or does it need resemblyzer (a speaker encoder) beside it?"
    )
    assert question([], [lyra]) == "Can lyra tell who speaks when, or does it need a speaker encoder beside it?"


def cascade(der: float, *, count: int = 24, when: str = "lyra", who: str = "resemblyzer") -> Row:
    """A cascade's row of this DER in every recording; with the right voices a quarter of it is left."""
    row = diarizer({f"r{i}": (50 * der, 0.0, 0.0, 0.0) for i in range(count)}, "4", features=(when, who))
    row.files.warnings = []
    row.result |= {"when": [when], "who": [who], "ceilings": {
        name: {"test": {**row.result["test"], "der": der * left}}
        for name, left in (("true_when_own_who", 0.75), ("own_when_true_who", 0.25))
    }}  # fmt: skip
    diarization_figures(row, 200, np.random.default_rng(0))
    row.trivial[(baselines.ONE_SPEAKER, True)] = {
        name: {**r, "missed_s": 30.0} for name, r in row.result["recordings"].items()
    }
    return row


def test_what_a_cascade_answers() -> None:
    """Over whole recordings it counts where it is clearly better than windows of the codec alone, else it cannot tell."""
    alone, _ = heads(alone=0.4, both=0.3)
    better = answer([alone, cascade(0.2)], 200, 0)
    assert better["verdict"] == "partly"
    assert "the cascade (lyra says when, resemblyzer who) 20.0 % [20.0 … 20.0] over whole recordings" in better["text"]
    worse = answer([alone, cascade(0.5)], 200, 0)
    assert worse["verdict"] == "unclear" and "(not judged: whole recordings are harder than windows)" in worse["text"]
    share = cascade(0.2)
    share.runs[0].files.config["config"]["train_fraction"] = 0.5
    assert answer([alone, share], 200, 0)["verdict"] == "unknown"
    assert answer([alone, cascade(0.2, when="resemblyzer", who="lyra")], 200, 0)["verdict"] == "unknown"


def test_what_a_cascade_s_sentences_say() -> None:
    lyra, fusion, voices = heads(alone=0.4, both=0.3, other=0.35)
    told = findings([lyra, fusion, voices, cascade(0.2)], 200, 0)
    assert [f["text"] for f in told if f["experiment"] == "4"] == [
        "The cascade (lyra says when, resemblyzer who): DER 20.0 % [20.0 … 20.0] over whole recordings (one speaker "
        "throughout: 60.0 %), −40.0 points [−40.0 … −40.0] against that: better.",
        "The cascade (lyra says when, resemblyzer who), DER against the fusion of lyra and resemblyzer −10.0 points "
        "[−10.0 … −10.0]: better, though over whole recordings, the other by window; against the adapter on lyra −20.0 "
        "points [−20.0 … −20.0]: better, though over whole recordings, the other by window; against the adapter on "
        "resemblyzer −15.0 points [−15.0 … −15.0]: better, though over whole recordings, the other by window.",
        "The cascade (lyra says when, resemblyzer who): DER 20.0 % would be, with the true number of speakers at any time "
        "15.0 % (−5.0 points) and with the right voices 5.0 % (−15.0 points): the larger gain is the weaker half.",
    ]
    for row in (lyra, fusion):
        row.runs[0].files.config["config"]["train_fraction"] = 0.5
    assert {f["experiment"] for f in findings([lyra, fusion, voices], 20, 0)} == {"2"}


def test_only_what_the_sound_protocol_measured_is_an_answer() -> None:
    alone, both = heads(alone=0.4, both=0.3)
    both.files.protocol = "reference"
    assert answer([alone, both], 20, 0)["verdict"] == "unknown"


def test_the_speaker_encoder_s_need_of_the_codec_is_told_both_ways() -> None:
    for other, words in ((0.35, "helps"), (0.25, "harms"), (0.3, "does not clearly help")):
        text = answer(heads(alone=0.4, both=0.3, other=other), 200, 0)["text"]
        assert f"lyra in turn {words} resemblyzer" in text


def test_of_several_pairs_the_first_leads_and_the_others_follow() -> None:
    lyra, voices = heads(alone=0.4, both=0.3)
    mimi, titanet = heads(alone=0.5, both=0.2)
    for row, features in ((mimi, ("mimi",)), (titanet, ("mimi", "titanet"))):
        row.files.features = dict.fromkeys(features)
    told = answer([lyra, voices, mimi, titanet], 200, 0)
    assert told["lead"].startswith("Mimi alone tells part of it; it needs TitaNet beside it")
    assert "lyra alone tells part of it; it needs resemblyzer beside it." in told["detail"]
    assert "DER 50.0 %" in told["detail"] and "DER 40.0 %" in told["detail"]


# ---- the chart


def test_the_chart_s_bars_and_what_they_are_on() -> None:
    """By what they are made of; heads that were measured on other recordings are named and left out."""
    lyra, fusion, voices = heads(alone=0.4, both=0.3, other=0.35)
    elsewhere = heads(alone=0.1, both=0.1, count=5)[0]
    rows = [cascade(0.2), fusion, voices, lyra, elsewhere]
    bars = [bar for bar in chart(rows) if not bar["published"]]
    assert [(bar["what"], bar["scope"], round(bar["der"], 3)) for bar in bars] == [
        ("codec alone", "per window", 0.4), ("speaker encoder alone", "per window", 0.35), ("fusion", "per window", 0.3),
        ("cascade", "whole recording", 0.2), ("ceiling", "whole recording", 0.15), ("ceiling", "whole recording", 0.05),
    ]  # fmt: skip
    assert [bar["label"].rpartition(", ")[2] for bar in bars[4:]] == ["true number of speakers", "true voices"]
    assert bars[0]["parts"] == {"missed": pytest.approx(0.4), "false_alarm": 0, "confusion": 0}
    told = chart_on(rows)
    assert (told["num_recordings"], told["minutes"]) == (24, 48.0)
    assert told["left_out"] == ["adapter on lyra: 5 other recordings"]
    trivial = trivial_systems(rows, 20, 0)
    assert [(t["what"], t["scope"], t["value"]) for t in trivial] == [
        ("one speaker throughout", "whole recording", 0.6), ("one speaker throughout", "per window", 0.6)
    ]  # fmt: skip
    assert trivial[0]["interval"]["num_units"] == 24


def test_a_bar_says_what_it_is_of_and_what_weights_it_has() -> None:
    """Two seeds of the unfrozen head, a first adapter, parts of the data, another protocol; ends of what knows nothing."""
    alone, fusion = heads(alone=0.4, both=0.3)
    unfrozen, first, part, reference = (heads(alone=a, both=0.3)[0] for a in (0.35, 0.2, 0.5, 0.6))
    unfrozen.runs = [RunFacts(alone.files, unfrozen.result, "2.5")] * 2
    unfrozen.figures |= {
        "spread": [0.3, 0.4],
        "whole": {"der": 0.45, "missed_detection": 0.4, "false_alarm": 0, "confusion": 0.05},
    }
    fusion.files.warnings = ["lyra: UNTRAINED weights"]
    first.runs[0].experiment = "poc"
    part.runs[0].files.config["config"]["train_fraction"] = 0.5
    reference.files.protocol = "reference"
    few = [row for _ in range(3) for row in heads(alone=0.1, both=0.1, count=5)]  # more of them than of the others
    for row in few:
        row.runs[0].experiment = "poc"
    rows = [reference, part, fusion, unfrozen, alone, first, *few]
    bars = chart(rows)
    assert [(b["what"], b["label"], b["scope"], b["seeds"], b["weights"]) for b in bars] == [
        ("codec alone", "adapter on lyra", "per window", 1, ""), ("codec alone", "PoC adapter on lyra", "per window", 1, ""),
        ("unfrozen", "adapter on lyra, top layers unfrozen", "per window", 2, ""),
        ("unfrozen", "adapter on lyra, top layers unfrozen", "whole recording", 2, ""),
        ("fusion", "fusion of lyra and resemblyzer", "per window", 1, "untrained"),
        ("published", "published: adapter on Mimi", "", 0, ""), ("published", "published: fusion of Mimi and TitaNet", "", 0, ""),
    ]  # fmt: skip
    assert [b["der"] for b in bars] == pytest.approx([0.4, 0.2, 0.35, 0.45, 0.3, 0.6503, 0.6093])
    assert bars[2]["spread"] == [0.3, 0.4] and bars[3]["parts"] == {"missed": 0.4, "false_alarm": 0, "confusion": 0.05}
    assert bars[2]["interval"] == unfrozen.figures["der_interval"] and bars[3]["interval"] is None
    assert bars[5]["note"].startswith("AMI, fixed channels") and bars[0]["experiment"] == "2"
    assert len(chart_on(rows)["left_out"]) == 6 and chart_on(rows)["num_recordings"] == 24
    assert chart_on(rows)["left_out"][0] == "PoC adapter on lyra: 5 other recordings"
    missed = [10.0 + k for k in range(24)]
    for k, errors in enumerate(fusion.trivial[(baselines.ONE_SPEAKER, False)].values()):
        errors["missed_s"] = missed[k]
    told = trivial_systems([*rows, SimpleNamespace(diarizes=False)], 20, 3)
    (of,) = [t for t in told if t["measure"] == "DER"]
    errors_of = [
        sum(r[part] for part in ("missed_s", "false_alarm_s", "confusion_s"))
        for r in fusion.trivial[(baselines.ONE_SPEAKER, False)].values()
    ]
    totals = [r["total_s"] for r in fusion.trivial[(baselines.ONE_SPEAKER, False)].values()]
    expected = ratio_intervals(errors_of, totals, np.random.default_rng(3), num_resamples=20)[0]
    assert of["interval"] == expected.to_json() and of["value"] == pytest.approx(sum(errors_of) / sum(totals))
    assert told[-1] == {"what": "random cosine", "measure": "EER", "value": 0.5, "interval": None, "scope": "trials"}
    assert trivial_systems(rows, 20, 3) == [of] and chart_on([]) == {
        "num_recordings": 0,
        "minutes": 0.0,
        "left_out": [],
    }


# ---- flaws


def test_one_scale_is_told_of_runs_that_have_it(tmp_path: Path) -> None:
    """Of a fusion that takes its features as they are, as runs of version 0.1 do, nothing of the kind is said."""
    diarization_run(tmp_path / "fusion", "fusion")
    diarization_run(tmp_path / "reference", "fusion", "reference", swap=True)

    def ours(number: int) -> str | None:
        facts, _, _ = gather([tmp_path / "fusion", tmp_path / "reference"], 20, 0)
        assert [flaw["number"] for flaw in facts["flaws"]] == list(range(1, 13))
        return facts["flaws"][number - 1]["ours"]

    assert ours(11) is None and ours(12) is None
    save_file({"scale.size": np.repeat(np.float32([4.5, 0.05]), 8)}, tmp_path / "fusion" / "model.safetensors")
    assert ours(11) == (
        "Here (fusion of Mimi and TitaNet) values vary by 4.5 (Mimi) and 0.05 (TitaNet); on one scale DER 10.0 %, as they are "
        "10.0 % (mapped; of the reference protocol, which has flaws 2 and 5 too)."
    )
    save_file({"scale.size": np.ones(16, np.float32)}, tmp_path / "fusion" / "model.safetensors")
    assert ours(11) is None
    assert ours(3) == "Here (fusion of Mimi and TitaNet, reference protocol): DER 95.0 % so, 10.0 % mapped."


def test_what_the_runs_at_hand_show_of_the_study_s_flaws(tmp_path: Path) -> None:
    own, honest = (
        probe_run(tmp_path / name, *more) for name, *more in (("own", "reference", 5.0), ("sound", "sound", 2.0))
    )
    diarization_run(tmp_path / "adapter", "adapter")
    path = tmp_path / "adapter" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean_window_der": 0.123, "train_s": 7200.0, "best_dev_loss": 0.5}))  # fmt: skip
    facts, _, _ = gather(sorted(tmp_path.iterdir()), 20, 0)
    ours = {flaw["number"]: flaw["ours"] for flaw in facts["flaws"]}
    assert (
        ours[1] == f"Here (Mimi): EER {100 * own['probe']:.1f} % so, {100 * honest['probe']:.1f} % on other speakers."
    )
    assert ours[2] == "Here in 0 % of 2 test windows."
    assert ours[9] == "Here (adapter on Mimi): DER 12.3 % averaged over windows, 10.0 % summed."
    told = {number: text for number, text in ours.items() if text}
    assert list(told) == [1, 2, 9]
    fusion = heads(alone=0.4, both=0.3)[1]
    (line,) = _rival([fusion, cascade(0.2)])
    assert line == (
        "Here (cascade: lyra says when, resemblyzer who): DER 20.0 % [20.0 … 20.0] over whole recordings, 15.0 % with the "
        "true number of speakers; fusion of lyra and resemblyzer 30.0 % by window."
    )


def test_both_ways_are_of_the_same_encoders() -> None:
    def row(protocol: str, *features: str) -> SimpleNamespace:
        return SimpleNamespace(protocol=protocol, experiment="1.5", features=features, train_fraction=1.0)

    rows = [row("sound", "titanet"), row("sound", "mimi"), row("reference", "mimi"), row("reference", "lyra")]
    assert list(_both_ways(rows, "1.5")) == [(rows[2], rows[1])] and list(_both_ways(rows, "2")) == []


def test_a_curve_s_points_have_the_hours_and_the_loss(seeds: Path) -> None:
    edit(seeds / "seed1", seed=0, train_fraction=0.5)
    shutil.rmtree(seeds / "seed2")
    for name, more in (("seed0", {"train_s": 7200.0, "best_dev_loss": 0.5}), ("seed1", {"train_s": 3600.0})):
        path = seeds / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    (curve,) = gather([seeds], 20, 0)[0]["learning"]
    assert [(p["hours"], p["loss"], p["seeds"]) for p in curve["points"]] == [(1.0, None, 1), (2.0, 0.5, 1)]
