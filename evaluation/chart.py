"""The one chart of the first screen: every head on one axis, with what knows nothing and what was published beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from evaluation import baselines
from evaluation.answer import pairs, part_of
from evaluation.experiments import PUBLISHED, PUBLISHED_NOTE
from evaluation.results import ratio_interval
from evaluation.rows import Row

_PARTS = {"missed": "missed_detection", "false_alarm": "false_alarm", "confusion": "confusion"}
_WHAT = ("codec alone", "one encoder alone", "speaker encoder alone", "unfrozen", "fusion", "cascade", "ceiling")
_CEILINGS = {"true_when_own_who": "true number of speakers", "own_when_true_who": "true voices"}


def chart(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Its bars from top to bottom: heads by what they are made of, then ceilings, then the published figures."""
    of = pairs(rows)
    shown = [bar for row in _shown(rows)[0] for bar in _bars(row, part_of(tuple(row.features), of))]
    shown.sort(key=lambda bar: _WHAT.index(bar["what"]))  # stable: as given, inside of one kind
    return [*shown, *(_published(label, value) for label, value in PUBLISHED)]


def _shown(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Sound heads on the recordings that most of them were measured on, and those on others."""
    heads = [row for row in rows if row.diarizes and row.protocol == "sound" and row.train_fraction == 1]
    heads = [row for row in heads if row.figures["der"] is not None]
    counts = Counter(_recordings(row) for row in heads if row.experiment != "poc") or Counter(map(_recordings, heads))
    main = counts.most_common(1)[0][0] if counts else frozenset()
    return [row for row in heads if _recordings(row) == main], [row for row in heads if _recordings(row) != main]


def _recordings(row: Row) -> frozenset[str]:
    return frozenset(row.result["recordings"])


def test_set(rows: Sequence[Row]) -> dict[str, Any]:
    """What the chart's heads were measured on, and which heads were measured on something else."""
    shown, others = _shown(rows)
    return {
        "num_recordings": shown[0].figures["num_recordings"] if shown else 0,
        "minutes": shown[0].figures["scored_s"] / 60 if shown else 0.0,
        "left_out": [f"{row.label}: {row.figures['num_recordings']} other recordings" for row in others],
    }


def _bars(row: Row, part: str) -> Iterator[dict[str, Any]]:
    what = (
        "cascade"
        if row.whole_only
        else "unfrozen"
        if row.experiment == "2.5"
        else "fusion"
        if len(row.features) > 1
        else part
    )
    scope = "whole recording" if row.whole_only else "per window"
    yield _bar(row, what, scope, row.figures)
    if whole := row.figures.get("whole"):
        yield _bar(row, what, "whole recording", whole)
    for name, words in _CEILINGS.items():
        figures = row.result.get("ceilings", {}).get(name, {}).get("test")
        if figures and figures["der"] is not None:
            yield _bar(row, "ceiling", scope, figures) | {"label": f"{row.label}, {words}", "spread": None}


def _bar(row: Row, what: str, scope: str, figures: dict[str, Any]) -> dict[str, Any]:
    warnings = " ".join(row.files.warnings)
    return {
        "label": row.label,
        "what": what,
        "der": figures["der"],
        "interval": figures.get("der_interval"),
        "published": False,
        "scope": scope,
        "parts": {name: figures[key] for name, key in _PARTS.items()},
        "seeds": len(row.runs),
        "spread": figures.get("spread"),
        "weights": "untrained" if "UNTRAINED" in warnings else "demo" if warnings else "",
        "experiment": row.experiment,
        "note": "",
        "runs": [run.name for run in row.runs],
    }


def _published(label: str, value: float) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "interval": None,
        "parts": None,
        "seeds": 0,
        "spread": None,
        "weights": "",
        "experiment": "",
        "runs": [],
    }
    return {
        "label": label,
        "what": "published",
        "der": value,
        "published": True,
        "scope": "",
        "note": PUBLISHED_NOTE,
        **nothing,
    }


def trivial_systems(rows: Sequence[Row], num_resamples: int, seed: int) -> list[dict[str, Any]]:
    """What knowing nothing scores on the chart's recordings, by window and whole; and on trials."""
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in _shown(rows)[0]:
        for key, recordings in row.trivial.items():
            if key not in found and (value := baselines.der(recordings)) is not None:
                interval = ratio_interval(recordings, "der", num_resamples, np.random.default_rng(seed))
                found[key] = {"value": value, "interval": interval.to_json() if interval else None}
    told = [
        {"what": what, "measure": "DER", **figures, "scope": "whole recording" if whole else "per window"}
        for (what, whole), figures in found.items()
    ]
    if any(not row.diarizes for row in rows):
        told.append({"what": "random cosine", "measure": "EER", "value": 0.5, "interval": None, "scope": "trials"})
    return told
