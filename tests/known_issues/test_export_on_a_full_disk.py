"""`featstore export` onto a full disk ended in two tracebacks and a segmentation fault (h5py cannot close a file that it
cannot write), and left half a file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import featstore
from tests.featstore.store.test_store import spec, utterance

#: Files of this process may not grow beyond a limit: as on a full disk, a write fails. One limit after the other.
SCRIPT = """
import os, resource, sys
from cli.errors import message
from featstore.exchange import export_hdf5

store, folder, *limits = sys.argv[1:]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in map(int, limits):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        export_hdf5(store, f"{folder}/s.h5")
    except OSError as error:
        said = message(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(limit, os.listdir(folder), said, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with featstore.writer(tmp_path / "s", spec(dim=64)) as out:
        for i in range(300):
            out.add(utterance(f"{i:04d}"), np.full((40, 64), i))
    (tmp_path / "out").mkdir()
    return tmp_path / "s"


def test_each_moment_is_one_line_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    limits = [0, 100, 2000, 5000, 20_000, 40_000, 60_000, 80_000, 200_000, 1_500_000]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, store, tmp_path / "out", *map(str, limits)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stderr == ""
    assert found.stdout.splitlines() == [f"{n} [] {tmp_path}/out/s.h5: File too large" for n in limits]


def test_the_command_ends_with_one_line(store: Path, tmp_path: Path) -> None:
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); from cli.featstore import app; app()"
    found = subprocess.run(
        [sys.executable, "-c", script, "export", store, tmp_path / "out" / "s.h5"], capture_output=True, text=True
    )
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1] == f"error: {tmp_path}/out/s.h5: File too large"
    assert "Traceback" not in found.stderr and list((tmp_path / "out").iterdir()) == []
