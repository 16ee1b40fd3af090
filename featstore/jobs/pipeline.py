"""One extractor at work: decoding and writing beside the computing.

decode pool (threads) ──▶ batches of like length ──▶ encoder (this thread) ──▶ writer (one thread)
"""

from __future__ import annotations

import errno
import math
import time
from collections import deque
from collections.abc import Container
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from featstore.corpora import audio
from featstore.extractors import Extractor, ExtractorError
from featstore.jobs.result import Result
from featstore.store import failures
from featstore.store.layout import StoreError
from featstore.store.writer import writer
from featstore.types import Utterance

#: Decoded audio that may wait for the encoder: seconds (24 kHz float32: 96 kB a second) and batches.
AHEAD_S, AHEAD_BATCHES = 1800.0, 32
#: A kill costs at most so many seconds of work and the commit at their end, or one batch if that takes longer.
KILL_COSTS_S = 50.0
#: What the system says of a path that names no readable file: bad audio on every run. Another word of the system, such
#: as EIO, is about the disk, and may not be said again.
_NO_FILE = {
    None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip

#: Samples, and the seconds that decoding them took.
_Decoded = tuple[NDArray[np.float32], float]


class Pipeline:
    """One extractor, one writer to a store, and what works beside them; a context manager.

    `submit` starts the decoding of a batch, `step` encodes the oldest one; what leaves the `with` is committed.
    """

    def __init__(self, extractor: Extractor, store: str | PathLike[str], workers: int) -> None:
        self.result = Result(extractor.spec.name, decoders=max(1, workers))
        self.out = writer(store, extractor.spec, codebooks=getattr(extractor, "codebooks", None))
        #: Batches that were encoded (or could not be).
        self.encoded = 0
        #: Ids that were put off, until somebody takes them.
        self.put_off: set[str] = set()
        self._extractor = extractor
        self._failures = failures.Failures(Path(store), extractor.spec.name)
        self._decoding, self._writing = ThreadPoolExecutor(max(1, workers)), ThreadPoolExecutor(1)
        self._waiting: deque[tuple[list[Utterance], Container[str], list[Future[_Decoded]]]] = deque()
        self._written: deque[Future[None]] = deque()
        self._since_s = math.nan  # when the oldest work that is not committed yet began

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._decoding.shutdown(wait=error is None, cancel_futures=True)  # nobody will encode it
        self._writing.shutdown()
        try:
            self.out.__exit__(kind, error, at)
        finally:
            self._failures.flush()

    @property
    def waiting(self) -> int:
        """Batches submitted and not encoded yet."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether enough is decoded ahead; never before one batch is, however long."""
        ahead_s = sum(u.duration_s for batch, _, _ in self._waiting for u in batch)
        return self.waiting >= AHEAD_BATCHES or (self.waiting > 1 and ahead_s >= AHEAD_S)

    def submit(self, batch: list[Utterance], wanted: Container[str]) -> None:
        """Start decoding a batch; all of it will be encoded, so that its bytes are right, and `wanted` ids be kept."""
        rate_hz = self._extractor.spec.sample_rate_hz
        wanted = {u.id for u in batch if u.id in wanted and self._same_facts(u)}
        batch = batch if wanted else []
        self._waiting.append((batch, wanted, [self._decoding.submit(_load, u, rate_hz) for u in batch]))

    def _same_facts(self, utterance: Utterance) -> bool:
        try:
            self.out.check_facts(utterance)
        except ValueError as error:  # now, before it is encoded
            self._fail(utterance, error, [utterance.id])
            return False
        return True

    def step(self) -> None:
        """Encode the oldest batch and have it written.

        Raises
        ------
        OSError : the store cannot be written.
        """
        batch, wanted, futures = self._waiting.popleft()
        began = time.monotonic()
        if math.isnan(self._since_s):
            self._since_s = began
        good, waves, disk_failed = [], [], False
        for u, future in zip(batch, futures, strict=True):
            try:
                wave, took_s = future.result()
                waves.append(wave)
                good.append(u)
                self._count("decode", took_s)
            except (ValueError, OSError) as error:
                self._fail(u, error, wanted)
                disk_failed |= isinstance(error, OSError) and error.errno not in _NO_FILE
        if disk_failed:  # without it the others would be another batch, and keep other last bits for good
            late = {u.id for u in good if u.id in wanted}
            self.put_off |= late
            self.result.put_off += len(late)
            good, waves = [], []
        self._count("wait for audio", time.monotonic() - began)
        frames = []
        if good:
            began = time.monotonic()
            frames = self._encode(good, waves, wanted)
            self._count("encode", time.monotonic() - began)
            self.result.audio_s += sum(len(w) for w in waves) / self._extractor.spec.sample_rate_hz
        began = time.monotonic()
        while len(self._written) >= 2:  # one batch being written, one waiting
            self._written.popleft().result()
        self._count("wait for writer", time.monotonic() - began)
        keep = [(u, f) for u, f in zip(good, frames, strict=True) if f is not None and u.id in wanted]
        self._written.append(self._writing.submit(self._write, keep, self._commit_is_due()))
        self.encoded += 1

    def drain(self) -> None:
        """Wait until everything encoded so far is committed.

        Raises
        ------
        OSError : the store cannot be written.
        """
        self._written.append(self._writing.submit(self._write, [], True))
        self._since_s = math.nan
        while self._written:
            self._written.popleft().result()

    def _commit_is_due(self) -> bool:
        """Whether a kill during the next batch, at the pace so far, would cost too much."""
        ahead_s = sum(u.duration_s for u in self._waiting[0][0]) if self._waiting else 0.0
        pace = self.result.busy_s.get("encode", 0.0) / max(self.result.audio_s, 1e-9)
        due = time.monotonic() - self._since_s + pace * ahead_s > KILL_COSTS_S
        if due:
            self._since_s = time.monotonic()
        return due

    def _encode(
        self, batch: list[Utterance], waves: list[NDArray[np.float32]], wanted: Container[str]
    ) -> list[NDArray[np.float32 | np.int16] | None]:
        """Frames of a batch; where the extractor refuses it, of each utterance alone, to find the one at fault."""
        who = f"encoder {self._extractor.spec.name!r} ({type(self._extractor).__module__}.{type(self._extractor).__name__})"
        try:
            found = list(self._extractor.extract(waves))
        except ValueError as error:
            if len(waves) == 1:
                self._fail(batch[0], error, wanted)
                return [None]
        except Exception as error:
            error.add_note(f"in the {who}, on {len(waves)} waves, the first of utterance {batch[0].id!r}")
            raise
        else:
            if len(found) != len(waves):
                raise ExtractorError(
                    f"{who}: extract() gave {len(found)} arrays for {len(waves)} waves, expected one for each; try it with "
                    "featstore.testing.check_extractor"
                )
            return list(found)
        return [f for u, w in zip(batch, waves, strict=True) for f in self._encode([u], [w], wanted)]

    def _write(self, batch: list[tuple[Utterance, NDArray[np.float32 | np.int16]]], commit: bool) -> None:
        began = time.monotonic()
        for utterance, frames in batch:
            try:
                self.out.gather(utterance, frames)
                self.result.done += 1
            except StoreError:
                raise
            except ValueError as error:
                self._fail(utterance, error, [utterance.id])
            if self.out.due:  # what fails here is no single utterance's fault
                self.out.commit()
        if commit:
            self.out.commit()
            self._failures.flush()
        self._count("write", time.monotonic() - began)

    def _fail(self, utterance: Utterance, error: Exception, wanted: Container[str]) -> None:
        if utterance.id in wanted and (entry := self._failures.add(utterance, error)):
            self.result.failures.append(entry)

    def _count(self, stage: str, seconds: float) -> None:
        self.result.busy_s[stage] = self.result.busy_s.get(stage, 0.0) + seconds


def _load(utterance: Utterance, rate_hz: int) -> _Decoded:
    began = time.monotonic()
    return audio.load(utterance, rate_hz), time.monotonic() - began
