"""Multi-speaker sessions with RTTM out of single-speaker utterances: many sessions, restartable, in parallel.

`recipe` says what is asked for, `session` makes one session, `outcome` measures what came out.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.corpora.manifest import check_disjoint, read_manifest
from featstore.corpora.rttm import write_rttm
from featstore.files import write_atomically
from featstore.simulation.audio_out import write_audio
from featstore.simulation.outcome import SimulationReport, finish, scene_path, track_path
from featstore.simulation.recipe import SAFE_NAME, Recipe, is_count, recipe_of
from featstore.simulation.rooms import check_rooms
from featstore.simulation.session import make_session
from featstore.types import Utterance


def simulate(
    utterances: Iterable[Utterance],
    recipe: Recipe,
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[float, int, float], None] | None = None,
    split: str | None = None,
    sessions: int | None = None,
) -> SimulationReport:
    """Make sessions: ``audio/ID.flac``, ``rttm/ID.rttm`` and, last, ``manifest.jsonl`` in NeMo's diarization style.

    Where rooms, noise, channels or levels are asked for, ``scenes/ID.json`` says what was drawn and measured. Of mixtures
    (layout "mix") each voice has a file of its own in ``tracks/ID/`` and is an utterance in the manifest.

    Session ``k`` is drawn from ``(seed, recipe's name, split, k)`` alone: the number of workers, and what was made
    before, change nothing. A session whose RTTM is there is finished and is not made again, so a run that was
    killed goes on where it stopped. No session mixes splits. An utterance that cannot be used is listed in
    ``failures.jsonl`` and another one of its speaker is taken.

    Parameters
    ----------
    utterances : single-speaker ones; those without a speaker are left out and counted.
    split : take only this split.
    sessions : in place of the recipe's number.
    progress : called with (finished sessions, shares of unfinished ones added; all sessions; seconds of audio made).

    Raises
    ------
    ValueError : too few speakers for the recipe; a speaker in two splits; several splits and one number of sessions;
        `out_dir` holds another simulation; rooms or noise that cannot be had.
    OSError : `out_dir` cannot be written.
    """
    if seed < 0 or workers < 1:
        raise ValueError(f"seed must be 0 or more and workers 1 or more, found {seed} and {workers}")
    utterances = list(utterances)
    chosen = [u for u in utterances if split is None or u.split == split]
    if utterances and not chosen:
        there = ", ".join(sorted({repr(u.split) for u in utterances}))
        raise ValueError(f"no utterance is of split {split!r}; the manifest has {there}")
    by_split, left_out = _by_split(chosen, recipe)
    counts = _session_counts(by_split, recipe, split, sessions)
    for name in counts:
        if name and not SAFE_NAME.fullmatch(name):
            raise ValueError(f"split {name!r}: use letters, digits, '.', '_' and '-': it becomes part of file names")
        # Who babbles must not be in the session.
        need = recipe.speakers[1] + (recipe.noise is not None and recipe.noise.babble > 0)
        if len(by_split.get(name, {})) < need:
            raise ValueError(
                f"recipe {recipe.name!r} needs {need} speakers with {recipe.min_utterances} or more "
                f"utterances, split {name!r} of the manifest has {len(by_split.get(name, {}))}"
            )
    check_disjoint([u for name in counts for us in by_split[name].values() for u in us], by="speaker")
    out = Path(out_dir)
    _claim(out, recipe, seed, {name: by_split[name] for name in counts}, _files_beside(recipe))
    jobs = [(name, index) for name, count in counts.items() for index in range(count)]
    todo = [job for job in jobs if not _is_made(out, recipe, *job)]
    failures = _read_failures(out / "failures.jsonl")
    seconds, made = 0.0, 0
    done = len(jobs) - len(todo)
    furthest = 0.0  # when a session ends, the others' shares are not added yet: that must not show as a step back

    def shown(under_way: float) -> None:
        nonlocal furthest
        furthest = max(furthest, done + under_way)
        if progress is not None:
            progress(furthest, len(jobs), seconds)

    for made_s, failed in _run(todo, workers, partial(_make, by_split, recipe, out, seed), shown):
        done, made, seconds = done + 1, made + (made_s > 0), seconds + made_s
        fresh = [f for f in failed if f not in failures]
        if fresh:
            failures += fresh
            write_atomically(out / "failures.jsonl", "".join(json.dumps(f) + "\n" for f in failures).encode())
        shown(0.0)
    asked = [(split, *_paths(out, recipe, split, index)) for split, index in jobs]
    return finish(out, recipe, asked, made, left_out, failures)


_BySpeaker = dict[str, list[Utterance]]
_Job = tuple[str, int]  # split, number
_Made = tuple[float, list[dict[str, str]]]  # seconds, failures
_Make = Callable[[_Job, Callable[[float], None]], _Made]

#: Seconds between two looks at how far the sessions under way are.
_LOOK_EVERY_S = 1.0


def _by_split(utterances: Sequence[Utterance], recipe: Recipe) -> tuple[dict[str, _BySpeaker], int]:
    by_split: dict[str, _BySpeaker] = {}
    for utterance in utterances:
        if utterance.speaker is not None:
            if utterance.speaker.split() != [utterance.speaker]:
                raise ValueError(f"speaker {utterance.speaker!r}: RTTM cannot hold names with spaces; rename it")
            by_split.setdefault(utterance.split, {}).setdefault(utterance.speaker, []).append(utterance)
    for name, speakers in by_split.items():
        by_split[name] = {s: speakers[s] for s in sorted(speakers) if len(speakers[s]) >= recipe.min_utterances}
    kept = sum(len(found) for speakers in by_split.values() for found in speakers.values())
    if not kept:
        raise ValueError(
            f"none of the {len(utterances)} utterances chosen can be used: recipe {recipe.name!r} wants speakers with "
            f"{recipe.min_utterances} or more utterances, and a manifest with 'speaker' (or 'label')"
        )
    return by_split, len(utterances) - kept


def _session_counts(
    by_split: dict[str, _BySpeaker], recipe: Recipe, split: str | None, sessions: int | None
) -> dict[str, int]:
    if sessions is not None and not is_count(sessions):
        raise ValueError(f"sessions must be a whole number of 1 or more, found {sessions!r}")
    if sessions is None:
        if isinstance(recipe.sessions, dict):
            if split is not None and split not in recipe.sessions:
                raise ValueError(f"recipe {recipe.name!r} gives no number of sessions for split {split!r}")
            return {name: n for name, n in recipe.sessions.items() if split in (None, name)}
        sessions = recipe.sessions
    if split is None and len(by_split) > 1:
        raise ValueError(f"the manifest has the splits {', '.join(sorted(by_split))}: choose one (--split)")
    return {split if split is not None else next(iter(by_split)): sessions}


def _files_beside(recipe: Recipe) -> str:
    """What of files beside the utterances goes into the sessions: measured rooms, recorded noise; "" where none does.

    Raises
    ------
    ValueError : they, or the library that simulates rooms, are not there.
    """
    rooms = "" if recipe.rooms is None else check_rooms(recipe.rooms, recipe.speakers[1])
    if recipe.noise is None or recipe.noise.manifest is None:
        return rooms
    return rooms + repr([(u.id, u.start_s, u.duration_s) for u in read_manifest(recipe.noise.manifest)])


def _claim(out: Path, recipe: Recipe, seed: int, by_split: dict[str, _BySpeaker], beside: str) -> None:
    """Say in simulation.json what `out` holds; refuse a folder that holds something else."""
    listed = [(n, s, [(u.id, u.start_s, u.duration_s) for u in us]) for n in by_split for s, us in by_split[n].items()]
    sources = hashlib.sha256((repr(listed) + beside).encode()).hexdigest()
    settings = {**asdict(recipe), "sessions": None}  # more sessions later are welcome: the first ones stay the same
    for table, key in (("rooms", "folder"), ("noise", "manifest")):
        if settings[table] and settings[table][key]:
            settings[table][key] = Path(settings[table][key]).name  # the folder may move; `beside` is what is in it
    mine = json.loads(json.dumps({"recipe": settings, "seed": seed, "sources_sha256": sources}))
    for folder in ("audio", "rttm", *(["scenes"] if recipe.has_scenes else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    path = out / "simulation.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_atomically(path, (json.dumps(mine, indent=1) + "\n").encode())
        return
    except ValueError:
        raise ValueError(f"{path}: not JSON; choose an empty folder") from None
    words = {"recipe": "recipe", "seed": "seed", "sources_sha256": "manifest or split"}
    held = held if isinstance(held, dict) else {}
    held["recipe"] = _as_today(held.get("recipe"))
    differ = [words[key] for key in mine if held.get(key) != mine[key]]
    if differ:
        raise ValueError(f"{out} holds sessions made with another {' and '.join(differ)}; choose an empty folder")


def _as_today(settings: Any) -> Any:
    """A recipe that simulation.json holds, with the keys that recipes have got since at what they mean when left out."""
    try:
        recipe = recipe_of("", {**settings, "sessions": 1})
    except (TypeError, ValueError):
        return settings
    return json.loads(json.dumps({**asdict(recipe), "sessions": None}))


def _paths(out: Path, recipe: Recipe, split: str, index: int) -> tuple[Path, Path]:
    name = f"{recipe.name}-{split}-{index:05d}" if split else f"{recipe.name}-{index:05d}"
    return out / "audio" / f"{name}.{recipe.audio_format}", out / "rttm" / f"{name}.rttm"


def _is_made(out: Path, recipe: Recipe, split: str, index: int) -> bool:
    audio, rttm = _paths(out, recipe, split, index)
    return audio.exists() and rttm.exists() and (not recipe.has_scenes or scene_path(out, rttm.stem).exists())


def _read_failures(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _run(jobs: list[_Job], workers: int, make: _Make, shown: Callable[[float], None]) -> Iterator[_Made]:
    """Yield (seconds made, failures) of each job, in the order in which they end; `shown` hears shares of unfinished ones."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield make(job, shown)
        return
    # spawn: a forked copy of a process with threads (a progress bar, a BLAS) may hang.
    context = get_context("spawn")
    under_way = context.Value("d", 0.0)
    with ProcessPoolExecutor(workers, context, _set_up_worker, (make, under_way)) as pool:
        # Workers are born deaf to Ctrl-C, until they can end of it without a word.
        deaf = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting = {pool.submit(_make_in_worker, job) for job in jobs}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, deaf)
        try:
            while waiting:
                ended, waiting = wait(waiting, _LOOK_EVERY_S, FIRST_COMPLETED)
                for future in ended:
                    with under_way.get_lock():
                        under_way.value -= 1
                    yield future.result()
                if waiting:
                    shown(max(under_way.value, 0.0))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker_state: tuple[_Make, Any] | None = None


def _set_up_worker(*state: Any) -> None:
    global _worker_state  # sent once to each process, not once for each session
    _worker_state = state
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _make_in_worker(job: _Job) -> _Made:
    assert _worker_state is not None
    make, under_way = _worker_state
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        with under_way.get_lock():
            under_way.value += share - told
        told = share

    try:
        return make(job, tell)
    finally:
        tell(1.0)  # until whoever waits counts it as finished


def _make(
    by_split: dict[str, _BySpeaker], recipe: Recipe, out: Path, seed: int, job: _Job, tell: Callable[[float], None]
) -> _Made:
    split, index = job
    audio_path, rttm_path = _paths(out, recipe, split, index)
    failures: list[dict[str, str]] = []
    # zlib.crc32, since Python's own hash of a str differs from run to run
    rng = np.random.default_rng([seed, zlib.crc32(f"{recipe.name}/{split}".encode()), index])
    tracks: dict[str, NDArray[np.float32]] | None = {} if recipe.layout == "mix" else None
    try:
        wave, turns, facts = make_session(by_split[split], recipe.of(split), rng, failures, tracks, tell)
    except ValueError as error:
        return 0.0, [*failures, {"id": rttm_path.stem, "error": str(error)}]
    write_audio(audio_path, wave, recipe.sample_rate_hz, recipe.audio_format)
    for number, track in enumerate((tracks or {}).values()):
        path = track_path(out, rttm_path.stem, number, recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, track, recipe.sample_rate_hz, recipe.audio_format)
    if recipe.has_scenes:
        write_atomically(scene_path(out, rttm_path.stem), (json.dumps(facts) + "\n").encode())
    temporary = rttm_path.with_name(f".{rttm_path.name}.{os.getpid()}.tmp")
    write_rttm(temporary, {rttm_path.stem: turns})
    os.replace(temporary, rttm_path)  # this rename makes the session a finished one
    return len(wave) / recipe.sample_rate_hz, failures
