"""The batches of an extraction: a function of the manifest alone, whoever encodes them, whatever is done already."""

from __future__ import annotations

import heapq
import math
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from featstore.corpora import audio
from featstore.extractors import Extractor
from featstore.jobs.result import Result
from featstore.store.reader import Store
from featstore.store.tables import utterance_table
from featstore.store.writer import FACTS
from featstore.types import Utterance

#: Seconds of audio (padding counted) that go through an encoder at once, by device, unless it has a `batch_s` of its
#: own. On a CPU it is little, so that a kill costs little. Where waves share a computation, other batches may change
#: a frame's last bits: runs with equal bytes need equal batches.
BATCH_S = {"cpu": 15.0, "cuda": 960.0, "mps": 240.0}
#: Utterances are sorted by length inside windows of this many, so that a batch pads little and a manifest's order
#: is roughly kept.
WINDOW = 512


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
    skipped = [u for batch in batches for u in batch if u.id not in missing]
    result.skipped, result.changed = len(skipped), _changed(store, skipped)
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
