"""Multi-speaker sessions with RTTM out of single-speaker utterances: many sessions, restartable, in parallel.

`featstore.recipe` says what is asked for, `featstore.session` makes one session.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from featstore.corpora.manifest import check_disjoint
from featstore.corpora.rttm import read_rttm, write_rttm
from featstore.files import write_atomically
from featstore.simulation.audio_out import write_audio
from featstore.simulation.recipe import SAFE_NAME, Recipe, is_count, read_recipe
from featstore.simulation.session import make_session, speech_and_overlap_s
from featstore.types import Turn, Utterance

__all__ = ["Recipe", "SimulationReport", "read_recipe", "simulate"]


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What was asked and what came out; ratios as in :class:`Recipe`, over all sessions (sums, then division)."""

    recipe: str
    out_dir: str
    sessions: int
    made_now: int
    speakers: int
    hours: float
    asked_overlap: float
    got_overlap: float
    asked_silence: float | None
    got_silence: float
    left_out: int
    failures: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return asdict(self)

    def __str__(self) -> str:
        asked_silence = "" if self.asked_silence is None else f" (asked {self.asked_silence:.3f})"
        lines = [
            f"{self.recipe}: {self.sessions} sessions ({self.made_now} made now), in {self.out_dir}",
            f"  {self.speakers} speakers, {self.hours:.2f} h",
            f"  overlap {self.got_overlap:.3f} (asked {self.asked_overlap:.3f})",
            f"  silence {self.got_silence:.3f}{asked_silence}",
        ]
        if self.left_out:
            lines.append(f"  {self.left_out} utterances left out: no speaker, or a speaker with too few")
        if self.failures:
            lines.append(f"  {len(self.failures)} failures, listed in failures.jsonl")
        return "\n".join(lines)


def simulate(
    utterances: Iterable[Utterance],
    recipe: Recipe,
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int, float], None] | None = None,
    split: str | None = None,
    sessions: int | None = None,
) -> SimulationReport:
    """Make sessions: ``audio/ID.flac``, ``rttm/ID.rttm`` and, last, ``manifest.jsonl`` in NeMo's diarization style.

    Session ``k`` is drawn from ``(seed, recipe's name, split, k)`` alone: the number of workers, and what was made
    before, change nothing. A session whose RTTM is there is finished and is not made again, so a run that was
    killed goes on where it stopped. No session mixes splits. An utterance that cannot be used is listed in
    ``failures.jsonl`` and another one of its speaker is taken.

    Parameters
    ----------
    utterances : single-speaker ones; those without a speaker are left out and counted.
    split : take only this split.
    sessions : in place of the recipe's number.
    progress : called with (finished sessions, all sessions, seconds of audio made so far).

    Raises
    ------
    ValueError : too few speakers for the recipe; a speaker in two splits; several splits and one number of sessions;
        `out_dir` holds another simulation.
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
        if len(by_split.get(name, {})) < recipe.speakers[1]:
            raise ValueError(
                f"recipe {recipe.name!r} needs {recipe.speakers[1]} speakers with {recipe.min_utterances} or more "
                f"utterances, split {name!r} of the manifest has {len(by_split.get(name, {}))}"
            )
    check_disjoint([u for name in counts for us in by_split[name].values() for u in us], by="speaker")
    out = Path(out_dir)
    _claim(out, recipe, seed, {name: by_split[name] for name in counts})
    jobs = [(name, index) for name, count in counts.items() for index in range(count)]
    todo = [job for job in jobs if not all(path.exists() for path in _paths(out, recipe, *job))]
    failures = _read_failures(out / "failures.jsonl")
    seconds, made = 0.0, 0
    done = len(jobs) - len(todo)
    for made_s, failed in _run(todo, workers, by_split, recipe, out, seed):
        done, made, seconds = done + 1, made + (made_s > 0), seconds + made_s
        fresh = [f for f in failed if f not in failures]
        if fresh:
            failures += fresh
            write_atomically(out / "failures.jsonl", "".join(json.dumps(f) + "\n" for f in failures).encode())
        if progress is not None:
            progress(done, len(jobs), seconds)
    return _finish(out, recipe, jobs, made, left_out, failures)


_BySpeaker = dict[str, list[Utterance]]


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
    if isinstance(recipe.sessions, dict) and sessions is None:
        if split is not None and split not in recipe.sessions:
            raise ValueError(f"recipe {recipe.name!r} gives no number of sessions for split {split!r}")
        return {name: n for name, n in recipe.sessions.items() if split in (None, name)}
    if split is None and len(by_split) > 1:
        raise ValueError(f"the manifest has the splits {', '.join(sorted(by_split))}: choose one (--split)")
    if sessions is None:
        sessions = recipe.sessions
    return {split if split is not None else next(iter(by_split)): sessions}


def _claim(out: Path, recipe: Recipe, seed: int, by_split: dict[str, _BySpeaker]) -> None:
    """Say in simulation.json what `out` holds; refuse a folder that holds something else."""
    sources = hashlib.sha256(
        repr([(n, s, [(u.id, u.start_s, u.duration_s) for u in us]) for n in by_split for s, us in by_split[n].items()])
        .encode()
    ).hexdigest()  # fmt: skip
    settings = {**asdict(recipe), "sessions": None}  # more sessions later are welcome: the first ones stay the same
    mine = json.loads(json.dumps({"recipe": settings, "seed": seed, "sources_sha256": sources}))
    for folder in ("audio", "rttm"):
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
    differ = [words[key] for key in mine if not isinstance(held, dict) or held.get(key) != mine[key]]
    if differ:
        raise ValueError(f"{out} holds sessions made with another {' and '.join(differ)}; choose an empty folder")


def _paths(out: Path, recipe: Recipe, split: str, index: int) -> tuple[Path, Path]:
    name = f"{recipe.name}-{split}-{index:05d}" if split else f"{recipe.name}-{index:05d}"
    return out / "audio" / f"{name}.{recipe.audio_format}", out / "rttm" / f"{name}.rttm"


def _read_failures(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _finish(
    out: Path, recipe: Recipe, jobs: list[tuple[str, int]], made: int, left_out: int, failures: list[dict[str, str]]
) -> SimulationReport:
    rows, sums, shares, names = [], np.zeros(4), [], set()
    for split, index in jobs:
        audio_path, rttm_path = _paths(out, recipe, split, index)
        if not rttm_path.exists():  # a failed session: it stands in failures.jsonl
            continue
        turns = read_rttm(rttm_path).get(rttm_path.stem, ())
        duration_s = soundfile.info(audio_path).duration
        speakers = {turn.speaker for turn in turns}
        speech_s, overlap_s = speech_and_overlap_s(turns)
        sums += speech_s, overlap_s, max(duration_s - speech_s, 0.0), duration_s
        names |= speakers
        if recipe.layout == "pair" and len(speakers) == 2:
            shares.append(_overlap_of_shorter(turns))
        row = {"audio_filepath": audio_path.relative_to(out).as_posix(), "offset": 0.0, "duration": duration_s}
        row |= {"label": "infer", "text": "-", "num_speakers": len(speakers), "split": split}
        row |= {"rttm_filepath": rttm_path.relative_to(out).as_posix()}
        row |= {"session_id": rttm_path.stem, "uniq_id": rttm_path.stem}
        rows.append(row)
    write_atomically(out / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    speech_s, overlap_s, silence_s, total_s = sums.tolist()
    pair = recipe.layout == "pair"
    return SimulationReport(
        recipe=recipe.name,
        out_dir=str(out),
        sessions=len(rows),
        made_now=made,
        speakers=len(names),
        hours=total_s / 3600,
        asked_overlap=sum(recipe.overlap) / 2,
        got_overlap=float(np.mean(shares)) if shares else overlap_s / speech_s if speech_s and not pair else 0.0,
        asked_silence=None if pair else sum(recipe.silence) / 2,
        got_silence=silence_s / total_s if total_s else 0.0,
        left_out=left_out,
        failures=failures,
    )


def _overlap_of_shorter(turns: Sequence[Turn]) -> float:
    spans = {}
    for turn in turns:
        start, end = spans.get(turn.speaker, (turn.start_s, turn.end_s))
        spans[turn.speaker] = min(start, turn.start_s), max(end, turn.end_s)
    (a, b), (c, d) = spans.values()
    return (min(b, d) - max(a, c)) / min(b - a, d - c)


def _run(
    jobs: list[tuple[str, int]], workers: int, by_split: dict[str, _BySpeaker], recipe: Recipe, out: Path, seed: int
) -> Iterator[tuple[float, list[dict[str, str]]]]:
    """Yield (seconds made, failures) of each job, in the order in which they end."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield _make(job, by_split, recipe, out, seed)
        return
    # spawn: a forked copy of a process with threads (a progress bar, a BLAS) may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _set_up_worker, (by_split, recipe, out, seed)) as pool:
        futures = [pool.submit(_make_in_worker, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker_state: tuple[dict[str, _BySpeaker], Recipe, Path, int] | None = None


def _set_up_worker(*state: Any) -> None:
    global _worker_state  # sent once to each process, not once for each session
    _worker_state = state


def _make_in_worker(job: tuple[str, int]) -> tuple[float, list[dict[str, str]]]:
    assert _worker_state is not None
    return _make(job, *_worker_state)


def _make(
    job: tuple[str, int], by_split: dict[str, _BySpeaker], recipe: Recipe, out: Path, seed: int
) -> tuple[float, list[dict[str, str]]]:
    split, index = job
    audio_path, rttm_path = _paths(out, recipe, split, index)
    failures: list[dict[str, str]] = []
    # zlib.crc32, since Python's own hash of a str differs from run to run
    rng = np.random.default_rng([seed, zlib.crc32(f"{recipe.name}/{split}".encode()), index])
    try:
        wave, turns = make_session(by_split[split], recipe, rng, failures)
    except ValueError as error:
        return 0.0, [*failures, {"id": rttm_path.stem, "error": str(error)}]
    write_audio(audio_path, wave, recipe.sample_rate_hz, recipe.audio_format)
    temporary = rttm_path.with_name(f".{rttm_path.name}.{os.getpid()}.tmp")
    write_rttm(temporary, {rttm_path.stem: turns})
    os.replace(temporary, rttm_path)  # this rename makes the session a finished one
    return len(wave) / recipe.sample_rate_hz, failures
