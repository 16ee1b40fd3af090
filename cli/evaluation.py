"""``evaluation``: numbers from stores, trial lists and RTTM files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import starting_over, user_errors
from cli.options import VersionOption, new_app

if TYPE_CHECKING:
    from evaluation.bootstrap import Interval

app = new_app()


@app.callback()
def main(version: VersionOption = False) -> None:
    """Numbers one can believe: EER, DER, JER, and checks on what they were measured with."""


@app.command()
@user_errors()
def eer(
    store: Annotated[Path, typer.Option(help="Store that holds the features.")],
    trials: Annotated[Path, typer.Option(help="Trial list: lines '1 a b' or '0 a b', plain or .gz.")],
    feature: Annotated[
        list[str] | None, typer.Option(help="Feature to score with, e.g. mimi; may be repeated \\[all of the store].")
    ] = None,
    centre: Annotated[
        bool | None, typer.Option("--centre/--no-centre", help="Subtract the train split's mean vector first.")
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=1, help="Resamples for a 95 % interval by speaker, e.g. 1000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the resampling (0 without).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Equal error rate of cosine scores between mean-pooled features, of each feature by itself.

    A trial names an utterance by its id (with or without a file extension) or by the end of its source path.

    [bold]Examples[/bold]

        evaluation eer --store STORE --feature mimi --trials veri_test2.txt

        evaluation eer --store STORE --trials trials.txt.gz --bootstrap 1000 --json
    """
    from cli import tables
    from evaluation.measure import measure_eer

    found = measure_eer(store, feature or (), trials, centre=bool(centre), num_resamples=bootstrap or 0, seed=seed or 0)
    tables.warn(warning for _, _, warnings in found.values() for warning in warnings)
    if not as_json:
        for name, (result, interval, _) in found.items():
            tables.show_verification(result, interval, f"{name} on {trials.name}" + (", centred" if centre else ""))
        return
    told = [
        {"feature": name, "trials": str(trials), "centred": bool(centre)}
        | result.to_json()
        | _resampled(interval, "eer", seed)
        | {"warnings": list(warnings)}
        for name, (result, interval, warnings) in found.items()
    ]
    print(json.dumps(told[0] if len(told) == 1 else {"features": told}))


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
    from cli import tables
    from evaluation.measure import measure_der

    collar_s, order = collar or 0.0, channels.split(",") if channels else ()
    asked: dict[str, Any] = {"collar_s": collar_s, "skip_overlap": skip_overlap}
    result, interval, notes = measure_der(
        ref, hyp, uem=uem, **asked, channels=order, num_resamples=bootstrap or 0, seed=seed or 0
    )
    tables.warn(notes)
    if as_json:
        print(json.dumps(asked | result.to_json() | {"notes": list(notes)} | _resampled(interval, "der", seed)))
    else:
        tables.show_diarization(
            result, interval, f"DER, collar ±{collar_s:g} s, overlap {'left out' if skip_overlap else 'scored'}"
        )
    if result.unscored:
        raise SystemExit(1)


def _resampled(interval: Interval | None, figure: str, seed: int | None) -> dict[str, Any]:
    units = "speakers" if figure == "eer" else "recordings"
    if interval is None:
        return {}
    return {f"{figure}_interval": {**interval.to_json(), "resampled": units, "seed": seed or 0}}


@app.command()
@user_errors()
def doctor(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to audit, or folders that hold runs.")
    ] = None,
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
    from cli import tables
    from evaluation.doctor import failed
    from evaluation.measure import examine

    checks, notes = examine(runs or (), ref=ref, uem=uem, store=store, seed=seed or 0)
    tables.warn(notes)
    if as_json:
        told = {"ok": not failed(checks), "checks": [check.to_json() for check in checks], "notes": notes}
        print(json.dumps(told))
    else:
        tables.show_checks(checks)
    if failed(checks):
        raise SystemExit(1)


@app.command()
@user_errors()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that `trainers fit` made, or that hold such.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.")],
    bootstrap: Annotated[
        int | None, typer.Option(min=1, help="Resamples for the 95 % intervals (1000 without).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the resampling (0 without).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json and nothing else.")] = False,
) -> None:
    """One page that says what came out: published, reference and sound figures side by side, with intervals.

    [bold]Examples[/bold]

        evaluation report runs --out report

        evaluation report runs/probe runs/adapter --out report --json
    """
    from cli import tables
    from evaluation.report import report as make

    with starting_over("report"):
        facts = make(runs, out, num_resamples=bootstrap or 1000, seed=seed or 0)
    tables.warn(facts["warnings"])
    if as_json:
        print(json.dumps(facts))
        return
    print(facts["answer"]["text"])
    for finding in facts["findings"]:
        print(f"- {finding['text']}")
    print(f"report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    app()
