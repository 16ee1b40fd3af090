"""Every mapped chunk kept a file descriptor (Python's mmap does), so a store of some hours ended in "Too many open files";
a verifying reader then advised to repair the store.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import featstore
from tests.featstore.store.test_store import fill

#: Chunks of four rows: hundreds of them.
SCRIPT = """
import resource, sys
import featstore

resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for verify in (False, True):
    store = featstore.open(sys.argv[1], verify=verify)
    held = [store.frames("mimi", id, i, i + 1) for id in store.ids for i in range(store.num_frames("mimi", id))]
    held += [store.pooled("mimi"), store.pooled("mimi", statistic="std")]
    print(len(held), sum(float(rows.sum()) for rows in held[:-2]))
"""


def test_hundreds_of_chunks_with_64_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.store.commit.CHUNK_BYTES", 4 * 16)
    data = fill(tmp_path / "s", count=60, part_bytes=4000)
    assert len(list((tmp_path / "s").glob("features.zarr/mimi/*/frames/c/*"))) > 250
    found = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "s"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    rows = np.concatenate(list(data.values())).astype(np.float64)
    for line in found.stdout.splitlines():
        count, total = line.split()
        assert int(count) == len(rows) + 2
        assert float(total) == pytest.approx(rows.sum(), rel=1e-2)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("where", ["index", "utterances", "seal", "chunk"])
def test_too_many_open_files_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, verify: bool
) -> None:
    fill(tmp_path / "s")
    refused = {"index": "index/mimi/", "utterances": "utterances/", "seal": "mimi/[^/]+/zarr.json$", "chunk": "/c/0/0$"}

    def refusing(real: object) -> object:
        def call(path: object, *rest: object, **named: object) -> object:
            if re.search(refused[where], str(path)):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
            return real(path, *rest, **named)

        return call

    monkeypatch.setattr(Path, "read_bytes", refusing(Path.read_bytes))
    monkeypatch.setattr("featstore.store.part.open", refusing(open), raising=False)
    store = featstore.open(tmp_path / "s", verify=verify)
    if where == "seal" and not verify:  # nobody reads it
        store.frames("mimi", "u0")
        return
    with pytest.raises(featstore.StoreError, match="Too many open files.*ulimit -n") as error:
        store.frames("mimi", "u0")
        store.utterance("u0")
    assert "repair" not in str(error.value) and "verify" not in str(error.value)
