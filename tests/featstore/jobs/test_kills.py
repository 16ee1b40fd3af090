"""Extractions killed at many steps and at random moments, full and failing disks, workers that vanish.

After each: what was committed reads back bit for bit, nothing stands twice or half, `verify --repair` leaves nothing that
does not belong to a committed part, and the resumed store holds the bytes of an uninterrupted run.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import featstore
from featstore import StoreError, Utterance
from featstore.jobs.extract import extract
from featstore.store import layout, writer
from featstore.store.reader import Store
from featstore.upkeep.verify import verify
from tests.fakes import FakeExtractor, forkserver, slow_extraction, tone

CALLS = ("replace", "link", "fsync", "mkdir", "unlink")
Content = dict[str, bytes]


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("audio")
    found = []
    for i in range(12):
        path = folder / f"{i}.wav"
        soundfile.write(path, tone(0.4 + 0.13 * i, hz=200 + 30 * i), 8000)
        found.append(Utterance(f"u{i}", str(path), 0.0, 0.4 + 0.13 * i, f"r{i}", "s", "train", ()))
    return found


@pytest.fixture(scope="module")
def few(utterances: list[Utterance]) -> list[Utterance]:
    """Two batches, five parts: a part makes the same calls as every other, so more of them would only take longer."""
    return utterances[-5:]


@pytest.fixture(scope="module")
def expected(utterances: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Content:
    return uninterrupted(utterances, tmp_path_factory.mktemp("whole") / "s")


@pytest.fixture(scope="module")
def expected_few(few: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Content:
    return uninterrupted(few, tmp_path_factory.mktemp("few") / "s")


def uninterrupted(utterances: list[Utterance], store: Path) -> Content:
    run(utterances, store)
    return content(store)


def run(utterances: list[Utterance], store: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """An extraction in batches of a few utterances, a part for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "PART_BYTES", 100)
        extract(utterances, FakeExtractor(), store, batch_s=5, workers=1, shard=shard)


def content(store: Path) -> Content:
    opened = featstore.open(store, verify=True)
    ids = [
        id for part in range(len(opened.index("fake").parts)) for id in opened.index("fake").part_ids(part).to_pylist()
    ]
    assert len(ids) == len(set(ids)), "an utterance stands twice"
    return {id: everything(opened, id) for id in ids}


def everything(opened: Store, id: str) -> bytes:
    """All that a store holds of an utterance: its frames, their mean and std, its facts."""
    pooled = [opened.pooled("fake", [id], statistic).tobytes() for statistic in ("mean", "std")]
    return b"".join([opened.frames("fake", id).tobytes(), *pooled, repr(opened.utterance(id)).encode()])


def foreign(store: Path) -> list[str]:
    """Files that belong to no committed part, outside of ``damaged/``: a kill just before the index leaves a whole part."""
    index = {p.stem for p in layout.index_dir(store, "fake").glob("[!.]*.parquet")}
    kept = {f"features.zarr/fake/{part}" for part in index}
    kept |= {f"utterances/{part}.parquet" for part in index} | {f"index/fake/{part}.parquet" for part in index}
    kept |= {"features.zarr/zarr.json", "features.zarr/fake/zarr.json"}
    found = []
    for path in store.rglob("*"):
        name = path.relative_to(store).as_posix()
        if (
            path.is_file()
            and name not in kept
            and not name.startswith("damaged/")
            and "/".join(name.split("/")[:3]) not in kept
        ):
            found.append(name)
    return found


def check_and_resume(
    store: Path, utterances: list[Utterance], expected: Content, seen: Content | None = None
) -> Content:
    """All that must hold after a stop, then the rest of the extraction; returns what was committed at the stop."""
    try:
        committed = content(store)
    except (StoreError, KeyError) as error:  # stopped before the store or the feature was made
        assert "not a store" in str(error) or "no such folder" in str(error) or "has no feature" in str(error), error
        assert not seen
        committed = {}
    else:
        assert committed.items() <= expected.items()
        assert (seen or {}).items() <= committed.items(), "something committed is gone"
    was_a_store = (store / "features.zarr" / "zarr.json").exists()
    if was_a_store:
        assert verify(store).damaged == []
        verify(store, repair=True)
        assert verify(store).findings == []
        assert foreign(store) == []
        assert (content(store) if committed else {}) == committed
    run(utterances, store)
    assert content(store) == expected
    verify(store, repair=not was_a_store)  # stopped earlier still, its temporary files could not be cleaned up above
    assert verify(store).findings == []
    return committed


def fail_at(number: int, act: Callable[[str, object], None]) -> Callable[[], int]:
    """From the `number`-th call of the system's file functions on, `act` first; returns how many there were."""
    count = 0

    def patched(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                act(name, args[0])
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, patched(name, getattr(os, name)))
    return lambda: count


def _killed_at(number: int, utterances: list[Utterance], store: Path, shard: tuple[int, int] = (0, 1)) -> None:
    def die(name: str, argument: object) -> None:
        if name == "fsync":  # torn: what was not synced yet may be lost
            path = os.readlink(f"/proc/self/fd/{argument}")
            if os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
                store.with_suffix(".torn").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    fail_at(number, die)
    run(utterances, store, shard)


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = forkserver("tests.featstore.jobs.test_kills").Process(target=target, args=arguments)
    process.start()
    return process


def sweep(numbers: range, utterances: list[Utterance], expected: Content, folder: Path) -> tuple[int, int]:
    """Kill at each of `numbers` until one is beyond the last call; returns the kills, and how many tore a file."""
    for kills, number in enumerate(numbers):
        process = start(_killed_at, number, utterances, folder / str(number))
        process.join(60)
        if process.exitcode == 0:
            assert content(folder / str(number)) == expected
            return kills, len(list(folder.glob("*.torn")))
        assert process.exitcode == -signal.SIGKILL
        check_and_resume(folder / str(number), utterances, expected)
    raise AssertionError("the extraction makes more calls than were tried")


def test_killed_at_some_steps(few: list[Utterance], expected_few: Content, tmp_path: Path) -> None:
    kills, torn = sweep(range(1, 2000, 19), few, expected_few, tmp_path)
    assert kills >= 8 and torn >= 2


@pytest.mark.slow
def test_killed_at_many_steps(utterances: list[Utterance], expected: Content, tmp_path: Path) -> None:
    kills, torn = sweep(range(1, 2000, 4), utterances, expected, tmp_path)
    assert kills >= 100 and torn >= 15


@pytest.mark.slow
def test_killed_at_random_moments(utterances: list[Utterance], tmp_path: Path) -> None:
    """At least 100 times, with progress between the kills: a run ends when the extraction gets through."""
    rng = np.random.default_rng(0)
    whole = tmp_path / "whole"
    slow_extraction(utterances, whole).join(60)
    expected = content(whole)
    kills = rounds = 0
    while kills < 100 or rounds < 3:
        store, seen = tmp_path / str(rounds), {}
        rounds += 1
        for _ in range(60):
            process = slow_extraction(utterances, store)
            process.join(float(rng.uniform(0.02, 0.3)))
            if process.exitcode is None:
                process.kill()
                process.join()
                kills += 1
            try:
                now = content(store)
            except (StoreError, KeyError):
                assert not seen
                continue
            assert seen.items() <= now.items() <= expected.items()
            seen = now
            if process.exitcode == 0:
                break
            assert verify(store).damaged == []
        verify(store, repair=True)
        assert foreign(store) == [] and verify(store).findings == []
        slow_extraction(utterances, store).join(60)
        assert content(store) == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_one_error_and_resumed(
    code: int, few: list[Utterance], expected_few: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    for number in range(1 + code % 11, 3000, 11):
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, getattr(os, name))

            def refuse(name: str, argument: object) -> None:
                raise OSError(code, os.strerror(code))

            calls = fail_at(number, refuse)
            try:
                run(few, tmp_path / str(number))
            except OSError as error:
                assert error.errno == code
                failures += 1
            else:
                if calls() < number:
                    break
        check_and_resume(tmp_path / str(number), few, expected_few)
    assert failures >= 15


def test_a_worker_vanishes_beside_another(utterances: list[Utterance], expected: Content, tmp_path: Path) -> None:
    store = tmp_path / "s"
    one, other = start(_killed_at, 60, utterances, store, (0, 2)), start(run, utterances, store, (1, 2))
    one.join(60)
    other.join(60)
    assert (one.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    assert 0 < len(check_and_resume(store, utterances, expected)) < len(utterances)
