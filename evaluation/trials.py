"""Trial lists: reading them, finding in a store the utterances that they name, scoring them."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.verification import cosine_scores
from featstore import Store
from featstore.corpora.rttm import lines

# What counts as a file extension: "00001.wav" has one, "speaker.7" has none.
_EXTENSION = re.compile(r"\.(?=[A-Za-z0-9]{0,4}[A-Za-z])[A-Za-z0-9]{1,5}$")

#: A packed list is believed up to here: VoxCeleb's longest, of 0.6 million trials, have some 40 MB.
MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """A list of pairs to compare, and the truth about each.

    Attributes
    ----------
    names : the utterances that occur, each once, in order of appearance.
    left, right : (trials,) int64, positions in `names`.
    same : (trials,) bool, True where one speaker says both.
    """

    names: tuple[str, ...]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def read_trials(path: str | PathLike[str]) -> Trials:
    """Read a trial list in VoxCeleb's format: a line ``1 a b`` (same speaker) or ``0 a b`` (different speakers).

    Parameters
    ----------
    path : text, or text packed with gzip (``.gz``). Blank lines are allowed, nothing else is.

    Raises
    ------
    OSError : the file cannot be read.
    ValueError : unpacks to more than 1 GiB, not UTF-8, a line of another form (file and line are named), or no trial at all.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from None
        if len(raw) > MAX_BYTES:
            raise ValueError(f"{path}: unpacks to more than {MAX_BYTES} bytes, so no trial list; not read")
    rows = [line.split() for line in lines(path, raw)]
    for number, row in enumerate(rows, 1):
        if row and (len(row) != 3 or row[0] not in ("0", "1")):
            raise ValueError(
                f"{path}:{number}: expected '1 utterance utterance' or '0 utterance utterance', "
                f"found {' '.join(row)[:80]!r}"
            )
    words = [word for row in rows for word in row]
    if not words:
        raise ValueError(f"{path}: no trials in this file")
    left, right = words[1::3], words[2::3]
    position = {name: i for i, name in enumerate(dict.fromkeys(words[1::3] + words[2::3]))}
    count = len(left)
    return Trials(
        names=tuple(position),
        left=np.fromiter(map(position.__getitem__, left), np.int64, count),
        right=np.fromiter(map(position.__getitem__, right), np.int64, count),
        same=np.fromiter((label == "1" for label in words[0::3]), np.bool_, count),
    )


def _stem(name: str) -> str:
    return _EXTENSION.sub("", name)


def _first(items: Sequence[str], limit: int = 5) -> str:
    return ", ".join(items[:limit]) + (", …" if len(items) > limit else "")


def resolve(names: Iterable[str], ids: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Find the utterance that each name of a trial list means.

    A name means, in this order: the id equal to it; the id equal to it but for a file extension on either; the one
    utterance whose source path ends in it; the one whose source path ends in it but for the extension.

    Parameters
    ----------
    names : of the trial list.
    ids, sources : of the utterances to choose from, in parallel.

    Returns
    -------
    The id for each name, in order.

    Raises
    ------
    KeyError : names that mean no utterance, or several; says how many and lists the first.
    """
    names = list(names)
    known = set(ids)
    found: dict[str, set[str]] = {name: {name} for name in names if name in known}
    stems: dict[str, set[str]] = {}
    for id in ids:
        stems.setdefault(_stem(id), set()).add(id)
    for name in names:
        if name not in found and _stem(name) in stems:
            found[name] = stems[_stem(name)]
    for form in (str, _stem):
        wanted: dict[str, list[str]] = {}
        for name in names:
            if name not in found:
                wanted.setdefault(form(name.removeprefix("./").strip("/")), []).append(name)
        if not wanted:
            break
        depths = sorted({key.count("/") + 1 for key in wanted})
        for id, source in zip(ids, sources, strict=True):
            parts = form(source.replace("\\", "/")).split("/")
            for depth in depths:
                for name in wanted.get("/".join(parts[-depth:]), ()) if depth <= len(parts) else ():
                    found.setdefault(name, set()).add(id)
    absent = [name for name in names if name not in found]
    if absent:
        raise KeyError(
            f"{len(absent)} of {len(names)} utterances of the trial list are not in the store "
            f"(first: {_first(absent)}); a trial names an utterance by its id or by the end of its source path. "
            "Extract them into the store first"
        )
    several = [f"{name} = {_first(sorted(found[name]), 2)}" for name in names if len(found[name]) > 1]
    if several:
        raise KeyError(
            f"{len(several)} of {len(names)} utterances of the trial list mean several in the store "
            f"(first: {_first(several, 3)}); use ids in the trial list"
        )
    return [next(iter(found[name])) for name in names]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTrials:
    """A trial list scored with one feature of a store.

    Attributes
    ----------
    trials : as read.
    scores : (trials,) cosine.
    left_speakers, right_speakers : (trials,) objects, the store's speaker of each side or None.
    warnings : what must stand beside every figure made from them.
    """

    trials: Trials
    scores: NDArray[np.float32]
    left_speakers: NDArray[np.object_]
    right_speakers: NDArray[np.object_]
    warnings: tuple[str, ...]


def score_trials(store: Store, feature: str, trials: Trials, *, centre: bool = False) -> ScoredTrials:
    """Cosine of the mean-pooled features of each pair.

    Parameters
    ----------
    centre : subtract the mean vector of the store's train split first. It is a fixed vector learnt on other data, so
        the trials stay unseen.

    Raises
    ------
    KeyError : no such feature; an utterance that is absent or ambiguous.
    ValueError : `centre` without a train split that has the feature; a vector that is zero or not finite; codes.
    """
    table = store.utterances.select(["id", "source", "speaker"])
    all_ids, sources, all_speakers = (table[name].to_pylist() for name in ("id", "source", "speaker"))
    ids = resolve(trials.names, all_ids, sources)
    vectors = store.pooled(feature, ids)
    if store.features[feature].whole:
        raise ValueError(f"feature {feature!r} holds codes, names of vectors: score them with trainers fit proxy")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))
    if len(bad):
        raise ValueError(
            f"feature {feature!r}: {len(bad)} of {len(ids)} utterances have a mean that is zero or not finite "
            f"(first: {_first([ids[i] for i in bad])}); look at their audio, or extract them again"
        )
    warnings = [store.features[feature].warning]
    if centre:
        mean, told = _train_mean(store, feature)
        vectors = vectors - mean
        warnings.append(told)
    speaker_of = dict(zip(all_ids, all_speakers, strict=True))
    speakers = np.array([speaker_of[id] or None for id in ids], dtype=object)
    left, right = speakers[trials.left], speakers[trials.right]
    known = np.array([speaker is not None for speaker in speakers], dtype=np.bool_)
    wrong = int(((left == right) != trials.same)[known[trials.left] & known[trials.right]].sum())
    if wrong:
        warnings.append(
            f"{wrong} of {len(trials)} trials contradict the speakers that the store gives their utterances"
        )
    return ScoredTrials(
        trials=trials,
        scores=cosine_scores(vectors, trials.left, trials.right),
        left_speakers=left,
        right_speakers=right,
        warnings=tuple(warning for warning in warnings if warning),
    )


def _train_mean(store: Store, feature: str) -> tuple[NDArray[np.float32], str | None]:
    """Mean vector (dim,) of the train split, and what to say where some of its utterances lack the feature."""
    train = store.select(split="train").ids
    if not train:
        raise ValueError(f"centring needs utterances of split 'train' in {store.address}, found none")
    known = store.index(feature).rows
    ids = [id for id in train if id in known]
    if not ids:
        raise ValueError(
            f"centring needs utterances of split 'train' in {store.address}, found none of {len(train)} with "
            f"feature {feature!r}; extract them into the store first"
        )
    told = f"centred on {len(ids)} of {len(train)} train utterances; the others lack feature {feature!r}"
    mean: NDArray[np.float32] = store.pooled(feature, ids).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean, told if len(ids) < len(train) else None
