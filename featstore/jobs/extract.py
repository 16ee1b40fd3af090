"""The extraction: manifest × extractor → store, resumable.

A resumed run computes a batch again whenever one of its utterances is missing, so its frames are the very bytes an
uninterrupted run would have written; so are those of many processes that share the batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from featstore.extractors import Extractor
from featstore.jobs.batches import unfinished, usual_batch_s
from featstore.jobs.pipeline import Pipeline
from featstore.jobs.result import Result
from featstore.store import failures
from featstore.store.reader import Store
from featstore.types import Utterance


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
    progress : called after each batch, and where the encoder tells more often, then.

    Raises
    ------
    StoreError : the store is of another version, damaged or being repaired, or holds another feature under this name.
    ValueError : resume is False and there is something to resume.
    OSError : the store cannot be written.
    """
    started = time.monotonic()
    with Pipeline(extractor, store, workers) as pipeline:
        result = pipeline.result
        under_way_s, stopped = 0.0, False

        def heard(seconds: float) -> None:  # from the encoder's threads
            nonlocal under_way_s
            if stopped:
                raise InterruptedError
            under_way_s += seconds
            progress(replace(result, audio_s=result.audio_s + under_way_s, wall_s=time.monotonic() - started))

        if hasattr(extractor, "told"):
            extractor.told = heard
        missing = {u.id for u in pipeline.out.missing(utterances)}
        batch_s = batch_s or usual_batch_s(extractor)
        todo = unfinished(utterances, missing, result, pipeline.out.store, batch_s=batch_s, resume=resume, shard=shard)

        def step() -> None:
            nonlocal under_way_s
            pipeline.step()
            under_way_s = 0.0
            result.wall_s = time.monotonic() - started
            progress(result)

        try:
            for batch in todo:
                if pipeline.full:
                    step()
                pipeline.submit(batch, missing)
            while pipeline.waiting:
                step()
            pipeline.drain()
        except BaseException:
            stopped = True
            raise
    failures.settle(Path(store), result.feature, Store(Path(store)).index(result.feature).rows)
    result.wall_s = time.monotonic() - started
    progress(result)
    return result
