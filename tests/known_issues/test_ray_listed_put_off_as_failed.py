"""Under Ray, what was put off (a file of its batch that the disk did not give) was listed as failed."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path

import pytest
import soundfile

from featstore.corpora import audio
from featstore.jobs import ray as ray_engine
from featstore.jobs.batches import plan
from featstore.jobs.extract import extract
from tests.fakes import FakeExtractor
from tests.featstore.jobs.test_extract import contents, corpus, failures_of
from tests.featstore.jobs.test_ray import cluster

__all__ = ["cluster"]


class FailingDiskExtractor(FakeExtractor):
    """In whose process the disk does not give one file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        real = audio._open

        def opened(name: str) -> soundfile.SoundFile:
            if name == path:
                raise OSError(errno.EIO, "Input/output error", name)
            return real(name)

        audio._open = opened


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_put_off_under_ray_is_put_off(tmp_path: Path) -> None:
    utterances = corpus(tmp_path, 24)
    (batch,) = (b for b in plan(utterances, 5) if utterances[2] in b)
    assert len(batch) > 1
    result, _ = ray_engine.extract(
        utterances, partial(FailingDiskExtractor, utterances[2].audio), tmp_path / "s", actors=2, gpu=False, batch_s=5
    )
    assert [f["id"] for f in result.failures] == ["u2"] == [f["id"] for f in failures_of(tmp_path / "s")]
    assert "Input/output error" in result.failures[0]["error"]
    assert (result.put_off, result.done) == (len(batch) - 1, len(utterances) - len(batch))
    again = extract(utterances, FakeExtractor(), tmp_path / "s", batch_s=5)
    assert (again.done, again.put_off, again.failures) == (len(batch), 0, [])
    extract(utterances, FakeExtractor(), tmp_path / "plain", batch_s=5)
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
