"""Which pictures a report has, and of which figures; `evaluation.plots` draws them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation import plots
from evaluation.diarization import score
from evaluation.results import Plotted
from evaluation.rows import Row
from evaluation.runs import session_of
from evaluation.words import rate

_TIMELINES = 2

Bar = tuple[str, list[tuple[str, float, str]]]


def pictures(facts: Mapping[str, Any], rows: Sequence[Row], plotted: Plotted) -> dict[str, Any]:
    """SVG texts by name, None for those that these runs give no figures for; "timelines" and "training" are lists."""
    made: dict[str, Any] = dict.fromkeys(("det", "histograms", "flaws", "learning"))
    if plotted.curves:
        made["det"] = plots.det(plotted.curves)
        made["histograms"] = plots.histograms(plotted.scores)
    if bars := list(_flaw_bars(rows)):
        title, label = (
            "What the reference protocol's figures are made of",
            "DER as the reference protocol reports it, %",
        )
        made["flaws"] = plots.stacks(bars, title, label)
    if facts["learning"]:
        made["learning"] = plots.learning(facts["learning"])
    made["training"] = list(_training(rows))
    heads = [row for row in rows if row.diarizes and row.protocol == "sound" and row.train_fraction == 1]
    made["timelines"] = [timeline for row in heads for timeline in _timelines(row)]
    return made


def _flaw_bars(rows: Sequence[Row]) -> Iterator[Bar]:
    """The reference protocol's figure = the sound run's error + what training and tuning add + what scoring adds."""
    diarizers: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.diarizes:
            diarizers.setdefault((row.title, row.protocol), row)
    for title in dict.fromkeys(title for title, _ in diarizers):
        reference, sound = diarizers.get((title, "reference")), diarizers.get((title, "sound"))
        if not reference or not sound:
            continue
        published_way, mapped, remains = reference.figures["fixed_der"], reference.figures["der"], sound.figures["der"]
        if None in (published_way, mapped, remains):
            continue
        yield (
            title,
            [
                ("what remains under the sound protocol", remains, plots.PALETTE[2]),
                ("training order, padding, tuning on test", mapped - remains, plots.PALETTE[4]),
                ("scoring with fixed channels", published_way - mapped, plots.PALETTE[1]),
            ],
        )


def _training(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    for row in rows:
        for run in row.runs:
            history = run.files.history()
            if history.keys() & {"step", "epoch"} and history.keys() & {"train_loss", "loss"}:
                title = f"{row.title}, {row.protocol}: {run.name}"
                svg = plots.training(title, history, run.result.get("best_epoch"))
                yield {"title": title, "svg": svg}


def _timelines(row: Row) -> list[dict[str, str]]:
    """The first windows of a run: best to look at, not best in score."""
    reference, hypothesis, uem = row.files.diarization()
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
            "title": f"{row.title}: {name}, DER {rate(scored.recordings[name].der, None)}",
            "svg": plots.timeline(
                f"{row.title} {name}",
                reference[name].to_annotation(name),
                hypothesis[name].to_annotation(name),
                scored.mappings[name],
                *uem[name][0].tolist(),
            ),
        }
        for name in shown
    ]
