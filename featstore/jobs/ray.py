"""One manifest, many actors, by Ray: each holds one encoder and one writer and takes the next batch when it is free.

Nothing is shared but the store's folder. The driver knows what is finished from the store's index alone, so an actor
that is lost with its machine costs what it had not committed: those batches go to others.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featstore.extractors import Extractor, ExtractorError
from featstore.jobs.batches import unfinished
from featstore.jobs.crew import Crew
from featstore.jobs.result import Result
from featstore.store import failures
from featstore.store.address import refuse_address
from featstore.store.reader import Store
from featstore.types import FeatureSpec, Utterance

#: Seconds in which a cluster must let us join.
ANSWER_S = 10


def extract(
    utterances: Sequence[Utterance],
    make: Callable[[], Extractor],
    store: Path,
    *,
    address: str | None = None,
    actors: int | None = None,
    gpu: bool | None = None,
    workers: int | None = None,
    batch_s: float | None = None,
    resume: bool = True,
    progress: Callable[[Result], None] = lambda result: None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Result, FeatureSpec]:
    """`featstore.jobs.extract.extract` by the actors of a Ray cluster; the same batches, so the same frames.

    A batch that kills its actors is run alone, then split; an utterance that goes on killing them is listed in
    ``STORE/failures.jsonl``. When this is interrupted, the actors commit what they have encoded.

    Parameters
    ----------
    make : makes the encoder; called in each actor.
    store : must be the same folder on all machines.
    address : of a Ray cluster, or "auto"; without it, one is started on this machine for the time being.
    actors : how many; one a GPU without it, or one if there is none.
    gpu : whether each actor gets a GPU of its own; whether there is one, without it.
    workers : decoding threads an actor; its share of the CPUs without it.
    note : told when an actor is lost.

    Raises
    ------
    ExtractorError : Ray is not installed, the cluster does not answer, wants another token or is too small, or actors
        die without getting anywhere.
    StoreError, ValueError, OSError : as `featstore.jobs.extract.extract`.
    """
    refuse_address(store)
    with _connected(address) as ray:
        count, needs, threads = _share(ray, actors, gpu)
        crew = Crew(ray, make, store.resolve(), needs, workers or threads, note)
        try:
            crew.start(count)
            spec, usual_s = crew.opened()
            result = Result(spec.name, writers=count, decoders=workers or threads)
            there = crew.there()
            missing = {u.id for u in utterances if u.id not in there}
            todo = unfinished(utterances, missing, result, Store(store), batch_s=batch_s or usual_s, resume=resume)
            crew.run(todo, result, progress)
        except BaseException:
            crew.stop()
            raise
        there = crew.there()
        left = [u for batch in todo for u in batch if u.id in missing and u.id not in there and u.id not in crew.failed]
        for u in (u for u in left if u.id not in crew.put_off):
            crew.give_up(u, "encoded, but not in the store's index; run the same command again")
        crew.log.flush()
        crew.close()
    failures.settle(store, spec.name, there)
    result.failures = [entry for id, entry in crew.failed.items() if id not in there]
    result.put_off = len({u.id for u in left} & crew.put_off)
    result.done = len(missing) - len(result.failures) - result.put_off
    progress(result)
    return result, spec


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected; as it was before on leaving."""
    # Before the import: no statistics to anybody, and no advice on the user's screen.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ExtractorError(
            "--engine ray needs ray, which is not installed; where whowhen was cloned: pip install -e '.[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = address == "local"
    if not own:
        _ask(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        include_dashboard=False if own else None,
        object_store_memory=100 << 20 if own else None,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which commits nothing
    try:
        yield ray
    finally:
        ray.shutdown()


def _ask(address: str) -> None:
    """Refuse a cluster that a process of its own cannot join: here Ray would go on trying, and warning, for minutes."""
    command = [sys.executable, "-c", _JOIN, address, str(ANSWER_S)]
    asked = subprocess.run(command, env={**os.environ, **_FEW_TRIES}, capture_output=True, text=True)
    if asked.returncode == -signal.SIGALRM:
        raise ExtractorError(
            f"no Ray cluster answers at {address} within {ANSWER_S} s; start one with: ray start --head"
        )
    if "AuthenticationError" in asked.stderr:  # Ray raises a ConnectionError, and tells of this one in its text alone
        raise ExtractorError(
            f"the Ray cluster at {address} asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what "
            "`ray get-auth-token` prints where it was started (or have that in ~/.ray/auth_token)"
        )
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        raise ExtractorError(f"no Ray cluster at {address}; start one with: ray start --head ({why[:200]})")


_JOIN = """\
import signal, sys, ray
signal.alarm(int(sys.argv[2]))
ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
"""
_FEW_TRIES = {"RAY_NUM_REDIS_GET_RETRIES": "3"}


def _share(ray: Any, actors: int | None, gpu: bool | None) -> tuple[int, dict[str, int], int]:
    """How many actors, what each needs, and its share of the CPUs for decoding."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    if gpu or (gpu is None and gpus):
        count = actors or max(gpus, 1)
        if count > gpus:
            raise ExtractorError(
                f"{count} actors need a GPU each, the cluster has {gpus}; use --actors or --device cpu"
            )
        return count, {"num_gpus": 1, "num_cpus": 1}, max(1, cpus // count)
    count = actors or 1
    for each in range(cpus, 0, -1):  # an actor lies on one machine
        if sum(int(node.get("CPU", 0)) // each for node in nodes) >= count:
            return count, {"num_cpus": each}, each
    raise ExtractorError(f"{count} actors need a CPU each, the cluster has {cpus}; use --actors")
