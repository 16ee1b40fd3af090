"""The report asked every run for Mimi: one on other encoders was left out, and the page said “not run” in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.report import report
from tests.evaluation.test_report import diarization_run, probe_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    probe_run(tmp_path / "runs" / "probe")
    diarization_run(tmp_path / "runs" / "adapter", "adapter")
    diarization_run(tmp_path / "runs" / "fusion", "fusion")
    return sorted((tmp_path / "runs").iterdir())


def test_a_run_on_other_encoders_has_its_own_rows(runs: list[Path], tmp_path: Path) -> None:
    eer = probe_run(tmp_path / "others" / "probe", feature="lyra", gain=9.0)
    der = diarization_run(tmp_path / "others" / "adapter", "adapter", features=("lyra",))
    diarization_run(tmp_path / "others" / "fusion", "fusion", features=("lyra", "resemblyzer"))
    alone = report(runs, tmp_path / "out", num_resamples=20)
    facts = report([tmp_path / "others", *runs], tmp_path / "out", num_resamples=20)
    rows = {(row["id"], *row["features"]): row for row in facts["experiments"]}
    assert [row for row in facts["experiments"] if not {"lyra", "resemblyzer"} & {*row["features"]}] == alone[
        "experiments"
    ]
    assert rows["1", "lyra"]["sound"]["lines"][0]["value"] == pytest.approx(eer["raw"])
    assert rows["1.5", "lyra"]["sound"]["lines"][0]["value"] == pytest.approx(eer["probe"])
    assert rows["2", "lyra"]["sound"]["lines"][0]["value"] == pytest.approx(der)
    assert rows["2", "lyra"]["published"].startswith("of Mimi: ") and rows["2", "mimi"]["published"].startswith(
        "FA+Miss"
    )
    assert rows["2", "lyra"]["question"] == "Can a small head on frozen lyra diarize?"
    assert rows["3", "lyra", "resemblyzer"]["title"] == "fusion of lyra and resemblyzer"
    only = report([tmp_path / "others"], tmp_path / "out", num_resamples=20)
    assert {row["id"] for row in only["experiments"] if row["sound"]} == {"1", "1.5", "2", "3"}
    assert only["question"].startswith("Can lyra tell who speaks when, or does it need resemblyzer")
    assert {bar["what"] for bar in only["chart"]} == {"codec alone", "fusion", "published"}
    texts = [finding["text"] for finding in only["findings"]]
    assert any(text.startswith("The fusion of lyra and resemblyzer: DER 10.0 %") for text in texts)
