"""`extract` complained about keys that `simulate` itself had written into its manifest: NeMo's num_speakers and text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from featstore.corpora.manifest import ignored_keys
from featstore.simulation.recipe import read_recipe
from featstore.simulation.simulate import simulate
from featstore.types import Utterance
from tests.fakes import tone


def test_they_are_known(tmp_path: Path) -> None:
    utterances = []
    for k in range(3):
        path = tmp_path / f"{k}.wav"
        soundfile.write(path, np.pad(tone(1.0, hz=300 + 200 * k), 1000), 8000)
        utterances.append(Utterance(str(k), str(path), 0.0, 1.25, str(k), speaker=str(k)))
    simulate(utterances, replace(read_recipe("tiny"), sessions=1), tmp_path / "out")
    assert ignored_keys(tmp_path / "out" / "manifest.jsonl") == []
