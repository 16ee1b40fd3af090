"""A store in people's own code: under torch's DataLoader, shown, for lhotse and Kaldi, and in the notebook."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import featstore
from cli.featstore import app
from featstore import MIMI_GRID, FeatureSpec, FrameGrid, StoreError, Turn, Utterance
from featstore.toolkits import export_kaldi, export_lhotse, to_lhotse
from featstore.torch import ByPart, Crops
from featstore.upkeep.relabel import remove
from tests.conftest import ROOT


def spec(name: str, dim: int) -> FeatureSpec:
    return FeatureSpec(name, dim, "float16", 24000, MIMI_GRID, f"model of {name}", "0" * 64, {"weights": "file"})


def add(path: Path, numbers: range) -> None:
    """Utterance i has 10 + i frames, which are i and count up in their second column."""
    for name, dim in (("mimi", 3), ("titanet", 2)):
        with featstore.writer(path, spec(name, dim)) as out:
            for i in numbers:
                frames = np.full((10 + i, dim), i, np.float16)
                frames[:, 1] = np.arange(10 + i)
                turns = (Turn(0.0, 0.4, "x"), Turn(0.2, 9.0, "y"), Turn(2.0, 3.0, "x")) if i == 3 else ()
                duration_s, speaker = 0.08 * (10 + i), None if turns else f"s{i % 4}"
                u = Utterance(
                    f"u{i:02d}", f"{i}.wav", 0.0, duration_s, f"r{i}", speaker, "dev" if i % 5 == 0 else "train", turns
                )
                out.add(u, frames)


@pytest.fixture
def store(tmp_path: Path) -> featstore.Store:
    add(tmp_path / "s", range(20))
    return featstore.open(tmp_path / "s")


def test_every_frame_comes_once_an_epoch(store: featstore.Store) -> None:
    crops = Crops(store, ("mimi", "titanet"), 8, random=False)
    seen = {(item["id"], item["start"] + k) for item in crops for k in range(item["frames"])}
    assert len(seen) == sum(10 + i for i in range(20)) and len(crops) == sum(-(-(10 + i) // 8) for i in range(20))
    for item in crops:
        i, n = int(item["id"][1:]), item["frames"]
        assert item["mimi"].shape == (8, 3) and item["titanet"].shape == (8, 2)
        assert item["mimi"][:n, 0].tolist() == [i] * n and not item["mimi"][n:].any()
        assert item["titanet"][:n, 1].tolist() == list(range(item["start"], item["start"] + n))
        assert item["speaker"] == ("" if i == 3 else f"s{i % 4}")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_other_crops_each_epoch_and_the_same_for_a_seed(store: featstore.Store, start: str) -> None:
    crops = Crops(store.select(split="train"), "mimi", 4)
    assert all(crops[0]["mimi"].shape == (4, 3) for _ in range(3))  # used before it is handed over

    def epochs() -> list[list[tuple[str, int]]]:
        loader = DataLoader(
            crops,
            batch_size=4,
            shuffle=True,
            num_workers=2,
            multiprocessing_context=multiprocessing.get_context(start),
            generator=torch.Generator().manual_seed(0),
        )
        return [
            [pair for batch in loader for pair in zip(batch["id"], batch["start"].tolist(), strict=True)]
            for _ in range(2)
        ]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)  # of fork with threads
        first, second = epochs()
        assert first != second and sorted(id for id, _ in first) == sorted(id for id, _ in second)
        assert len(first) == len(crops) and {id for id, _ in first} == set(store.select(split="train").ids)
        if start == "fork":
            assert epochs() == [first, second]


def test_a_pickle_is_small_and_notices_another_store(tmp_path: Path, store: featstore.Store) -> None:
    crops = Crops(store.select(split="train").select(speaker=["s1", "s2"]), "mimi", 4)
    crops[0]
    data = pickle.dumps(crops)
    add(tmp_path / "t", range(200, 900))
    many = pickle.dumps(Crops(featstore.open(tmp_path / "t"), "mimi", 4))
    assert len(data) < 2000 and len(many) < 2000
    again = pickle.loads(data)
    assert len(again) == len(crops) and again[len(crops) - 1]["id"] == crops[len(crops) - 1]["id"]
    add(tmp_path / "s", range(20, 30))
    with pytest.raises(StoreError, match="make it anew"):
        pickle.loads(data)[0]


def test_crops_are_of_utterances_that_have_all_features(tmp_path: Path, store: featstore.Store) -> None:
    """And of frames that both have: u00 has fewer of a third feature, u01 none of it."""
    with featstore.writer(tmp_path / "s", spec("more", 1)) as out:
        out.add(store.utterance("u00"), np.zeros((9, 1)))
        out.add(store.utterance("u05"), np.zeros((16, 1)))
    with featstore.writer(
        tmp_path / "s", FeatureSpec("slow", 1, "float16", 24000, FrameGrid(0.5, 1.0), "x", "")
    ) as out:
        out.add(store.utterance("u00"), np.zeros((1, 1)))
    store = featstore.open(tmp_path / "s")
    crops = Crops(store, ["mimi", "more"], 4, random=False, dtype=torch.float16)
    assert [(item["id"], item["start"], item["frames"]) for item in crops] == [
        *(("u00", 0, 4), ("u00", 4, 4), ("u00", 8, 1), ("u05", 0, 4), ("u05", 4, 4), ("u05", 8, 4), ("u05", 12, 3)),
    ]
    assert crops[0]["mimi"].dtype == crops[0]["more"].dtype == torch.float16
    assert len(Crops(store, ["mimi", "more"], 4)) == 2 + 3  # an epoch of random ones is as long, but for the rest
    starts = {crop["start"] for _ in range(60) for crop in [Crops(store, ["mimi", "more"], 4)[0]]}
    assert starts == set(range(6))
    for item in (-1, len(crops)):
        with pytest.raises(IndexError, match=f"crop {item} of 7"):
            crops[item]
    with pytest.raises(ValueError, match="need frames at the same times, found .*slow"):
        Crops(store, ["mimi", "slow"], 4)


def test_by_part_gives_every_crop_once_and_few_parts_at_a_time(tmp_path: Path) -> None:
    for i in range(6):  # a part each
        add(tmp_path / "s", range(10 * i, 10 * i + 10))
    store = featstore.open(tmp_path / "s")
    crops = Crops(store, "mimi", 8, random=False)
    first, second = list(ByPart(crops, 2)), list(ByPart(crops, 2))
    assert sorted(first) == sorted(second) == list(range(len(crops))) and first != second
    index = store.index("mimi")
    part = [int(index.part[index.rows[crops[item]["id"]]]) for item in first]
    changes = [i for i in range(1, len(part)) if set(part[:i]).isdisjoint(part[i:])]
    assert len(changes) == 2 and len(set(part[: changes[0]])) == 2  # three pairs, of which none comes back
    assert part[: changes[0]] != sorted(part[: changes[0]]) != part[: changes[0]][::-1]  # and which are mixed
    assert len(ByPart(pickle.loads(pickle.dumps(crops)))) == len(crops)
    assert sorted(ByPart(pickle.loads(pickle.dumps(crops)))) == sorted(first)
    with pytest.raises(ValueError, match="at_once: expected 1 part or more, found 0"):
        ByPart(crops, 0)


def test_datasets_of_nothing_are_refused(store: featstore.Store) -> None:
    for make, expected in (
        (lambda: Crops(store.select(split="tset"), "mimi", 4), "no utterance of what was selected has mimi"),
        (lambda: Crops(store, "mimi", 0), "expected 1 frame or more"),
        (lambda: Crops(store, "mimy", 4), "no feature 'mimy'"),
    ):
        with pytest.raises((ValueError, KeyError), match=expected):
            make()


def test_a_store_shows_what_is_in_it(store: featstore.Store) -> None:
    first, mimi, titanet = repr(store).splitlines()
    assert first == f"Store({store.address!r}): 20 utterances (dev 4, train 16), 0.01 h, 6 speakers, 20 recordings"
    assert mimi == "  mimi: 3-d float16 at 12.5 Hz, 20 utterances; model of mimi, weights file"
    assert titanet.startswith("  titanet: 2-d")
    part = repr(store.select(split="train"))
    assert "16 utterances (train 16)" in part and "  mimi: 3-d float16 at 12.5 Hz, 16 utterances; " in part
    html = store.select(speaker="<b>").__class__._repr_html_(store)
    assert "<td>mimi</td>" in html and "20 utterances" in html


def test_lhotse_reads_a_store(store: featstore.Store, tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    from lhotse import CutSet
    from lhotse.features.io import READER_BACKENDS

    cuts = to_lhotse(store, "mimi")
    export_lhotse(store, tmp_path / "cuts", "mimi")
    kept = CutSet.from_file(tmp_path / "cuts" / "cuts.jsonl.gz").to_eager()
    data = pickle.dumps(cuts["u07"])
    del READER_BACKENDS["featstore"]  # as in a worker that was spawned
    np.testing.assert_array_equal(pickle.loads(data).load_features(), store.frames("mimi", "u07"))
    for found in (cuts, kept):
        assert len(found) == 20
        for cut in found:
            np.testing.assert_array_equal(cut.load_features(), store.frames("mimi", cut.id))
        cut = found["u03"]
        assert [(s.speaker, s.start, s.end) for s in cut.supervisions] == [("x", 0.0, 0.4), ("y", 0.2, 1.04)]
        np.testing.assert_array_equal(
            cut.truncate(offset=0.16, duration=0.4).load_features(), store.frames("mimi", "u03", 2, 7)
        )
        assert cut.recording_id == cut.supervisions[1].recording_id == "r3" and cut.supervisions[0].id == "u03-0"
        assert cut.custom == {"split": "train", "source": "3.wav"}
        features = cut.features
        assert (features.num_features, features.frame_shift, features.sampling_rate) == (3, 0.08, 24000)
        assert (cut.duration, features.duration, features.num_frames) == (1.04, 1.04, 13)
        alone = found["u01"].supervisions
        assert [(s.speaker, s.start, s.end) for s in alone] == [("s1", 0.0, 0.88)]
    assert kept["u01"].custom["split"] == "train"
    with pytest.raises(StoreError, match=r"say which feature \(--feature NAME\): mimi, titanet"):
        to_lhotse(store)
    with pytest.raises(ValueError, match="exists already"):
        export_lhotse(store, tmp_path / "cuts", "mimi")


def test_kaldi_reads_a_store(store: featstore.Store, tmp_path: Path) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    result = CliRunner().invoke(app, ["export", str(store.path), str(tmp_path / "k"), "--to", "kaldi", "--json"])
    assert result.exit_code == 2 and "say which feature (--feature NAME): mimi, titanet" in result.stderr
    export_kaldi(store, tmp_path / "kaldi", "mimi")
    found = kaldiio.load_scp(str(tmp_path / "kaldi" / "feats.scp"))
    assert sorted(found) == store.ids
    for id in store.ids:
        np.testing.assert_array_equal(found[id], store.frames("mimi", id))
    lines = {name: (tmp_path / "kaldi" / name).read_text().splitlines() for name in ("utt2spk", "spk2utt", "utt2split")}
    assert lines["utt2spk"][3] == "u03 r3" and lines["utt2split"][0] == "u00 dev"
    assert lines["spk2utt"][0] == "r3 u03" and lines["spk2utt"][1] == "s0 u00 u04 u08 u12 u16"
    assert (tmp_path / "kaldi" / "utt2dur").read_text().splitlines()[:2] == ["u00 0.800", "u01 0.880"]


def test_an_export_is_of_one_feature_and_of_names_that_kaldi_can_hold(tmp_path: Path) -> None:
    pytest.importorskip("kaldiio")
    for name, ids in (("mimi", ("b", "a", "B")), ("titanet", ("b", "c"))):
        with featstore.writer(tmp_path / "s", spec(name, 2)) as out:
            for id in ids:
                out.add(Utterance(id, f"{id}.wav", 0.0, 0.8, id, split=""), np.ones((10, 2)))
    told: list[tuple[int, int]] = []
    export_kaldi(featstore.open(tmp_path / "s"), tmp_path / "k", "mimi", progress=lambda *of: told.append(of))
    assert (tmp_path / "k" / "utt2split").read_text() == "B -\na -\nb -\n"  # as bytes sort, and not c
    assert told == [(1, 3), (2, 3), (3, 3)]
    with featstore.writer(tmp_path / "s", spec("mimi", 2)) as out:
        out.add(Utterance("d", "d.wav", 0.0, 0.8, "d", "two words"), np.ones((10, 2)))
    with pytest.raises(ValueError, match="'two words' holds white space, which ends a name for Kaldi"):
        export_kaldi(featstore.open(tmp_path / "s"), tmp_path / "other", "mimi")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("export", [export_lhotse, export_kaldi])
def test_an_export_that_was_stopped_leaves_an_empty_folder(store: featstore.Store, tmp_path: Path, export) -> None:
    pytest.importorskip("lhotse" if export is export_lhotse else "kaldiio")

    def stop(done: int, of: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, tmp_path / "out", "mimi", progress=stop)
    assert list((tmp_path / "out").iterdir()) == []
    export(store, tmp_path / "out", "mimi")  # the same command again


def test_one_id_may_begin_as_another_one_with_a_slash(tmp_path: Path) -> None:
    pytest.importorskip("lhotse")
    from lhotse import CutSet

    with featstore.writer(tmp_path / "s", spec("mimi", 2)) as out:
        for k, id in enumerate(("a", "a/b", "a/b/c", "a%2Fb")):
            out.add(Utterance(id, "x.wav", 0.0, 0.8, id), np.full((10, 2), k))
    export_lhotse(featstore.open(tmp_path / "s"), tmp_path / "cuts")
    found = CutSet.from_file(tmp_path / "cuts" / "cuts.jsonl.gz").to_eager()
    assert [found[id].load_features()[0, 0] for id in ("a", "a/b", "a/b/c", "a%2Fb")] == [0, 1, 2, 3]
    with featstore.writer(tmp_path / "s", spec("titanet", 2)) as out:
        out.add(Utterance("a/b", "x.wav", 0.0, 0.8, "a/b"), np.ones((10, 2)))
    store = featstore.open(tmp_path / "s")
    assert [cut.id for cut in to_lhotse(store, "titanet")] == ["a/b"]  # those that have it
    assert [cut.id for cut in to_lhotse(store.select(id=["a", "a%2Fb"]), "mimi")] == ["a", "a%2Fb"]
    assert to_lhotse(store, "mimi")["a"].supervisions == []  # nobody is known to speak


def test_a_toolkit_that_is_not_installed_says_how(store: featstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    monkeypatch.setitem(__import__("sys").modules, "kaldiio", None)
    for call, name in ((to_lhotse, "lhotse"), (lambda s, f: export_kaldi(s, "x", f), "kaldiio")):
        with pytest.raises(ValueError, match=rf"needs {name}, which is not installed; .*\[toolkits\]"):
            call(store, "mimi")


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    cells = json.loads((ROOT / "docs" / "store.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"docs/store.ipynb, cell {number}", "exec"), names)
    assert len([cell for cell in cells if cell["cell_type"] == "code"]) >= 6
    assert "(100, 16) ['a', 'b']" in capsys.readouterr().out


def test_a_dataset_notices_that_as_many_utterances_are_others(tmp_path: Path) -> None:
    add(tmp_path / "s", range(4))
    data = pickle.dumps(Crops(featstore.open(tmp_path / "s"), "mimi", 4))
    remove(tmp_path / "s", ["u03"])
    add(tmp_path / "s", range(5, 6))
    with pytest.raises(StoreError, match="make it anew"):
        pickle.loads(data)[0]
