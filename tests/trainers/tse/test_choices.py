"""Whom a predicted set is: as the clean voice says, as a memory says that heard these people in other words."""

from __future__ import annotations

import numpy as np
import pytest

from featstore import Utterance
from trainers.tse.choices import Choices
from trainers.tse.data import Mixture, Voice

VOICES = np.eye(4, dtype=np.float32)
NAMES = ("ann", "bob", "cyd", "dan")


def mixture(id: str, **said: str) -> Mixture:
    """Who says what."""
    tracks = [Utterance(f"{id}/{words}", "x.wav", 0, 1, id, name, "test") for name, words in said.items()]
    return Mixture(Utterance(id, "x.wav", 0, 1, id, None, "test"), tuple(Voice(track, ()) for track in tracks))


@pytest.fixture
def choices() -> Choices:
    """Sets that hold everybody's vector, turned a little, the last speaker first."""
    made = object.__new__(Choices)
    mixtures = [
        mixture("m0", ann="a1", bob="b1"),
        mixture("m1", ann="a2", cyd="c1"),
        mixture("m2", bob="b2", cyd="c2"),
        mixture("m3", ann="a3", bob="b3"),
        mixture("m4", ann="a1", dan="d1"),
    ]
    rng = np.random.default_rng(0)
    sets = {}
    for m in mixtures:
        own = np.stack([VOICES[NAMES.index(v.speaker)] for v in reversed(m.voices)])
        own = own + 0.1 * rng.standard_normal(own.shape).astype(np.float32)
        sets[m.utterance.id] = own / np.linalg.norm(own, axis=1, keepdims=True)
    made._sets = made._moved = sets
    made._mixtures = mixtures
    made._said = {m.utterance.id: {v.track.id.split("/")[1] for v in m.voices} for m in mixtures}
    made.threshold, made.confirm = 0.5, 1
    return made


def test_the_clean_voice_takes_its_own(choices: Choices) -> None:
    last = choices._mixtures[3]
    by_truth, by_memory = choices.of(last, [VOICES[0], VOICES[1]])
    np.testing.assert_array_equal(by_truth, choices._sets["m3"][::-1])  # the set's order is not the voices'
    np.testing.assert_array_equal(by_memory, choices._sets["m3"][::-1])
    by_truth, _ = choices.of(last, [None, VOICES[1]])
    assert by_truth[0] is None and by_truth[1] is not None


def test_the_memory_knows_nobody_whom_it_did_not_hear_in_other_words(choices: Choices) -> None:
    _, by_memory = choices.of(choices._mixtures[4], [VOICES[0], VOICES[3]])
    assert by_memory[0] is not None  # of m1 and m3; m0 has the same words
    assert by_memory[1] is None  # dan says nothing else


def test_the_mixture_in_question_has_no_say(choices: Choices) -> None:
    choices._sets = dict(choices._sets) | {"m3": np.stack([VOICES[3], VOICES[2]])}
    choices._moved = choices._sets
    assert choices.of(choices._mixtures[3], [VOICES[0], VOICES[1]])[1] == [
        None,
        None,
    ]  # neither of these two is in its set
