"""A store that had been read from pickled its mapped chunks: 4.6 kB became 20 MB, once for every worker that is spawned."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.remote.transfer import push
from tests.featstore.store.test_store import spec, utterance


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pickled") / "s"
    with featstore.writer(path, spec(dim=256)) as out:
        for i in range(40):
            out.add(utterance(f"u{i}", split="train" if i % 2 else "dev"), np.full((500, 256), i))
    return path


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_a_used_store_stays_small(store: Path, tmp_path: Path, far: bool, verify: bool) -> None:
    if far:
        pytest.importorskip("obstore")
        push(store, f"file://{tmp_path}/far")
        opened = featstore.open(f"file://{tmp_path}/far", cache=tmp_path / "cache", verify=verify)
    else:
        opened = featstore.open(store, verify=verify)
    fresh = len(pickle.dumps(opened))
    for id in opened.ids:
        opened.frames("mimi", id)
    opened.pooled("mimi"), opened.pooled("mimi", statistic="std")
    assert "u3" in opened
    data = pickle.dumps(opened)
    assert len(data) < fresh + 32_000
    for there in (pickle.loads(data), pickle.loads(pickle.dumps(opened.select(split="train")))):
        np.testing.assert_array_equal(there.frames("mimi", "u39"), opened.frames("mimi", "u39"))
        np.testing.assert_array_equal(there.pooled("mimi", ["u7"]), opened.pooled("mimi", ["u7"]))
    assert there.ids == [f"u{i}" for i in range(1, 40, 2)] and "u2" not in there
