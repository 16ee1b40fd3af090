"""The Ray engine on a real cluster of this machine: the frames of a plain run, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from typer.testing import CliRunner

from cli.featstore import app
from featstore import Utterance
from featstore.extractors import ExtractorError
from featstore.jobs import crew
from featstore.jobs import ray as ray_engine
from featstore.jobs.extract import extract
from featstore.jobs.result import Result
from featstore.upkeep import verify as integrity
from tests.fakes import FakeExtractor, tone
from tests.featstore.jobs.test_extract import contents, corpus

DEADLY = 0.77


class KillerExtractor(FakeExtractor):
    """Kills its process over a wave of that peak: always, or only as long as `once` is not there."""

    def __init__(self, once: Path | None = None) -> None:
        super().__init__()
        self._once = once

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        if any(abs(np.abs(w).max() - DEADLY) < 1e-3 for w in waves) and not (self._once and self._once.exists()):
            if self._once:
                self._once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().extract(waves)


class BrokenExtractor(FakeExtractor):
    """As a GPU that fails: every batch is an error of the machine's."""

    def extract(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def times_stored(store: Path) -> Counter[str]:
    """How often the index tables name each id; a reader would hide what stands there twice."""
    return Counter(
        id for path in (store / "index" / "fake").glob("*.parquet") for id in pq.read_table(path)["id"].to_pylist()
    )


def deadly_corpus(folder: Path) -> list[Utterance]:
    utterances = corpus(folder, 24)
    sf.write(utterances[7].audio, tone(utterances[7].duration_s, peak=DEADLY), 8000)
    return utterances


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_actors_write_the_frames_of_a_plain_run(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 24)
    Path(utterances[3].audio).write_bytes(b"")
    plain = extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    seen: list[float] = []
    result, spec = ray_engine.extract(
        utterances, partial(FakeExtractor, slow_s=0.05), tmp_path / "s", actors=2, gpu=False, batch_s=5,
        progress=lambda r: seen.append(r.audio_s),
    )  # fmt: skip
    assert spec == FakeExtractor().spec
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
    assert set(times_stored(tmp_path / "s").values()) == {1}
    # One part an actor, not one a batch; an actor that was slow to start may have found nothing left.
    assert len(list((tmp_path / "s" / "index" / "fake").iterdir())) <= 2
    assert integrity.verify(tmp_path / "s").findings == []
    assert (result.asked, result.done, result.skipped, result.writers) == (24, 23, 0, 2)
    assert result.failures == plain.failures
    assert [json.loads(line) for line in (tmp_path / "s" / "failures.jsonl").read_text().splitlines()] == plain.failures
    assert result.audio_s == pytest.approx(plain.audio_s)
    assert seen == sorted(seen)
    assert 0 < result.busy["encode"] <= 1
    again, _ = ray_engine.extract(utterances, FakeExtractor, tmp_path / "s", actors=1, gpu=False, batch_s=5)
    assert (again.done, again.skipped, len(again.failures)) == (0, 23, 1)
    with pytest.raises(ValueError, match="already holds feature 'fake' of 23"):
        ray_engine.extract(utterances, FakeExtractor, tmp_path / "s", gpu=False, resume=False)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_killed_over_a_batch_loses_nothing(tmp_path: Path) -> None:
    utterances = deadly_corpus(tmp_path)
    extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    notes: list[str] = []
    result, _ = ray_engine.extract(
        utterances, partial(KillerExtractor, once=tmp_path / "died"), tmp_path / "s", actors=2, gpu=False, batch_s=5,
        note=notes.append,
    )  # fmt: skip
    assert (tmp_path / "died").exists()
    assert len(notes) == 1
    assert (result.done, result.failures) == (24, [])
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
    assert times_stored(tmp_path / "s") == Counter({u.id: 1 for u in utterances})
    assert integrity.verify(tmp_path / "s", repair=True).damaged == []
    assert integrity.verify(tmp_path / "s").findings == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_utterance_that_always_kills_is_listed_and_the_rest_is_there(tmp_path: Path) -> None:
    utterances = deadly_corpus(tmp_path)
    result, _ = ray_engine.extract(utterances, KillerExtractor, tmp_path / "s", actors=2, gpu=False, batch_s=5)
    (failure,) = result.failures
    assert failure["id"] == "u7"
    assert "2 actors were lost over this utterance alone" in failure["error"]
    assert json.loads((tmp_path / "s" / "failures.jsonl").read_text()) == failure
    assert times_stored(tmp_path / "s") == Counter({u.id: 1 for u in utterances if u.id != "u7"})


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_actors_that_only_die_end_the_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LOST_IN_A_ROW", 1)
    with pytest.raises(ExtractorError, match="actors were lost in a row.*illegal memory access"):
        ray_engine.extract(corpus(tmp_path, 24), BrokenExtractor, tmp_path / "s", actors=2, gpu=False, batch_s=5)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_interrupted_it_keeps_what_is_finished(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 40)

    def interrupt(result: Result) -> None:
        if result.audio_s > 20:
            raise KeyboardInterrupt

    slow = partial(FakeExtractor, slow_s=0.1)
    with pytest.raises(KeyboardInterrupt):
        ray_engine.extract(utterances, slow, tmp_path / "s", actors=2, gpu=False, batch_s=5, progress=interrupt)
    kept = times_stored(tmp_path / "s")
    assert 5 < kept.total() == len(kept) < 40
    extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=5)
    extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_an_actor_refuses_is_the_error_of_the_extraction(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 2)
    with pytest.raises(ValueError, match="^expected a name$"):
        ray_engine.extract(utterances, refuse, tmp_path / "s", actors=1, gpu=False)
    with pytest.raises(ExtractorError, match="3 actors need a CPU each, the cluster has 2"):
        ray_engine.extract(utterances, FakeExtractor, tmp_path / "s", actors=3, gpu=False)
    with pytest.raises(ExtractorError, match="1 actors need a GPU each, the cluster has 0"):
        ray_engine.extract(utterances, FakeExtractor, tmp_path / "s", gpu=True)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_command_prints_one_json_object(tmp_path: Path) -> None:
    manifest = one_tone(tmp_path)
    arguments = ["extract", str(manifest), "--store", str(tmp_path / "s"), "--feature", "mimi", "--weights", "demo"]
    done = CliRunner().invoke(app, [*arguments, "--engine", "ray", "--actors", "1", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["feature"], facts["asked"], facts["done"]) == ("mimi", 1, 1)
    assert "demo weights" in facts["warning"] and facts["warning"] in done.stderr


def one_tone(folder: Path) -> Path:
    sf.write(folder / "a.wav", tone(1.0), 8000)
    manifest = folder / "m.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": str(folder / "a.wav"), "duration": 1.0}) + "\n")
    return manifest


def refuse() -> FakeExtractor:
    raise ValueError("expected a name")


def test_what_the_engine_notes_stands_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is asked for reaches it."""
    asked: list[dict[str, object]] = []

    def engine(utterances: list[Utterance], make: object, store: Path, **settings: object) -> tuple[Result, object]:
        asked.append(settings)
        settings["note"]("an actor died")
        print("Ray's own words")
        return Result("fake", asked=1, done=1), FakeExtractor().spec

    monkeypatch.setattr(ray_engine, "extract", engine)
    sf.write(tmp_path / "a.wav", tone(1.0), 8000)
    command = [
        "extract",
        str(tmp_path / "a.wav"),
        "--store",
        str(tmp_path / "s"),
        "--feature",
        "mimi",
        "--engine",
        "ray",
    ]
    done = CliRunner().invoke(app, [*command, "--actors", "3", "--device", "cpu", "--workers", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert "an actor died" in done.stderr and json.loads(done.stdout)["done"] == 1  # and nothing else there
    (settings,) = asked
    assert (settings["actors"], settings["gpu"], settings["workers"]) == (3, False, 2)


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtractorError, match=r"pip install -e '.\[ray\]'"):
        ray_engine.extract([], FakeExtractor, tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "ray", "--shard", "0/2"], "--shard"),
        (["--actors", "2"], "--engine ray"),
        (["--ray-address", "auto"], "--engine ray"),
        (["--engine", "ray", "--device", "cuda:1"], "--device cuda"),
        (["--engine", "dask"], "expected local or ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: list[str], words: str) -> None:
    arguments = ["extract", str(one_tone(tmp_path)), "--store", str(tmp_path / "s"), "--feature", "mimi", *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and words in done.stderr, done.stderr
    assert not (tmp_path / "s").exists()
