"""The experiments as rows: published, reference and sound figures beside each other, one row a set of encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation import voices
from evaluation.experiments import EXPERIMENTS, asked, label_of
from evaluation.rows import Row


def experiments_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each experiment and set of encoders that it was run on; of what was not run, one that says so."""
    return [line for id in EXPERIMENTS for line in _of_experiment(id, rows)]


def _of_experiment(id: str, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    known = [row for row in rows if row.experiment == ("1.5" if id == "1" else id) and _is_whole(row, rows)]
    if not known:
        features = tuple(EXPERIMENTS[id]["features"].split("+"))
        yield {
            "id": id,
            **asked(id, ()),
            "title": label_of(id, features),
            "features": list(features),
            "reference": None,
            "sound": None,
        }
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in known:
        # Parts, not only names: a cascade that swaps them is another one.
        key = (tuple(sorted(row.features)), row.when, row.who)
        number = next(n for n in range(len(known)) if row.protocol not in lines.get((*key, n), {}))
        lines.setdefault((*key, number), {})[row.protocol] = row
    for cells in lines.values():
        row = cells.get("sound") or cells["reference"]
        names = tuple(row.features)
        label = label_of(id, names, when=row.when, who=row.who) + (f" ({row.variant})" if row.variant else "")
        told = {"id": id, **asked(id, (*row.when, *row.who) or names), "title": label, "features": list(names)}
        yield told | {
            protocol: _cell(id, cells[protocol]) if protocol in cells else None for protocol in ("reference", "sound")
        }


def _is_whole(row: Row, rows: Sequence[Row]) -> bool:
    """Whether no other row of the same label and protocol was trained on more of the data."""
    return not any(
        (r.experiment, r.protocol, tuple(r.features)) == (row.experiment, row.protocol, tuple(row.features))
        and r.train_fraction > row.train_fraction
        for r in rows
    )


def _cell(id: str, row: Row) -> dict[str, Any]:
    if row.extracts:
        told = voices.cell(row)
    else:
        told = _sets(row) if row.unmixes else _diarization(row) if row.diarizes else _verification(id, row)
    if row.train_fraction < 1:
        told["on"] += f"; trained on {100 * row.train_fraction:g} % of the training data"
    return {"run": row.name, "warnings": row.files.warnings, "seeds": len(row.runs), **told}


def _line(what: str, figures: dict[str, Any], key: str, spread: bool = False) -> dict[str, Any]:
    return {
        "what": what,
        "value": figures[key],
        "interval": figures.get("interval" if key == "eer" else f"{key}_interval"),
        "spread": figures.get("spread") if spread else None,
    }


def _verification(id: str, row: Row) -> dict[str, Any]:
    result, figures = row.result, row.figures[{"1": "raw", "5": "proxy"}.get(id, "probe")]
    on = f"{result['num_trials']:,} trials, {result['num_trial_speakers']} speakers"
    if id != "1":
        whose = "of these very speakers" if row.protocol == "reference" else "other speakers"
        on += f"; trained on {result['num_utterances']} utterances of {result['num_speakers']} {whose}"
    return {"lines": [_line("EER", figures, "eer", spread=True)], "on": on}


def _sets(row: Row) -> dict[str, Any]:
    result, figures = row.result, row.figures

    def line(what: str, value: float | None, interval: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"what": what, "value": value, "interval": interval, "spread": None}

    told = [
        line(f"names not found, {system['name']}", system["missed"], system["missed_interval"])
        for system in figures["systems"].values()
    ]
    told += [
        line(f"miscounted, {system['name']}", system["miscounted"], system["miscounted_interval"])
        for name, system in figures["systems"].items()
        if "miscounted" in system and name != "mean"
    ]
    told.append(line("miscounted, always the most frequent number", figures["majority"]))
    told += [
        line(f"1 − F1 of people followed, {system['name']}", system["lost"], system["lost_interval"])
        for system in figures["memory"].values()
    ]
    speakers = f"{result['num_test_mixtures']} mixtures, {result['num_test_speakers']} speakers"
    on = f"{speakers}; trained on {result['num_mixtures']} mixtures of {result['num_speakers']} other speakers"
    if recordings := next((m["recordings"] for m in figures["memory"].values()), 0):
        on += f"; people followed through {recordings} recordings"
    return {"lines": told, "on": on}


def _diarization(row: Row) -> dict[str, Any]:
    figures = row.figures
    if row.protocol == "reference":
        lines = {
            "DER, fixed channels": "fixed_der",
            "FA+Miss": "detection",
            "confusion": "fixed_confusion",
            "its DER, mapped": "der",
        }
    else:
        lines = {"DER": "der", "FA+Miss": "detection", "confusion": "confusion", "JER": "jer"}
    told = [_line(what, figures, key, spread=key == "der") for what, key in lines.items()]
    if whole := figures.get("whole"):
        told.append(_line("DER, whole recordings", whole, "der", spread=True))
    told += [
        {"what": f"DER, {name.replace('_', ' ')}", "value": ceiling["test"]["der"], "interval": None, "spread": None}
        for name, ceiling in row.result.get("ceilings", {}).items()
    ]
    scope = "whole, one identity throughout" if row.whole_only else "by window"
    on = f"{figures['num_recordings']} recordings, {figures['scored_s'] / 60:.1f} min, {scope}; {_chosen(row)}"
    return {"lines": told, "on": on}


def _chosen(row: Row) -> str:
    """What decoding was tuned to, of each seed."""

    def each(key: str) -> str:
        found = dict.fromkeys(
            f"{v:g}" if isinstance(v, float) else str(v) for r in row.runs for v in [r.result["decoding"][key]]
        )
        return " / ".join(found)

    tuned = f"{each('clustering')} clusters, " if row.whole_only else ""
    tuned += f"threshold {each('threshold')}"
    return f"{tuned}{'' if row.whole_only else ', median ' + each('median')}, tuned on {each('tuned_on')}"
