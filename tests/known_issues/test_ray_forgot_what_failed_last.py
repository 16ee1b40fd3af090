"""Under Ray, what failed in an actor's last batch, or was put off in it, was listed as "encoded, but not in the store's index"."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.featstore.jobs.test_crew import FakeRay, run
from tests.featstore.jobs.test_extract import corpus, failing_disk, failures_of


def test_failures_of_the_last_batch_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = corpus(tmp_path, 3)
    for u in utterances:
        Path(u.audio).write_bytes(b"")
    result = run(monkeypatch, FakeRay(), utterances, tmp_path / "s", actors=1, batch_s=0.1)
    assert (result.done, len(result.failures)) == (0, 3)
    for failures in (result.failures, failures_of(tmp_path / "s")):
        assert all("the file is empty" in failure["error"] for failure in failures)


def test_what_the_last_batch_put_off_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = corpus(tmp_path, 3)
    failing_disk(monkeypatch, utterances[1].audio, times=99)
    result = run(monkeypatch, FakeRay(), utterances, tmp_path / "s", actors=1, batch_s=100)
    assert [f["id"] for f in result.failures] == ["u1"] and (result.put_off, result.done) == (2, 0)
