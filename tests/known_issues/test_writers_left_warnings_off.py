"""Two writers in threads left the process without warnings: each silenced them around a call of zarr-python's and put back
what it had found, which was the other's silence.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

import featstore
from tests.featstore.store.test_store import spec, utterance


def test_two_commits_that_overlap_leave_the_filters_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, both, first_done = zarr.create_array, threading.Barrier(2, timeout=20), threading.Event()
    began: list[str] = []

    def create_array(*args: object, **settings: object) -> object:
        if settings["name"] == "frames":  # a enters, b enters, a leaves, b leaves
            began.append(threading.current_thread().name)
            both.wait()
            if threading.current_thread().name == began[1]:
                first_done.wait(20)
        return real(*args, **settings)

    def write(id: str) -> None:
        with featstore.writer(tmp_path / "s", spec()) as out:
            out.add(utterance(id), np.ones((3, 8)))
        first_done.set()

    monkeypatch.setattr(zarr, "create_array", create_array)
    before = list(warnings.filters)
    threads = [threading.Thread(target=write, args=(id,)) for id in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(featstore.open(tmp_path / "s").ids) == ["a", "b"]
    assert warnings.filters == before
