"""Trials, cosine scores, EER and minDCF: cases worked by hand, and scikit-learn as the second opinion."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_curve
from typer.testing import CliRunner

import featstore
from cli.evaluation import app
from evaluation.trials import read_trials, resolve, score_trials
from evaluation.verification import cosine_scores, det_curve, evaluate_scores
from featstore import FeatureSpec, Utterance


def eer_of(scores: object, same: object) -> float:
    return det_curve(scores, same).eer[0]


def sklearn_eer(scores: np.ndarray, same: np.ndarray) -> float:
    false_alarm, hit, _ = roc_curve(same, scores, drop_intermediate=False)
    return brentq(lambda x: 1 - x - np.interp(x, false_alarm, hit), 0, 1, xtol=1e-14)


# ---- figures


def test_eer_worked_by_hand() -> None:
    # Threshold 0.5: of four same-speaker trials one is below; of four others one is at or above.
    assert eer_of([0.9, 0.8, 0.5, 0.3, 0.6, 0.4, 0.2, 0.1], [1, 1, 1, 1, 0, 0, 0, 0]) == 0.25
    # Two and three trials: miss steps by 1/2 and meets false alarm, which steps by 1/3, in mid-step.
    assert eer_of([2, 4, 1, 3, 0], [1, 1, 0, 0, 0]) == pytest.approx(1 / 3)


def test_perfect_inverted_and_equal_scores() -> None:
    same = np.array([True] * 3 + [False] * 5)
    perfect = np.array([1, 2, 3, -1, -2, -3, 0, 0.5])
    assert det_curve(perfect, same).eer == (0.0, 1.0)
    assert det_curve(perfect, same).min_dcf(0.01) == 0
    assert eer_of(-perfect, same) == 1
    assert eer_of(np.zeros(8), same) == 0.5
    assert det_curve(-perfect, same).min_dcf(0.05) == 1  # accepting nothing is never worse than 1


def test_ties_do_not_depend_on_order() -> None:
    rng = np.random.default_rng(0)
    scores, same = rng.integers(0, 4, 200).astype(float), rng.random(200) < 0.3
    values = set()
    for _ in range(20):
        order = rng.permutation(200)
        values.add(eer_of(scores[order], same[order]))
    assert len(values) == 1
    assert values.pop() == pytest.approx(sklearn_eer(scores, same), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_eer_equals_sklearn_on_anything(trials: list[tuple[int, bool]]) -> None:
    scores, same = np.array([t[0] for t in trials], float), np.array([t[1] for t in trials])
    if same.all() or not same.any():
        with pytest.raises(ValueError, match="need same- and different-speaker trials"):
            det_curve(scores, same)
        return
    assert eer_of(scores, same) == pytest.approx(sklearn_eer(scores, same), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_of_the_eer_is_the_score_at_which_the_rates_cross(seed: int) -> None:
    rng = np.random.default_rng(seed)
    same = np.arange(60 + seed) < 23
    scores = (rng.normal(size=len(same)) + same).round(1 if seed % 2 else 9)

    def gap(threshold: float) -> float:
        return float(np.mean(scores[same] < threshold) - np.mean(scores[~same] >= threshold))

    _, threshold = det_curve(scores, same).eer
    assert threshold in scores
    assert gap(threshold) <= 0 < gap(np.nextafter(threshold, np.inf))


def test_min_dcf_against_a_loop_over_thresholds() -> None:
    rng = np.random.default_rng(1)
    same = rng.random(300) < 0.4
    scores = rng.normal(size=300) + 1.5 * same
    for prior in (0.01, 0.05, 0.9):
        costs = []
        for threshold in [*scores, np.inf]:
            miss, false_alarm = np.mean(scores[same] < threshold), np.mean(scores[~same] >= threshold)
            costs.append((prior * miss + (1 - prior) * false_alarm) / min(prior, 1 - prior))
        assert det_curve(scores, same).min_dcf(prior) == pytest.approx(min(costs), abs=1e-12)


def test_result_holds_the_published_statistics() -> None:
    result = evaluate_scores([0.9, 0.5, -0.4, 0.1], [1, 1, 0, 0])
    assert (result.num_trials, result.num_same, result.eer) == (4, 2, 0.0)
    assert (result.mean_same, result.mean_different) == (pytest.approx(0.7), pytest.approx(-0.15))
    assert (result.min_score, result.max_score) == (-0.4, 0.9)
    data = json.loads(json.dumps(result.to_json(det_points=100), allow_nan=False))
    assert data["min_dcf"] == {"0.01": 0.0, "0.05": 0.0}
    assert data["det"]["miss"][0] == 0
    assert data["det"]["false_alarm"][-1] == 0


def test_thinned_curve_keeps_its_ends_and_lies_on_the_curve() -> None:
    rng = np.random.default_rng(2)
    same = rng.random(20_000) < 0.5
    curve = det_curve(rng.normal(size=20_000) + same, same)
    thin = curve.thinned(200)
    assert len(thin.miss) <= 210
    points = set(zip(curve.thresholds, curve.miss, curve.false_alarm, strict=True))
    assert points.issuperset(zip(thin.thresholds, thin.miss, thin.false_alarm, strict=True))
    for rate in (
        thin.miss,
        thin.false_alarm[::-1],
    ):  # no step is longer than 1/49, nor a third more than what is before it
        assert np.diff(rate).max() < 1 / 48
        small = rate[(rate > 1e-3) & (rate < 0.1)]
        assert len(small) > 20 and (small[1:] / small[:-1]).max() < 1.35
    short = det_curve(np.arange(7.0), np.arange(7) % 2 == 0)
    assert short.thinned(len(short.thresholds)) is short
    assert (thin.miss[0], thin.miss[-1], thin.false_alarm[0], thin.false_alarm[-1]) == (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([0.1, np.nan, 0.2], [1, 0, 1], "1 of 3 scores are NaN or infinite .first: trial 2"),
        ([0.1, 0.2], [1, 1], "found 2 and 0"),
        ([], [], "found 0 and 0"),
        ([0.1, 0.2], [1], "must both be"),
    ],
)
def test_scores_that_are_refused(scores: list[float], same: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_scores(scores, same)


def test_cosine_equals_scipy() -> None:
    from scipy.spatial.distance import cosine

    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(50, 7))
    left, right = rng.integers(0, 50, 700), rng.integers(0, 50, 700)
    expected = [1 - cosine(vectors[a], vectors[b]) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(cosine_scores(vectors, left, right), expected, atol=1e-6)
    vectors[7] = 0
    with pytest.raises(ValueError, match="1 of 50 vectors are zero or not finite .first: row 7"):
        cosine_scores(vectors, left, right)


# ---- trial lists


def test_reads_plain_and_gzip_with_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    text = "1 a.wav b.wav\r\n\r\n0 a.wav  c.wav\r\n"
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "t.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("t.txt", "t.gz"):
        trials = read_trials(tmp_path / name)
        assert trials.names == ("a.wav", "b.wav", "c.wav")
        assert trials.left.tolist() == [0, 0]
        assert trials.right.tolist() == [1, 2]
        assert trials.same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "t.txt: no trials"),
        (b"\n \n", "t.txt: no trials"),
        (b"1 a b\n2 a b\n", "t.txt:2: expected '1 utterance utterance'.*found '2 a b'"),
        (b"1 a b\n0 a\n", "t.txt:2: expected"),
        (b"a b target\n", "t.txt:1: expected"),
        (b"1 a b\n0 a \xff\n", "t.txt:2: not UTF-8"),
        (b"\x1f\x8b broken", "t.txt: damaged gzip"),
    ],
)
def test_trial_lists_that_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "t.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_trials(tmp_path / "t.txt")


def test_a_long_list_has_its_known_counts(tmp_path: Path) -> None:
    """As VoxCeleb's: ``label id/video/number.wav id/video/number.wav``; a name is one row, wherever it stands."""
    rng = np.random.default_rng(0)
    rows = [(int(rng.random() < 0.3), *rng.choice(40, 2, replace=False).tolist()) for _ in range(3000)]
    name = "id{0:05d}/v/{0:05d}.wav".format
    (tmp_path / "t.txt").write_text("".join(f"{same} {name(a)} {name(b)}\n" for same, a, b in rows))
    trials = read_trials(tmp_path / "t.txt")
    assert (len(trials), int(trials.same.sum()), len(trials.names)) == (3000, sum(row[0] for row in rows), 40)
    pairs = zip(trials.same.tolist(), trials.left.tolist(), trials.right.tolist(), strict=True)
    assert [(int(same), trials.names[a], trials.names[b]) for same, a, b in pairs] == [
        (same, name(a), name(b)) for same, a, b in rows
    ]


def test_voxceleb_list_has_its_known_counts(speech_dir: Path) -> None:
    trials = read_trials(speech_dir / "voxceleb" / "veri_test2.txt")
    assert (len(trials), int(trials.same.sum()), len(trials.names)) == (37_611, 18_802, 4_708)


def test_names_mean_ids_or_ends_of_source_paths() -> None:
    ids = ["x/1", "utt2.flac", "k3", "k4"]
    sources = ["/data/a/x/1.wav", "/data/u.wav", "/data/b/spk/3.wav", "C:\\data\\spk\\4.wav"]
    assert resolve(["x/1", "x/1.wav", "utt2", "spk/3.wav", "b/spk/3.flac", "spk/4.wav"], ids, sources) == [
        "x/1",
        "x/1",
        "utt2.flac",
        "k3",
        "k3",
        "k4",
    ]
    with pytest.raises(
        KeyError, match=r"2 of 3 utterances of the trial list are not in the store \(first: pk/3.wav, z\)"
    ):
        resolve(["k3", "pk/3.wav", "z"], ids, sources)
    with pytest.raises(KeyError, match=r"1 of 1 .* mean several in the store \(first: 1.wav = i, j\)"):
        resolve(["1.wav"], ["i", "j"], ["/a/1.wav", "/b/1.wav"])
    # An id that is named exactly is meant, whatever others are called but for their ending.
    assert resolve(["a.wav", "a"], ["a", "a.wav", "a.flac"], ["1", "2", "3"]) == ["a.wav", "a"]
    # A number after a dot is part of the name, not a file extension.
    with pytest.raises(KeyError, match="not in the store"):
        resolve(["speaker.7"], ["speaker.8", "speaker"], ["/a/s8", "/a/s"])


# ---- the command


@pytest.fixture
def small_store(tmp_path: Path) -> Path:
    """4 speakers, 5 utterances each, plainly apart, and a trial list of every pair."""
    rng = np.random.default_rng(5)
    spec = FeatureSpec("toy", 16, "float16", 16000, featstore.MIMI_GRID, "toy", "", {"weights": "random:0"})
    ids = []
    with featstore.writer(tmp_path / "store", spec) as writer:
        for speaker in range(4):
            direction = rng.normal(size=16)
            for take in range(5):
                id = f"s{speaker}-{take}"
                frames = (direction + rng.normal(size=(30, 16))).astype(np.float16)
                audio = f"/corpus/s{speaker}/{take}.wav"
                split = "train" if speaker == 0 else "test"
                writer.add(Utterance(id, audio, 0.0, 2.4, id, f"s{speaker}", split), frames)
                ids.append(id)
    pairs = [(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]]
    lines = [f"{int(a[:2] == b[:2])} {a[:2]}/{a[3]}.wav {b[:2]}/{b[3]}.wav\n" for a, b in pairs]
    (tmp_path / "trials.txt").write_text("".join(lines))
    return tmp_path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_eer_command_prints_one_json_object(small_store: Path) -> None:
    arguments = ["eer", "--store", small_store / "store", "--feature", "toy", "--trials", small_store / "trials.txt"]
    code, out, err = run(*arguments, "--json", "--bootstrap", 50, "--seed", 3)
    data = json.loads(out)
    assert code == 0
    assert data["num_trials"] == 190
    assert data["eer"] < 0.02
    assert data["eer_interval"]["num_units"] == 4
    assert "UNTRAINED" in data["warnings"][0]
    assert "UNTRAINED" in err
    assert json.loads(run(*arguments, "--json", "--bootstrap", 50, "--seed", 3)[1]) == data
    code, out, err = run(*arguments, "--centre", "--json")
    assert code == 0
    centred = json.loads(out)
    # The train split is s0, whose direction is taken off all: what they share with it goes, what differs stays.
    assert (data["centred"], centred["centred"]) == (False, True)
    store = featstore.open(small_store / "store")
    scored = score_trials(store, "toy", read_trials(small_store / "trials.txt"), centre=True)
    assert centred["mean_different"] == pytest.approx(evaluate_scores(scored.scores, scored.trials.same).mean_different)
    assert abs(centred["mean_different"] - data["mean_different"]) > 0.1
    assert "UNTRAINED" in err


def test_labels_that_contradict_the_store_are_told(small_store: Path) -> None:
    (small_store / "wrong.txt").write_text("1 s0-0 s1-0\n1 s0-0 s0-1\n0 s0-0 s1-1\n")
    scored = score_trials(featstore.open(small_store / "store"), "toy", read_trials(small_store / "wrong.txt"))
    assert any("1 of 3 trials contradict the speakers" in warning for warning in scored.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--feature": "none"}, "no feature 'none'"),
        ({"--trials": "absent.txt"}, "error: absent.txt: No such file or directory"),
        ({"--trials": "bad.txt"}, "1 of 2 utterances of the trial list are not in the store (first: nobody)"),
        ({"--store": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    small_store: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(small_store)
    (small_store / "bad.txt").write_text("1 s0-0 nobody\n")
    options = {"--store": "store", "--feature": "toy", "--trials": "trials.txt", **change}
    code, out, err = run("eer", *[word for option in options.items() for word in option])
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "'\"" not in err
