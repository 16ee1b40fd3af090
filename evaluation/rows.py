"""Finished runs as the rows of a report: what differs only in its seed is one row, the mean of its runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from evaluation import runs
from evaluation.experiments import OF_KIND, label_of
from evaluation.runs import RESULT, RunError, RunFiles
from featstore import FeatureSpec

# Settings that do not decide what comes out, and the two that rows are made by.
_NOT_DECIDING = ("device", "resident", "checkpoint_steps", "tensorboard", "seed", "train_fraction", "rated")


@dataclass(eq=False)
class RunFacts:
    """A finished run as the report needs it; its figures are filled in by `evaluation.results`."""

    files: RunFiles
    result: dict[str, Any]
    experiment: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder; of one seed among others, with the folder of these: every such run is called seed0 or seed1."""
        parts = self.files.path.parts
        return "/".join(parts[-2:] if re.fullmatch(r"seed\d+", parts[-1]) else parts[-1:])

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.files.config["config"])

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))


@dataclass(eq=False)
class Row:
    """One run, or several that differ only in their seed.

    Attributes
    ----------
    runs : one a seed.
    result : of the one run; of several, the first one's with the means of all errors (see `mean_result`).
    variant : what sets it apart from a row of the same label; "" mostly.
    figures : filled in by `evaluation.results`.
    trivial : errors by recording of systems that know nothing, on what this row was measured on: (name, whole) → errors.
    orders : of its windows with speech, in how many speakers arrive in another order than in the session; and all of them.
    """

    runs: list[RunFacts]
    result: dict[str, Any]
    variant: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    trivial: dict[tuple[str, bool], dict[str, Any]] = field(default_factory=dict)
    orders: tuple[int, int] = (0, 0)

    @property
    def files(self) -> RunFiles:
        return self.runs[0].files

    @property
    def experiment(self) -> str:
        return self.runs[0].experiment

    @property
    def name(self) -> str:
        return self.runs[0].name

    @property
    def protocol(self) -> str:
        return self.files.protocol

    @property
    def features(self) -> Mapping[str, FeatureSpec]:
        return self.files.features

    @property
    def when(self) -> tuple[str, ...]:
        """Features that a cascade takes for when, or that a set of voices comes from; () of others."""
        return tuple(self.result.get("when", self.result.get("inputs", ())))

    @property
    def who(self) -> tuple[str, ...]:
        """Features that a cascade takes for who, or the teacher of a set of voices; () of others."""
        return tuple(self.result.get("who", (self.result["teacher"],) if self.unmixes else ()))

    @property
    def diarizes(self) -> bool:
        return "systems" not in self.result and not self.unmixes and not self.extracts

    @property
    def unmixes(self) -> bool:
        """Whether it tells a set of voices, and nothing of when."""
        return "sets" in self.result

    @property
    def extracts(self) -> bool:
        """Whether it takes voices out of mixtures."""
        return "extraction" in self.result

    @property
    def train_fraction(self) -> float:
        return float(self.runs[0].settings.get("train_fraction", 1.0))

    @property
    def label(self) -> str:
        """What the page calls it: "adapter on Mimi"."""
        label = label_of(self.experiment, tuple(self.features), when=self.when, who=self.who)
        return f"{label} ({self.variant})" if self.variant else label

    @property
    def phrase(self) -> str:
        """The label inside a sentence: "the cascade (lyra says when, resemblyzer who)"."""
        kind, colon, parts = self.label.partition(": ")
        return f"the {kind} ({parts})" if colon else f"the {kind}"

    @property
    def title(self) -> str:
        """The label under the experiment's number."""
        return self.label if self.experiment == "poc" else f"{self.experiment} {self.label}"

    @property
    def whole_only(self) -> bool:
        """Whether all that it was measured on are whole recordings: a cascade."""
        return "ceilings" in self.result

    def recordings(self, whole: bool) -> Mapping[str, Mapping[str, Any]] | None:
        """Errors by recording, answered whole (one identity throughout) or window by window; None: not measured so."""
        if self.whole_only:
            return self.result["recordings"] if whole else None
        found = self.result.get("whole") if whole else self.result
        return (found or {}).get("recordings")


def expand(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """The runs that paths mean, each once: a folder that is none but holds some means those, by name.

    Raises
    ------
    RunError : a folder that neither is a run nor holds one.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [path] if _is_run(path) else sorted(filter(_is_run, path.glob("*/")))
        for run in inside or [path]:
            runs.open(run)  # says what is wrong where there is none
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(path: Path) -> bool:
    return (path / runs.CONFIG).is_file()


def read_run(path: Path) -> RunFacts:
    """Read a finished run's folder.

    Raises
    ------
    RunError : it is none, it has not finished, or its files are damaged.
    """
    files = runs.open(path)
    result = files.result()
    if result is None:
        raise RunError(f"{path}: the run has not finished (no {RESULT}); go on with: trainers fit … --resume")
    try:
        return RunFacts(files, result, files.config["config"].get("experiment") or OF_KIND[result["kind"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: damaged, or written by another version: {error}") from None


def rows_of(found: Sequence[RunFacts]) -> list[Row]:
    """Rows in the order in which their first runs were given."""
    groups: dict[tuple[Any, ...], list[RunFacts]] = {}
    twins: Counter[tuple[Any, ...]] = Counter()
    for run in found:
        key = _key(run)
        # A second run of one seed is no other seed: it stands in a row of its own.
        groups.setdefault((*key, twins[(*key, run.seed)]), []).append(run)
        twins[(*key, run.seed)] += 1
    rows = [Row(group, mean_result([run.result for run in group])) for group in groups.values()]
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.label, row.protocol), []).append(row)
    for same in alike.values():
        _tell_apart(same)
    for row in rows:
        if not row.variant and row.runs[0].settings.get("cache_s"):  # then it is not the same head on other features
            row.variant = "told of earlier voices"
    return rows


def _key(run: RunFacts) -> tuple[Any, ...]:
    """Equal for runs that differ in nothing but the seed."""
    return (
        run.experiment,
        run.files.protocol,
        str(run.files.config["store"]),
        tuple((name, spec.fingerprint) for name, spec in run.files.features.items()),
        _decides(run),
        float(run.settings.get("train_fraction", 1.0)),
        tuple(sorted(run.result.get("recordings", ()))),
        run.result.get("num_trials"),
    )


def _decides(run: RunFacts) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, repr(value)) for key, value in run.settings.items() if key not in _NOT_DECIDING))


def _tell_apart(rows: Sequence[Row]) -> None:
    """Name what rows of one label differ in, up to three settings; also their folders where no setting differs."""
    settings = [row.runs[0].settings for row in rows]
    keys = [k for k in settings[0] if k not in _NOT_DECIDING and len({repr(s.get(k)) for s in settings}) > 1]
    for row, own in zip(rows, settings, strict=True):
        row.variant = ", ".join(f"{key}={own.get(key)}" for key in keys[:3])
    # Shares of the training data are points of one curve, no rows to tell apart.
    count = Counter((row.variant, row.train_fraction) for row in rows)
    for row in [row for row in rows if count[row.variant, row.train_fraction] > 1]:
        row.variant = ", ".join(
            filter(None, (row.variant, row.name if len(row.runs) == 1 else row.files.path.parent.name))
        )


def mean_result(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first result with the means of every error in it: rates and seconds have the same weights in all.

    The runs have the same recordings, so the mean of rates is the rate of mean errors.
    """
    first = results[0]
    if len(results) == 1:
        return first
    means = {
        key: _mean([result[key] for result in results])
        for key in ("test", "recordings", "ceilings", "whole", "sets", "memory")
        if all(result.get(key) is not None for result in results)
    }
    rest = {key: value for key, value in first.items() if key not in ("ceilings", "whole", "memory")}
    return {**rest, **means}


def _mean(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([value[key] for value in values]) for key in first if all(key in v for v in values)}
    if isinstance(first, bool) or not isinstance(first, int | float):
        return first
    return None if any(value is None for value in values) else sum(values) / len(values)
