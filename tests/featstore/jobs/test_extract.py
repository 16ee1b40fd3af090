"""The extraction: everything asked for arrives, a kill costs only time, a defect only its own utterance."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import typer
from typer.testing import CliRunner

import featstore
from cli.errors import user_errors
from cli.featstore import app
from featstore import StoreError, Turn, Utterance, extractors
from featstore.corpora import audio
from featstore.jobs.batches import WINDOW, plan, share, unfinished, usual_batch_s
from featstore.jobs.extract import extract
from featstore.jobs.pipeline import Pipeline
from featstore.jobs.result import Result
from featstore.store import lock
from featstore.store.failures import Failures, settle
from featstore.upkeep import verify as integrity
from tests import codes
from tests.conftest import ROOT
from tests.fakes import FakeExtractor, forkserver, slow_extraction, tone


def corpus(folder: Path, count: int = 12) -> list[Utterance]:
    rng = np.random.default_rng(1)
    utterances = []
    for i in range(count):
        path = folder / f"{i}.wav"
        seconds = float(rng.uniform(0.3, 4.0))
        sf.write(path, tone(seconds, hz=100 + 30 * i), 8000)
        utterances.append(
            Utterance(f"u{i}", str(path), 0.0, round(seconds * 8000) / 8000, f"r{i}", f"s{i % 3}", "train")
        )
    return utterances


def failures_of(store: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (store / "failures.jsonl").read_text().splitlines()]


def fail_often(store: Path, k: int) -> None:
    """In a process of its own: 30 failures, written one by one, with a clean-up in between."""
    for n in range(30):
        log = Failures(store, "fake")
        log.add(Utterance(f"p{k}-{n}", "a.wav", 0.0, 1.0, "r"), f"failure {n} of process {k}")
        log.flush()
        if n % 3 == k % 3:
            settle(store, "fake", featstore.open(store).index("fake").rows)


def contents(path: Path) -> dict[str, bytes]:
    store = featstore.open(path, verify=True)
    return {id: store.frames("fake", id).tobytes() for id in store.ids}


def test_every_utterance_gets_its_own_frames(tmp_path: Path) -> None:
    utterances, fake = corpus(tmp_path), FakeExtractor()
    seen = []
    result = extract(utterances, fake, tmp_path / "s", batch_s=5, progress=lambda r: seen.append(r.audio_s))
    assert (result.done, result.skipped, result.failures) == (12, 0, [])
    assert len(fake.batches) > 3
    store = featstore.open(tmp_path / "s")
    for u in utterances:
        wave = sf.read(u.audio, dtype="float32")[0]
        batch = next(b for b in fake.batches if len(wave) in b)
        np.testing.assert_array_equal(
            store.frames("fake", u.id), (fake._frames(wave) + 2.0**-9 * len(batch)).astype(np.float16)
        )
        assert store.utterance(u.id) == u
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(result.total_s)


def test_batches_hold_like_lengths_and_depend_on_the_manifest_alone(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 40)
    batches = plan(utterances, 10.0)
    assert sorted(u.id for b in batches for u in b) == sorted(u.id for u in utterances)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(u.duration_s for u in batch) <= 10.0
    padded = sum(len(b) * max(u.duration_s for u in b) for b in batches)
    assert padded < 1.15 * sum(u.duration_s for u in utterances)
    assert plan(utterances, 10.0) == batches


def test_resume_does_only_what_is_missing_and_gives_the_same_bytes(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    extract(utterances, FakeExtractor(), tmp_path / "whole", batch_s=5)
    # Five of twelve first, as if a kill had come between: the batches are still those of the whole manifest.
    half = FakeExtractor()
    with featstore.writer(tmp_path / "s", half.spec) as out:
        whole = featstore.open(tmp_path / "whole")
        for u in utterances[:5]:
            out.add(u, whole.frames("fake", u.id))
    result = extract(utterances, half, tmp_path / "s", batch_s=5)
    assert (result.done, result.skipped) == (7, 5)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    again = FakeExtractor()
    assert extract(utterances, again, tmp_path / "s", batch_s=5).skipped == 12
    assert again.batches == []
    with pytest.raises(ValueError, match="already holds feature 'fake' of 12"):
        extract(utterances, again, tmp_path / "s", resume=False)


def test_shards_share_one_store(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    extract(utterances, FakeExtractor(), tmp_path / "whole", batch_s=5)
    for i in range(3):
        extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=5, shard=(i, 3))
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_shares_of_uneven_utterances_are_even(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    seconds = rng.permutation([*rng.lognormal(2, 0.6, 3000), *rng.uniform(600, 5400, 40)])
    utterances = [Utterance(f"u{i}", "a.wav", 0.0, float(s), "r") for i, s in enumerate(seconds)]
    batches = plan(utterances, 60.0)
    shares = [share(batches, i, 4) for i in range(4)]
    assert sorted(id(b) for s in shares for b in s) == sorted(id(b) for b in batches)
    loads = [sum(u.duration_s for batch in s for u in batch) for s in shares]
    assert max(loads) < 1.02 * np.mean(loads)


def test_many_processes_fill_one_store_at_once(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 30)
    Path(utterances[7].audio).unlink()
    plain = extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    together = forkserver().Barrier(6)  # else, on a busy machine, one is done before another begins
    processes = [slow_extraction(utterances, tmp_path / "s", (i, 4), together) for i in range(4)]
    processes += [slow_extraction(utterances, tmp_path / "s", together=together) for _ in range(2)]
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 6
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
    assert failures_of(tmp_path / "s") == plain.failures
    report = integrity.verify(tmp_path / "s", repair=True)
    assert report.damaged == []
    assert report.bytes > integrity.verify(tmp_path / "plain").bytes  # writers did meet; the reader showed each id once
    assert integrity.verify(tmp_path / "s").findings == []
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")


def test_no_failure_is_lost_between_many_writers(tmp_path: Path) -> None:
    (utterance,) = corpus(tmp_path, 1)
    extract([utterance], FakeExtractor(), tmp_path / "s")
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=fail_often, args=(tmp_path / "s", k)) for k in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 5
    assert sorted(f["id"] for f in failures_of(tmp_path / "s")) == sorted(
        f"p{k}-{n}" for k in range(5) for n in range(30)
    )
    # One that is in the store by now is no failure any more, and the rest is gathered in one file.
    log = Failures(tmp_path / "s", "fake")
    log.add(utterance, "was not there")
    log.flush()
    assert len(failures_of(tmp_path / "s")) == 151
    settle(tmp_path / "s", "fake", featstore.open(tmp_path / "s").index("fake").rows)
    assert len(failures_of(tmp_path / "s")) == 150
    assert len(list((tmp_path / "s" / "failures").iterdir())) == 1


@pytest.mark.parametrize("batch_takes_s", [0.4, 7.0, 16.3, 29.0, 47.0])
def test_a_kill_costs_less_than_a_minute(batch_takes_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sf.write(tmp_path / "a.wav", tone(1.0), 8000)
    utterances = [
        Utterance(f"u{i}", str(tmp_path / "a.wav"), 0.0, 1.0, "r") for i in range(10 + int(40 / batch_takes_s))
    ]
    now_s = 0.0

    class TimedExtractor(FakeExtractor):
        def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            nonlocal now_s
            now_s += batch_takes_s
            return super().extract(waves)

    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr("featstore.jobs.pipeline.time", clock)
    monkeypatch.setattr("featstore.store.writer.time", clock)
    costs, began_s, committed = [], 0.0, 0
    with Pipeline(TimedExtractor(), tmp_path / "s", 1) as pipeline:
        pipeline.submit(utterances[:1], {"u0"})
        for u in utterances[1:]:
            pipeline.submit([u], {u.id})
            pipeline.step()
            costs.append(now_s - began_s)  # a kill now, before this batch is written
            pipeline._written[-1].result()
            if (parts := len(list((tmp_path / "s" / "index" / "fake").iterdir()))) > committed:
                committed, began_s = parts, now_s
        pipeline.step()
    assert committed > 0
    assert max(costs) <= 50
    assert committed <= len(costs) * batch_takes_s / 20 + 1  # yet parts stay large


def test_a_failing_utterance_costs_only_itself(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 6)
    Path(utterances[1].audio).unlink()
    sf.write(utterances[2].audio, np.zeros(8000 * 5, np.float32), 8000)
    sf.write(utterances[3].audio, tone(5.0, peak=0.77), 8000)
    result = extract(utterances, FakeExtractor(bad=0.77), tmp_path / "s", batch_s=100)
    assert result.done == 3
    listed = [json.loads(line) for line in (tmp_path / "s" / "failures.jsonl").read_text().splitlines()]
    assert {f["id"] for f in listed} == {"u1", "u2", "u3"} == {f["id"] for f in result.failures}
    errors = {f["id"]: f["error"] for f in listed}
    assert "no such file" in errors["u1"]
    assert "silent" in errors["u2"]
    assert errors["u3"] == "this wave is refused"
    assert set(featstore.open(tmp_path / "s").ids) == {"u0", "u4", "u5"}
    # Mended, the list shrinks; what still fails stays on it.
    sf.write(utterances[1].audio, tone(utterances[1].duration_s), 8000)
    result = extract(utterances, FakeExtractor(bad=0.77), tmp_path / "s", batch_s=100)
    listed = [json.loads(line)["id"] for line in (tmp_path / "s" / "failures.jsonl").read_text().splitlines()]
    assert (result.done, sorted(listed)) == (1, ["u2", "u3"])


def test_a_writer_keeps_out_what_removes_parts(tmp_path: Path) -> None:
    store, fake = tmp_path / "s", FakeExtractor()

    def is_held() -> bool:
        try:
            with lock.hold(store, alone=True):
                return False
        except StoreError:
            return True

    with featstore.writer(store, fake.spec), featstore.writer(store, fake.spec):
        assert is_held()
    assert not is_held()
    with pytest.raises(RuntimeError), featstore.writer(store, fake.spec):
        raise RuntimeError
    assert not is_held()
    alone = featstore.writer(store, fake.spec)
    assert is_held()
    del alone
    gc.collect()
    assert not is_held()
    with lock.hold(store, alone=True), pytest.raises(StoreError, match="being repaired or compacted"):
        featstore.writer(store, fake.spec)


def test_a_damaged_table_is_found_before_anything_is_encoded(tmp_path: Path) -> None:
    utterances, other = corpus(tmp_path, 4), FakeExtractor("other")
    extract(utterances, FakeExtractor(), tmp_path / "s")
    table = next((tmp_path / "s" / "utterances").iterdir())
    table.write_bytes(table.read_bytes()[:-3])
    with pytest.raises(StoreError, match="utterances") as error:
        extract(utterances, other, tmp_path / "s", batch_s=2)
    assert other.batches == []
    assert not (tmp_path / "s" / "failures.jsonl").exists()
    del error  # it holds the frames of the call, and so the writer
    with lock.hold(tmp_path / "s", alone=True):
        pass


@pytest.mark.parametrize("error", [StoreError, ValueError])
def test_what_fails_for_a_part_is_no_utterances_failure(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise error("this part is refused")

    fake = FakeExtractor()
    monkeypatch.setattr("featstore.store.writer.commit_part", refuse)
    monkeypatch.setattr("featstore.store.writer.PART_BYTES", 1)
    with pytest.raises(error, match="this part is refused"):
        extract(corpus(tmp_path), fake, tmp_path / "s", batch_s=0.1)
    assert len(fake.batches) <= 3  # it ends at once: one batch in writing, one waiting
    assert not (tmp_path / "s" / "failures.jsonl").exists()


def test_an_utterance_with_changed_facts_costs_no_encoding(tmp_path: Path) -> None:
    utterances, other = corpus(tmp_path, 6), FakeExtractor("other")
    extract(utterances, FakeExtractor(), tmp_path / "s")
    changed = [replace(u, split="test") if u.id == "u2" else u for u in utterances]
    result = extract(changed, other, tmp_path / "s", batch_s=0.1)
    assert (len(other.batches), result.done, [f["id"] for f in result.failures]) == (5, 5, ["u2"])
    assert "already knows it with split 'train', found 'test'" in result.failures[0]["error"]


def failing_disk(monkeypatch: pytest.MonkeyPatch, path: str, times: int) -> None:
    real = audio._open

    def opened(name: str) -> sf.SoundFile:
        nonlocal times
        if name == path and times > 0:
            times -= 1
            raise OSError(errno.EIO, "Input/output error", name)
        return real(name)

    monkeypatch.setattr(audio, "_open", opened)


@pytest.mark.parametrize(
    "change",
    [{"speaker": "x"}, {"recording": "x"}, {"split": "dev"}, {"turns": (Turn(0.0, 0.1, "x"),)}],
    ids=lambda change: next(iter(change)),
)
def test_facts_that_changed_since_are_told(tmp_path: Path, change: dict[str, object]) -> None:
    utterances = corpus(tmp_path, 4)
    extract(utterances, FakeExtractor(), tmp_path / "s")
    assert extract(utterances, FakeExtractor(), tmp_path / "s").changed == []
    now = [replace(u, **change) if u.id in ("u1", "u3") else u for u in utterances]
    result = extract(now, FakeExtractor(), tmp_path / "s")
    assert (sorted(result.changed), result.skipped, result.failures) == (["u1", "u3"], 4, [])
    assert featstore.open(tmp_path / "s").utterance("u1") == utterances[1]


def test_a_disk_that_fails_changes_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = corpus(tmp_path)
    extract(utterances, FakeExtractor(), tmp_path / "whole", batch_s=5)
    whole = contents(tmp_path / "whole")
    (batch,) = (b for b in plan(utterances, 5) if utterances[2] in b)
    assert len(batch) > 1
    with monkeypatch.context() as patch:
        failing_disk(patch, utterances[2].audio, times=1)
        assert extract(utterances, FakeExtractor(), tmp_path / "once", batch_s=5).failures == []
    assert contents(tmp_path / "once") == whole
    with monkeypatch.context() as patch:
        failing_disk(patch, utterances[2].audio, times=99)
        result = extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=5)
    assert [f["id"] for f in result.failures] == ["u2"] and "Input/output error" in result.failures[0]["error"]
    assert (result.put_off, result.done) == (len(batch) - 1, len(utterances) - len(batch))
    assert contents(tmp_path / "s") == {id: data for id, data in whole.items() if id not in {u.id for u in batch}}
    assert extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=5).done == len(batch)
    assert contents(tmp_path / "s") == whole
    assert not (tmp_path / "s" / "failures.jsonl").exists()


def test_the_command_says_what_a_failing_disk_has_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = corpus(tmp_path, 3)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "".join(json.dumps({"audio_filepath": u.audio, "duration": u.duration_s}) + "\n" for u in utterances)
    )
    monkeypatch.setattr("featstore.extractors.create", lambda name, **settings: FakeExtractor())
    failing_disk(monkeypatch, utterances[1].audio, times=99)
    command = ["extract", str(manifest), "--store", str(tmp_path / "s"), "--feature", "fake", "--batch-s", "100"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "0 utterances added, 0 there already, 1 failed, 2 put off;" in result.stdout
    assert "put off: 2 utterance(s)" in result.stderr and "run the same command again" in result.stderr


@pytest.mark.parametrize("name", ["", "folder", "n" * 300 + ".wav"])
def test_a_path_that_names_no_file_is_bad_audio_on_every_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    utterances = corpus(tmp_path, 3)
    utterances[1] = replace(utterances[1], audio=str(tmp_path / name))
    result = extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=100)
    assert (result.done, result.put_off, [f["id"] for f in result.failures]) == (2, 0, ["u1"])


@pytest.mark.parametrize(
    "line", [b'{"feature', b"[1]", b'"feature id"', b'{"id": "u9"}', b'{"feature": [], "id": "u9"}', b"\xff"]
)
def test_a_damaged_line_of_the_failures_costs_only_itself(line: bytes, tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 3)
    Path(utterances[1].audio).unlink()
    extract(utterances, FakeExtractor(), tmp_path / "s")
    (listed,) = (tmp_path / "s" / "failures").iterdir()
    listed.write_bytes(line + b"\n" + listed.read_bytes())
    for _ in range(2):
        assert [f["id"] for f in extract(utterances, FakeExtractor(), tmp_path / "s").failures] == ["u1"]
        assert [f["id"] for f in failures_of(tmp_path / "s")] == ["u1"]
    assert line in listed.read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("bare"), AttributeError("fault")])
def test_a_fault_of_the_program_is_not_the_code_of_failed_utterances(error: Exception) -> None:
    faulty = typer.Typer(pretty_exceptions_enable=False)

    @faulty.command()
    @user_errors()
    def command() -> None:
        raise error

    result = CliRunner().invoke(faulty)
    assert result.exit_code == 70
    assert "Traceback" in result.stderr and type(error).__name__ in result.stderr


def test_an_unknown_setting_is_told_which_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.extractors._factory", lambda name: FakeExtractor)
    with pytest.raises(ValueError, match="no setting 'foo'; fake takes: name, slow_s, bad"):
        extractors.create("fake", foo=1)


def test_a_duration_the_manifest_leaves_open_is_measured(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", tone(1.25), 8000)
    extract([Utterance("a", str(tmp_path / "a.wav"), 0.25, float("nan"), "r")], FakeExtractor(), tmp_path / "s")
    assert featstore.open(tmp_path / "s").utterance("a").duration_s == 1.0


def test_kill_and_resume_give_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 60)
    extract(utterances, FakeExtractor(), tmp_path / "whole", batch_s=5)
    rng = np.random.default_rng(2)
    kills = 0
    for _ in range(12):
        process = slow_extraction(utterances, tmp_path / "s")
        time.sleep(float(rng.uniform(0.05, 0.6)))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if (tmp_path / "s" / "features.zarr" / "fake" / "zarr.json").exists():
            committed = contents(tmp_path / "s")
            whole = contents(tmp_path / "whole")
            assert all(whole[id] == data for id, data in committed.items())
    assert kills >= 3
    extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=5)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    integrity.verify(tmp_path / "s", repair=True)
    assert integrity.verify(tmp_path / "s").findings == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_store_without_write_permission_says_so() -> None:
    script = (
        "import os, sys, featstore.store.writer; from tests.fakes import FakeExtractor\n"
        "os.getuid() == 0 and os.setuid(65534)  # root may write anywhere\n"
        "try:\n    featstore.writer(sys.argv[1], FakeExtractor('other').spec)\n"
        "except PermissionError as e:\n    print(e)\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extract(corpus(folder, 1), FakeExtractor(), folder / "s")
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o555)
        found = subprocess.run(
            [sys.executable, "-c", script, str(folder / "s")], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        assert "Permission denied" in found.stdout, found.stderr
        assert len(featstore.open(folder / "s")) == 1


@pytest.mark.parametrize(
    ("seconds", "batches", "full"),
    [(10, 31, False), (10, 32, True), (1799, 1, False), (9000, 1, False), (900, 2, True)],
)
def test_how_much_is_decoded_ahead(seconds: float, batches: int, full: bool) -> None:
    """Half an hour of audio or 32 batches, but never less than one batch, however long."""
    u = Utterance("u", "u.wav", 0.0, seconds, "u")
    waiting = [([u], {"u"}, [])] * batches
    assert Pipeline.full.fget(SimpleNamespace(waiting=batches, _waiting=waiting)) is full


def test_how_fast_and_how_busy_by_hand() -> None:
    """Of 100 s of audio 40 have been heard, in 10 s; two writers of four decoders each."""
    done = Result("x", audio_s=40.0, total_s=100.0, wall_s=10.0, writers=2, decoders=4)
    done.busy_s = {"decode": 40.0, "encode": 15.0}
    told = done.to_json()
    assert (told["times_real_time"], told["busy"]) == (4.0, {"decode": 0.5, "encode": 0.75})
    assert Result("x").to_json()["times_real_time"] is None and Result("x").busy == {}


def test_how_much_audio_a_batch_has_where_nobody_says() -> None:
    """What the encoder asks for; else what suits its device, whatever its number; a CPU's where nobody knows the device."""
    found = {
        device: usual_batch_s(SimpleNamespace(device=device)) for device in ("cpu", "cuda:1", "cuda", "mps", "tpu:0")
    }
    assert found == {"cpu": 15.0, "cuda:1": 960.0, "cuda": 960.0, "mps": 240.0, "tpu:0": 15.0}
    assert usual_batch_s(SimpleNamespace()) == 15.0 == usual_batch_s(SimpleNamespace(device="cpu", batch_s=None))
    assert usual_batch_s(SimpleNamespace(device="cuda", batch_s=180.0)) == 180.0


def test_the_usual_batches_are_the_encoders(tmp_path: Path) -> None:
    utterances, one, asks = corpus(tmp_path), FakeExtractor(), FakeExtractor()
    asks.batch_s = 5.0
    extract(utterances, one, tmp_path / "one")
    extract(utterances, asks, tmp_path / "asks")
    for fake, batch_s in ((one, 15.0), (asks, 5.0)):
        assert [len(batch) for batch in fake.batches] == [len(batch) for batch in plan(utterances, batch_s)]


def test_batches_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of three, each by length and id; a batch's padding counts: its longest times its number."""
    seconds = {"a": 3.0, "b": 1.0, "c": 2.0, "e": 5.0, "d": 5.0, "f": 1.0, "g": 9.0}
    utterances = [Utterance(id, "a.wav", 0.0, s, "r") for id, s in seconds.items()]

    def ids(batch_s: float) -> list[str]:
        return ["".join(u.id for u in batch) for batch in plan(utterances, batch_s)]

    assert WINDOW == 512
    monkeypatch.setattr("featstore.jobs.batches.WINDOW", 3)
    assert ids(4.0) == ["bc", "a", "f", "d", "e", "g"]  # 2 × 2.0 fits exactly
    assert ids(3.9) == ["b", "c", "a", "f", "d", "e", "g"]
    assert (
        ids(9.0) == ["bca", "f", "d", "e", "g"]
        and ids(10.0) == ["bca", "fd", "e", "g"]
        and ids(100.0) == ["bca", "fde", "g"]
    )
    assert plan([], 4.0) == []


def test_what_is_asked_and_there_by_hand(tmp_path: Path) -> None:
    """Of a share: a batch with one missing is computed whole, and its seconds count; one that is whole is not."""
    fake = FakeExtractor()
    seconds = {"a": 1.0, "b": 1.5, "c": 3.0, "d": 4.0, "e": 8.0}
    utterances = [Utterance(id, f"{id}.wav", 0.0, s, id) for id, s in seconds.items()]
    with featstore.writer(tmp_path / "s", fake.spec) as out:
        for u in utterances[1:3]:
            out.add(replace(u, split="train") if u.id == "c" else u, np.ones((2, 8)))
    store, missing = featstore.open(tmp_path / "s"), {"a", "d", "e"}
    for shard, batches, figures in (
        ((0, 1), ["ab", "c", "d", "e"], (5, 2, 1.0 + 1.5 + 4.0 + 8.0, ["c"])),
        ((0, 2), ["e"], (1, 0, 8.0, [])),
        ((1, 2), ["ab", "c", "d"], (4, 2, 6.5, ["c"])),
    ):
        result = Result("fake")
        todo = unfinished(utterances, missing, result, store, batch_s=3.0, shard=shard)
        assert ["".join(u.id for u in batch) for batch in todo] == [batch for batch in batches if batch != "c"]
        assert (result.asked, result.skipped, result.total_s, result.changed) == figures
    with pytest.raises(
        ValueError, match="s already holds feature 'fake' of 2 of these utterances; leave out --no-resume"
    ):
        unfinished(utterances, missing, Result("fake"), store, batch_s=3.0, resume=False)
    assert unfinished(utterances, {u.id for u in utterances}, Result("fake"), store, batch_s=3.0, resume=False)


def test_frames_that_no_store_takes_are_their_utterances_failure(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 4)

    class Spoilt(FakeExtractor):
        def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            return [f * np.nan if len(f) == min(map(len, waves)) // 640 + 1 else f for f in super().extract(waves)]

    shortest = min(utterances, key=lambda u: u.duration_s)
    result = extract(utterances, Spoilt(), tmp_path / "s", batch_s=100)
    assert ([f["id"] for f in result.failures], result.done) == ([shortest.id], 3)
    assert "frames must be finite" in result.failures[0]["error"] and failures_of(tmp_path / "s") == result.failures
    assert len(featstore.open(tmp_path / "s")) == 3


def test_audio_of_unknown_length_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    utterances = [replace(u, duration_s=float("nan")) for u in corpus(tmp_path, 3)]
    Path(utterances[1].audio).write_bytes(b"no audio")
    result = extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=100)
    assert ([f["id"] for f in result.failures], result.done, result.put_off) == (["u1"], 2, 0)


def test_an_encoder_that_tells_is_heard_and_stopped(tmp_path: Path) -> None:
    """Seconds that it tells of the batch under way are added to those that are done, and are not counted twice."""
    utterances, seen = corpus(tmp_path, 3), []

    class Tells(FakeExtractor):
        def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            for part in (0.25, 0.5):
                self.told(part * sum(map(len, waves)) / 8000)
            return super().extract(waves)

    Tells.told = staticmethod(lambda seconds: None)
    fake = Tells()
    result = extract(
        utterances, fake, tmp_path / "s", batch_s=0.1, progress=lambda r: seen.append((r.audio_s, r.wall_s))
    )
    by_length = sorted(u.duration_s for u in utterances)
    expected = []
    for k, seconds in enumerate(by_length):
        expected += [sum(by_length[:k]) + share * seconds for share in (0.25, 0.75, 1.0)]
    assert [audio_s for audio_s, _ in seen] == pytest.approx([*expected, expected[-1]], abs=1e-3)
    assert [wall_s for _, wall_s in seen] == sorted(wall_s for _, wall_s in seen) and result.wall_s >= seen[-1][1] > 0

    def stop(result: Result) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(utterances, fake, tmp_path / "t", batch_s=0.1, progress=stop)
    with pytest.raises(InterruptedError):  # from a thread that is still at it
        fake.told(1.0)


def test_no_more_is_decoded_ahead_than_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.jobs.pipeline.AHEAD_BATCHES", 2)
    waiting: list[int] = []
    submit = Pipeline.submit

    def log(self: Pipeline, batch: list[Utterance], wanted: object) -> None:
        submit(self, batch, wanted)
        waiting.append(self.waiting)

    monkeypatch.setattr(Pipeline, "submit", log)
    assert extract(corpus(tmp_path), FakeExtractor(), tmp_path / "s", batch_s=0.1).done == 12
    assert waiting == [1, *[2] * 11]


def test_failures_are_on_the_disk_with_the_commit(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 2)
    Path(utterances[0].audio).unlink()
    with Pipeline(FakeExtractor(), tmp_path / "s", 1) as pipeline:
        pipeline.submit(utterances, {"u0", "u1"})
        pipeline.step()
        pipeline.drain()
        assert [f["id"] for f in failures_of(tmp_path / "s")] == ["u0"] and featstore.open(tmp_path / "s").ids == ["u1"]
        assert (pipeline.encoded, pipeline.waiting, pipeline.result.done) == (1, 0, 1)


def test_an_error_of_the_system_without_a_number_is_bad_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what says that the disk fails puts the others off."""
    utterances = corpus(tmp_path, 3)
    for error, put_off in (
        (OSError("of a library"), 0),
        (OSError(errno.EACCES, "no"), 0),
        (OSError(errno.EIO, "bad"), 2),
    ):
        real = audio._open

        def opened(name: str, error: OSError = error, real: object = real) -> sf.SoundFile:
            if name == utterances[1].audio:
                raise error
            return real(name)

        with monkeypatch.context() as patch:
            patch.setattr(audio, "_open", opened)
            result = extract(utterances, FakeExtractor(), tmp_path / f"{put_off}{error}", batch_s=100)
        assert (result.put_off, result.done, [f["id"] for f in result.failures]) == (put_off, 2 - put_off, ["u1"])


def test_codes_bring_their_codebooks_into_the_store(tmp_path: Path) -> None:
    books = codes.codebooks()

    class Coder:
        spec = codes.spec(books, weights="random:0")
        codebooks = books

        def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            return [np.full((3, 3), len(wave) % 16, np.int16) for wave in waves]

    utterances = corpus(tmp_path, 2)
    assert extract(utterances, Coder(), tmp_path / "s").done == 2
    assert featstore.open(tmp_path / "s").codebooks("mimi-codes").sha256 == books.sha256
