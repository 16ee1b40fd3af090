"""What a run's folder holds, and how it is read: every name that both who writes a run and who reads it must know.

RUN/config.json       the whole configuration, feature specs and fingerprints with their warnings, version of this program
RUN/model.safetensors the best weights        RUN/last.safetensors  everything a resumed run needs (adapter and kin)
RUN/history.csv       one row an epoch        RUN/result.json       counts and figures, written last
RUN/scores.parquet    probe: one row a trial  RUN/outputs           a store with the run's own features
RUN/ref.rttm, hyp.rttm, windows.uem           truth, answer, and what was scored: adapter and kin by window, cascade by session
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluation.rttm import read_rttm, read_uem, write_rttm, write_uem
from evaluation.trials import Trials
from evaluation.turns import Turns, to_timeline
from featstore import FeatureSpec
from featstore.store.layout import is_store

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

CONFIG, RESULT = "config.json", "result.json"
MODEL, LAST, HISTORY = "model.safetensors", "last.safetensors", "history.csv"
SCORES, OUTPUTS, VOICES = "scores.parquet", "outputs", "voices.parquet"
REFERENCE, HYPOTHESIS, WINDOWS = "ref.rttm", "hyp.rttm", "windows.uem"

#: Under this key a safetensors header keeps what the run says about the weights, as JSON.
FACTS = "whowhen"

# Columns of scores.parquet; every other one holds a system's scores.
_LABEL, _IDS, _SPEAKERS = "label", ("enrol", "test"), ("enrol_speaker", "test_speaker")


class RunError(ValueError):
    """A run's folder cannot be used as asked; the text says why and what to do."""


# ---- names


def window_name(session: str, start_s: float) -> str:
    """What a window of a session is called wherever one recording is expected; `session_of` takes it apart."""
    return f"{session}@{start_s:.2f}"


def session_of(window: str) -> str:
    """The session that a window is of; a session that is its own window is that."""
    return re.sub(r"@\d+\.\d\d$", "", window)


# RTTM and UEM end a name at white space, begin a comment with ";" and may begin with a byte-order mark. These are
# written as in a URL, and so is "%", so that no two names become one.
_RESERVED = re.compile(r"[\s%]|^[;\ufeff]")
_EMPTY = "%"


def _written(name: str) -> str:
    return _RESERVED.sub(lambda found: quote(found[0], safe=""), name) or _EMPTY


def _read(name: str) -> str:
    return "" if name == _EMPTY else unquote(name)


# ---- who spoke when


class Diarization(NamedTuple):
    """Truth and answer by window, as a run was scored: a window counts as a recording, its channels end with it.

    Attributes
    ----------
    reference, hypothesis : window → turns, in seconds from the session's start.
    uem : window → (1, 2) seconds, where it lies in the session.
    """

    reference: Mapping[str, Turns]
    hypothesis: Mapping[str, Turns]
    uem: Mapping[str, NDArray[np.float64]]


class Annotations(NamedTuple):
    """The same for pyannote: `reference` and `hypothesis` by window, and the Timeline each was scored on."""

    reference: dict[str, Annotation]
    hypothesis: dict[str, Annotation]
    uem: dict[str, Timeline]


def write_diarization(run: Path, diarization: Diarization) -> None:
    """Write ref.rttm, hyp.rttm and windows.uem, in which any name of a session or speaker stays different from others."""
    for file, side in ((REFERENCE, diarization.reference), (HYPOTHESIS, diarization.hypothesis)):
        write_rttm(
            run / file,
            {_written(name): turns.renamed({s: _written(s) for s in turns.speakers}) for name, turns in side.items()},
        )
    write_uem(run / WINDOWS, {_written(name): regions for name, regions in diarization.uem.items()})


def _read_turns(path: Path) -> dict[str, Turns]:
    return {
        _read(name): turns.renamed({s: _read(s) for s in turns.speakers}) for name, turns in read_rttm(path).items()
    }


# ---- same speaker or not


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What each system of a probe's run says about each trial.

    Attributes
    ----------
    same : (trials,) bool, the truth.
    left_speakers, right_speakers : (trials,) names, None where the store knows none.
    systems : (trials,) float32 by system.
    """

    same: NDArray[np.bool_]
    left_speakers: list[str | None]
    right_speakers: list[str | None]
    systems: dict[str, NDArray[np.float32]]


def score_table(
    trials: Trials, ids: Sequence[str], speakers: Sequence[str | None], systems: Mapping[str, NDArray[np.float32]]
) -> pa.Table:
    """The table of scores.parquet.

    Parameters
    ----------
    ids, speakers : the store's, for each of ``trials.names``.
    systems : (trials,) by name.
    """
    columns: dict[str, pa.Array] = {_LABEL: pa.array(trials.same)}
    for names, of_name in ((_IDS, ids), (_SPEAKERS, speakers)):
        objects = np.array(of_name, dtype=object)
        for name, side in zip(names, (trials.left, trials.right), strict=True):
            columns[name] = pa.array(objects[side], pa.string())
    return pa.table(columns | {name: pa.array(values, pa.float32()) for name, values in systems.items()})


# ---- the folder


@dataclass(frozen=True, slots=True, eq=False)
class RunFiles:
    """A run's folder as others than its maker see it; `open` makes one. Files are read when they are asked for.

    Attributes
    ----------
    config : config.json: "config" (the settings), "protocol", "store" and more.
    features : the specs of the features it was trained on, by name.
    """

    path: Path
    config: Mapping[str, Any]
    features: Mapping[str, FeatureSpec]

    @property
    def protocol(self) -> str:
        return str(self.config["protocol"])

    @property
    def warnings(self) -> list[str]:
        """What must stand beside every number of this run; empty for properly trained weights."""
        return [spec.warning for spec in self.features.values() if spec.warning]

    def result(self) -> dict[str, Any] | None:
        """result.json, or None while the run has not finished.

        Raises
        ------
        RunError : damaged.
        """
        return _json(self.path / RESULT)

    def history(self) -> dict[str, list[float]]:
        """history.csv by column, NaN where a cell is empty; nothing where there is no row.

        Raises
        ------
        RunError : damaged.
        """
        path = self.path / HISTORY
        try:
            rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise RunError(f"{path}: damaged: {error}") from None

    def diarization(self) -> Diarization:
        """Who spoke when.

        Raises
        ------
        RunError : nobody says who spoke when in this run: it is a probe's, or has not finished.
        OSError, ValueError : a file of the three is missing or damaged.
        """
        if not (self.path / HYPOTHESIS).exists():
            raise RunError(f"{self.path}: does not say who spoke when (no {HYPOTHESIS} in it)")
        reference, hypothesis = (_read_turns(self.path / name) for name in (REFERENCE, HYPOTHESIS))
        uem = {_read(name): regions for name, regions in read_uem(self.path / WINDOWS).items()}
        return Diarization(reference, hypothesis, uem)

    def annotations(self) -> Annotations:
        """Who spoke when as pyannote objects, ready for pyannote.metrics or a notebook.

        Raises
        ------
        OSError, ValueError : as `diarization`.
        """
        found = self.diarization()
        return Annotations(
            reference={name: turns.to_annotation(name) for name, turns in found.reference.items()},
            hypothesis={name: turns.to_annotation(name) for name, turns in found.hypothesis.items()},
            uem={name: to_timeline(regions, name) for name, regions in found.uem.items()},
        )

    def scores(self) -> Scores:
        """What a probe's run says about each trial.

        Raises
        ------
        RunError : scores.parquet is missing or damaged.
        """
        path = self.path / SCORES
        try:
            table = pq.read_table(path)
            systems = [name for name in table.column_names if name not in (_LABEL, *_IDS, *_SPEAKERS)]
            left, right = (table[name].to_pylist() for name in _SPEAKERS)
            return Scores(table[_LABEL].to_numpy(), left, right, {name: table[name].to_numpy() for name in systems})
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RunError(f"{path}: missing or damaged: {error}") from None

    def model_facts(self) -> dict[str, Any]:
        """What the run says about its best weights: kind, and epoch or classes.

        Raises
        ------
        RunError : model.safetensors is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path / MODEL
        try:
            with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]
                facts: dict[str, Any] = json.loads((file.metadata() or {}).get(FACTS, "{}"))
                return facts
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"{path}: missing or damaged: {error}") from None


def open(path: str | PathLike[str]) -> RunFiles:
    """Look into a run's folder, finished or not.

    Raises
    ------
    RunError : it is none, or its config.json is damaged.
    """
    path = Path(path)
    if (config := _json(path / CONFIG)) is None:
        if is_store(path):
            raise RunError(f"{path}: a store, and no run; trainers fit KIND --store {path} --out RUN makes one of it")
        why = "(a file); leave it out" if path.is_file() else f"(no {CONFIG} in it); make one with: trainers fit"
        raise RunError(f"{path}: not a run {why}")
    try:
        features = {name: FeatureSpec.from_json(entry["spec"]) for name, entry in config["features"].items()}
        return RunFiles(path, {"store": "", "protocol": config["protocol"]} | config, features)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / CONFIG}: damaged or of another version: {error}") from None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from None
    if not isinstance(data, dict):
        raise RunError(f"{path}: damaged: expected a JSON object")
    return data
