"""The extraction: manifest × extractor → store, resumable, with decoding and writing beside the computing.

    decode pool (threads) ──▶ batches of like length ──▶ encoder (this thread) ──▶ writer (one thread)

The batches are a function of the manifest alone. A resumed run computes a batch again whenever one of its
utterances is missing, so its frames are the very bytes an uninterrupted run would have written.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from numpy.typing import NDArray

from featstore import audio, layout
from featstore.commit import Writer, writer
from featstore.extractors import Extractor
from featstore.types import Utterance

#: Seconds of audio (padding counted) that go through the encoder at once.
BATCH_S = {"cpu": 60.0, "cuda": 960.0, "mps": 240.0}
#: Utterances are sorted by length inside windows of this many, so that a batch pads little and a manifest's order
#: is roughly kept.
WINDOW = 512
#: Decoded audio that may wait for the encoder, in seconds (24 kHz float32: 96 kB a second).
AHEAD_S = 1800.0


@dataclass
class Result:
    """What an extraction did. Times in seconds; `busy_s` says how long each stage worked or waited.

    `asked` utterances = `skipped` (in the store already) + `done` + failures; `audio_s` of `total_s` seconds of
    audio went through the encoder.
    """

    feature: str
    asked: int
    skipped: int = 0
    done: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    audio_s: float = 0.0
    total_s: float = 0.0
    wall_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "times_real_time": self.audio_s / self.wall_s if self.wall_s else None}


def extract(
    utterances: Sequence[Utterance],
    extractor: Extractor,
    store: str | PathLike[str],
    *,
    workers: int = 2,
    batch_s: float = BATCH_S["cpu"],
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Extract a feature of every utterance that the store does not hold yet.

    What fails for one utterance (its audio, its frames) is listed in ``STORE/failures.jsonl`` and in the result; the
    rest goes on. Whatever else happens, what was committed stays.

    Parameters
    ----------
    workers : decoding threads.
    batch_s : seconds of audio a batch, padding counted. Longer utterances go alone.
    resume : False refuses a store that holds any of `utterances` already.
    shard : ``(i, n)`` takes every n-th batch from the i-th on; n processes or machines share one store so.
    progress : called after each batch.

    Raises
    ------
    StoreError : the store is of another version, or holds another feature under this name.
    ValueError : resume is False and there is something to resume.
    OSError : the store cannot be written.
    """
    result = Result(extractor.spec.name, asked=len(utterances))
    started = time.monotonic()
    with writer(store, extractor.spec) as out, ThreadPoolExecutor(max(1, workers)) as pool:
        missing = {u.id for u in out.missing(utterances)}
        if len(missing) < len(utterances) and not resume:
            raise ValueError(
                f"{store} already holds feature {extractor.spec.name!r} of {len(utterances) - len(missing)} of these "
                "utterances; leave out --no-resume to add the rest, or extract into a new store"
            )
        log = _Failures(Path(store), extractor.spec.name)
        batches = plan(list(pool.map(_with_duration, utterances)), batch_s)[shard[0] :: shard[1]]
        todo = [batch for batch in batches if any(u.id in missing for u in batch)]
        result.skipped = sum(len(batch) for batch in batches) - sum(u.id in missing for b in todo for u in b)
        result.total_s = sum(u.duration_s for batch in todo for u in batch)
        written: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as writing, _cancelling(pool):
            for batch, waves in _decoded(todo, extractor.spec.sample_rate_hz, pool, result, log):
                began = time.monotonic()
                frames = _encode(extractor, batch, waves, result, log)
                _count(result, "encode", began)
                began = time.monotonic()
                while len(written) >= 2:  # one batch being written, one waiting
                    written.popleft().result()
                _count(result, "wait for writer", began)
                keep = [(u, f) for u, f in zip(batch, frames, strict=True) if f is not None and u.id in missing]
                written.append(writing.submit(_add, out, keep, result, log))
                result.audio_s += sum(len(w) for w in waves) / extractor.spec.sample_rate_hz
                result.wall_s = time.monotonic() - started
                progress(result)
            for future in written:
                future.result()
    log.close(missing)
    result.wall_s = time.monotonic() - started
    progress(result)
    return result


@contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[None]:
    """On the way out of an error, do not decode what nobody will encode."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def plan(utterances: Sequence[Utterance], batch_s: float) -> list[list[Utterance]]:
    """Batches of like length; depends on nothing but the utterances, their durations and `batch_s`."""
    batches: list[list[Utterance]] = []
    for begin in range(0, len(utterances), WINDOW):
        window = sorted(utterances[begin : begin + WINDOW], key=lambda u: (u.duration_s, u.id))
        batch: list[Utterance] = []
        for u in window:  # ascending, so u is the longest of its batch
            if batch and (len(batch) + 1) * u.duration_s > batch_s:
                batches.append(batch)
                batch = []
            batch.append(u)
        batches.append(batch)
    return batches


def _with_duration(utterance: Utterance) -> Utterance:
    """Fill in a duration that the manifest leaves open; a defect shows when the audio is decoded."""
    if not math.isnan(utterance.duration_s):
        return utterance
    try:
        return replace(utterance, duration_s=max(audio.duration_s(utterance.audio) - utterance.start_s, 1e-6))
    except (ValueError, OSError):
        return replace(utterance, duration_s=1e-6)


def _decoded(
    batches: list[list[Utterance]], rate_hz: int, pool: ThreadPoolExecutor, result: Result, log: _Failures
) -> Iterator[tuple[list[Utterance], list[NDArray]]]:
    """Decode ahead of the encoder, as far as `AHEAD_S` lets; yields batches without what could not be decoded."""
    waiting: deque[tuple[list[Utterance], list[Future[NDArray]]]] = deque()
    queue, ahead_s = deque(batches), 0.0
    while queue or waiting:
        while queue and (not waiting or (ahead_s < AHEAD_S and len(waiting) < 32)):
            batch = queue.popleft()
            ahead_s += sum(u.duration_s for u in batch)
            waiting.append((batch, [pool.submit(audio.load, u, rate_hz) for u in batch]))
        batch, futures = waiting.popleft()
        began = time.monotonic()
        good, waves = [], []
        for u, future in zip(batch, futures, strict=True):
            try:
                waves.append(future.result())
                good.append(u)
            except (ValueError, OSError) as error:
                log.add(u, error, result)
        _count(result, "wait for audio", began)
        ahead_s -= sum(u.duration_s for u in batch)
        if good:
            yield good, waves


def _encode(
    extractor: Extractor, batch: list[Utterance], waves: list[NDArray], result: Result, log: _Failures
) -> list[NDArray | None]:
    """Frames of a batch; where the extractor refuses it, of each utterance alone, to find the one at fault."""
    try:
        return list(extractor.extract(waves))
    except ValueError as error:
        if len(waves) == 1:
            log.add(batch[0], error, result)
            return [None]
    return [f for u, w in zip(batch, waves, strict=True) for f in _encode(extractor, [u], [w], result, log)]


def _add(out: Writer, batch: list[tuple[Utterance, NDArray]], result: Result, log: _Failures) -> None:
    began = time.monotonic()
    for utterance, frames in batch:
        try:
            out.add(utterance, frames)
            result.done += 1
        except ValueError as error:
            log.add(utterance, error, result)
    _count(result, "write", began)


def _count(result: Result, stage: str, began: float) -> None:
    result.busy_s[stage] = result.busy_s.get(stage, 0.0) + time.monotonic() - began


class _Failures:
    """``STORE/failures.jsonl``: one line an utterance that failed, with feature, id, source and error."""

    def __init__(self, store: Path, feature: str) -> None:
        self._path, self._feature = store / "failures.jsonl", feature
        self._failed: dict[str, dict[str, str]] = {}

    def add(self, utterance: Utterance, error: Exception, result: Result) -> None:
        entry = {"feature": self._feature, "id": utterance.id, "source": utterance.audio, "error": str(error)}
        if utterance.id in self._failed:
            return
        self._failed[utterance.id] = entry
        result.failures.append(entry)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def close(self, attempted: set[str]) -> None:
        """Drop the lines of utterances that were attempted again; keep everybody else's."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a kill may have cut the last line
                entry = json.loads(line)
                if entry["feature"] != self._feature or entry["id"] not in attempted:
                    kept.append(entry)
        kept += self._failed.values()
        if kept:
            layout.write_atomically(self._path, "".join(json.dumps(e) + "\n" for e in kept).encode())
        else:
            os.unlink(self._path)
