"""The extraction: manifest × extractor → store, resumable, with decoding and writing beside the computing.

    decode pool (threads) ──▶ batches of like length ──▶ encoder (this thread) ──▶ writer (one thread)

The batches are a function of the manifest alone. A resumed run computes a batch again whenever one of its
utterances is missing, so its frames are the very bytes an uninterrupted run would have written; so are those of many
processes that share the batches.
"""

from __future__ import annotations

import errno
import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featstore.corpora import audio
from featstore.extractors import Extractor
from featstore.store import failures
from featstore.store.layout import StoreError
from featstore.store.reader import Store
from featstore.store.tables import utterance_table
from featstore.store.writer import FACTS, writer
from featstore.types import Utterance

#: Seconds of audio (padding counted) that go through an encoder at once, by device, unless it has a `batch_s` of its
#: own. On a CPU it is little, so that a kill costs little. Where waves share a computation, other batches may change
#: a frame's last bits: runs with equal bytes need equal batches.
BATCH_S = {"cpu": 15.0, "cuda": 960.0, "mps": 240.0}
#: Utterances are sorted by length inside windows of this many, so that a batch pads little and a manifest's order
#: is roughly kept.
WINDOW = 512
#: Decoded audio that may wait for the encoder: seconds (24 kHz float32: 96 kB a second) and batches.
AHEAD_S, AHEAD_BATCHES = 1800.0, 32
#: A kill costs at most so many seconds of work and the commit at their end, or one batch if that takes longer.
KILL_COSTS_S = 50.0
#: What the system says of a path that names no readable file: bad audio on every run. Another word of the system, such
#: as EIO, is about the disk, and may not be said again.
_NO_FILE = {
    None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


@dataclass
class Result:
    """What an extraction did. Times in seconds; `busy_s` says how long each stage worked or waited.

    `asked` utterances = `skipped` (in the store already) + `done` + failures + `put_off` (not failed, but of a batch with
    a file that the disk did not give; the next run does them); of the skipped, the store knows `changed` with another
    recording, speaker, split or turns, and keeps what it has; `audio_s` of `total_s` seconds of audio went through the
    encoder. `writers` ran side by side, each with `decoders` decoding threads.
    """

    feature: str
    asked: int = 0
    skipped: int = 0
    done: int = 0
    put_off: int = 0
    changed: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    audio_s: float = 0.0
    total_s: float = 0.0
    wall_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=dict)
    writers: int = 1
    decoders: int = 1

    @property
    def busy(self) -> dict[str, float]:
        """The share of the time each stage worked or waited, 0 to 1; over all threads that did it."""
        if not self.wall_s:
            return {}
        threads = {stage: self.writers * (self.decoders if stage == "decode" else 1) for stage in self.busy_s}
        return {stage: s / (self.wall_s * threads[stage]) for stage, s in self.busy_s.items()}

    def to_json(self) -> dict[str, object]:
        speed = self.audio_s / self.wall_s if self.wall_s else None
        return {**vars(self), "times_real_time": speed, "busy": self.busy}


def extract(
    utterances: Sequence[Utterance],
    extractor: Extractor,
    store: str | PathLike[str],
    *,
    workers: int = 2,
    batch_s: float | None = None,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Extract a feature of every utterance that the store does not hold yet.

    What fails for one utterance (its audio, its frames) is listed in ``STORE/failures.jsonl`` and in the result; the
    rest goes on. Where the disk fails, the rest of that batch is put off. Whatever else happens, what was committed stays.

    Parameters
    ----------
    workers : decoding threads.
    batch_s : seconds of audio a batch, padding counted; `usual_batch_s` without it. Longer utterances go alone.
    resume : False refuses a store that holds any of `utterances` already.
    shard : ``(i, n)`` takes the i-th of n shares of like size; n processes or machines share one store so.
    progress : called after each batch.

    Raises
    ------
    StoreError : the store is of another version, damaged or being repaired, or holds another feature under this name.
    ValueError : resume is False and there is something to resume.
    OSError : the store cannot be written.
    """
    started = time.monotonic()
    with Pipeline(extractor, store, workers) as pipeline:
        result = pipeline.result
        missing = {u.id for u in pipeline.out.missing(utterances)}
        batch_s = batch_s or usual_batch_s(extractor)
        todo = unfinished(utterances, missing, result, pipeline.out.store, batch_s=batch_s, resume=resume, shard=shard)

        def step() -> None:
            pipeline.step()
            result.wall_s = time.monotonic() - started
            progress(result)

        for batch in todo:
            if pipeline.full:
                step()
            pipeline.submit(batch, missing)
        while pipeline.waiting:
            step()
        pipeline.drain()
    failures.settle(Path(store), result.feature)
    result.wall_s = time.monotonic() - started
    progress(result)
    return result


def usual_batch_s(extractor: Extractor) -> float:
    """Seconds of audio a batch where nobody says: what the encoder asks for, else what suits its device."""
    device = str(getattr(extractor, "device", "cpu")).partition(":")[0]
    return getattr(extractor, "batch_s", None) or BATCH_S.get(device, BATCH_S["cpu"])


def unfinished(
    utterances: Sequence[Utterance],
    missing: Container[str],
    result: Result,
    store: Store,
    *,
    batch_s: float,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> list[list[Utterance]]:
    """Batches of a shard that have an utterance missing; `result` learns how many utterances and seconds that is.

    Raises
    ------
    ValueError : resume is False and there is something to resume.
    """
    if not resume and (there := sum(u.id not in missing for u in utterances)):
        raise ValueError(
            f"{store.address} already holds feature {result.feature!r} of {there} of these utterances; leave out --no-resume "
            "to add the rest, or extract into a new store"
        )
    with ThreadPoolExecutor(result.decoders) as pool:
        batches = share(plan(list(pool.map(_with_duration, utterances)), batch_s), *shard)
    todo = [batch for batch in batches if any(u.id in missing for u in batch)]
    result.asked = sum(len(batch) for batch in batches)
    there = [u for batch in batches for u in batch if u.id not in missing]
    result.skipped, result.changed = len(there), _changed(store, there)
    result.total_s = sum(u.duration_s for batch in todo for u in batch)
    return todo


def _changed(store: Store, there: Sequence[Utterance]) -> list[str]:
    facts, table = list(FACTS), store.utterances
    rows = pc.index_in(pa.array([u.id for u in there], pa.string()), value_set=table["id"].combine_chunks())
    old, new = table.select(facts).take(rows), utterance_table(there).select(facts)
    if old.equals(new):
        return []
    pairs = zip(there, old.to_pylist(), new.to_pylist(), strict=True)
    return [u.id for u, was, now in pairs if {**was, "turns": was["turns"] or []} != now]


class Pipeline:
    """One extractor, one writer to a store, and what works beside them; a context manager.

    `submit` starts the decoding of a batch, `step` encodes the oldest one; what leaves the `with` is committed.
    """

    def __init__(self, extractor: Extractor, store: str | PathLike[str], workers: int) -> None:
        self.result = Result(extractor.spec.name, decoders=max(1, workers))
        self.out = writer(store, extractor.spec)
        #: Batches that were encoded (or could not be).
        self.encoded = 0
        self._extractor = extractor
        self._failures = failures.Failures(Path(store), extractor.spec.name)
        self._decoding, self._writing = ThreadPoolExecutor(max(1, workers)), ThreadPoolExecutor(1)
        self._waiting: deque[tuple[list[Utterance], Container[str], list[Future[tuple[NDArray, float]]]]] = deque()
        self._written: deque[Future[None]] = deque()
        self._since_s = math.nan  # when the oldest work that is not committed yet began

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._decoding.shutdown(wait=error is None, cancel_futures=True)  # nobody will encode it
        self._writing.shutdown()
        self.out.__exit__(kind, error, at)
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
            self.result.put_off += sum(u.id in wanted for u in good)
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

    def _encode(self, batch: list[Utterance], waves: list[NDArray], wanted: Container[str]) -> list[NDArray | None]:
        """Frames of a batch; where the extractor refuses it, of each utterance alone, to find the one at fault."""
        try:
            return list(self._extractor.extract(waves))
        except ValueError as error:
            if len(waves) == 1:
                self._fail(batch[0], error, wanted)
                return [None]
        return [f for u, w in zip(batch, waves, strict=True) for f in self._encode([u], [w], wanted)]

    def _write(self, batch: list[tuple[Utterance, NDArray]], commit: bool) -> None:
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


def _load(utterance: Utterance, rate_hz: int) -> tuple[NDArray, float]:
    began = time.monotonic()
    return audio.load(utterance, rate_hz), time.monotonic() - began


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


def share(batches: list[list[Utterance]], i: int, n: int) -> list[list[Utterance]]:
    """The i-th of n shares of the batches: each goes, long ones first, to the share with the least audio so far."""
    load_s = [(0.0, share) for share in range(n)]
    mine = set()
    for k in sorted(range(len(batches)), key=lambda k: (-_padded_s(batches[k]), k)):
        least_s, share = heapq.heappop(load_s)
        heapq.heappush(load_s, (least_s + _padded_s(batches[k]), share))
        if share == i:
            mine.add(k)
    return [batch for k, batch in enumerate(batches) if k in mine]


def _padded_s(batch: list[Utterance]) -> float:
    return len(batch) * max(u.duration_s for u in batch)


def _with_duration(utterance: Utterance) -> Utterance:
    """Fill in a duration that the manifest leaves open; a defect shows when the audio is decoded."""
    if not math.isnan(utterance.duration_s):
        return utterance
    try:
        return replace(utterance, duration_s=max(audio.duration_s(utterance.audio) - utterance.start_s, 1e-6))
    except (ValueError, OSError):
        return replace(utterance, duration_s=1e-6)
