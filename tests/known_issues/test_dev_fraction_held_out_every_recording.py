"""`dev_fraction=0.9` of few recordings held out all of them; the error then blamed `sampling`."""

from __future__ import annotations

import pytest

import featstore
from tests.sessions import make_store
from trainers.config import FitConfig
from trainers.diarization.sessions import load_sessions


@pytest.mark.parametrize("recordings", [2, 3, 5])
def test_one_recording_stays_to_train_on(tmp_path, recordings):
    store = featstore.open(make_store(tmp_path / "store", {"train": recordings, "test": 1}))
    sessions = load_sessions(store, FitConfig.make("adapter", settings=["dev_fraction=0.99"]))
    assert (len(sessions.train), len(sessions.dev)) == (1, recordings - 1)
