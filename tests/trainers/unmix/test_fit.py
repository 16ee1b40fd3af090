"""`trainers fit unmix`: what is read, trained, chosen, measured and written; resuming; what is refused; row 6 of the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from typer.testing import CliRunner

import featstore
from cli.trainers import app
from evaluation.report import report
from featstore import FrameGrid, Store, Turn, Utterance
from featstore.store.reader import store_utterances
from tests.mixtures import DIM, FRAMES, SIZE, make_store
from tests.sessions import spec
from trainers.config import ConfigError, FitConfig
from trainers.runs import Run
from trainers.unmix.config import UnmixConfig
from trainers.unmix.data import _windows_centre, load_data, on_grid, read_all
from trainers.unmix.fit import fit_unmix
from trainers.unmix.loop import make_network
from trainers.unmix.measure import Heard
from trainers.unmix.network import Unmixer
from trainers.unmix.talks import _who

SMALL = (
    "width=16",
    "layers=1",
    "heads=2",
    "slots=3",
    "steps=12",
    "batch_size=8",
    "looks=3",
    "checkpoint_steps=5",
    "chunk_s=1.6",
)


def config(*settings: str) -> UnmixConfig:
    made = FitConfig.make("unmix", settings=(*SMALL, *settings))
    assert isinstance(made, UnmixConfig)
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("unmix") / "store")


def test_end_to_end(store: Store, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config(), store)
    result = fit_unmix(run, store)
    assert json.loads((run.path / "result.json").read_text()) == result
    assert (result["num_mixtures"], result["num_speakers"], result["num_test_mixtures"]) == (12, 6, 12)
    assert list(result["sets"]) == ["unmix", "windows", "mean", "constant", "tracks"]
    ceiling = result["sets"]["tracks"]
    assert ceiling["cosine"] == pytest.approx(1, abs=1e-6)
    assert sum(s["hits"] for s in ceiling["identified"].values()) == sum(
        s["voices"] for s in ceiling["identified"].values()
    )
    assert result["majority"] == pytest.approx(1 / 3)
    assert [(row["voices"], row["mixtures"], row["trained"]) for row in result["by_voices"]] == [
        (1, 4, True),
        (2, 4, True),
        (3, 4, True),
    ]
    assert set(result["memory"]) == {"unmix", "windows", "mean", "constant"}
    always = result["memory"]["constant"]
    assert {r["given"] for r in always["recordings"].values()} == {8.0 * always["always"]}
    assert set(result["memory"]["windows"]["recordings"]) == {"talk-test-0", "talk-test-1"}
    # Windows of a clear teacher are taken apart without any training: the rival is a fair one.
    windows = result["memory"]["windows"]["recordings"]["talk-test-0"]
    assert windows["hits"] == windows["present"] == windows["given"]
    assert fit_unmix(run, store)["notes"][-1].startswith("nothing was left to do")
    # On screen, and in the report's row.
    args = ["fit", "unmix", "--store", str(store.path), "--out", str(run.path), "--resume"]
    shown = CliRunner().invoke(app, [*args, *(arg for setting in SMALL for arg in ("--set", setting))])
    assert shown.exit_code == 0, shown.output
    assert "always the most frequent number: 33.3% counted right" in shown.output
    facts = report([run.path], tmp_path / "report", num_resamples=20)
    row = next(row for row in facts["experiments"] if row["id"] == "6")
    assert row["title"] == "set of voices from Mimi, taught by TitaNet" and row["reference"] is None
    lines = {line["what"]: line for line in row["sound"]["lines"]}
    found = sum(s["hits"] for s in result["sets"]["unmix"]["identified"].values())
    voices = sum(s["voices"] for s in result["sets"]["unmix"]["identified"].values())
    assert lines["names not found, the set"]["value"] == pytest.approx(1 - found / voices) and voices == 24
    assert lines["names not found, the set"]["interval"]
    assert lines["miscounted, always the most frequent number"]["value"] == pytest.approx(2 / 3)
    texts = [finding["text"] for finding in facts["findings"] if finding["experiment"] == "6"]
    assert len(texts) == 3 and "against the grouped windows" in texts[0]
    assert facts["failed_checks"] == []


def test_what_was_separated_first_is_a_rival(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", parts=3, recordings=0)
    result = fit_unmix(Run.create(tmp_path / "run", config(), store), store)
    assert list(result["sets"]) == ["unmix", "windows", "parts", "mean", "constant", "tracks"]
    parts = result["sets"]["parts"]
    assert parts["cosine"] > 0.98  # each part is one voice
    assert all(s["hits"] == s["voices"] for s in parts["identified"].values())
    # Three parts are as many voices as dev's threshold tells apart.
    assert all(s["right"] == s["mixtures"] for s in parts["counting"].values())
    assert set(result["decoding"]["parts"]) == {"threshold", "share"}
    assert [row["systems"]["parts"]["identified"] for row in result["by_voices"]] == [1, 1, 1]
    shown = report([tmp_path / "run"], tmp_path / "report", num_resamples=20)
    row = next(row for row in shown["experiments"] if row["id"] == "6")
    lines = {line["what"]: line["value"] for line in row["sound"]["lines"]}
    assert lines["names not found, separated first, the teacher on each part"] == 0
    # Where only dev's were separated, nothing is said of them.
    half = replace(load_data(config(), store), test=[replace(m, parts=None) for m in load_data(config(), store).test])
    assert half.dev[0].parts is not None and Heard(half.test, [], [], None).parts is None
    assert Heard(half.dev, [], [], None).parts is not None


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights(store: Store, tmp_path: Path) -> None:
    whole = Run.create(tmp_path / "whole", config(), store)
    fit_unmix(whole, store)
    for at in (3, 6, 11):  # before the first checkpoint, after it, after the last look but one

        def kill(state: object, at: int = at) -> None:
            if state.step == at:
                raise Killed

        run = Run.create(tmp_path / "cut", config(), store, resume=True)
        with pytest.raises(Killed):
            fit_unmix(run, store, on_step=kill)
    run = Run.create(tmp_path / "cut", config(), store, resume=True)
    fit_unmix(run, store)
    for name in ("model.safetensors", "history.csv"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_several_seeds_are_one_row(store: Store, tmp_path: Path) -> None:
    args = ["fit", "unmix", "--store", str(store.path), "--out", str(tmp_path / "runs"), "--seeds", "2"]
    shown = CliRunner().invoke(app, [*args, *(arg for setting in SMALL for arg in ("--set", setting))])
    assert shown.exit_code == 0 and "names not found of 2 seeds: mean" in shown.output, shown.output
    facts = report([tmp_path / "runs"], tmp_path / "report", num_resamples=20)
    row = next(row for row in facts["experiments"] if row["id"] == "6")
    missed = [1 - json.loads((tmp_path / f"runs/seed{k}/result.json").read_text())["names_found"] for k in (0, 1)]
    assert row["sound"]["seeds"] == 2 and row["sound"]["lines"][0]["value"] == pytest.approx(sum(missed) / 2)


def test_it_learns_who_is_there(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 24, "dev": 8, "test": 8}, mixtures=60, most=2)
    settings = ("width=32", "slots=2", "steps=150", "batch_size=32", "lr=3e-3", "input_dropout=0.0", "dropout=0.0")
    result = fit_unmix(Run.create(tmp_path / "run", config(*settings), store), store)
    rows = {row["voices"]: row["systems"]["unmix"] for row in result["by_voices"]}
    assert rows[1]["identified"] > 0.6 and rows[1]["cosine"] > 0.6, rows  # by chance 0.13 and 0
    assert (
        sum(s["right"] for s in result["sets"]["unmix"]["counting"].values()) > 0.6 * result["num_test_mixtures"]
    )  # always one: 0.5


def test_what_a_mixture_is(store: Store) -> None:
    data = load_data(config(), store)
    mixture = data.test[2]
    assert mixture.id == "mix-test-10" and mixture.frames.shape == (FRAMES, DIM) and mixture.voices.shape == (2, SIZE)
    assert set(mixture.speakers) == {t.speaker for t in store.utterance(mixture.id).turns}
    assert mixture.utterances == tuple(f"{name}-2" for name in mixture.speakers)
    track = store.pooled("titanet", [f"mix-test-10/{mixture.utterances[1]}"])[0] - data.centre
    assert mixture.voices[1] == pytest.approx(track / np.linalg.norm(track), abs=1e-6)
    every = [id for id in store.ids if "/" in id and id.startswith("mix-train")]
    assert data.centre == pytest.approx(store.pooled("titanet", every).mean(0), abs=1e-5)
    assert set(data.recordings["test"]) == {"talk-test-0", "talk-test-1"} and not data.notes
    less = load_data(config("train_fraction=0.5"), store)
    assert len(less.train) == 6 and {m.id for m in less.train} < {m.id for m in data.train}


def test_features_on_other_grids_lie_where_they_are_heard(tmp_path: Path) -> None:
    slow = replace(spec("slow", 1), grid=FrameGrid(0.32, 0.64))
    utterance = Utterance("u", "x.wav", 0.0, 1.6, "u", None, "test", (Turn(0, 1, "a"),))
    with featstore.writer(tmp_path, spec("mimi", 1)) as mimi, featstore.writer(tmp_path, slow) as other:
        mimi.add(utterance, np.arange(20)[:, None])
        other.add(utterance, np.arange(3)[:, None])
    store = featstore.open(tmp_path)
    frames = read_all(store, ("mimi", "slow"), "u")
    assert frames[:, 0].tolist() == list(range(20))
    assert frames[:, 1].tolist() == [0] * 8 + [1] * 8 + [2] * 4  # 0.64 s is nearer to 0.32 s than to 0.96 s up to there
    assert on_grid(store, "mimi", "u", FrameGrid(0.05, 0.64), 3)[:, 0].tolist() == [0, 8, 16]


def test_padding_changes_nothing_and_vectors_are_of_length_1(store: Store) -> None:
    network = make_network(config(), DIM, SIZE).eval()
    frames = torch.randn(1, 9, DIM)
    alone = network(frames, torch.ones(1, 9, dtype=torch.bool))
    padded = network(torch.cat([frames, torch.full((1, 4, DIM), 7.0)], 1), torch.tensor([[True] * 9 + [False] * 4]))
    for one, other in zip(alone, padded, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert alone[0].shape == (1, 3, SIZE) and torch.allclose(alone[0].norm(dim=2), torch.ones(1, 3), atol=1e-5)


def seen(frames: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(frames[..., -SIZE:] - centre, dim=-1)


def windowed(*settings: str) -> Unmixer:
    network = make_network(config("feature=mimi+titanet", "windows=true", *settings), DIM + SIZE, SIZE).eval()
    network.centre.copy_(torch.randn(SIZE, generator=torch.Generator().manual_seed(3)))
    return network


def test_slots_of_windows_are_weighted_means_of_what_the_teacher_says_of_the_mixture() -> None:
    """To begin with nothing is corrected: a slot lies between the windows that count, and a voice that is alone passes as it is."""
    network, frames = windowed(), torch.randn(2, 6, DIM + SIZE, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with torch.no_grad():
        found, _ = network(frames, mask)
        for own, windows, count in zip(found, seen(frames, network.centre), mask.sum(1).tolist(), strict=True):
            for slot in own:
                weights, rest = nnls(windows[:count].T.double().numpy(), slot.double().numpy())
                assert rest < 1e-5 and (weights > 1e-3).sum() > 1
        alone = frames[:1].clone()
        alone[..., -SIZE:] = alone[:, :1, -SIZE:]
        voice = seen(alone, network.centre)[0, 0]
        for padded in (alone, torch.cat([alone, 5 * torch.randn(1, 3, DIM + SIZE)], 1)):
            found, _ = network(padded, torch.arange(padded.shape[1])[None] < 6)
            torch.testing.assert_close(found[0], voice.expand(3, -1), atol=1e-5, rtol=0)
        network.embedding.bias[0] = 0.5  # what is learnt is added to the mean of length 1
        found, _ = network(alone, mask[:1])
        expected = voice + 0.5 * torch.eye(SIZE)[0]
        torch.testing.assert_close(found[0], (expected / expected.norm()).expand(3, -1), atol=1e-5, rtol=0)


def test_without_a_correction_a_slot_is_nothing_but_windows() -> None:
    """Whatever the weights are, after training too: a voice that is alone passes as it is."""
    network, frames = windowed("correction=false"), torch.randn(1, 1, DIM + SIZE).expand(1, 6, -1)
    with torch.no_grad():
        for weights in network.parameters():
            weights.normal_()
        found, _ = network(frames, torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(found[0], seen(frames, network.centre)[0, :1].expand(3, -1), atol=1e-5, rtol=0)
    # Where slots are not of windows there is nothing to leave out.
    assert config("correction=false").windows is False and make_network(config("correction=false"), DIM, SIZE).embedding


def test_slots_of_windows_learn_which_to_listen_to(store: Store, tmp_path: Path) -> None:
    """The made-up teacher hears one voice a frame: which frames are whose is all there is to learn."""
    made = config("feature=mimi+titanet", "windows=true", "steps=60", "lr=1e-2", "looks=1")
    result = fit_unmix(Run.create(tmp_path / "run", made, store), store)
    learnt = fit_unmix(
        Run.create(tmp_path / "learnt", config("feature=mimi+titanet", "steps=60", "lr=1e-2", "looks=1"), store), store
    )
    assert result["dev_cosine"] > 0.8 > learnt["dev_cosine"]


def test_windows_of_another_length_are_directions_from_their_own_mean(tmp_path: Path) -> None:
    """Half as long and each in another place of the space: what they share is taken off, so they say what the teacher's say."""
    store, away = make_store(tmp_path / "store", recordings=1), np.full(SIZE, 3, np.float32)
    short = replace(spec("short", SIZE), grid=FrameGrid(first_centre_s=0.02, step_s=0.04))
    mixed = [u for u in store_utterances(store) if u.speaker is None]
    with featstore.writer(store.path, short) as writer:
        for u in mixed:
            writer.add(u, np.repeat(store.frames("titanet", u.id).astype(np.float32) + away, 2, 0))
    store = featstore.open(store.path)
    made = config("feature=short", "windows_of=short", "windows=true", "correction=false", "steps=2", "looks=1")
    result = fit_unmix(Run.create(tmp_path / "run", made, store), store)
    assert result["features"] == ["short", "titanet"] and result["inputs"] == ["short"]
    tensors, _ = Run.open(tmp_path / "run").read_tensors("model.safetensors")
    heard = np.concatenate(
        [store.frames("short", u.id) for u in mixed if u.split == "train" and not u.id.startswith("talk")]
    )
    np.testing.assert_allclose(tensors["own_centre"], heard.astype(np.float64).mean(0), atol=1e-2)
    # Grouped windows are these, from there: in a mixture and in a recording.
    assert result["dev"]["windows"]["identified"] > 0.9 and result["memory"]["windows"]["dev_f1"] > 0.9
    network = make_network(made, SIZE, SIZE).eval()
    network.load_state_dict(tensors)
    id = next(u.id for u in mixed if u.id == "mix-dev-0")
    frames = torch.from_numpy(store.frames("short", id)[:1].astype(np.float32))[None]
    with torch.no_grad():
        alone, _ = network(frames, torch.ones(1, 1, dtype=torch.bool))
    expected = seen(frames, network.own_centre)[0, 0]
    torch.testing.assert_close(alone[0], expected.expand(3, -1), atol=1e-5, rtol=0)


def test_the_mean_of_windows_is_of_all_windows_not_of_mixtures(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ids = config("windows_of=titanet"), ["mix-train-0", "mix-train-1"]
    monkeypatch.setattr(Store, "num_frames", lambda self, feature, id: 1 if id == ids[0] else 3)
    first, second = store.pooled("titanet", ids)
    np.testing.assert_allclose(_windows_centre(store, made, ids), (first + 3 * second) / 4, rtol=1e-5)
    with pytest.raises(ConfigError, match="of the size of the teacher 'titanet', 8; 'mimi' has 16"):
        load_data(config("windows_of=mimi"), store)


def test_a_run_from_before_there_were_windows_opens_as_it_was(store: Store, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config("feature=mimi+titanet"), store)
    fit_unmix(run, store)
    there = json.loads((run.path / "config.json").read_text())
    for setting in ("windows", "windows_of", "correction"):
        del there["config"][setting]
    (run.path / "config.json").write_text(json.dumps(there))
    old = Run.open(run.path)
    make_network(old.config, DIM + SIZE, SIZE).load_state_dict(old.read_tensors("model.safetensors")[0])
    # Where the mixture's own windows are not heard there is nothing to take a mean of.
    plain = make_network(config("windows=true"), DIM, SIZE)
    assert plain.state_dict().keys() == make_network(config(), DIM, SIZE).state_dict().keys()


def test_who_is_expected_to_be_heard_in_a_chunk() -> None:
    turns = [Turn(0, 1.3, "a"), Turn(1.2, 1.4, "b"), Turn(1.7, 2.0, "b"), Turn(1.9, 9, "c")]
    assert _who(turns, 1.0, 2.0) == {"b"}  # b says 0.5 s in two turns, a and c less
    assert _who(turns, 0.0, 1.0) == {"a"}


def test_a_store_without_mixtures_says_how_to_make_some(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole")
    with pytest.raises(
        ConfigError, match="no mixture with its voices' tracks in split 'dev'; make some: featstore sim"
    ):
        load_data(config(), make_store(tmp_path / "few", {"train": 4, "test": 4}))
    with pytest.raises(ConfigError, match=r"feature 'titanet' lacks 1 of 72 mixtures or tracks, the first is 'mix-"):
        missing = next(id for id in whole.ids if "/" in id)
        with featstore.writer(tmp_path / "less", spec("mimi", DIM)) as mimi:
            for id in whole.ids:
                if id.startswith("mix") and (id == missing or "/" not in id):
                    mimi.add(whole.utterance(id), np.zeros((FRAMES, DIM)))
        with featstore.writer(tmp_path / "less", spec("titanet", SIZE)) as titanet:
            for id in whole.ids:
                if id != missing:
                    titanet.add(whole.utterance(id), np.zeros((FRAMES, SIZE)))
        load_data(config(), featstore.open(tmp_path / "less"))


def test_a_speaker_in_two_splits_is_refused(tmp_path: Path) -> None:
    with (
        featstore.writer(tmp_path, spec("mimi", DIM)) as mimi,
        featstore.writer(tmp_path, spec("titanet", SIZE)) as titanet,
    ):
        for split in ("train", "dev", "test"):
            mimi.add(Utterance(f"m-{split}", "x.wav", 0.0, 1.6, f"m-{split}", None, split), np.zeros((20, DIM)))
            track = Utterance(
                f"m-{split}/u", "x.wav", 0.0, 1.6, f"m-{split}", "ann" if split != "train" else "bob", split
            )
            titanet.add(track, np.zeros((20, SIZE)))
    with pytest.raises(ConfigError, match="1 speakers are in mixtures of test and of dev, the first is ann"):
        load_data(config(), featstore.open(tmp_path))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("protocol=reference",), "no reference protocol"),
        (("width=18", "heads=4"), "multiple of heads, found 18 and 4"),
        (
            ("feature=titanet+mimi", "windows=true"),
            "the teacher, or windows_of, must stand last in feature, found 'titanet.mimi' with 'titanet'",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config(*settings)


def test_without_recordings_or_windows_it_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", recordings=0)
    result = fit_unmix(Run.create(tmp_path / "run", config(), store), store)
    assert result["memory"] is None and "no memory was tried" in result["notes"][0]
    facts = report([tmp_path / "run"], tmp_path / "report", num_resamples=20)
    assert len([f for f in facts["findings"] if f["experiment"] == "6"]) == 2
