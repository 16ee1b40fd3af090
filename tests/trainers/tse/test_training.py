"""How an extraction is trained and what dev keeps, by hand; what it is measured with, with networks whose answer is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch

from evaluation.extraction import PACKAGES, figures, si_sdr
from featstore import Store
from tests.trainers.tse.test_fit import fit
from tests.voices import SIZE, make_voices
from trainers.config import FitConfig
from trainers.progress import Unseen
from trainers.runs import Run
from trainers.schedule import share_of_rate
from trainers.tse import measure as measuring
from trainers.tse.config import TseConfig
from trainers.tse.crops import Crops, Example
from trainers.tse.data import TseData, load_data
from trainers.tse.fit import _notes
from trainers.tse.loop import Training
from trainers.tse.measure import Measured, _matched, _mp3, measure
from trainers.tse.network import Extractor, best_assignment, loss

CPU = torch.device("cpu")
TINY = (
    "channels=8",
    "blocks=1",
    "repeats=1",
    "window=128",
    "hop=64",
    "steps=12",
    "looks=3",
    "batch_size=3",
    "crop_s=0.4",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_voices(tmp_path_factory.mktemp("voices") / "store")


def config(*settings: str) -> TseConfig:
    made = FitConfig.make("tse", settings=(*TINY, "device=cpu", *settings))
    assert isinstance(made, TseConfig)
    return made


def training(store: Store, folder: Path, *settings: str) -> tuple[Training, TseData]:
    made = config(*settings)
    run, data = Run.create(folder / "run", made, store), load_data(made, store)
    run.begin()
    return Training(run, data, CPU, Unseen()), data


def test_steps_by_hand(store: Store, tmp_path: Path) -> None:
    """Start by the seed, crops by seed and step, mean loss, Adam at the rate of its place, gradients clipped."""
    ours, data = training(store, tmp_path, "seed=4", "lr=0.01", "jitter=0.3")
    torch.manual_seed(int(np.random.SeedSequence((4,)).generate_state(1, np.uint64)[0] >> 1))
    network = Extractor(size=SIZE, channels=8, blocks=1, repeats=1, window=128, hop=64)
    network.centre.copy_(torch.from_numpy(data.centre))
    for name, value in network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], value), name
    optimizer, crops = torch.optim.Adam(network.parameters(), lr=1.0), Crops(data, "train", ours.config)
    values = []
    for step in range(5):
        example = crops.draw(np.random.default_rng([4, 2, step]))
        value = loss(network(example.mixtures, example.embeddings), example.references[:, 0]).mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.param_groups[0]["lr"] = 0.01 * share_of_rate(step, 12)
        optimizer.step()
        values.append(float(value.detach()))
    seen: list[dict[str, torch.Tensor]] = []

    def follow(state: Any) -> None:
        seen.append({name: p.detach().clone() for name, p in ours.network.named_parameters()})
        if state.step == 5:
            raise KeyboardInterrupt

    ours.on_step = follow
    with pytest.raises(KeyboardInterrupt):
        ours.to_the_end()
    for name, p in network.named_parameters():
        torch.testing.assert_close(seen[-1][name], p.detach(), rtol=1e-4, atol=1e-6)
    (row,) = ours.state.history
    assert row["step"] == 4 and row["train_loss"] == pytest.approx(np.mean(values[:4]), rel=1e-4)
    assert ours.state.loss_sum == pytest.approx(values[4], rel=1e-4) and ours.state.summed == 1
    assert ours.state.waited_s > 0


def test_dev_is_the_same_voices_throughout_and_its_mean_si_sdr_is_told(store: Store, tmp_path: Path) -> None:
    ours, data = training(store, tmp_path, "seed=2", "dev_voices=4", "batch_size=3")
    crops, rng = Crops(data, "dev", ours.config), np.random.default_rng([2, 1])
    asked = crops.fixed(4, 2)
    expected = [crops.examples(asked[:3], rng), crops.examples(asked[3:], rng)]
    assert [len(e.counts) for e in ours.dev] == [3, 1]
    for one, other in zip(ours.dev, expected, strict=True):
        for name in ("mixtures", "embeddings", "references"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    ours.state.loss_sum, ours.state.summed, ours.state.step = 6.0, 4, 5
    ours._look()
    with torch.no_grad():
        found = [
            value
            for e in expected
            for value in loss(ours.network.eval()(e.mixtures, e.embeddings), e.references[:, 0]).tolist()
        ]
    mixed = [value for e in expected for value in loss(e.mixtures, e.references[:, 0]).tolist()]
    (row,) = ours.state.history
    assert row == {
        **{"step": 5, "train_loss": 1.5, "dev_si_sdr": pytest.approx(-np.mean(found), rel=1e-4)},
        "dev_si_sdri": pytest.approx(np.mean(mixed) - np.mean(found), rel=1e-3),
    }
    assert (ours.state.loss_sum, ours.state.summed) == (0, 0)


def test_the_best_on_dev_is_kept_and_measured(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = training(store, tmp_path)
    told = iter([-4.0, -7.0, -5.0, -7.0])
    monkeypatch.setattr(Training, "_losses", lambda self, example: torch.full((2,), value[0]))
    kept, value = [], [0.0]
    for step in (3, 6, 9, 12):
        value[0] = next(told)
        ours.state.step, ours.state.summed = step, 1
        ours._look()
        kept.append(ours.run.read_tensors("model.safetensors")[1])
    assert [facts["step"] for facts in kept] == [3, 6, 6, 6] and kept[-1]["dev"] == pytest.approx(7)
    assert (ours.state.best, ours.state.best_step) == (pytest.approx(7), 6)
    rows = list(csv.DictReader((ours.run.path / "history.csv").read_text().splitlines()))
    assert [float(row["dev_si_sdr"]) for row in rows] == pytest.approx([4, 7, 5, 7])


def test_voices_that_are_silent_teach_nothing(store: Store, tmp_path: Path) -> None:
    """Asked for one by one, and where all come out: there the voices that speak are matched, and counted."""
    ours, _ = training(store, tmp_path)
    sounds = torch.randn(3, 6400, generator=torch.Generator().manual_seed(0)) * 0.1
    references = sounds[:, None].clone()
    references[1] = 0
    vectors = torch.eye(SIZE)[:3]
    example = Example(sounds, vectors, references, torch.ones(3))
    with torch.no_grad():
        found = loss(ours.network(sounds, vectors), references[:, 0])
        torch.testing.assert_close(ours._losses(example), found[[0, 2]])
    value = ours._learn(example)
    assert ours.state.silent == 1 and value == pytest.approx(float(found[[0, 2]].mean()), rel=1e-4)
    assert ours._learn(Example(sounds, vectors, 0 * references, torch.ones(3))) == 0.0 and ours.state.silent == 4
    blind, _ = training(store, tmp_path / "blind", "condition=none", "voices=2")
    several = torch.stack([torch.zeros_like(sounds), sounds, sounds.flip(0)], 1)  # three voices, two come out
    several[1, 1:] = 0
    several[2, 2] = 0
    with torch.no_grad():
        out = blind.network(sounds)
        expected = best_assignment(out[[0, 2]], several[[0, 2]][:, [1, 2]], torch.tensor([2, 1]))
        example = Example(sounds, vectors, several, torch.tensor([3, 3, 3]))
        torch.testing.assert_close(blind._losses(example), expected)


# ---- measuring


class Asked:
    """In place of a network that takes embeddings."""

    size = SIZE


def files(store: Store, id: str) -> np.ndarray:
    return sf.read(store.utterance(id).audio, dtype="float32")[0]


def measured(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *settings: str, silence: str = "") -> tuple:
    """`measure` with an extraction that gives exactly the asked-for speaker's track where that is in the mixture, else noise."""
    made = config("rated=0", *settings)
    run, data = Run.create(tmp_path / "run", made, store), load_data(made, store)
    run.begin()
    owner = {v.tobytes(): id.split("/")[-1].split("-")[0] for id, v in data.vectors.items()}
    noise = np.random.default_rng(0).standard_normal(9600).astype(np.float32) * 0.05
    asked: list[list[str]] = []

    def extract(network: object, wave: np.ndarray, vectors: np.ndarray, device: object) -> np.ndarray:
        (mixture,) = [m for m in data.splits["test"] if np.array_equal(files(store, m.utterance.id), wave)]
        names = [owner[v.tobytes()] for v in vectors]
        asked.append(names)
        known = {v.speaker: files(store, v.track.id) for v in mixture.voices}
        return np.stack([known.get(name, noise) for name in names])

    monkeypatch.setattr(measuring, "extract", extract)
    if silence:
        real = type(data.splits["test"][0]).sound
        monkeypatch.setattr(
            type(data.splits["test"][0]), "sound",
            lambda self, of, *rest: real(self, of, *rest) * (0 if of.id == silence else 1),
        )  # fmt: skip
    return measure(run, data, Asked(), None, CPU, Unseen()), data, run, asked, noise


def test_every_voice_is_measured_against_itself(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, data, run, asked, noise = measured(store, tmp_path, monkeypatch)
    assert len(found.rows) == 9 and [row["track"] for row in found.rows] == [
        v.track.id for m in data.splits["test"] for v in m.voices
    ]
    for row in found.rows:
        mixture, track = files(store, row["mixture"]), files(store, row["track"])
        assert row["speaker"] == store.utterance(row["track"]).speaker and row["track"].startswith(row["mixture"] + "/")
        assert row["voices"] == len([id for id in store.ids if id.startswith(row["mixture"] + "/")])
        assert row["mixture si_sdr"] == pytest.approx(si_sdr(mixture, track))
        assert row["oracle si_sdr"] > 100 and row["enrolled si_sdr"] > 100
        assert row["wrong si_sdr"] == pytest.approx(si_sdr(noise, track))
    # Oracle, enrolled, wrong: a mixture at a time.
    for mixture, oracle, enrolled, wrong in zip(data.splits["test"], asked[::3], asked[1::3], asked[2::3], strict=True):
        own = [v.speaker for v in mixture.voices]
        assert oracle == enrolled == own and not set(wrong) & set(own)
        assert all(name.startswith("test") for name in wrong)
    assert found.swaps == {name: {"pairs": 3, "swapped": 3} for name in ("oracle", "enrolled")}
    assert found.silent == 0 and found.unknown == {"oracle": 0, "enrolled": 0, "wrong": 0}
    # The first mixtures of two voices can be heard, with what came out for who was asked for.
    two = [m for m in data.splits["test"] if len(m.voices) == 2]
    assert [e["mixture"] for e in found.examples] == [m.utterance.id for m in two[:3]]
    for example, mixture in zip(found.examples, two, strict=False):
        heard, rate = sf.read(run.path / example["file"])
        assert rate == 16000 and np.corrcoef(*trimmed(heard, files(store, mixture.utterance.id)))[0, 1] > 0.9
        for voice, of in zip(mixture.voices, example["voices"], strict=True):
            assert of["speaker"] == voice.speaker and set(of["files"]) == {"reference", "enrolled"}
            gain = si_sdr(files(store, voice.track.id), files(store, voice.track.id))
            gain -= si_sdr(files(store, mixture.utterance.id), files(store, voice.track.id))
            assert of["si_sdri"] == {"enrolled": pytest.approx(gain)}
            for file in of["files"].values():
                assert np.corrcoef(*trimmed(sf.read(run.path / file)[0], files(store, voice.track.id)))[0, 1] > 0.9


def trimmed(heard: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an MP3 begins, its encoder's delay taken off, and what it is of."""
    spectrum = np.fft.irfft(np.fft.rfft(heard, 1 << 15) * np.conj(np.fft.rfft(true, 1 << 15)))
    at = int(spectrum.argmax()) if spectrum.argmax() < 5000 else 0
    count = min(len(heard) - at, len(true))
    return heard[at : at + count], true[:count]


def test_nothing_is_measured_on_silence_and_so_many_mixtures_are(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = next(id for id in store.ids if id.startswith("mix-test-1/"))
    found, _, _, asked, _ = measured(store, tmp_path, monkeypatch, "test_mixtures=4", silence=silent)
    assert len(asked) == 4 * 3 and {row["mixture"] for row in found.rows} == {f"mix-test-{n}" for n in range(4)}
    assert found.silent == 1 and silent not in [row["track"] for row in found.rows] and len(found.rows) == 5
    (left,) = [row for row in found.rows if row["mixture"] == "mix-test-1"]
    assert left["voices"] == 2 and found.swaps["oracle"] == {"pairs": 1, "swapped": 1}
    assert [e["mixture"] for e in found.examples] == ["mix-test-3"]


def test_some_voices_drawn_by_the_seed_are_rated(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        measuring,
        "raters",
        lambda: {"estoi": lambda one, reference: asked.append(one) or float(one.std() / reference.std())},
    )
    drawn = []
    for seed in (0, 0, 1):
        found, *_ = measured(store, tmp_path / str(len(drawn)), monkeypatch, "rated=4", f"seed={seed}")
        rated = [row["track"] for row in found.rows if "mixture estoi" in row]
        assert len(rated) == 4
        for row in found.rows:
            if "mixture estoi" in row:
                assert row["mixture estoi"] == pytest.approx(
                    files(store, row["mixture"]).std() / files(store, row["track"]).std()
                )
                assert row["oracle estoi"] == pytest.approx(1)
        drawn.append(rated)
    assert drawn[0] == drawn[1] != drawn[2]


def test_separated_voices_are_matched_to_the_truth() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 400)).astype(np.float32)
    apart = np.stack([c + 0.1 * a, a + 0.3 * b])
    assert _matched(apart, [a, np.zeros(400, np.float32), c]) == [1, None, 0]
    assert _matched(apart, [a, b, c]) == [1, None, 0]
    loud = np.frombuffer(_mp3(np.float32([3.0, -3.0] * 8000)), np.uint8)
    assert len(loud) > 500


def test_a_result_says_what_the_files_say(store: Store, tmp_path: Path) -> None:
    """Of a run whose dev gets worse again: the weights that were kept, not the last ones."""
    result = fit(store, tmp_path / "run", "seed=3", "lr=0.05", "steps=9", "looks=9", "train_fraction=0.7")
    run = Run.open(tmp_path / "run")
    table = pq.read_table(run.path / "voices.parquet").to_pydict()
    assert result["extraction"] == figures(table, 1000, 3)
    rows = list(csv.DictReader((run.path / "history.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: float(row["dev_si_sdr"]))
    assert (result["best_step"], result["dev_si_sdr"]) == (int(best["step"]), pytest.approx(float(best["dev_si_sdr"])))
    facts = {"num_mixtures": 4, "num_test_mixtures": 6, "num_test_voices": 9, "num_test_speakers": 3, "steps": 9}
    data = load_data(run.config, store)
    facts["num_speakers"] = len(data.speakers("train"))
    assert {key: result[key] for key in facts} == facts
    assert result["silent_voices"] == {"train": 0, "test": 0} and result["memory"] is None
    assert 0 < result["input_share"] < 1 and result["fit_seconds"] > result["step_seconds"] * 8.9
    assert result["step_seconds"] == pytest.approx(result["fit_seconds"] / 9, abs=1e-3)
    assert any("no run of fit unmix was named" in note for note in result["notes"])
    network = Extractor.load(run, CPU)
    assert not network.training and result["parameters"] == sum(p.numel() for p in network.parameters())
    mixture = data.splits["test"][1]
    row = table["track"].index(mixture.voices[0].track.id)
    wave, track = files(store, mixture.utterance.id), files(store, mixture.voices[0].track.id)
    (found,) = measuring.extract(network, wave, data.vectors[mixture.voices[0].track.id][None], CPU)
    assert table["oracle si_sdr"][row] == pytest.approx(si_sdr(found, track), abs=1e-3)
    assert json.loads((run.path / "result.json").read_text()) == result


def test_what_was_not_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.tse.fit.raters", lambda: {"estoi": None, "dnsmos": None})
    found = Measured(silent=2, swaps={"oracle": {}}, unknown={"oracle": 1, "memory": 3, "enrolled": 0})
    assert _notes(found, None) == [
        "2 test voices are silent: nothing is measured on them",
        "not measured, for want of a package: pesq (pip install pesq)",
        "nobody was asked for by a predicted set: no run of fit unmix was named (sets)",
        "oracle: 1 voices had nobody to ask for; they are left out",
        "memory: 3 voices had nobody to ask for; what came out is the mixture",
    ]
    monkeypatch.setattr("trainers.tse.fit.raters", lambda: dict.fromkeys(PACKAGES))
    assert _notes(Measured(), object()) == _notes(Measured(), None) == []
