"""Plain verify locks the store alone for a moment, to see whether anybody writes: a writer that started just then was
refused, and so was whatever else takes the lock.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.store import lock
from tests.featstore.store.test_store import fill, spec, utterance


@pytest.mark.parametrize("alone", [False, True])
def test_who_comes_at_that_moment_waits_for_it(tmp_path: Path, alone: bool) -> None:
    fill(tmp_path / "s")
    looking, done = threading.Event(), threading.Event()

    def look() -> None:
        with lock.hold(tmp_path / "s", alone=True):
            looking.set()
            done.wait(0.15)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait(20)
    if alone:
        with lock.hold(tmp_path / "s", alone=True):
            pass
    else:
        with featstore.writer(tmp_path / "s", spec()) as out:
            out.add(utterance("late"), np.ones((3, 8)))
        assert "late" in featstore.open(tmp_path / "s")
    thread.join()


def test_who_stays_still_refuses(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    with (
        lock.hold(tmp_path / "s", alone=True),
        pytest.raises(featstore.StoreError, match="repaired or compacted"),
    ):
        featstore.writer(tmp_path / "s", spec())
