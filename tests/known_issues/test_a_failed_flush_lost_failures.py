"""Failures were forgotten before they were on disk: a disk that was full for a moment lost them for good."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from featstore import Utterance, files
from featstore.jobs.extract import extract
from featstore.jobs.result import Result
from featstore.store.failures import Failures
from tests.fakes import FakeExtractor
from tests.featstore.jobs.test_extract import corpus, failures_of


def fill_the_disk_once(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """The next file that is written to a folder of that name meets a full disk."""
    real, full = files.write_atomically, [True]

    def write(path: Path, data: bytes) -> None:
        if path.parent.name == folder and full:
            full.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(files, "write_atomically", write)


def test_what_could_not_be_written_is_written_by_the_next_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Failures(tmp_path, "fake")
    log.add(Utterance("u0", "a.wav", 0.0, 1.0, "r"), "no such file")
    fill_the_disk_once(monkeypatch, "failures")
    with pytest.raises(OSError, match="No space"):
        log.flush()
    log.add(Utterance("u1", "b.wav", 0.0, 1.0, "r"), "silent")
    log.flush()
    assert [f["id"] for f in failures_of(tmp_path)] == ["u0", "u1"]
    log.flush()
    assert len(list((tmp_path / "failures").glob("*.jsonl"))) == 1


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_extraction_that_ends_with_a_full_disk_lists_what_failed(
    interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = corpus(tmp_path, 3)
    Path(utterances[1].audio).unlink()

    def progress(result: Result) -> None:
        if interrupted:
            raise KeyboardInterrupt

    # Either the list itself meets the full disk, or the last commit before it.
    fill_the_disk_once(monkeypatch, "fake" if interrupted else "failures")
    with pytest.raises(OSError, match="No space"):
        extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=100, progress=progress)
    assert [f["id"] for f in failures_of(tmp_path / "s")] == ["u1"]
