"""What the set predictor sees when: mixtures epoch by epoch, recordings chunk by chunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import featstore
from featstore import Turn, Utterance
from tests.mixtures import DIM, SIZE, make_store
from tests.sessions import spec
from tests.trainers.unmix.test_fit import config
from trainers.progress import Unseen
from trainers.runs import Run
from trainers.unmix import loop
from trainers.unmix.data import load_data
from trainers.unmix.loop import Training, make_network
from trainers.unmix.talks import talk_of


def test_every_mixture_comes_once_an_epoch_and_no_two_epochs_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, orders = make_store(tmp_path / "store"), loop.batch_of, []
    for seed in (0, 0, 1):
        seen: list[str] = []
        monkeypatch.setattr(loop, "batch_of", lambda batch, seen=seen: seen.extend(m.id for m in batch) or real(batch))
        made = config(f"seed={seed}")
        run, data = Run.create(tmp_path / "run", made, store), load_data(made, store)
        training = Training(run, data, make_network(made, DIM, SIZE), torch.device("cpu"), Unseen())
        for training.state.step in range(3):  # batches of eight, of twelve mixtures
            training._step()
        assert sorted(seen[:12]) == sorted(seen[12:]) == sorted(m.id for m in data.train)
        assert seen[:12] != seen[12:]
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("frames", "chunks"), [(50, 3), (49, 2), (40, 2), (5, 1)])
def test_a_recording_is_heard_in_chunks_of_which_the_last_is_half_a_one_at_least(
    tmp_path: Path, frames: int, chunks: int
) -> None:
    turns = (Turn(0, 2.0, "a"), Turn(3.2, 9, "b"))  # in chunks of 1.6 s, or 20 frames: a, then too little of a, then b
    with featstore.writer(tmp_path, spec("mimi", DIM)) as out:
        talk = Utterance("u", "x.wav", 0.0, frames * 0.08, "u", None, "test", turns)
        out.add(talk, np.random.default_rng(0).standard_normal((frames, DIM)))
    network = make_network(config(), DIM, SIZE)
    heard = talk_of(featstore.open(tmp_path), "u", turns, network, config(), 0.5, None, torch.device("cpu"))
    assert heard.truth == [{"a"}, set(), {"b"}][:chunks] and [len(heard.voices[name]) for name in heard.voices] == [
        chunks
    ]
