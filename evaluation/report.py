"""The report: what was published, what the published procedure gives here, what a sound one gives, side by side.

Reads run folders only, so that it can be made anywhere, long after the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from evaluation.facts import gather
from evaluation.pictures import pictures
from evaluation.words import rate, span


def report(
    runs: Sequence[str | PathLike[str]], out: str | PathLike[str], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Write report.html, report.md and report.json into `out`; returns what report.json holds.

    Each run is audited on the way (`evaluation.audit.check_run`); what does not hold stands on top of the page.

    Parameters
    ----------
    num_resamples : of every 95 % interval; trials are resampled by speaker, diarization errors by recording.

    Raises
    ------
    ValueError : no run, or a folder that is not a finished run.
    """
    facts, rows, plotted = gather(runs, num_resamples, seed)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    (target / "report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = facts | {"pictures": pictures(rows, plotted)}
    for name, template in (("report.html", "report.html.j2"), ("report.md", "report.md.j2")):
        (target / name).write_text(_render(template, shown), encoding="utf-8")
    return facts


def _render(template: str, facts: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("evaluation", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": lambda line: rate(line["value"], line["interval"]), "span": span}
    environment.filters["glued"] = lambda text: text.replace(" %", "\u00a0%")  # no line ends before a % sign
    return environment.get_template(template).render(facts)
