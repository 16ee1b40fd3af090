"""Of an utterance that two writers added, compact kept the frames of the first copy and the facts of the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import featstore
from featstore import Utterance
from featstore.store import metadata
from featstore.store.commit import commit_part
from featstore.upkeep.compact import compact
from tests.featstore.store.test_store import spec, utterance


def test_the_copy_that_counted_is_the_one_that_stays(tmp_path: Path) -> None:
    metadata.create(tmp_path / "s", spec())
    for part, value in (("a", 1), ("b", 2)):
        some = [utterance(f"only {part}"), utterance("twice", speaker=part, start_s=float(value))]
        commit_part(tmp_path / "s", spec(), part, some, [np.full((3, 8), value, "<f2")] * 2)
    before = content(tmp_path / "s")
    assert before["twice"][1].speaker == "a" and before["twice"][0] == np.full((3, 8), 1, "<f2").tobytes()
    compact(tmp_path / "s")
    assert content(tmp_path / "s") == before
    assert len(featstore.open(tmp_path / "s").index("mimi").parts) == 1


def content(path: Path) -> dict[str, tuple[bytes, Utterance]]:
    store = featstore.open(path)
    return {id: (store.frames("mimi", id).tobytes(), store.utterance(id)) for id in store.ids}
