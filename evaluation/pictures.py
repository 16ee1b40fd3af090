"""Which pictures a report has, and of which figures; `evaluation.plots` draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation import plots
from evaluation.diarization import score
from evaluation.experiments import EXPERIMENTS
from evaluation.results import Plotted, find
from evaluation.rows import Row
from evaluation.runs import session_of
from evaluation.words import rate

_TIMELINES = 3
_HISTORY = ("epoch", "train_loss", "dev_der")
_PARTS = (
    ("missed", "missed_detection", plots.PALETTE[5]),
    ("false alarm", "false_alarm", plots.PALETTE[4]),
    ("confusion", "confusion", plots.PALETTE[1]),
)

Bar = tuple[str, list[tuple[str, float, str]]]


def pictures(runs: Sequence[Row], plotted: Plotted) -> dict[str, Any]:
    """SVG texts by name, None for those that these runs give no figures for; "timelines" is a list."""
    made: dict[str, Any] = dict.fromkeys(("det", "histograms", "errors", "flaws", "histories"))
    if plotted.curves:
        made["det"] = plots.det(plotted.curves)
        made["histograms"] = plots.histograms(plotted.scores)
    diarizers = [run for run in runs if run.diarizes]
    if bars := _error_bars(diarizers):
        made["errors"] = plots.stacks(bars, "share of reference speech, %")
    if bars := list(_flaw_bars(diarizers)):
        made["flaws"] = plots.stacks(bars, "DER as the reference protocol reports it, %")
    if histories := _histories(diarizers):
        made["histories"] = plots.histories(histories)
    made["timelines"] = [timeline for run in diarizers if run.protocol == "sound" for timeline in _timelines(run)]
    return made


def _error_bars(runs: Sequence[Row]) -> list[Bar]:
    return [
        (run.title, [(label, run.figures[key], colour) for label, key, colour in _PARTS])
        for run in runs
        if run.protocol == "sound" and run.figures["der"] is not None
    ]


def _flaw_bars(runs: Sequence[Row]) -> Iterator[Bar]:
    """The reference protocol's figure = the sound run's error + what training and tuning add + what scoring adds."""
    for id in EXPERIMENTS:
        reference, sound = find(runs, id, "reference"), find(runs, id, "sound")
        if id == "1" or not reference or not sound:
            continue
        published_way, mapped, remains = reference.figures["fixed_der"], reference.figures["der"], sound.figures["der"]
        if None in (published_way, mapped, remains):
            continue
        yield (
            sound.title,
            [
                ("what remains under the sound protocol", remains, plots.PALETTE[2]),
                ("training order, padding, tuning on test", mapped - remains, plots.PALETTE[4]),
                ("scoring with fixed channels", published_way - mapped, plots.PALETTE[1]),
            ],
        )


def _histories(runs: Sequence[Row]) -> Mapping[str, Mapping[str, Sequence[float]]]:
    found = {run.name: run.files.history() for row in runs for run in row.runs}
    return {name: history for name, history in found.items() if history.keys() >= set(_HISTORY)}


def _timelines(run: Row) -> list[dict[str, str]]:
    """The first windows of a run: best to look at, not best in score."""
    reference, hypothesis, uem = run.files.diarization()
    first: dict[str, str] = {}
    for name in uem:
        if name in reference and name in hypothesis:
            first.setdefault(session_of(name), name)
    shown = list(first.values())[:_TIMELINES]
    if not shown:
        return []
    scored = score(reference, hypothesis, uem={name: uem[name] for name in shown})
    return [
        {
            "title": f"{run.title}: {name}, DER {rate(scored.recordings[name].der, None)}",
            "svg": plots.timeline(
                reference[name].to_annotation(name),
                hypothesis[name].to_annotation(name),
                scored.mappings[name],
                *uem[name][0].tolist(),
            ),
        }
        for name in shown
    ]
