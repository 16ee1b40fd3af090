"""Digests of labels: another label gives another one, the order and where the audio lies do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import featstore
from evaluation.audit import check_run
from featstore import Turn, Utterance
from featstore.corpora.corrections import Correction
from featstore.store.labels import label_digests, other_labels
from featstore.upkeep.relabel import relabel, remove
from tests.featstore.store.test_store import spec
from trainers.config import FitConfig
from trainers.runs import Run, RunError

FACTS = [
    Utterance("a", "a.wav", 0.0, 1.0, "r", "s", "train"),
    Utterance("b", "b.wav", 0.0, 1.0, "r", None, "train", (Turn(0.0, 0.5, "x"),)),
    Utterance("c", "c.wav", 0.0, 1.0, "q", "t", "test"),
]


def write(path: Path, facts: list[Utterance]) -> featstore.Store:
    with featstore.writer(path, spec()) as out:
        for u in facts:
            out.add(u, np.ones((3, 8)))
    return featstore.open(path)


def test_labels_and_nothing_else_change_a_digest(tmp_path: Path) -> None:
    digests = label_digests(write(tmp_path / "s", FACTS))
    assert [digests[split]["utterances"] for split in ("train", "test")] == [2, 1]
    assert label_digests(write(tmp_path / "t", FACTS[::-1])) == digests
    for number, labels in enumerate(
        ({"audio": "z.wav"}, {"speaker": "z"}, {"recording": "z"}, {"speaker": None}, {"turns": (Turn(0.0, 0.6, "x"),)})
    ):
        path = tmp_path / f"s{number}"
        write(path, FACTS)
        relabel(path, [Correction("b" if "turns" in labels else "a", "here", labels)])
        now = label_digests(featstore.open(path))
        assert now["test"] == digests["test"] and (now["train"] == digests["train"]) == ("audio" in labels), labels
        assert other_labels(digests, now) == ("" if "audio" in labels else "train: other labels")
    assert other_labels(None, digests) == ""


def test_a_run_says_that_labels_were_others(tmp_path: Path) -> None:
    store = write(tmp_path / "s", FACTS)
    config = FitConfig.make("probe", settings=["feature=mimi", "trials=t.txt"])
    run = Run.create(tmp_path / "run", config, store)
    run.begin()
    assert json.loads((tmp_path / "run" / "config.json").read_bytes())["labels"] == label_digests(store)
    assert Run.create(tmp_path / "run", config, store, resume=True).labels == run.labels

    def said() -> list[tuple[str, str]]:
        checks = check_run(tmp_path / "run", featstore.open(tmp_path / "s"))
        return [(check.found, check.level) for check in checks if ": labels in" in check.name]

    assert said() == [("as then", "ok")]
    relabel(tmp_path / "s", [Correction("a", "here", {"speaker": "z"})])
    remove(tmp_path / "s", ["c"])
    assert said() == [("test: 1 utterances then, 0 now; train: other labels", "warning")]
    with pytest.raises(
        RunError, match=r"cannot resume: labels in .* are others .*train: other labels\); train a new run"
    ):
        Run.create(tmp_path / "run", config, featstore.open(tmp_path / "s"), resume=True)
