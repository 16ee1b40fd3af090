"""What the `evaluation` commands show people: tables on stdout, warnings on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.errors import warn as say

if TYPE_CHECKING:
    from evaluation.bootstrap import Interval
    from evaluation.diarization import DiarizationErrors, DiarizationResult
    from evaluation.doctor import Check
    from evaluation.verification import VerificationResult


def warn(warnings: Iterable[str]) -> None:
    """One line each on stderr."""
    for warning in warnings:
        say(warning)


def _console() -> Console:
    # A file or a pipe has no width of its own: rich would fold tables to 80 columns there.
    return Console() if sys.stdout.isatty() else Console(width=120)


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.2f} … {100 * interval.high:.2f} %"


def show_verification(result: VerificationResult, interval: Interval | None, title: str) -> None:
    """EER, its interval and what goes with it, a row each."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("EER", _percent(result.eer))
    if interval:
        table.add_row(f"95 % interval over {interval.num_units} speakers", _span(interval))
    for prior, value in result.min_dcf.items():
        table.add_row(f"minDCF (p = {prior:g})", f"{value:.4f}")
    table.add_row("mean score, same / different", f"{result.mean_same:.4f} / {result.mean_different:.4f}")
    table.add_row("score range", f"{result.min_score:.4f} … {result.max_score:.4f}")
    table.add_row("trials, same / different", f"{result.num_same:,} / {result.num_trials - result.num_same:,}")
    _console().print(table)


def show_diarization(result: DiarizationResult, interval: Interval | None, title: str) -> None:
    """Error rates by recording, and of all of them last."""
    if interval:
        title += f"; 95 % interval of the corpus over {interval.num_units} recordings: {_span(interval)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("recording", overflow="fold", min_width=12)
    for column in ("DER", "missed", "FA", "confused", "FA+Miss", "JER", "fixed", "speech s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, errors in result.recordings.items():
        table.add_row(escape(name), *_rates(errors), end_section=name == list(result.recordings)[-1])
    table.add_row(f"all {len(result.recordings)}", *_rates(result.corpus))
    console = _console()
    console.print(table)
    console.print("Rates in %. Fixed: DER without speaker mapping, for comparison with figures published so.")


def _rates(errors: DiarizationErrors) -> list[str]:
    rates = errors.to_json()
    keys = ("der", "missed_detection", "false_alarm", "confusion", "detection", "jer", "fixed_der")
    return ["—" if rates[key] is None else f"{100 * rates[key]:.2f}" for key in keys] + [f"{errors.total_s:.2f}"]


def show_checks(checks: list[Check]) -> None:
    """The doctor's findings, and how many of them are errors."""
    style = {"ok": "green", "info": "dim", "warning": "yellow", "error": "bold red"}
    table = Table(title_justify="left", show_lines=False)
    for column in ("check", "found", "expected"):
        table.add_column(column, overflow="fold")
    table.add_column("", no_wrap=True)
    for check in checks:
        level = f"[{style[check.level]}]{check.level}[/]"
        table.add_row(escape(check.name), escape(check.found), escape(check.expected), level)
    console = _console()
    console.print(table)
    count = sum(check.level == "error" for check in checks)
    console.print(f"{len(checks)} checks, {count} failed." if count else f"{len(checks)} checks, none failed.")
