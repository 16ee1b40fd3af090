"""The doctor: sound references and stores pass, each planted fault is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import featstore
from cli.evaluation import app
from evaluation import doctor
from evaluation.audit import check_run, check_store
from evaluation.diarization import score
from evaluation.doctor import Check, check_reference, failed
from evaluation.rttm import read_rttm, read_uem, write_rttm
from evaluation.turns import NO_TURNS, Turns
from evaluation.verification import evaluate_scores
from featstore import MIMI_GRID, FeatureSpec, Turn, Utterance
from tests.sessions import meetings


def find(checks: list[Check], part: str) -> Check:
    found = [check for check in checks if part in check.name]
    assert len(found) == 1, (part, [check.name for check in checks])
    return found[0]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


# ---- the reference


def test_made_up_meetings_pass() -> None:
    """Four speakers in order m-0, m-1, … only by chance; who comes late is on another channel in most crops."""
    reference = {name: Turns.of(turns) for name, turns in meetings(minutes=6.0).items()}
    checks = check_reference(reference, np.random.default_rng(0), num_crops=200)
    assert not failed(checks)
    differ = float(find(checks, "arrival order is not").found.split()[0])
    assert 60 < differ < 99
    both = find(checks, "in session channels").found.replace("%", "").split(";")
    assert all(20 < float(rate) < 90 for rate in both)
    assert find(checks, "a perfect diarizer").found == "0.00 %"
    assert find(checks, "against itself").found == "0.00 %, 0.00 %"
    assert float(find(checks, "rotated by one: DER, fixed").found.split()[0]) > 80
    centre, outward = (float(x.split()[0]) for x in find(checks, "floor at 12.5 Hz: by").found.split(";"))
    assert outward == pytest.approx(2 * centre, rel=0.2)
    assert find(checks, "floor at 12.5 Hz under").found == "0.00 s"
    left = [float(c.found.split(";")[1].split()[0]) for c in checks if c.name.startswith("collar")]
    spoken = sum(float((t.end_s - t.start_s).sum()) for t in (turns.merged() for turns in reference.values()))
    assert spoken > left[0] > left[1] and left[0] > left[2] > left[3] > 0  # ±0.125, then ±0.25; each without overlap
    assert not any("AMI dev, speaker" in check.name for check in checks)


def test_ami_dev_passes(speech_dir: Path) -> None:
    folder = speech_dir / "ami"
    reference = read_rttm(folder / "only_words" / "rttms" / "dev")
    uem = read_uem(folder / "uems" / "dev")
    checks = check_reference(reference, np.random.default_rng(0), uem=uem, num_crops=300)
    assert not failed(checks)
    differ = float(find(checks, "arrival order is not").found.split()[0])
    assert 75 < differ < 95  # 87.8 % on the training meetings
    fixed = float(find(checks, "in session channels").found.split()[0])
    assert 50 < fixed < 75
    assert find(checks, "AMI dev").level == "info"  # five of eighteen
    assert find(checks, "floor at 12.5 Hz under").found == "0.00 s"
    share = float(find(checks, "rotated by one: DER, fixed").found.split()[0])
    assert share > 80


def test_arrival_by_hand() -> None:
    """B alone after 100 s: every crop after that has B first, and the session's labels call it second."""
    reference = {"m": Turns.of([Turn(0, 1, "A"), Turn(100, 1000, "B")])}
    checks = check_reference(reference, np.random.default_rng(0), uem={"m": np.array([[0.0, 1000.0]])}, num_crops=200)
    assert float(find(checks, "arrival order is not").found.split()[0]) > 95
    assert float(find(checks, "in session channels").found.split()[0]) > 95
    assert find(checks, "a perfect diarizer").level == "ok"


def test_a_long_recording_gives_more_crops_and_those_without_speech_do_not_count() -> None:
    """Of crops with speech nearly all are of "m", whose second speaker is alone in its last 100 s."""
    reference = {
        "m": Turns.of([Turn(0, 1, "A"), Turn(900, 1000, "B")]),
        "short": Turns.of([Turn(0, 100, "A")]),
    }
    checks = check_reference(reference, np.random.default_rng(0), num_crops=400)
    assert 75 < float(find(checks, "arrival order is not").found.split()[0]) < 99
    assert all(70 < float(x.split()[0]) < 99 for x in find(checks, "in session channels").found.split(";"))


def test_crops_are_of_what_is_scored() -> None:
    """Before 1000 s A is first in every crop, after that B is: only what the UEM names is drawn from."""
    reference = {"m": Turns.of([Turn(0, 1000, "A"), Turn(1000, 2000, "B")])}
    for uem, expected in (([0.0, 1000.0], 0), ([1000.0, 2000.0], 100)):
        checks = check_reference(reference, np.random.default_rng(0), uem={"m": np.array([uem])}, num_crops=50)
        assert float(find(checks, "arrival order is not").found.split()[0]) == expected


@pytest.mark.parametrize(("kind", "level"), [("mapped", "error"), ("fixed", "ok")])
def test_a_scorer_that_does_not_map_and_one_that_always_does_are_found(
    kind: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated channels: with a mapping nothing is wrong, without one nearly everything."""
    reference = {name: Turns.of(turns) for name, turns in meetings(minutes=3.0).items()}

    def never(reference: dict, hypothesis: dict, **options: object) -> object:
        result = score(reference, hypothesis, **options)
        errors = {n: replace(e, confusion_s=e.fixed_confusion_s) for n, e in result.recordings.items()}
        return replace(result, recordings=errors)

    def always(reference: dict, hypothesis: dict, **options: object) -> object:
        return score(reference, hypothesis, **{k: v for k, v in options.items() if not k.endswith("order")})

    monkeypatch.setattr(doctor, "score", never if kind == "mapped" else always)
    checks = check_reference(reference, np.random.default_rng(0), num_crops=5)
    assert find(checks, "rotated by one: DER, mapped").level == level
    assert find(checks, "rotated by one: DER, fixed").level == ("ok" if kind == "mapped" else "error")


def test_known_totals_of_ami_are_checked() -> None:
    names = [f"{m}{part}" for m in ("ES2011", "IS1008", "TS3004") for part in "abcd"]
    names += ["IB4001", "IB4002", "IB4003", "IB4004", "IB4010", "IB4011"]
    turns = [Turn(0, 31_558.66 / 18, "A"), Turn(5, 9, "A")]  # a speaker's words over their own count once
    right = {f"{n}.Mix-Headset": Turns.of(turns) for n in names}
    assert find(check_reference(right, np.random.default_rng(0), num_crops=5), "AMI dev").level == "ok"
    wrong = {**right, "IB4001.Mix-Headset": Turns.of([Turn(0, 1000, "A")])}
    checks = check_reference(wrong, np.random.default_rng(0), num_crops=5)
    assert find(checks, "AMI dev").level == "error"
    assert failed(checks)


def test_small_and_odd_references() -> None:
    """Turns on the frame grid, all inside a collar, one speaker only, an empty recording: no false alarm."""
    reference = {"a": Turns.of([Turn(0, 0.08, "A")]), "b": Turns.of([Turn(1.6, 1.68, "A")]), "c": NO_TURNS}
    assert not failed(check_reference(reference, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="no speech"):
        check_reference({"c": NO_TURNS}, np.random.default_rng(0))


# ---- the store


def make_store(path: Path, rows: list[dict], noise: float = 0.0) -> featstore.Store:
    """`rows` are Utterance attributes; ``take`` numbers the content, so equal takes are copies."""
    rng = np.random.default_rng(1)
    with featstore.writer(path, FeatureSpec("toy", 16, "float16", 16000, MIMI_GRID, "toy", "")) as writer:
        for i, row in enumerate(rows):
            row = dict(row)
            content = np.random.default_rng([7, row.pop("take", i)])
            frames = content.normal(size=(25, 16)) + content.normal(size=16)
            base = {"audio": f"/a/{i}.wav", "start_s": 0.0, "duration_s": 2.0, "recording": f"r{i}", "speaker": f"s{i}"}
            frames = (frames + noise * rng.normal(size=frames.shape)).astype(np.float16)
            writer.add(Utterance(**{"id": f"u{i}", "split": "train", **base, **row}), frames)
    return featstore.open(path)


def test_a_clean_store_passes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [{"split": s} for s in ("train", "train", "dev", "test", "test")])
    checks = check_store(store)
    assert {check.level for check in checks} <= {"ok", "info"}
    assert [check.name.split(":")[0] for check in checks if check.level == "ok"] == [
        "dev and test",
        "dev and train",
        "test and train",
    ]


@pytest.mark.parametrize(
    ("rows", "name", "found", "level"),
    [
        ([{"recording": "m"}, {"recording": "m", "split": "test"}], "test and train: recordings", "1: m", "error"),
        ([{"speaker": "x"}, {"speaker": "x", "split": "test"}], "test and train: speakers", "1: x", "error"),
        ([{"speaker": "x"}, {"speaker": "x", "split": "dev"}], "dev and train: speakers", "1: x", "warning"),
        (
            [{"turns": (Turn(0, 1, "spk0"),)}, {"turns": (Turn(0, 1, "spk0"),), "split": "test"}],
            "test and train: names in turns",
            "1: spk0",
            "warning",
        ),
        (
            [{"audio": "a.wav", "start_s": 1.0}, {"audio": "a.wav", "start_s": 2.5, "split": "test"}],
            "test and train: audio",
            "1: u0 = u1",
            "error",
        ),
        (
            [{"take": 3}, {"take": 3, "split": "test"}, {}],
            "test and train: utterances with equal toy",
            "1: u0 = u1",
            "error",
        ),
        ([{"take": 3}, {"take": 3}, {}, {"split": "test"}], "copies inside a split", "1: u0 = u1", "warning"),
        ([{"split": ""}, {}], "utterances", "1 (no split), 1 train", "warning"),
    ],
)
def test_each_leak_is_found(tmp_path: Path, rows: list[dict], name: str, found: str, level: str) -> None:
    checks = [c for c in check_store(make_store(tmp_path / "s", rows)) if name in c.name]
    assert (checks[0].found, checks[0].level) == (found, level)


def test_adjacent_crops_of_one_file_are_no_leak_and_batch_noise_hides_no_copy(tmp_path: Path) -> None:
    rows = [{"audio": "a.wav", "start_s": 0.0}, {"audio": "a.wav", "start_s": 2.0, "split": "test"}]
    assert find(check_store(make_store(tmp_path / "s", rows)), "test and train").level == "ok"
    noisy = make_store(
        tmp_path / "n", [{"take": 1}, {"take": 1, "split": "test"}, *[{} for _ in range(30)]], noise=1e-3
    )
    assert find(check_store(noisy), "equal toy").found == "1: u0 = u1"


# ---- runs


def write_run(path: Path, store: featstore.Store, protocol: str = "sound", **result: object) -> Path:
    path.mkdir()
    features = {n: {"fingerprint": s.fingerprint, "spec": s.to_json()} for n, s in store.features.items()}
    (path / "config.json").write_text(json.dumps({"protocol": protocol, "features": features}))
    (path / "result.json").write_text(json.dumps(result))
    return path


@pytest.fixture
def store(tmp_path: Path) -> featstore.Store:
    rows = [{"split": s, "recording": f"{s}{i}"} for s in ("train", "dev", "test") for i in range(2)]
    return make_store(tmp_path / "store", rows)


def test_a_diarizers_figures_are_taken_again(tmp_path: Path, store: featstore.Store) -> None:
    reference = {"test0@0.00": Turns.of([Turn(0, 10, "A"), Turn(5, 20, "B")])}
    hypothesis = {"test0@0.00": Turns.of([Turn(0, 10, "x"), Turn(6, 20, "y")])}
    figures = {"der": score(reference, hypothesis).corpus.der}
    tuned = {"tuned_on": "dev"}
    good = write_run(tmp_path / "good", store, test=figures, decoding=tuned, recordings={"test0": {}})
    bad = write_run(
        tmp_path / "bad", store, test={"der": 0.0}, decoding={"tuned_on": "test"}, recordings={"train1": {}}
    )
    for folder in (good, bad):
        write_rttm(folder / "ref.rttm", reference)
        write_rttm(folder / "hyp.rttm", hypothesis)
        (folder / "windows.uem").write_text("test0@0.00 1 0 90\n")
    assert {check.level for check in check_run(good, store)} == {"ok"}
    checks = check_run(bad, store)
    assert find(checks, "taken again").level == "error"
    assert find(checks, "tuned on").level == "warning"
    assert (find(checks, "split=train").found, find(checks, "split=train").level) == ("1: train1", "error")
    other = make_store(tmp_path / "other", [{}], noise=0)
    assert find(check_run(good, other), f"toy in {other.path}").level == "ok"  # the same spec


@pytest.mark.parametrize(("start_s", "level"), [(2.9999, "error"), (3.0, "ok"), (2.9999999, "ok"), (0.0, "error")])
def test_stretches_that_touch_are_no_leak(tmp_path: Path, start_s: float, level: str) -> None:
    """1–3 s of a file in train, what begins at 3 s in test: a rounding error is no shared audio."""
    rows = [{"audio": "a.wav", "start_s": 1.0}, {"audio": "a.wav", "start_s": start_s, "split": "test"}]
    found = [c for c in check_store(make_store(tmp_path / "s", rows)) if c.name == "test and train: audio in both"]
    assert [c.level for c in found] == ([] if level == "ok" else [level])
    rows[0] |= {"duration_s": float("nan")}  # to the end of the file, wherever that is
    found = check_store(make_store(tmp_path / "nan", rows))
    assert [c.level for c in found if c.name == "test and train: audio in both"] == ["error"]


def test_many_names_are_counted_and_the_first_three_told(tmp_path: Path) -> None:
    rows = [{"recording": f"m{i}", "split": split} for i in range(4) for split in ("train", "test")]
    store = make_store(tmp_path / "s", rows)
    assert find(check_store(store), "recordings in both").found == "4: m0, m1, m2, …"
    assert find(check_store(store.select(recording=["m0", "m1", "m2"])), "recordings in both").found == "3: m0, m1, m2"


@pytest.mark.parametrize(("share", "copies"), [(0.009, True), (0.0112, False)])
def test_how_near_is_the_same(tmp_path: Path, share: float, copies: bool) -> None:
    """Means that differ by less than a hundredth of the spread, in utterances of as many frames."""
    vectors = np.random.default_rng(0).standard_normal((40, 16))
    vectors -= vectors.mean(0)
    spread = np.sqrt((vectors**2).sum(1).mean())
    step = np.zeros(16)
    step[0] = share * spread
    with featstore.writer(tmp_path / "s", FeatureSpec("toy", 16, "float32", 16000, MIMI_GRID, "toy", "")) as writer:
        for i, vector in enumerate([*vectors, vectors[0] + step, vectors[1]]):
            frames = np.repeat(vector[None], 6 if i == 41 else 5, axis=0)  # the last is a copy but for its length
            split = "train" if i < 40 else "test"
            writer.add(Utterance(f"u{i}", f"{i}.wav", 0.0, 1.0, f"r{i}", f"s{i}", split), frames)
    checks = check_store(featstore.open(tmp_path / "s"))
    assert [c.found for c in checks if "equal toy" in c.name and c.level == "error"] == ["1: u0 = u40"] * copies


def test_untrained_features_are_told(tmp_path: Path) -> None:
    random = FeatureSpec("toy", 4, "float16", 16000, MIMI_GRID, "toy", "", {"weights": "random:0"})
    with featstore.writer(tmp_path / "s", random) as writer:
        writer.add(Utterance("u", "a.wav", 0.0, 2.0, "r", "s", "train"), np.ones((25, 4)))
    store = featstore.open(tmp_path / "s")
    run_path = write_run(tmp_path / "run", store, test={})
    for checks in (check_store(store), check_run(run_path)):
        check = find(checks, "weights")
        assert check.level == "warning" and "UNTRAINED" in check.found


@pytest.mark.parametrize("side", ["enrol_speaker", "test_speaker"])
def test_a_trained_speaker_on_either_side_is_found(tmp_path: Path, store: featstore.Store, side: str) -> None:
    folder = write_run(tmp_path / "run", store, systems={"probe": {"eer": 0.0}})
    columns = {"label": [True, False], "probe": np.array([0.9, 0.2], np.float32)}
    columns |= {name: ["z", "z"] if name == side else ["a", "b"] for name in ("enrol_speaker", "test_speaker")}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    save_file({"weight": np.zeros(1)}, folder / "model.safetensors", metadata={"whowhen": '{"classes": ["y", "z"]}'})
    assert find(check_run(folder, store), "trained on").found == "1: z"


@pytest.mark.parametrize(("protocol", "level"), [("sound", "error"), ("reference", "warning")])
def test_a_probe_trained_on_its_trial_speakers_is_found(
    tmp_path: Path, store: featstore.Store, protocol: str, level: str
) -> None:
    same, scores = np.array([True, False, True, False]), np.array([0.9, 0.2, 0.1, 0.3], np.float32)
    eer = evaluate_scores(scores, same).eer
    folder = write_run(tmp_path / "run", store, protocol, systems={"probe": {"eer": eer}, "raw": {"eer": 0.0}})
    columns = {"label": same, "probe": scores, "raw": scores, "enrol_speaker": ["a"] * 4, "test_speaker": ["b"] * 4}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    save_file({"weight": np.zeros(1)}, folder / "model.safetensors", metadata={"whowhen": '{"classes": ["b", "z"]}'})
    checks = check_run(folder, store)
    assert find(checks, "EER of probe").level == "ok"
    assert find(checks, "EER of raw").level == "error"
    assert (find(checks, "trained on").found, find(checks, "trained on").level) == ("1: b", level)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run"):
        check_run(tmp_path)
    (tmp_path / "config.json").write_text('{"protocol": 1')
    with pytest.raises(ValueError, match="damaged"):
        check_run(tmp_path)


def test_a_run_is_held_against_the_features_of_its_store(tmp_path: Path, store: featstore.Store) -> None:
    run_path = write_run(tmp_path / "run", store, test={}, recordings={})
    own = store.features["toy"].fingerprint
    assert [(c.found, c.expected, c.level) for c in check_run(run_path, store) if "toy in" in c.name] == [
        (own, own, "ok")
    ]
    for name, dim in (("toy", 4), ("other", 16)):
        with featstore.writer(
            tmp_path / name, FeatureSpec(name, dim, "float16", 16000, MIMI_GRID, "toy", "")
        ) as writer:
            writer.add(Utterance("u", "a.wav", 0.0, 2.0, "r", "s", "train"), np.ones((25, dim)))
    (check,) = [c for c in check_run(run_path, featstore.open(tmp_path / "toy")) if "toy in" in c.name]
    assert (check.expected, check.level) == (own, "error") and check.found not in (own, "absent")
    (check,) = [c for c in check_run(run_path, featstore.open(tmp_path / "other")) if "toy in" in c.name]
    assert (check.found, check.expected, check.level) == ("absent", own, "error")
    assert not any("toy in" in c.name for c in check_run(run_path))


@pytest.mark.parametrize(
    ("splits", "protocol", "level"),
    [
        (("train", "test"), "sound", "error"),
        (("train", "test"), "reference", "warning"),
        (("train", "dev"), "sound", "warning"),  # held out of train: no leak, but not test either
        (("train", "dev"), "reference", "warning"),
    ],
)
def test_measured_on_what_was_trained_on(tmp_path: Path, splits: tuple[str, ...], protocol: str, level: str) -> None:
    store = make_store(tmp_path / "s", [{"split": s, "recording": f"{s}{i}"} for s in splits for i in range(2)])
    run_path = write_run(tmp_path / "run", store, protocol, recordings={"train1": {}, "elsewhere": {}})
    (run_path / "hyp.rttm").touch()
    check = find(check_run(run_path, store), "measured on recordings of split=train")
    assert (check.found, check.level) == ("1: train1", level)
    assert find(check_run(run_path, store), "tuned on").found == "unknown"


def test_a_der_may_differ_by_what_rttm_rounds_away(tmp_path: Path, store: featstore.Store) -> None:
    """0.2 points of DER either way, not more; nothing to take again where a run says none."""
    turns = {"a": Turns.of([Turn(0, 10, "A")])}
    folder = write_run(tmp_path / "run", store)
    for name in ("ref.rttm", "hyp.rttm"):
        write_rttm(folder / name, turns)
    (folder / "windows.uem").write_text("a 1 0 10\n")
    for stated, level in ((0.0019, "ok"), (0.0021, "error"), (-0.0021, "error")):
        (folder / "result.json").write_text(json.dumps({"test": {"der": stated}}))
        check = find(check_run(folder), "taken again")
        assert (check.found, check.expected, check.level) == ("0.00 %", f"{100 * stated:.2f} %", level)
    (folder / "result.json").write_text(json.dumps({"test": {"der": None}}))
    assert not any("taken again" in check.name for check in check_run(folder))
    (folder / "result.json").unlink()
    assert find(check_run(folder), "figures").level == "warning"


# ---- the command


def test_doctor_command(tmp_path: Path, store: featstore.Store) -> None:
    write_rttm(tmp_path / "ref.rttm", {"m": Turns.of([Turn(i * 7.3, i * 7.3 + 5, "AB"[i % 2]) for i in range(40)])})
    code, out, err = run("doctor", "--ref", tmp_path / "ref.rttm", "--store", store.path, "--json")
    data = json.loads(out)
    assert (code, err, data["ok"]) == (0, "", True)
    assert all(check["ok"] for check in data["checks"])
    assert run("doctor", "--ref", tmp_path / "ref.rttm", "--store", store.path, "--json")[1] == out
    leaky = make_store(tmp_path / "leaky", [{"recording": "m"}, {"recording": "m", "split": "test"}])
    code, out, _ = run("doctor", "--store", leaky.path)
    assert code == 1
    assert "error" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look at"),
        (["--ref", "absent.rttm"], "absent.rttm: no such file"),
        (["--uem", "x.uem"], "give --ref too"),
        (["nowhere"], "nowhere: not a run"),
        (["notes.txt"], "notes.txt: not a run (a file); leave it out"),
    ],
)
def test_wrong_use_is_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: featstore.Store, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("good runs\n")
    if arguments == ["--uem", "x.uem"]:
        arguments = [*arguments, "--store", str(store.path)]
    code, out, err = run("doctor", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
