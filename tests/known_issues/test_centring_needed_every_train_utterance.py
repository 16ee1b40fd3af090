"""`evaluation eer --centre` failed when one utterance of the train split, say one whose audio was bad, had no frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import featstore
from cli.evaluation import app
from evaluation.verification import cosine_scores
from featstore import Utterance
from tests.sessions import spec

IDS = [f"{split}{i}" for split in ("train", "test") for i in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Feature "all" of eight utterances, feature "some" of all but train0 and train1."""
    for name, ids in (("all", IDS), ("some", IDS[2:])):
        with featstore.writer(tmp_path / "store", spec(name)) as writer:
            for id in ids:
                frames = np.random.default_rng(list(id.encode())).normal(size=(20, 8)) + 3
                writer.add(Utterance(id, f"{id}.wav", 0.0, 1.6, id, f"s{int(id[-1]) // 2}", id[:-1]), frames)
    (tmp_path / "trials.txt").write_text("1 test0 test1\n0 test0 test2\n0 test1 test3\n1 test2 test3\n")
    return tmp_path / "store"


def eer(store: Path, feature: str) -> tuple[int, dict, str]:
    trials = store.parent / "trials.txt"
    command = ["eer", "--store", store, "--feature", feature, "--trials", trials, "--centre", "--json"]
    done = CliRunner().invoke(app, list(map(str, command)))
    return done.exit_code, json.loads(done.stdout or "{}"), done.stderr


def test_the_mean_is_of_those_that_have_the_feature(store: Path) -> None:
    code, data, told = eer(store, "some")
    assert code == 0, told
    assert "centred on 2 of 4 train utterances; the others lack feature 'some'" in told
    assert data["warnings"] == [told.removeprefix("warning: ").strip()]
    opened = featstore.open(store)
    vectors = opened.pooled("some", IDS[4:]) - opened.pooled("some", ["train2", "train3"]).mean(0)
    scores = cosine_scores(vectors, np.array([0, 0, 1, 2]), np.array([1, 2, 3, 3]))
    assert (data["min_score"], data["max_score"]) == pytest.approx((scores.min(), scores.max()), abs=1e-6)


def test_nothing_is_said_where_all_have_it_and_none_is_refused(store: Path) -> None:
    assert eer(store, "all")[1]["warnings"] == []
    with featstore.writer(store, spec("none")) as writer:
        for id in IDS[4:]:
            writer.add(featstore.open(store).utterance(id), np.ones((20, 8)))
    code, _, told = eer(store, "none")
    assert code == 2
    assert "found none of 4 with feature 'none'" in told
