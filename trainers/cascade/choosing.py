"""What is chosen on dev: the clusters, then what weighs how much in decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import isnan
from typing import Any

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
    """The choice of the least DER over dev, and every one that was tried with its DER, in order.

    First every grouping under the middle one of the decodings, then every decoding of the best grouping's voices. Where
    two are as good, the one that was tried first stays.
    """
    config = cascade.config
    decodings = [Decoding(blend=blend, change=change) for blend, change in product(config.blends, config.changes)]
    middle = decodings.pop(len(decodings) // 2)
    tried: list[dict[str, Any]] = []
    best: tuple[float, Choice, list[Evidence]] | None = None

    def look(choice: Choice, found: list[Evidence]) -> None:
        nonlocal best
        errors = measure(cascade.turns(decode(found, config.at_once, choice.decoding)))
        row = {"clustering": choice.clustering, "threshold": choice.threshold}
        row |= {"blend": choice.decoding.blend, "change": choice.decoding.change}
        tried.append(row | {"der": None if isnan(errors.der) else errors.der})
        if best is None or errors.der < best[0]:
            best = errors.der, choice, found
        told(f"{choice.clustering} {choice.threshold:g}, best DER on dev {best[0]:.1%}")

    for clustering in config.clustering:
        thresholds = config.neighbours if clustering == "spectral" else config.thresholds
        grouped = [groupings(heard.pieces, clustering, thresholds, config.seed) for heard in dev]
        for threshold in thresholds:
            found = [cascade.evidence(heard, labels[threshold]) for heard, labels in zip(dev, grouped, strict=True)]
            look(Choice(clustering, threshold, middle), found)
    assert best is not None
    _, choice, found = best
    for decoding in decodings:
        look(replace(choice, decoding=decoding), found)
    return best[1], tried
