"""A run's folder from its maker's side: what may change between two goes, what is written, who may be trained on."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import featstore
from featstore import FeatureSpec, FrameGrid, Store, Utterance
from featstore.store.labels import label_digests
from tests.sessions import make_store, spec
from trainers.config import ConfigError, FitConfig
from trainers.fraction import share_of
from trainers.runs import Run, RunError, output_spec
from trainers.trial_list import training_ids


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = make_store(tmp_path_factory.mktemp("runs") / "store", {"train": 2, "dev": 1, "test": 1}, seconds=3.0)
    with featstore.writer(path, spec("titanet", 4, settings={"weights": "random:1"})) as out:
        stored = featstore.open(path)
        for id in stored.ids:
            out.add(stored.utterance(id), np.ones((37, 4)))
    return featstore.open(path)


def changed(value: Any) -> str:
    """Another value that the setting may have, as text."""
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int | float):
        return str(value * 2 or 1)
    return {"auto": "yes", "": "2", "mimi": "titanet", "float32": "bf16"}.get(str(value), "0.5")


@pytest.mark.parametrize(
    "name", [n for n in FitConfig.make("adapter").to_json() if n not in ("kind", "protocol", "sampling")]
)
def test_a_run_goes_on_with_other_settings_only_where_they_decide_nothing(
    store: Store, tmp_path: Path, name: str
) -> None:
    base = (
        "train_fraction=0.5",
        "ema=0.1",
        "dropout=0.05",
        "input_dropout=0.1",
        "dev_fraction=0.1",
        "heads=2",
        "speakers=2",
        "conv_frames=3",
        "medians=3",
        *(["cache_s=4"] if name == "chunk_frames" else []),
    )
    made = FitConfig.make("adapter", settings=base)
    value = {"device": "cpu", "conv_frames": "5", "medians": "5", "thresholds": "0.5"}.get(
        name, changed(made.to_json()[name])
    )
    run = Run.create(tmp_path / "run", made, store)
    run.begin()
    other = FitConfig.make("adapter", settings=[*base, f"{name}={value}"])
    assert other != made
    if name in ("device", "resident", "checkpoint_steps", "epochs", "tensorboard"):
        assert Run.create(run.path, other, store, resume=True).config == other
    else:
        with pytest.raises(
            RunError, match=f"cannot resume with other settings: {name}|was trained on feature|checkpoint"
        ):
            Run.create(run.path, other, store, resume=True)
        assert Run.open(run.path).config == made


def test_what_may_change_of_an_extraction_and_what_may_not(store: Store, tmp_path: Path) -> None:
    made = FitConfig.make("tse", settings=["feature=titanet"])
    Run.create(tmp_path / "run", made, store).begin()
    for setting in ("sets=other", "rated=3", "test_mixtures=5"):
        Run.create(tmp_path / "run", FitConfig.make("tse", settings=["feature=titanet", setting]), store, resume=True)
    for setting in ("steps=7", "jitter=0.1", "dev_voices=3", "condition=none"):
        with pytest.raises(RunError, match=f"other settings: {setting.split('=')[0]}"):
            Run.create(
                tmp_path / "run", FitConfig.make("tse", settings=["feature=titanet", setting]), store, resume=True
            )


def test_the_configuration_is_written_whole_and_read_back(store: Store, tmp_path: Path) -> None:
    made = FitConfig.make("fusion", settings=["seed=3"], protocol="reference")
    run = Run.create(tmp_path / "run", made, store)
    assert not run.path.exists()  # nothing is written before the data have passed their checks
    run.begin()
    told = json.loads((run.path / "config.json").read_text())
    assert {key: told[key] for key in ("whowhen", "kind", "protocol", "store")} == {
        **{"whowhen": version("whowhen"), "kind": "fusion", "protocol": "reference", "store": store.address}
    }
    assert FitConfig.from_json(told["config"]) == made and told["labels"] == label_digests(store)
    assert list(told["features"]) == ["mimi", "titanet"]
    for name, entry in told["features"].items():
        assert (
            entry["fingerprint"] == store.features[name].fingerprint
            and FeatureSpec.from_json(entry["spec"]) == store.features[name]
        )
    assert (
        told["features"]["titanet"]["warning"] == store.features["titanet"].warning and "UNTRAINED" in run.warnings[0]
    )
    again = Run.open(run.path)
    assert (again.config, again.store, again.features, again.labels) == (made, store.address, run.features, run.labels)
    assert again.warnings == run.warnings == [store.features["titanet"].warning]


def test_tensors_tables_and_history_come_back(store: Store, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", FitConfig.make("adapter"), store)
    run.begin()
    run.write_tensors(
        "x.safetensors", {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}, {"epoch": 4, "none": None}
    )
    tensors, facts = run.read_tensors("x.safetensors")
    assert (
        facts == {"epoch": 4, "none": None} and tensors["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and tensors["b"] == 3
    )
    with pytest.raises(RunError, match=r"y\.safetensors: missing; the run has not got that far"):
        run.read_tensors("y.safetensors")
    run.write_history([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    assert list(csv.reader((run.path / "history.csv").read_text().splitlines())) == [
        ["epoch", "loss"],
        ["1", "0.5"],
        ["2", "0.25"],
    ]
    run.write_history([])
    assert (run.path / "history.csv").read_text() == ""
    run.write_table("t.parquet", pa.table({"a": [1, 2]}))
    assert pq.read_table(run.path / "t.parquet").to_pydict() == {"a": [1, 2]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("z.json", {"a": float("nan")})
    assert not (run.path / "z.json").exists()


def test_a_store_with_another_feature_or_none_is_refused(store: Store, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", FitConfig.make("adapter"), store)
    run.begin()
    run.check(store)
    run.features = {"mimi": replace(store.features["mimi"], weights_sha256="f" * 64)}
    with pytest.raises(RunError, match=f"has {store.features['mimi'].fingerprint}. Use the store"):
        run.check(store)
    run.features = {"lyra": store.features["mimi"]}
    with pytest.raises(RunError, match="has no 'lyra'. Use the store it was trained on"):
        run.check(store)


def test_a_run_s_own_feature_is_marked_by_its_weakest_source() -> None:
    good, demo = spec("a", settings={"weights": "hf:x"}), spec("b", settings={"weights": "demo"})
    random = spec("c", settings={"weights": "random:0"}, sample_rate_hz=8000)
    told = output_spec("out", 3, [good, demo, random], model="m", pooled="mean")
    assert told == {
        "name": "out", "dim": 3, "sample_rate_hz": 24000, "model": "m on a + b + c",
        "settings": {"pooled": "mean", "weights": "random:0", "sources": {s.name: s.fingerprint for s in (good, demo, random)}},
    }  # fmt: skip
    assert output_spec("o", 1, [good, demo], model="m")["settings"]["weights"] == "demo"
    assert output_spec("o", 1, [good], model="m")["settings"]["weights"] == "run"
    made = FeatureSpec(**told, dtype="float32", grid=FrameGrid(0, 1), weights_sha256="")
    assert "UNTRAINED" in made.warning


def test_a_share_is_drawn_by_the_seed_in_order_and_never_nothing() -> None:
    items = list("abcdefghij")
    order = np.random.default_rng([4, 3]).permutation(10)
    for share, count in ((1.0, 10), (0.5, 5), (0.25, 2), (0.26, 3), (0.01, 1)):
        assert share_of(items, share, 4) == sorted(items[i] for i in order[:count])
    assert share_of(items, 0.5, 5) != share_of(items, 0.5, 4)


def test_who_may_be_trained_on_beside_a_trial_list(tmp_path: Path) -> None:
    rows = [
        ("a", "ann", "train"),
        ("b", None, "train"),
        ("c", "cyd", "dev"),
        ("d", "dan", "test"),
        ("e", "ann", "train"),
        ("f", "fay", ""),
    ]
    with featstore.writer(tmp_path, spec(dim=2)) as out:
        for id, speaker, split in rows:
            out.add(Utterance(id, f"{id}.wav", 0.0, 0.8, id, speaker, split), np.ones((10, 2)))
    store = featstore.open(tmp_path)
    assert training_ids("t", store, ["d"], ["dan"]) == (["a", "e"], ["ann", "ann"])
    with pytest.raises(ConfigError, match=r"1 utterances of t have no speaker in .* \(first: b\)"):
        training_ids("t", store, ["d", "b"], ["dan", None])
    with pytest.raises(ConfigError, match=r"1 speakers of t are also trained on \(ann\)"):
        training_ids("t", store, ["d", "x"], ["dan", "ann"])


@pytest.mark.parametrize(
    ("kind", "least", "below"),
    [
        *(
            ("cascade", f"{n}=1", f"{n}=0")
            for n in ("width", "substeps", "steps", "batch_size", "at_once", "neighbours", "counted")
        ),
        *(
            ("cascade", f"{n}=0", f"{n}=-0.1")
            for n in ("weight_decay", "edge_s", "min_share", "blends", "nearest", "change", "dropout")
        ),
        *(("cascade", f"{n}=0.1", f"{n}=0") for n in ("crop_s", "lr", "piece_s", "thresholds", "counted")),
        *(("cascade", f"{n}=0.9", f"{n}=1") for n in ("min_share", "dropout", "dev_fraction")),
        ("cascade", "thresholds=2", "thresholds=2.1"),
        *(("proxy", f"{n}=1", f"{n}=0") for n in ("size", "steps", "speakers", "pairs", "climb", "looks")),
        *(
            ("proxy", f"{n}=0", f"{n}=-1")
            for n in ("judges", "checkpoint_steps", "weight_decay", "negatives", "cosine_margin", "angle")
        ),
        *(("proxy", f"{n}=0.1", f"{n}=0") for n in ("crop_s", "lr", "scale")),
        *(("proxy", f"{n}=0.5", f"{n}=1.1") for n in ("soft", "corrupted")),
        ("proxy", "channels=8", "channels=4"),
        *(
            ("unmix", f"{n}=4", f"{n}=0")
            for n in ("slots", "width", "layers", "heads", "conv_frames", "steps", "batch_size", "looks")
        ),
        *(
            ("unmix", f"{n}=0", f"{n}=-1")
            for n in ("existence", "apart", "contrast", "weight_decay", "checkpoint_steps")
        ),
        *(("unmix", f"{n}=0.1", f"{n}=0") for n in ("lr", "scale", "chunk_s")),
        *(("unmix", f"{n}=0.9", f"{n}=1") for n in ("dropout", "input_dropout")),
        *(
            ("tse", f"{n}=1", f"{n}=0")
            for n in ("channels", "blocks", "repeats", "voices", "least_voices", "steps", "looks", "test_mixtures")
        ),
        *(("tse", f"{n}=0", f"{n}=-1") for n in ("jitter", "rated", "checkpoint_steps", "enrolled")),
        *(("tse", f"{n}=1", f"{n}=1.1") for n in ("enrolled",)),
        *(("tse", f"{n}=0.1", f"{n}=0") for n in ("lr", "crop_s")),
        ("tse", "hop=256", "hop=257"),
        ("tse", "architecture=gru", "architecture=rnn"),
        ("tse", "condition=none", "condition=both"),
        *(("probe", f"{n}=1", f"{n}=0") for n in ("epochs", "batch_size")),
        ("probe", "piece_s=0", "piece_s=-1"),
    ],
)
def test_the_edges_of_what_a_setting_may_be(kind: str, least: str, below: str) -> None:
    FitConfig.make(kind, settings=[least])
    with pytest.raises(ConfigError, match=f"^{least.partition('=')[0]}"):
        FitConfig.make(kind, settings=[below])
