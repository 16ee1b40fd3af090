"""``evaluation``: numbers from stores, trial lists and RTTM files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import user_errors

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.bootstrap import Interval
    from evaluation.diarization import DiarizationErrors
    from evaluation.doctor import Check

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Numbers one can believe: EER, DER, JER, and checks on what they were measured with."""


def _console() -> Console:
    from rich.console import Console

    # A file or a pipe has no width of its own: rich would fold tables to 80 columns there.
    return Console() if sys.stdout.isatty() else Console(width=120)


def _say(rows: list[tuple[str, str]], title: str) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _warn(warnings: list[str] | tuple[str, ...]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.2f} … {100 * interval.high:.2f} %"


@app.command()
@user_errors()
def eer(
    store: Annotated[Path, typer.Option(help="Store that holds the features.")],
    feature: Annotated[str, typer.Option(help="Feature to score with, e.g. mimi.")],
    trials: Annotated[Path, typer.Option(help="Trial list: lines '1 a b' or '0 a b', plain or .gz.")],
    centre: Annotated[
        bool | None, typer.Option("--centre/--no-centre", help="Subtract the train split's mean vector first.")
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=1, help="Resamples for a 95 % interval by speaker, e.g. 1000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the resampling (0 without).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Equal error rate of cosine scores between mean-pooled features.

    A trial names an utterance by its id (with or without a file extension) or by the end of its source path.

    [bold]Examples[/bold]

        evaluation eer --store STORE --feature mimi --trials veri_test2.txt

        evaluation eer --store STORE --feature mimi --trials trials.txt.gz --bootstrap 1000 --json
    """
    import numpy as np

    import featstore
    from evaluation.bootstrap import eer_intervals
    from evaluation.trials import read_trials, score_trials
    from evaluation.verification import evaluate_scores

    scored = score_trials(featstore.open(store), feature, read_trials(trials), centre=bool(centre))
    result = evaluate_scores(scored.scores, scored.trials.same)
    data: dict[str, Any] = {"feature": feature, "trials": str(trials), "centred": bool(centre), **result.to_json()}
    rows = [
        ("EER", _percent(result.eer)),
        *((f"minDCF (p = {prior:g})", f"{value:.4f}") for prior, value in result.min_dcf.items()),
        ("mean score, same / different", f"{result.mean_same:.4f} / {result.mean_different:.4f}"),
        ("score range", f"{result.min_score:.4f} … {result.max_score:.4f}"),
        ("trials, same / different", f"{result.num_same:,} / {result.num_trials - result.num_same:,}"),
    ]
    if bootstrap:
        interval, _ = eer_intervals(
            scored.scores,
            scored.trials.same,
            scored.left_speakers,
            scored.right_speakers,
            np.random.default_rng(seed or 0),
            num_resamples=bootstrap,
        )
        data["eer_interval"] = {**interval.to_json(), "resampled": "speakers", "seed": seed or 0}
        rows.insert(1, (f"95 % interval over {interval.num_units} speakers", _range(interval)))
    data["warnings"] = list(scored.warnings)
    _warn(scored.warnings)
    if as_json:
        print(json.dumps(data))
    else:
        from rich.markup import escape

        _say(rows, escape(f"{feature} on {trials.name}") + (", centred" if centre else ""))


@app.command()
@user_errors()
def der(
    ref: Annotated[Path, typer.Option(help="Reference: an RTTM file, or a folder of them.")],
    hyp: Annotated[Path, typer.Option(help="System output: an RTTM file, or a folder of them.")],
    uem: Annotated[Path | None, typer.Option(help="What to score: a UEM file, or a folder of them.")] = None,
    collar: Annotated[
        float | None,
        typer.Option(help="Seconds left out on EACH side of a reference boundary, as md-eval -c; pyannote's is twice."),
    ] = None,
    skip_overlap: Annotated[
        bool, typer.Option("--skip-overlap", help="Leave out overlapped reference speech.")
    ] = False,
    channels: Annotated[
        str | None,
        typer.Option(help="Hypothesis speakers in channel order, a,b,c,… (else by arrival); for the fixed figure."),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=1, help="Resamples for a 95 % interval by recording, e.g. 1000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the resampling (0 without).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Diarization error rate, exact to the boundary, by recording and over the corpus (sums, then division).

    With a UEM, what it lists is scored and nothing else. A recording that the hypothesis lacks is missed in full; one
    that only the hypothesis has needs a UEM, else it is listed and the exit code is 1.

    [bold]Examples[/bold]

        evaluation der --ref ami/test.rttm --hyp output.rttm --uem ami/test.uem

        evaluation der --ref refs/ --hyp hyps/ --collar 0.25 --skip-overlap --json
    """
    import numpy as np

    from evaluation.bootstrap import ratio_intervals
    from evaluation.diarization import score
    from evaluation.rttm import read_rttm, read_uem

    notes: list[str] = []
    reference, hypothesis = read_rttm(ref, notes.append), read_rttm(hyp, notes.append)
    order = channels.split(",") if channels else None
    speakers = {name for turns in hypothesis.values() for name in turns.speakers}
    if absent := [name for name in order or () if name not in speakers]:
        raise ValueError(
            f"--channels: {', '.join(absent)} in no recording of {hyp}; there are {', '.join(sorted(speakers)[:10])}"
        )
    result = score(
        reference,
        hypothesis,
        uem=None if uem is None else read_uem(uem, notes.append),
        collar_s=collar or 0.0,
        skip_overlap=skip_overlap,
        hypothesis_order=order,
    )
    notes += result.notes
    corpus = result.corpus
    data = {"collar_s": collar or 0.0, "skip_overlap": skip_overlap, **result.to_json(), "notes": notes}
    title = f"DER, collar ±{collar or 0:g} s, overlap {'left out' if skip_overlap else 'scored'}"
    if bootstrap:
        each = list(result.recordings.values())
        interval, _ = ratio_intervals(
            np.array([e.missed_s + e.false_alarm_s + e.confusion_s for e in each]),
            np.array([e.total_s for e in each]),
            np.random.default_rng(seed or 0),
            num_resamples=bootstrap,
        )
        data["der_interval"] = {**interval.to_json(), "resampled": "recordings", "seed": seed or 0}
        title += f"; 95 % interval of the corpus over {interval.num_units} recordings: {_range(interval)}"
    _warn(notes)
    if as_json:
        print(json.dumps(data))
    else:
        _say_errors({**result.recordings, f"all {len(result.recordings)}": corpus}, title)
    if result.unscored:
        raise SystemExit(1)


def _say_errors(rows: dict[str, DiarizationErrors], title: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("recording", overflow="fold", min_width=12)
    for column in ("DER", "missed", "FA", "confused", "FA+Miss", "JER", "fixed", "speech s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, errors in rows.items():
        rates = errors.to_json()
        keys = ("der", "missed_detection", "false_alarm", "confusion", "detection", "jer", "fixed_der")
        cells = ["—" if rates[key] is None else f"{100 * rates[key]:.2f}" for key in keys]
        table.add_row(escape(name), *cells, f"{errors.total_s:.2f}", end_section=name == list(rows)[-2])
    console = _console()
    console.print(table)
    console.print("Rates in %. Fixed: DER without speaker mapping, for comparison with figures published so.")


@app.command()
@user_errors()
def doctor(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to audit.")] = None,
    ref: Annotated[Path | None, typer.Option(help="Reference RTTM (file or folder) to try the scorer on.")] = None,
    uem: Annotated[Path | None, typer.Option(help="What of the reference to score.")] = None,
    store: Annotated[Path | None, typer.Option(help="Store to audit for leaks.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the random crops (0 without).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Is the scorer right, does the store leak, do a run's figures follow from its files? Exit code 1 if not.

    A reference is scored against itself, with channels permuted, in crop order, through frames (the floor that no
    frame-level system can beat) and under each collar convention, and compared with AMI's known totals.

    [bold]Examples[/bold]

        evaluation doctor --ref ami/rttms/dev --uem ami/uems/dev

        evaluation doctor --store STORE RUN1 RUN2
    """
    import numpy as np

    import featstore
    from evaluation import audit
    from evaluation.doctor import check_reference, failed
    from evaluation.rttm import read_rttm, read_uem

    if ref is None and store is None and not runs:
        raise ValueError("nothing to look at: give --ref RTTM, --store STORE or runs")
    if uem is not None and ref is None:
        raise ValueError("--uem says what of a reference to score: give --ref too")
    notes: list[str] = []
    checks = []
    if ref is not None:
        regions = None if uem is None else read_uem(uem, notes.append)
        rng = np.random.default_rng(seed or 0)
        checks += check_reference(read_rttm(ref, notes.append), rng, uem=regions)
    opened = None if store is None else featstore.open(store)
    if opened is not None:
        checks += audit.check_store(opened)
    for run in runs or ():
        checks += audit.check_run(run, opened)
    bad = failed(checks)
    _warn(notes)
    if as_json:
        print(json.dumps({"ok": not bad, "checks": [check.to_json() for check in checks], "notes": notes}))
    else:
        _say_checks(checks)
    if bad:
        raise SystemExit(1)


def _say_checks(checks: list[Check]) -> None:
    from rich.markup import escape
    from rich.table import Table

    style = {"ok": "green", "info": "dim", "warning": "yellow", "error": "bold red"}
    table = Table(title_justify="left", show_lines=False)
    for column in ("check", "found", "expected"):
        table.add_column(column, overflow="fold")
    table.add_column("", no_wrap=True)
    for check in checks:
        table.add_row(
            escape(check.name), escape(check.found), escape(check.expected), f"[{style[check.level]}]{check.level}[/]"
        )
    console = _console()
    console.print(table)
    count = sum(check.level == "error" for check in checks)
    console.print(f"{len(checks)} checks, {count} failed." if count else f"{len(checks)} checks, none failed.")


@app.command()
@user_errors()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `trainers fit` made.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.")],
    bootstrap: Annotated[
        int | None, typer.Option(min=1, help="Resamples for the 95 % intervals (1000 without).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the resampling (0 without).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json and nothing else.")] = False,
) -> None:
    """One page that says what came out: published, reference and sound figures side by side, with intervals.

    [bold]Examples[/bold]

        evaluation report runs/* --out report

        evaluation report runs/probe runs/adapter --out report --json
    """
    from evaluation.report import report as make

    facts = make(runs, out, num_resamples=bootstrap or 1000, seed=seed or 0)
    _warn(facts["warnings"])
    if as_json:
        print(json.dumps(facts))
        return
    for finding in facts["findings"]:
        print(f"- {finding}")
    print(f"report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    app()
