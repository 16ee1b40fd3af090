"""The report: what was published, what the published procedure gives here, what a sound one gives, side by side.

Reads run folders only, so that it can be made anywhere, long after the store.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from evaluation.facts import gather
from evaluation.pictures import pictures
from evaluation.voices import players
from evaluation.words import decibels, rate, signed, span


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
    shown = facts | {"pictures": pictures(facts, rows, plotted), "players": players(rows)}
    for name, template in (("report.html", "report.html.j2"), ("report.md", "report.md.j2")):
        (target / name).write_text(render(template, shown), encoding="utf-8")
    return facts


def render(template: str, facts: dict[str, Any]) -> str:
    """The text of a report from its facts, and "pictures" among them, by a template of this folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("evaluation", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rate": lambda line: (decibels if line.get("unit") == "dB" else rate)(line["value"], line["interval"]),
        "decibels": lambda value: decibels(value, None),
        "span": span,
        "ends": lambda least_most: span(dict(zip(("low", "high"), least_most, strict=True))),
        "points": lambda difference: signed(difference).removesuffix(" points"),
        "glued": lambda text: text.replace(" %", "\u00a0%"),  # no line ends before a % sign
    }
    first_met = _Glossary(facts["terms"]).first_met
    return environment.get_template(template).render(facts, first_met=first_met, **_laid_out(facts))


def _laid_out(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The chart's rows by what they are scored on, trivial systems first in each, and an axis that holds every interval."""
    plain = {
        "what": "baseline",
        "parts": None,
        "seeds": 1,
        "spread": None,
        "weights": "",
        "note": "",
        "published": False,
    }
    trivial = [{**base, **plain, "label": base["what"], "der": base["value"]} for base in facts["baselines"]]
    rows = [row for row in trivial if row["measure"] == "DER"] + facts["chart"]
    scopes = dict.fromkeys(row["scope"] for row in sorted(rows, key=lambda row: bool(row["published"])))
    ends = [end for row in rows for end in (row["der"], *(row["spread"] or ()), (row["interval"] or {}).get("high", 0))]
    top = math.ceil(10 * max([0.1, *ends])) / 10
    step = 0.1 * math.ceil(top / 0.8 - 1e-9)  # nine ticks at most
    return {
        "groups": [(scope, [row for row in rows if row["scope"] == scope]) for scope in scopes],
        "axis": {"top": top, "ticks": [step * i for i in range(int(top / step + 1e-9) + 1)]},
    }


class _Glossary:
    """Gives each term out once: where it first stands. Spellings of one term are divided by " / "."""

    def __init__(self, terms: Sequence[dict[str, str]]) -> None:
        self._left = list(terms)

    def first_met(self, text: str) -> list[dict[str, str]]:
        said = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())  # "95 %" may be held together
        met = [term for term in self._left if any(_stands_in(word, said) for word in term["term"].split(" / "))]
        self._left = [term for term in self._left if term not in met]
        return [term | {"term": term["term"].split(" / ")[0]} for term in met]


def _stands_in(word: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}s?(?!\w)", text, re.IGNORECASE))
