"""Whom a predicted set is: as the clean voice says, as a memory says that heard these people in other words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import featstore
from featstore import Store, Utterance
from tests.sessions import spec
from tests.voices import SIZE, make_voices
from trainers import kinds
from trainers.config import ConfigError, FitConfig
from trainers.runs import Run, RunError
from trainers.tse.choices import Choices
from trainers.tse.config import TseConfig
from trainers.tse.data import Mixture, Voice, load_data
from trainers.unmix.loop import make_network, predict
from trainers.unmix.measure import existing

CPU = torch.device("cpu")

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


# ---- of a run of fit unmix

UNMIX = (
    "feature=titanet",
    "width=8",
    "heads=2",
    "layers=1",
    "slots=3",
    "steps=3",
    "looks=1",
    "batch_size=4",
    "device=cpu",
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("choices")
    store = make_voices(folder / "store")
    run = Run.create(folder / "unmix", FitConfig.make("unmix", settings=UNMIX), store)
    kinds.function_of("unmix")(run, store)
    return store, run.path


def tse(run: Path, *settings: str) -> TseConfig:
    made = FitConfig.make("tse", settings=(f"sets={run}", *settings))
    assert isinstance(made, TseConfig)
    return made


def test_a_predicted_set_is_turned_towards_our_centre(fitted: tuple[Store, Path]) -> None:
    """By the best weights and the threshold of that run; voices lie as far from its centre as training voices do."""
    store, path = fitted
    made = tse(path, "test_mixtures=4")
    data = load_data(made, store)
    found = Choices(str(path), made, data, store, CPU)
    run = Run.open(path)
    tensors, _ = run.read_tensors("model.safetensors")
    result = run.read_json("result.json")
    assert list(found._sets) == [f"mix-test-{n}" for n in range(4)]
    network = make_network(run.config, SIZE, SIZE)
    network.load_state_dict(tensors)
    theirs = tensors["centre"].numpy()
    names = {voice.speaker for m in data.splits["train"] for voice in m.voices}
    said = [id for id in store.ids if id.split("/")[-1].split("-")[0] in names]
    reach = np.mean([np.linalg.norm(store.pooled("titanet", [id])[0] - theirs) for id in said])
    for id, own in found._sets.items():
        sets, sure = predict(network, [store.frames("titanet", id)], CPU)
        np.testing.assert_allclose(own, existing(sets[0], sure[0], result["decoding"]["existence"]), atol=1e-5)
        moved = theirs + reach * own - data.centre
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(found._moved[id], moved, atol=1e-4)
    assert (found.threshold, found.confirm) == (0.5, 1)  # no recordings: the published ones


def test_the_memory_is_as_it_was_chosen_and_the_result_says_so(fitted: tuple[Store, Path], tmp_path: Path) -> None:
    store, path = fitted
    shutil.copytree(path, tmp_path / "unmix")
    result = json.loads((path / "result.json").read_text())
    result["memory"] = {"unmix": {"threshold": 0.35, "confirm": 2, "recordings": {}}}
    (tmp_path / "unmix" / "result.json").write_text(json.dumps(result))
    small = (
        "channels=8",
        "blocks=1",
        "repeats=1",
        "window=128",
        "hop=64",
        "steps=2",
        "looks=1",
        "rated=0",
        "crop_s=0.4",
    )
    made = tse(tmp_path / "unmix", *small, "device=cpu", "dev_voices=2")
    told = kinds.function_of("tse")(Run.create(tmp_path / "run", made, store), store)
    assert told["memory"] == {"threshold": 0.35, "confirm": 2}
    assert list(told["extraction"]) == ["mixture", "wrong", "memory", "predicted", "enrolled", "oracle"]
    assert not any("predicted set" in note for note in told["notes"])
    # Whom nothing was predicted of is left with the mixture, and counted.
    choices = Choices(str(tmp_path / "unmix"), made, load_data(made, store), store, CPU)
    unknown = {"predicted": 0, "memory": 0}
    for mixture in load_data(made, store).splits["test"]:
        by = choices.of(mixture, [np.ones(SIZE, np.float32)] * len(mixture.voices))
        for name, of in zip(unknown, by, strict=True):
            unknown[name] += sum(one is None for one in of)
    assert {name: told["unknown_voices"][name] for name in unknown} == unknown
    assert all(told["extraction"][name]["num_voices"] == 9 for name in ("memory", "predicted"))


def test_a_run_of_another_kind_or_encoder_is_refused(fitted: tuple[Store, Path], tmp_path: Path) -> None:
    store, path = fitted
    made = tse(path)
    data = load_data(made, store)
    shutil.copytree(path, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    with pytest.raises(ConfigError, match="expected a finished run of fit unmix, found one of unmix"):
        Choices(str(tmp_path / "unfinished"), made, data, store, CPU)
    with pytest.raises(ConfigError, match="predicts embeddings of 'titanet', this extraction takes 'mimi'"):
        Choices(str(path), tse(path, "feature=mimi"), data, store, CPU)
    other = make_voices(tmp_path / "store")
    with featstore.writer(tmp_path / "other", spec("titanet", SIZE, model="another")) as out:
        for id in other.ids:
            out.add(other.utterance(id), other.frames("titanet", id))
    with pytest.raises(RunError, match="was trained on feature 'titanet' with fingerprint"):
        Choices(str(path), made, data, featstore.open(tmp_path / "other"), CPU)
