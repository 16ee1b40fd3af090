"""Whom to ask for by a set of predicted voices: the one that the clean voice is nearest to, or the one that a memory knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from evaluation.runs import RESULT
from evaluation.unmixing import assigned
from featstore import Store
from trainers.config import ConfigError
from trainers.runs import Run
from trainers.tse.config import TseConfig
from trainers.tse.data import Mixture, TseData
from trainers.unmix.config import UnmixConfig
from trainers.unmix.data import read_all, towards
from trainers.unmix.loop import make_network, predict
from trainers.unmix.measure import existing
from trainers.unmix.memory import Memory

#: A memory that was not tried on recordings takes the published threshold.
_THRESHOLD, _CONFIRM = 0.5, 1
#: Mixtures that a memory hears before the one in question.
_BEFORE = 24

Vectors = NDArray[np.float32]


class Choices:
    """Sets that a fitted unmixer predicts of the test mixtures, and whom they are.

    Parameters
    ----------
    address : of the run of fit unmix.

    Raises
    ------
    RunError : it is none, has not finished, or its features are others than the store's.
    ConfigError : it predicts another encoder's embeddings than this extraction takes.
    """

    def __init__(self, address: str, config: TseConfig, data: TseData, store: Store, device: torch.device) -> None:
        run = Run.open(Path(address))
        settings = run.config
        if not isinstance(settings, UnmixConfig) or not (run.path / RESULT).exists():
            raise ConfigError(f"sets={address}: expected a finished run of fit unmix, found one of {settings.kind}")
        run.check(store)
        if settings.teacher != config.feature:
            raise ConfigError(
                f"sets={address}: it predicts embeddings of {settings.teacher!r}, this extraction takes {config.feature!r}; "
                "both must be of one encoder"
            )
        result = run.read_json(RESULT)
        mixtures = data.splits["test"][: config.test_mixtures]
        ids = [mixture.utterance.id for mixture in mixtures]
        frames = [read_all(store, settings.inputs, id) for id in ids]
        tensors, _ = run.read_tensors("model.safetensors")
        network = make_network(settings, frames[0].shape[1], len(data.centre))
        network.load_state_dict(tensors)
        # Directions from its centre become directions from ours: voices lie some way from either.
        shift = network.centre.numpy() - data.centre
        reach = _reach(store, config.feature, data, network.centre.numpy())
        sets, existence = predict(network.to(device), frames, device)
        found = [existing(s, e, result["decoding"]["existence"]) for s, e in zip(sets, existence, strict=True)]
        self._sets = dict(zip(ids, found, strict=True))
        self._moved = {id: towards(reach * own, -shift) for id, own in self._sets.items()}
        self._mixtures = mixtures
        memory = (result.get("memory") or {}).get("unmix", {})
        self.threshold = float(memory.get("threshold", _THRESHOLD))
        self.confirm = int(memory.get("confirm", _CONFIRM))
        self._said = {m.utterance.id: {_words(m, k) for k in range(len(m.voices))} for m in mixtures}

    def of(
        self, mixture: Mixture, clean: Sequence[Vectors | None]
    ) -> tuple[list[Vectors | None], list[Vectors | None]]:
        """For each voice of a mixture the predicted vector to ask for: as the clean voices choose, as a memory does.

        Parameters
        ----------
        clean : (size,) embedding of each voice alone; None where there is none.
        """
        moved = self._moved[mixture.utterance.id]
        by_truth: list[Vectors | None] = [None] * len(mixture.voices)
        known = [k for k, vector in enumerate(clean) if vector is not None]
        if known:
            rows, columns, _ = assigned(moved, np.stack([vector for vector in clean if vector is not None]))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                by_truth[known[column]] = moved[row]
        return by_truth, [None if k is None else moved[k] for k in self._remembered(mixture)]

    def _remembered(self, mixture: Mixture) -> list[int | None]:
        """Which predicted voice each speaker is to a memory that heard them before in other mixtures, in other words.

        Numbers and people are paired by how many of those mixtures they share; the mixture in question has no say in it.
        """
        here = {voice.speaker for voice in mixture.voices}
        own = mixture.utterance.id
        before = [
            m
            for m in self._mixtures
            if m.utterance.id != own
            and here & {v.speaker for v in m.voices}
            and not self._said[own] & self._said[m.utterance.id]
        ][:_BEFORE]
        memory = Memory(self.threshold, self.confirm)
        people = sorted({voice.speaker for m in before for voice in m.voices})
        numbers: list[int] = []
        heard: list[tuple[set[str], list[int]]] = []
        for one in before:
            given = [n for n in memory.hear(self._sets[one.utterance.id]) if n is not None]
            heard.append(({voice.speaker for voice in one.voices}, given))
            numbers = sorted({*numbers, *given})
        shared = np.zeros((len(people), len(numbers)))
        for names, given in heard:
            shared[np.ix_([people.index(n) for n in names], [numbers.index(n) for n in given])] += 1
        rows, columns = linear_sum_assignment(shared, maximize=True)
        number_of = {
            people[r]: numbers[c] for r, c in zip(rows.tolist(), columns.tolist(), strict=True) if shared[r, c]
        }
        now = memory.hear(self._sets[own])
        wanted = [number_of.get(voice.speaker) for voice in mixture.voices]
        return [now.index(number) if number is not None and number in now else None for number in wanted]


def _words(mixture: Mixture, k: int) -> str:
    return mixture.voices[k].track.id.removeprefix(mixture.utterance.id + "/")


def _reach(store: Store, feature: str, data: TseData, centre: Vectors) -> float:
    """How far what a training voice says lies from the centre, on average."""
    said = {id for m in data.splits["train"] for v in m.voices for id in (v.track.id, *v.others)}
    tracks = sorted(id for id in said if id in data.vectors)
    return float(np.linalg.norm(store.pooled(feature, tracks) - centre, axis=1).mean())
