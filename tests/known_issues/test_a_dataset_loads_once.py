"""A data set was loaded a second time for its audio, by every decoding thread at once.

The cache saw another call where the arguments were given by position, and it does not lock.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import soundfile

from featstore.corpora import audio
from featstore.corpora.manifest import read_manifest
from tests.fakes import tone


def test_reading_and_decoding_load_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra hub)")
    soundfile.write(tmp_path / "a.wav", tone(0.2), 8000)
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = {"audio": [{"bytes": (tmp_path / "a.wav").read_bytes(), "path": None}] * 8}
    features = datasets.Features({"audio": kind})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "hf")
    load, loads = datasets.load_from_disk, []

    def slowly(path: str) -> Any:
        loads.append(path)
        time.sleep(0.2)  # long enough for every thread to come in
        return load(path)

    monkeypatch.setattr(datasets, "load_from_disk", slowly)
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda _: read_manifest(tmp_path / "hf"), range(8)))
        waves = list(pool.map(lambda u: audio.load(u, 8000), manifests[0]))
    assert len(waves) == 8 and len(loads) == 1
