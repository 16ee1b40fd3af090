"""The actors of a cluster, what they have still to do, and what happens when one is lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featstore.extractors import Extractor, ExtractorError
from featstore.jobs.batches import usual_batch_s
from featstore.jobs.pipeline import Pipeline
from featstore.jobs.result import Result
from featstore.store import failures
from featstore.store.reader import Store
from featstore.types import FeatureSpec, Utterance

Batch = list[Utterance]
#: Batches an actor has encoded; its result, with the failures that it had not told yet; ids put off since it last told.
Answer = tuple[int, Result, set[str]]
#: Calls an actor holds: one it works on, one that waits, so that it never waits for the driver.
CALLS = 2
#: A batch that was alone in this many lost actors is to blame.
DEATHS = 2
#: Each actor lost so often, with no batch encoded in between, is no accident, not even of a machine with all of them.
LOST_IN_A_ROW = 5
#: Seconds that actors get for their last commit when the extraction is stopped.
STOP_S = 60.0


class _Actor:
    """The pipeline of a plain extraction, fed by the driver."""

    def open(self, make: Callable[[], Extractor], store: Path, workers: int) -> tuple[FeatureSpec, float]:
        extractor = make()
        self._pipeline, self._told, self._stopped = Pipeline(extractor, store, workers), 0, False
        return extractor.spec, usual_batch_s(extractor)

    def work(self, batch: Batch, wanted: set[str]) -> Answer:
        """Start decoding a batch and encode the one before."""
        if not self._stopped:
            self._pipeline.submit(batch, wanted)
        self._encode(leave=1)
        return self._answer()

    def finish(self) -> Answer:
        """Encode what waits, commit everything."""
        self._encode(leave=0)
        self._pipeline.drain()
        return self._answer()

    def stop(self) -> None:
        """Runs beside the others: encode nothing more."""
        self._stopped = True

    def close(self) -> None:
        """Let go of the store: whoever repairs it next need not wait for this process to end."""
        self._pipeline.__exit__(None, None, None)

    def _encode(self, leave: int) -> None:
        try:
            while self._pipeline.waiting > leave and not self._stopped:
                self._pipeline.step()
        except BaseException as error:  # this process may be lost, what it has encoded is not
            self._pipeline.__exit__(type(error), error, None)
            raise

    def _answer(self) -> Answer:
        """What is told once: who asks again hears nothing of it."""
        known = self._pipeline.result.failures
        new, self._told = known[self._told :], len(known)
        late, self._pipeline.put_off = self._pipeline.put_off, set()
        return self._pipeline.encoded, replace(self._pipeline.result, failures=new), late


@dataclass(eq=False)
class _Member:
    """What the driver knows of an actor."""

    actor: Any
    opening: Any
    open: bool = False
    calls: list[Any] = field(default_factory=list)
    handed: list[Batch] = field(default_factory=list)
    encoded: int = 0
    #: Something was handed over since it was last told to finish.
    unfinished: bool = False
    #: In how many lost actors the batch was that it has alone; 0: it has ordinary ones.
    suspected: int = 0
    result: Result = field(default_factory=lambda: Result(""))


class Crew:
    """The actors, the batches they have still to do, and what to do when one is lost."""

    def __init__(
        self,
        ray: Any,
        make: Callable[[], Extractor],
        store: Path,
        needs: dict[str, int],
        workers: int,
        note: Callable[[str], None],
    ) -> None:
        self._ray, self._note, self._store = ray, note, store
        self._opening = (make, store, workers)
        self._class = ray.remote(concurrency_groups={"stop": 1}, **needs)(_Actor)
        self._members: list[_Member] = []
        self._gone: list[Result] = []
        self._queue: deque[Batch] = deque()
        self._suspects: deque[tuple[Batch, int]] = deque()
        self._there: Container[str] = ()
        self._lost_in_a_row = 0
        self.failed: dict[str, failures.Entry] = {}
        self.put_off: set[str] = set()

    def start(self, count: int) -> None:
        for _ in range(count):
            actor = self._class.remote()
            self._members.append(_Member(actor, actor.open.remote(*self._opening)))

    def opened(self) -> tuple[FeatureSpec, float]:
        """Wait for the first encoder: its spec, and the seconds of audio that suit it."""
        while not any(m.open for m in self._members):
            self._wait()
        self._spec, usual_s = self._ray.get(next(m.opening for m in self._members if m.open))
        self.log = failures.Failures(self._store, self._spec.name)
        return self._spec, usual_s

    def there(self) -> Container[str]:
        """Ids that are committed by now."""
        self._there = Store(self._store).index(self._spec.name).rows
        return self._there

    def run(self, todo: list[Batch], result: Result, progress: Callable[[Result], None]) -> None:
        """Have every batch done, long ones first, so that nobody is left with one at the end."""
        began = time.monotonic()
        self._queue = deque(sorted(todo, key=lambda batch: -sum(u.duration_s for u in batch)))
        while self._hand_out():
            self._wait()
            results = self._gone + [m.result for m in self._members]
            result.audio_s = sum(r.audio_s for r in results)
            for stage in {stage for r in results for stage in r.busy_s}:
                result.busy_s[stage] = sum(r.busy_s.get(stage, 0.0) for r in results)
            result.wall_s = time.monotonic() - began
            progress(result)

    def stop(self) -> None:
        """Have the actors commit what they have encoded, and wait for it."""
        with suppress(self._ray.exceptions.RayError):
            for m in self._members:
                m.actor.stop.options(concurrency_group="stop").remote()
            if last := [m.actor.finish.remote() for m in self._members if m.open]:
                self._ray.wait(last, num_returns=len(last), timeout=STOP_S)

    def close(self) -> None:
        """Have the actors let go of the store, and end."""
        if last := [m.actor.close.remote() for m in self._members if m.open]:
            self._ray.wait(last, num_returns=len(last), timeout=STOP_S)
        for m in self._members:
            self._ray.kill(m.actor)

    def give_up(self, utterance: Utterance, why: str) -> None:
        if entry := self.log.add(utterance, why):
            self.failed[utterance.id] = entry

    def _hand_out(self) -> bool:
        """Give actors that are free something to do; whether there is anything to wait for."""
        for m in (m for m in self._members if m.open and not m.suspected):
            while self._queue and len(m.calls) < CALLS:
                self._give(m, self._queue.popleft())
            if not self._queue and not m.calls and not m.unfinished and self._suspects:
                batch, times = self._suspects.popleft()
                m.suspected = times if self._give(m, batch) else 0
            if not self._queue and m.unfinished:
                m.calls.append(m.actor.finish.remote())
                m.unfinished = False
        return bool(self._queue or self._suspects or any(m.calls for m in self._members))

    def _give(self, m: _Member, batch: Batch) -> bool:
        if wanted := self._wanted(batch):
            m.calls.append(m.actor.work.remote(batch, wanted))
            m.handed.append(batch)
            m.unfinished = True
        return bool(wanted)

    def _wanted(self, batch: Batch) -> set[str]:
        return {u.id for u in batch if u.id not in self._there and u.id not in self.failed}

    def _wait(self) -> None:
        """Wait for one answer of one actor, a second at most."""
        errors = self._ray.exceptions
        asked = {ref: m for m in self._members for ref in (m.calls if m.open else [m.opening])}
        for ref in self._ray.wait(list(asked), timeout=1.0)[0] if asked else []:
            m = asked[ref]
            try:
                answer = self._ray.get(ref)
            except errors.RayTaskError as error:
                # A GPU that fails or is out of memory is the actor's trouble; a full disk is everybody's.
                if not m.open or not isinstance(error.cause, RuntimeError | MemoryError):
                    raise error.cause from None
                self._lose(m, error.cause)
            except errors.RayError as error:
                self._lose(m, error)
            else:
                if not m.open:
                    m.open = True
                    continue
                m.calls.remove(ref)
                self._lost_in_a_row = 0 if answer[0] > m.encoded else self._lost_in_a_row
                m.encoded, m.result, late = answer
                self.put_off |= late
                m.suspected = m.suspected if m.calls else 0
                for entry in m.result.failures:
                    if self.log.keep(entry):
                        self.failed[entry["id"]] = entry

    def _lose(self, m: _Member, error: Exception) -> None:
        """Start another actor, and put back what the lost one had not committed."""
        reason = " ".join(str(error).split())[:200]
        self._lost_in_a_row += 1
        if self._lost_in_a_row > LOST_IN_A_ROW * len(self._members):
            raise ExtractorError(
                f"{self._lost_in_a_row} actors were lost in a row without encoding a batch; last: {reason}"
            )
        self._ray.kill(m.actor)
        self._members.remove(m)
        self._gone.append(m.result)
        self.start(1)
        if not m.handed:
            return
        self.there()
        self._queue.extendleft(batch for batch in m.handed[: m.encoded] if self._wanted(batch))
        # One of those that were being decoded or encoded may have done it: each is done alone, at the end.
        for batch in (batch for batch in m.handed[m.encoded :] if self._wanted(batch)):
            if m.suspected < DEATHS:
                self._suspects.append((batch, m.suspected + 1))
            elif len(batch) > 1:
                self._suspects.extend(([u], 1) for u in batch if u.id in self._wanted(batch))
            else:
                self.give_up(batch[0], f"{DEATHS} actors were lost over this utterance alone; last: {reason}")
        self._note(f"an actor was lost, its batches go to others: {reason}")
