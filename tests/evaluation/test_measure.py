"""`evaluation der` and `eer`: every option reaches the figures, each worked by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import featstore
from cli.evaluation import app
from evaluation.bootstrap import eer_intervals, ratio_intervals
from evaluation.doctor import Check
from evaluation.measure import examine, measure_der, measure_eer
from evaluation.rttm import write_rttm
from evaluation.turns import Turns
from evaluation.verification import evaluate_scores
from featstore import FeatureSpec, FrameGrid, Turn, Utterance
from tests.evaluation.test_report import diarization_run


def run(*arguments: object) -> tuple[dict, str]:
    done = CliRunner().invoke(app, [str(a) for a in (*arguments, "--json")])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def sides(tmp_path: Path) -> list[object]:
    """m: A 0-4, B 3-7 against x 0-3, y 3-7, x 8-9. n: A 0-2 against x 0-2, y 2-4. o: A 0-5 against x 1-5.

    Missed 1 in m (A at 3-4) and 1 in o; false alarms of 1 and 2; 15 s of speech.
    """
    reference = {"m": [Turn(0, 4, "A"), Turn(3, 7, "B")], "n": [Turn(0, 2, "A")], "o": [Turn(0, 5, "A")]}
    hypothesis = {
        "m": [Turn(0, 3, "x"), Turn(3, 7, "y"), Turn(8, 9, "x")],
        "n": [Turn(0, 2, "x"), Turn(2, 4, "y")],
        "o": [Turn(1, 5, "x")],
    }
    for name, side in (("ref", reference), ("hyp", hypothesis)):
        write_rttm(tmp_path / f"{name}.rttm", {name: Turns.of(turns) for name, turns in side.items()})
    (tmp_path / "some.uem").write_text("m 1 0 7\nn 1 0 2\no 1 1 2.5\n")
    return ["der", "--ref", tmp_path / "ref.rttm", "--hyp", tmp_path / "hyp.rttm"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"missed_s": 2, "false_alarm_s": 3, "confusion_s": 0, "total_s": 15, "scored_s": 18, "fixed_der": 5 / 15}),
        (["--skip-overlap"], {"missed_s": 1, "false_alarm_s": 3, "total_s": 13, "scored_s": 17}),
        # Left out: half a second around 0, 3, 4 and 7; 0 and 2; 0 and 5.
        (["--collar", 0.5], {"missed_s": 0.5, "false_alarm_s": 2.5, "total_s": 9, "scored_s": 12}),
        (["--uem", "some.uem"], {"missed_s": 1, "false_alarm_s": 0, "total_s": 11.5, "scored_s": 10.5}),
        # With y as the first channel: A and y meet for a second of m, nobody else meets their channel.
        (["--channels", "y,x"], {"missed_s": 2, "fixed_confusion_s": 6 + 2 + 4, "confusion_s": 0}),
    ],
)
def test_each_option_of_der_reaches_the_figures(
    sides: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list, expected: dict[str, float]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, _ = run(*sides, *options, "--bootstrap", 3)
    corpus = data["corpus"]
    assert {key: corpus[key] for key in expected} == pytest.approx(expected)
    wrong_s = sum(corpus[key] for key in ("missed_s", "false_alarm_s", "confusion_s"))
    assert corpus["der"] == pytest.approx(wrong_s / corpus["total_s"])
    assert data["der_interval"]["estimate"] == pytest.approx(corpus["der"])
    assert (data["collar_s"], data["skip_overlap"]) == (
        0.5 if "--collar" in options else 0,
        "--skip-overlap" in options,
    )


def test_the_interval_of_a_der_is_of_all_its_errors_over_recordings_and_follows_the_seed(sides: list) -> None:
    intervals = []
    for seed in (0, 1):
        data, _ = run(*sides, "--bootstrap", 9, "--seed", seed)
        expected, _ = ratio_intervals([2, 2, 1], [8, 2, 5], np.random.default_rng(seed), num_resamples=9)
        assert data["der_interval"] == {**expected.to_json(), "resampled": "recordings", "seed": seed}
        intervals.append(data["der_interval"])
    assert intervals[0]["low"] != intervals[1]["low"]
    assert run(*sides, "--bootstrap", 9)[0]["der_interval"] == intervals[0]
    assert "der_interval" not in run(*sides)[0]


def test_the_table_of_der_shows_the_rates_in_their_columns(sides: list) -> None:
    done = CliRunner().invoke(app, [str(a) for a in (*sides, "--collar", 0.25, "--skip-overlap", "--bootstrap", 9)])
    assert done.exit_code == 0, done.output
    data = run(*sides, "--collar", 0.25, "--skip-overlap", "--bootstrap", 9)[0]["der_interval"]
    assert data["low"] < data["high"]
    span = f"{100 * data['low']:.2f} … {100 * data['high']:.2f} %"
    title = f"DER, collar ±0.25 s, overlap left out; 95 % interval of the corpus over 3 recordings: {span}"
    assert title in " ".join(done.stdout.split())
    plain = CliRunner().invoke(app, [str(a) for a in sides]).stdout
    assert "DER, collar ±0 s, overlap scored" in plain and "interval" not in plain
    rows = {line.split()[0]: line.split()[1:] for line in plain.splitlines() if line.split()}
    # DER, missed, FA, confused, FA+Miss, JER, fixed, speech. Jaccard of m: A 3 of 0-4 and 8-9, B all.
    assert rows["m"] == ["25.00", "12.50", "12.50", "0.00", "25.00", "20.00", "25.00", "8.00"]
    assert rows["all"] == ["3", "33.33", "13.33", "20.00", "0.00", "33.33", "15.00", "33.33", "15.00"]


def test_a_channel_that_nobody_has_is_refused(sides: list, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--channels: z in no recording of .*; there are x, y"):
        measure_der(tmp_path / "ref.rttm", tmp_path / "hyp.rttm", channels=("x", "z"))


# ---- EER


@pytest.fixture
def trials(tmp_path: Path) -> list[object]:
    """Two utterances each of four speakers around a common offset; the train split's mean is (2, 1)."""
    vectors = {"a": (5, 2), "b": (5, 1.5), "c": (3, 4), "d": (4, 4.5)}
    spec = FeatureSpec("toy", 2, "float32", 16000, featstore.MIMI_GRID, "toy", "")
    with featstore.writer(tmp_path / "store", spec) as writer:
        for speaker, vector in vectors.items():
            for take in range(2):
                id = f"{speaker}{take}"
                frames = np.array(vector) + np.array([[take / 2, 0], [0, take]])
                writer.add(Utterance(id, f"{id}.wav", 0.0, 0.16, id, speaker, "test"), frames)
        for id, vector in (("t0", (1, 0)), ("t1", (3, 2))):
            writer.add(Utterance(id, f"{id}.wav", 0.0, 0.08, id, id, "train"), np.array([vector]))
    names = [f"{speaker}{take}" for speaker in vectors for take in range(2)]
    pairs = [(one, other) for i, one in enumerate(names) for other in names[:i]]
    text = "".join(f"{int(one[0] == other[0])} {one} {other}\n" for one, other in pairs)
    (tmp_path / "trials.txt").write_text(text)
    return [tmp_path / "store", "toy", tmp_path / "trials.txt"]


def eer(trials: list, *options: object) -> dict:
    store, feature, path = trials
    return run("eer", "--store", store, "--feature", feature, "--trials", path, *options)[0]


def cosines(trials: list, centre: tuple[float, float]) -> tuple[list[float], list[bool], list[str], list[str]]:
    """Scores, truth and both sides' speakers, a pair at a time."""
    store, scores, same, left, right = featstore.open(trials[0]), [], [], [], []
    for line in trials[2].read_text().splitlines():
        label, one, other = line.split()
        a, b = (store.frames("toy", id).astype(np.float64).mean(0) - centre for id in (one, other))
        scores.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        same.append(label == "1")
        left.append(one[0])
        right.append(other[0])
    return scores, same, left, right


@pytest.mark.parametrize(("option", "centre"), [("--centre", (2, 1)), ("--no-centre", (0, 0))])
def test_centring_takes_off_the_mean_of_the_train_split(trials: list, option: str, centre: tuple) -> None:
    data = eer(trials, option)
    scores, same, *_ = cosines(trials, centre)
    expected = evaluate_scores(scores, same)
    assert data["centred"] is (option == "--centre")
    assert (data["eer"], data["mean_same"], data["mean_different"]) == pytest.approx(
        (expected.eer, expected.mean_same, expected.mean_different), abs=1e-6
    )
    assert (data["num_same"], data["num_different"]) == (4, 24)
    if option == "--centre":
        assert eer(trials)["mean_different"] > data["mean_different"] + 0.1


def test_the_interval_of_an_eer_is_by_speaker_and_follows_the_seed(trials: list) -> None:
    scores, same, *speakers = cosines(trials, (0, 0))
    intervals = []
    for seed in (0, 1):
        data = eer(trials, "--bootstrap", 9, "--seed", seed)
        expected, _ = eer_intervals(np.float32(scores), same, *speakers, np.random.default_rng(seed), num_resamples=9)
        assert data["eer_interval"] == pytest.approx({**expected.to_json(), "resampled": "speakers", "seed": seed})
        intervals.append(data["eer_interval"])
    assert intervals[0]["high"] != intervals[1]["high"]
    assert eer(trials, "--bootstrap", 9)["eer_interval"] == intervals[0]
    assert "eer_interval" not in eer(trials)
    store, feature, path = trials
    assert measure_eer(store, [feature], path)[feature][1] is None


def test_eer_takes_any_number_of_features_and_all_of_the_store_without_one(trials: list) -> None:
    store, _, path = trials
    first = eer(trials, "--bootstrap", 9)
    opened = featstore.open(store)
    with featstore.writer(store, dataclasses.replace(opened.features["toy"], name="other")) as writer:
        for id in opened.ids:
            writer.add(opened.utterance(id), opened.frames("toy", id)[:, ::-1] ** 2)
    both = run("eer", "--store", store, "--trials", path, "--bootstrap", 9)[0]["features"]
    assert [each["feature"] for each in both] == ["other", "toy"] and both[1] == first
    assert both[0]["mean_same"] != both[1]["mean_same"]
    named = run("eer", "--store", store, "--trials", path, "--feature", "toy", "--feature", "other")[0]["features"]
    assert [each["feature"] for each in named] == ["toy", "other"]
    table = CliRunner().invoke(app, ["eer", "--store", str(store), "--trials", str(path)]).stdout
    assert "toy on trials.txt" in table and "other on trials.txt" in table


def test_the_table_of_eer_says_what_it_is_of(trials: list) -> None:
    store, feature, path = trials
    arguments = ["eer", "--store", store, "--feature", feature, "--trials", path, "--centre", "--bootstrap", 9]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    data = eer(trials, "--centre")
    assert "toy on trials.txt, centred" in done.stdout
    rows = [line.split("│") for line in done.stdout.splitlines() if "│" in line]
    found = {name.strip(): value.strip() for _, name, value, _ in rows}
    assert found["EER"] == f"{100 * data['eer']:.2f} %"
    assert found["trials, same / different"] == "4 / 24"
    assert found["mean score, same / different"] == f"{data['mean_same']:.4f} / {data['mean_different']:.4f}"
    interval = eer(trials, "--centre", "--bootstrap", 9)["eer_interval"]
    assert interval["low"] < interval["high"]
    assert found["95 % interval over 4 speakers"] == f"{100 * interval['low']:.2f} … {100 * interval['high']:.2f} %"
    scores, same, *_ = cosines(trials, (2, 1))
    assert found["score range"] == f"{min(scores):.4f} … {max(scores):.4f}"
    costs = evaluate_scores(np.float32(scores), same).min_dcf
    assert len(costs) == 2 and {k: v for k, v in found.items() if "minDCF" in k} == {
        f"minDCF (p = {prior:g})": f"{cost:.4f}" for prior, cost in costs.items()
    }
    assert (data["feature"], data["trials"]) == ("toy", str(path))


# ---- the doctor


def test_the_table_of_the_doctor_shows_each_check_and_counts_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    checks = [Check("a", "one", "two", "ok"), Check("b", "[x]", "four", "error"), Check("c", "five", "six", "warning")]
    monkeypatch.setattr(
        "evaluation.measure.examine", lambda *what, **more: asked.append((what, more)) or (checks, ["n"])
    )
    words = ["doctor", "r1", "r2", "--ref", "r.rttm", "--uem", "u", "--store", "s", "--seed", "4"]
    done = CliRunner().invoke(app, words)
    more = {"ref": Path("r.rttm"), "uem": Path("u"), "store": Path("s"), "seed": 4}
    assert asked == [(([Path("r1"), Path("r2")],), more)]
    assert (done.exit_code, done.stderr) == (1, "warning: n\n")
    rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in done.stdout.splitlines()
        if line.startswith(("│", "┃"))
    ]
    assert rows == [
        ["check", "found", "expected", ""],
        ["a", "one", "two", "ok"],
        ["b", "[x]", "four", "error"],
        ["c", "five", "six", "warning"],
    ]
    assert done.stdout.splitlines()[-1] == "3 checks, 1 failed."
    told = CliRunner().invoke(app, [*words, "--json"])
    found = {"ok": False, "checks": [check.to_json() for check in checks], "notes": ["n"]}
    assert (told.exit_code, told.stderr, json.loads(told.stdout)) == (1, "warning: n\n", found)
    del checks[1]
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == "2 checks, none failed."
    assert asked[2] == (((),), {"ref": None, "uem": None, "store": None, "seed": 0})


def test_the_report_says_in_words_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    facts = {"answer": {"text": "Yes."}, "findings": [{"text": "one"}, {"text": "two"}], "warnings": ["toys", "more"]}
    monkeypatch.setattr("evaluation.report.report", lambda *what, **more: asked.append((what, more)) or facts)
    done = CliRunner().invoke(app, ["report", "a", "b", "--out", str(tmp_path / "o")])
    assert asked == [(([Path("a"), Path("b")], tmp_path / "o"), {"num_resamples": 1000, "seed": 0})]
    assert done.stdout == f"Yes.\n- one\n- two\nreport: {tmp_path / 'o' / 'report.html'}\n"
    assert (done.exit_code, done.stderr) == (0, "warning: toys\nwarning: more\n")
    told = CliRunner().invoke(app, ["report", "a", "--out", "o", "--bootstrap", "7", "--seed", "3", "--json"])
    assert json.loads(told.stdout) == facts and told.stderr == done.stderr
    assert asked[1] == (([Path("a")], Path("o")), {"num_resamples": 7, "seed": 3})


def test_examine_looks_at_what_it_is_given_and_takes_the_seed(sides: list, tmp_path: Path) -> None:
    long = Turns.of([Turn(i * 7.3, i * 7.3 + 5, "ABC"[i * i % 3]) for i in range(40)])
    write_rttm(tmp_path / "long.rttm", {"m": long})
    (tmp_path / "half.uem").write_text("m 1 0 150\n")
    first, again, other = (examine(ref=tmp_path / "long.rttm", seed=seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    done = CliRunner().invoke(app, ["doctor", "--ref", str(tmp_path / "long.rttm"), "--seed", "1", "--json"])
    assert json.loads(done.stdout)["checks"] == [check.to_json() for check in other]
    half, _ = examine(ref=tmp_path / "long.rttm", uem=tmp_path / "half.uem")
    left = [next(c.found for c in checks if c.name.startswith("collar ±0.25")) for checks in (first, half)]
    assert [float(found.split()[2]) for found in left] == [pytest.approx(180), pytest.approx(94.5, abs=6)]


def test_the_floor_is_looked_for_at_a_stores_own_frames(sides: list, tmp_path: Path) -> None:
    for name, grid in (("fine", FrameGrid(0.01, 0.02)), ("mimis", featstore.MIMI_GRID)):
        spec = FeatureSpec(name, 2, "float32", 16000, grid, "toy", "")
        with featstore.writer(tmp_path / "store", spec) as writer:
            writer.add(Utterance("a", "a.wav", 0.0, 0.16, "a", "a", "test"), np.ones((2, 2)))
    checks, _ = examine(ref=sides[2], store=tmp_path / "store")
    floors = [check.name for check in checks if check.name.startswith("floor at") and "frame centre" in check.name]
    assert [name.split(":")[0] for name in floors] == [
        "floor at 12.5 Hz", "floor at 25 Hz", "floor at the frames of fine"
    ]  # fmt: skip


def test_a_folder_of_runs_is_examined_run_by_run(tmp_path: Path) -> None:
    for seed in range(2):
        diarization_run(
            tmp_path / "out" / f"seed{seed}", "adapter", features=("lyra", "resemblyzer", "third"), seed=seed
        )
    checks, _ = examine([tmp_path / "out"])
    taken = [check for check in checks if "DER, taken again" in check.name]
    assert [check.level for check in taken] == ["ok", "ok"]
    assert sum("weights" in check.name for check in checks) == 6


# ---- the commands


def asked(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> tuple[tuple, dict]:
    """What a command asks its function for."""
    seen: list[tuple[tuple, dict]] = []

    class Asked(Exception):
        pass

    def function(*a: object, **k: object) -> None:
        seen.append((a, k))
        raise Asked

    monkeypatch.setattr(name, function)
    CliRunner().invoke(app, [str(a) for a in arguments])
    return seen[0]


def test_each_option_of_each_command_reaches_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Path
    words = ("eer", "--store", "s", "--trials", "t", "--feature", "a", "--feature", "b")
    plain = {"centre": False, "num_resamples": 0, "seed": 0}
    name = "evaluation.measure.measure_eer"
    assert asked(monkeypatch, name, *words) == ((p("s"), ["a", "b"], p("t")), plain)
    full = asked(monkeypatch, name, *words[:5], "--centre", "--bootstrap", 7, "--seed", 3)
    assert full == ((p("s"), (), p("t")), {"centre": True, "num_resamples": 7, "seed": 3})
    assert asked(monkeypatch, name, *words, "--no-centre")[1] == plain
    name, words = "evaluation.measure.measure_der", ("der", "--ref", "r", "--hyp", "h")
    plain = {"uem": None, "collar_s": 0.0, "skip_overlap": False, "channels": (), "num_resamples": 0, "seed": 0}
    assert asked(monkeypatch, name, *words) == ((p("r"), p("h")), plain)
    more = ("--uem", "u", "--collar", 0.25, "--skip-overlap", "--channels", "x,y", "--bootstrap", 9, "--seed", 5)
    assert asked(monkeypatch, name, *words, *more)[1] == {
        **{"uem": p("u"), "collar_s": 0.25, "skip_overlap": True, "channels": ["x", "y"], "num_resamples": 9, "seed": 5}
    }
    name = "evaluation.measure.examine"
    assert asked(monkeypatch, name, "doctor", "--ref", "r", "--uem", "u", "--store", "s", "--seed", 4, "a", "b") == (
        ([p("a"), p("b")],), {"ref": p("r"), "uem": p("u"), "store": p("s"), "seed": 4}
    )  # fmt: skip
    assert asked(monkeypatch, name, "doctor") == (((),), {"ref": None, "uem": None, "store": None, "seed": 0})
    name = "evaluation.report.report"
    assert asked(monkeypatch, name, "report", "a", "b", "--out", "o", "--bootstrap", 6, "--seed", 2) == (
        ([p("a"), p("b")], p("o")), {"num_resamples": 6, "seed": 2}
    )  # fmt: skip
    assert asked(monkeypatch, name, "report", "a", "--out", "o")[1] == {"num_resamples": 1000, "seed": 0}
    for command in (("eer", "--store", "s", "--trials", "t"), ("report", "a", "--out", "o")):
        for option, below in (("--bootstrap", 0), ("--seed", -1)):
            assert CliRunner().invoke(app, [*command, option, str(below)]).exit_code == 2
