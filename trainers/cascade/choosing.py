"""What is chosen on dev: the clusters, then how much a blend of two voices weighs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.diarization import DiarizationErrors
from evaluation.turns import Turns
from trainers.cascade.cascade import Cascade, Choice, Heard
from trainers.cascade.clusters import groupings
from trainers.cascade.decoding import Decoding, Evidence, decode

#: Errors of turns of all dev recordings.
Measure = Callable[[Sequence[Turns]], DiarizationErrors]


def choose(
    cascade: Cascade, dev: Sequence[Heard], measure: Measure, told: Callable[[str], None] = lambda _: None
) -> tuple[Choice, list[dict[str, Any]]]:
    """A choice of low DER over dev, and every one that was tried with its DER, in order.

    First the voices, by clustering and threshold, then the weight of blends. Of each it is the one whose DER, averaged
    with those of the values beside it, is least: where dev is small, the middle of a valley is safer than its deepest
    point, above all for a threshold, since a step too far joins two voices for good. Where two are as good, the first.
    """
    config = cascade.config
    tried: list[dict[str, Any]] = []

    def look(choice: Choice, found: Sequence[Evidence]) -> float:
        der = measure(cascade.turns(decode(found, config.at_once, choice.decoding))).der
        row = {"clustering": choice.clustering, "threshold": choice.threshold, "blend": choice.decoding.blend}
        tried.append(row | {"der": None if np.isnan(der) else der})
        told(f"dev: {choice.clustering} {choice.threshold:g}, DER {der:.1%}")
        return der

    blends = sorted(config.blends)
    decodings = [Decoding(nearest=config.nearest, blend=blend, change=config.change) for blend in blends]
    candidates: list[tuple[float, Choice]] = []
    for clustering in config.clustering:
        thresholds = tuple(sorted(config.neighbours if clustering == "spectral" else config.thresholds))
        grouped = [groupings(heard.pieces, clustering, thresholds, config.seed) for heard in dev]
        choices = [Choice(clustering, threshold, decodings[len(decodings) // 2]) for threshold in thresholds]
        ders = [
            look(each, [cascade.evidence(heard, of[each.threshold]) for heard, of in zip(dev, grouped, strict=True)])
            for each in choices
        ]
        candidates += zip(with_those_beside(ders), choices, strict=True)
    choice = _least(candidates)
    found = [cascade.found(heard, choice) for heard in dev]
    choices = [replace(choice, decoding=decoding) for decoding in decodings]
    return _least(list(zip(with_those_beside([look(each, found) for each in choices]), choices, strict=True))), tried


def with_those_beside(values: Sequence[float]) -> list[float]:
    """Means of three; an end stands beside itself."""
    means: list[float] = np.convolve(np.pad(values, 1, mode="edge"), np.ones(3) / 3, mode="valid").tolist()
    return means


def _least(candidates: Sequence[tuple[float, Choice]]) -> Choice:
    return min(candidates, key=lambda row: np.inf if np.isnan(row[0]) else row[0])[1]
