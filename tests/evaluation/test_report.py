"""The report says what the runs say: their figures, their intervals, their warnings, and what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from cli.evaluation import app
from evaluation.bootstrap import ratio_intervals
from evaluation.diarization import DiarizationErrors, score
from evaluation.report import report
from evaluation.results import paired_difference
from evaluation.rows import read_run, rows_of
from evaluation.rttm import write_rttm, write_uem
from evaluation.turns import Turns
from evaluation.verification import evaluate_scores
from evaluation.words import span
from featstore import Turn
from tests.featstore.store.test_store import spec

DEMO = {"weights": "demo"}


def config(path: Path, kind: str, protocol: str, features: tuple[str, ...], **more: str | int | float) -> None:
    path.mkdir(parents=True)
    specs = {name: spec(name, 8, **DEMO) for name in features}
    data = {
        "whowhen": "0",
        "kind": kind,
        "protocol": protocol,
        "config": {"kind": kind, "protocol": protocol, **more},
        "features": {
            n: {"fingerprint": s.fingerprint, "warning": s.warning, "spec": s.to_json()} for n, s in specs.items()
        },
    }
    (path / "config.json").write_text(json.dumps(data))


def probe_run(path: Path, protocol: str = "sound", gain: float = 2.0, feature: str = "mimi") -> dict[str, float]:
    """Eight speakers, all pairs of five utterances each; raw scores are noise with a little signal."""
    rng = np.random.default_rng(0)
    speakers = np.repeat([f"s{i}" for i in range(8)], 5)
    left, right = np.triu_indices(len(speakers), 1)
    same = speakers[left] == speakers[right]
    noise = rng.normal(size=len(same))
    scores = {"raw": noise + same, "probe": noise + gain * same}
    config(path, "probe", protocol, (feature,))
    columns = {"label": same, "enrol_speaker": speakers[left], "test_speaker": speakers[right], **scores}
    pq.write_table(pa.table(columns), path / "scores.parquet")
    classes = json.dumps({"classes": [f"s{i}" if protocol == "reference" else f"t{i}" for i in range(33)]})
    save_file({"weight": np.zeros((1, 8), np.float32)}, path / "model.safetensors", metadata={"whowhen": classes})
    facts = {"kind": "probe", "protocol": protocol, "num_trials": len(same), "num_trial_speakers": 8}
    facts["systems"] = {name: {"eer": evaluate_scores(values, same).eer} for name, values in scores.items()}
    facts |= {"num_utterances": 99, "num_speakers": 33, "notes": ["a note <b>of</b> the run"]}
    (path / "result.json").write_text(json.dumps(facts))
    return {name: evaluate_scores(values, same).eer for name, values in scores.items()}


def diarization_run(
    path: Path,
    kind: str,
    protocol: str = "sound",
    swap: bool = False,
    features: tuple[str, ...] = (),
    late_s: float = 0.5,
    **more: str | int | float,
) -> float:
    """Two recordings of 10 s; the answer is late by 0.5 s (or `late_s`) and, with `swap`, its channels are in the other order."""
    reference, hypothesis, uem = {}, {}, {}
    for name in ("m1@0.00", "m2@0.00"):
        reference[name] = Turns.of([Turn(0, 4, "ann"), Turn(4, 10, "bob")])
        first, second = ("1", "0") if swap else ("0", "1")
        hypothesis[name] = Turns.of([Turn(late_s, 4 + late_s, first), Turn(4 + late_s, 10, second)])
        uem[name] = np.array([[0.0, 10.0]])
    result = score(reference, hypothesis, uem=uem, hypothesis_order=("0", "1"))
    config(path, kind, protocol, features or (("mimi", "titanet") if kind == "fusion" else ("mimi",)), **more)
    write_rttm(path / "ref.rttm", reference)
    write_rttm(path / "hyp.rttm", hypothesis)
    write_uem(path / "windows.uem", uem)
    (path / "history.csv").write_text("epoch,train_loss,dev_der\n1,0.5,0.4\n2,0.3,0.2\n")
    recordings = {name.split("@")[0]: errors.to_json() for name, errors in result.recordings.items()}
    facts = {
        "kind": kind, "protocol": protocol, "test": sum(result.recordings.values(), DiarizationErrors()).to_json(),
        "recordings": recordings, "decoding": {"threshold": 0.5, "median": 5, "tuned_on": "dev"}, "notes": [],
        "trainable_parameters": 7296388, "steps": 10, "best_epoch": 2, "epochs": 2, "step_seconds": 0.5,
        "input_share": 0.012, "peak_memory_bytes": 5 * 10**8, "seconds": 12.0, "device_name": "cpu",
    }  # fmt: skip
    (path / "result.json").write_text(json.dumps(facts))
    return result.corpus.der


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "runs"
    probe_run(folder / "probe")
    probe_run(folder / "probe-ref", "reference", gain=5.0)
    diarization_run(folder / "adapter", "adapter")
    diarization_run(folder / "adapter-ref", "adapter", "reference", swap=True)
    diarization_run(folder / "fusion", "fusion")
    return sorted(folder.iterdir())


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        links = [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        self.outside += links if tag != "a" else []


def test_every_figure_stands_in_all_three_files(runs: list[Path], tmp_path: Path) -> None:
    facts = report(runs, tmp_path / "out", num_resamples=50)
    eer = probe_run(tmp_path / "again")
    rows = {row["id"]: row for row in facts["experiments"]}
    assert rows["1"]["sound"]["lines"][0]["value"] == pytest.approx(eer["raw"])
    assert rows["1.5"]["sound"]["lines"][0]["value"] == pytest.approx(eer["probe"])
    assert rows["1.5"]["reference"]["lines"][0]["value"] < eer["probe"]
    # 0.5 s missed and 0.5 s confused of 10 s a recording, by hand
    assert rows["2"]["sound"]["lines"][0]["value"] == pytest.approx(0.1)
    by_name = {line["what"]: line["value"] for line in rows["2"]["reference"]["lines"]}
    assert by_name["its DER, mapped"] == pytest.approx(0.1)
    # fixed channels: everything that is said is given to the wrong one, but for the half second of confusion
    assert by_name["DER, fixed channels"] == pytest.approx(0.95)
    assert rows["2.5"]["sound"] is None
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == facts
    html, markdown = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (html, markdown):
        assert f"{100 * eer['probe']:.1f}" in text
        assert "95.0 %" in text
        assert "35.01" in text
        assert "not run" in text
        assert "small demo weights" in text


def test_the_page_is_self_contained_and_escapes_what_runs_say(runs: list[Path], tmp_path: Path) -> None:
    report(runs, tmp_path / "out", num_resamples=20)
    html = (tmp_path / "out" / "report.html").read_text()
    page = Page(html)
    assert page.outside == []
    assert page.count["svg"] >= 6  # DET, histograms, errors, flaws, histories, timelines
    assert "a note &lt;b&gt;of&lt;/b&gt; the run" in html
    assert "url(http" not in html


def test_intervals_hold_the_figure(runs: list[Path], tmp_path: Path) -> None:
    facts = report(runs, tmp_path / "out", num_resamples=200)
    checked = 0
    for row in facts["experiments"]:
        for protocol in ("reference", "sound"):
            for line in (row[protocol] or {"lines": []})["lines"]:
                if line["interval"]:
                    assert line["interval"]["low"] <= line["value"] <= line["interval"]["high"]
                    checked += 1
    assert checked >= 6


def test_equal_systems_are_not_called_better(runs: list[Path], tmp_path: Path) -> None:
    facts = report(runs, tmp_path / "out", num_resamples=50)
    texts = [finding["text"] for finding in facts["findings"]]
    (sentence,) = [text for text in texts if "DER against" in text]
    assert sentence == (
        "The fusion of Mimi and TitaNet, DER against the adapter on Mimi +0.0 points [0.0 … 0.0]: not clearly different."
    )
    assert any(
        text.endswith("95.0 % (one speaker throughout, mapped: 40.0 %), 85.0 points are that way of scoring.")
        for text in texts
    )


def test_runs_of_unequal_training_are_not_compared(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "fusion" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 3}))
    facts = report(runs, tmp_path / "out", num_resamples=20)
    (sentence,) = [f["text"] for f in facts["findings"] if "DER against" in f["text"]]
    assert sentence.endswith("against the adapter on Mimi cannot be judged: 3 training steps against 10.")
    assert facts["answer"]["verdict"] == "unclear" and "not judged: 3 training steps" in facts["answer"]["text"]


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    probe_run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ValueError, match="has not finished"):
        report([tmp_path / "run"], tmp_path / "out")
    with pytest.raises(ValueError, match="not a run"):
        report([tmp_path / "run" / "nothing"], tmp_path / "out")
    with pytest.raises(ValueError, match="no run given"):
        report([], tmp_path / "out")
    probe_run(tmp_path / "run2")
    (tmp_path / "run2" / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"scores.parquet: missing or damaged"):
        report([tmp_path / "run2"], tmp_path / "out")


def test_a_figure_that_does_not_follow_from_its_files_stands_on_top(runs: list[Path], tmp_path: Path) -> None:
    assert report(runs, tmp_path / "out", num_resamples=20)["failed_checks"] == []
    result = json.loads((runs[0] / "result.json").read_text())
    result["test"]["der"] = 0.01
    (runs[0] / "result.json").write_text(json.dumps(result))
    (failed,) = report(runs, tmp_path / "out", num_resamples=20)["failed_checks"]
    assert "10.00 %" in failed["found"]
    assert "Checks that failed" in (tmp_path / "out" / "report.html").read_text()
    assert "Checks that failed" in (tmp_path / "out" / "report.md").read_text()


def test_the_command_resamples_as_often_and_from_the_seed_it_is_given(runs: list[Path], tmp_path: Path) -> None:
    fusion, adapter, probe = (
        next(path for path in runs if path.name == name) for name in ("fusion", "adapter", "probe")
    )
    result = json.loads((fusion / "result.json").read_text())
    result["recordings"]["m2"] |= {"missed_s": 3.0, "confusion_s": 0.25}  # so that the recordings differ
    (fusion / "result.json").write_text(json.dumps(result))
    arguments = ["report", str(fusion), str(adapter), str(probe), "--out", str(tmp_path / "out")]
    out = CliRunner().invoke(app, [*arguments, "--bootstrap", "7", "--seed", "3", "--json"])
    assert out.exit_code == 0, out.output
    facts = json.loads(out.stdout)
    row = next(row for row in facts["experiments"] if row["id"] == "3")["sound"]
    by_name = {line["what"]: line for line in row["lines"]}
    errors = [sum(r[k] for k in ("missed_s", "false_alarm_s", "confusion_s")) for r in result["recordings"].values()]
    expected, _ = ratio_intervals(errors, [10, 10], np.random.default_rng(3), num_resamples=7)
    assert by_name["DER"]["interval"] == expected.to_json()
    test = result["test"]
    assert [(line["what"], line["value"]) for line in row["lines"]] == [
        ("DER", test["der"]), ("FA+Miss", test["detection"]), ("confusion", test["confusion"]), ("JER", test["jer"])
    ]  # fmt: skip
    assert row["on"] == "2 recordings, 0.3 min, by window; threshold 0.5, median 5, tuned on dev"
    runs_of = {run["name"]: run for run in facts["runs"]}
    assert runs_of["probe"]["figures"]["probe"]["interval"]["num_resamples"] == 7
    found = rows_of([read_run(path) for path in (fusion, adapter)])
    gap = paired_difference(*found, 7, 3)
    (told,) = [finding["text"] for finding in facts["findings"] if "DER against" in finding["text"]]
    assert f"[{span(gap.to_json())}]" in told
    assert paired_difference(*found, 7, 0) != gap


def test_the_command_says_where_the_page_is(runs: list[Path], tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["report", *map(str, runs), "--out", str(tmp_path / "out"), "--bootstrap", "20"])
    assert out.exit_code == 0, out.output
    assert re.search(r"report: .*report\.html", out.stdout)
    assert "small demo weights" in out.stderr
