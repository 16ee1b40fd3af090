"""``featstore simulate``: sessions out of utterances."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import going_on_later, user_errors
from cli.featstore.options import JsonOption
from cli.progress import bar


@user_errors()
def simulate(
    manifest: Annotated[str, typer.Argument(help="Single-speaker utterances: JSONL, saved HF dataset or hf:NAME.")],
    recipe: Annotated[str, typer.Option(help="meeting_small, meeting, 2spk, … (docs/simulation.md), or a TOML file.")],
    out: Annotated[Path, typer.Option(help="Folder for audio, RTTM and manifest.jsonl.")],
    split: Annotated[str | None, typer.Option(help="Take only utterances of this split.")] = None,
    sessions: Annotated[int | None, typer.Option(min=1, help="How many, in place of the recipe's number.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is drawn (0 without).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (all cores without).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make multi-speaker sessions with RTTM out of single-speaker utterances.

    The same seed gives the same sessions, whatever the number of workers; a killed run goes on where it stopped.
    Meetings are held in rooms, with noise: pip install -e '.\\[rooms]'.

    [bold]Examples[/bold]

        featstore simulate train.jsonl --recipe 2spk --out sim-2spk

        featstore simulate train.jsonl --recipe meeting_small --out meetings --split train

        featstore simulate train.jsonl --recipe my.toml --out sim --split train --sessions 50 --seed 7
    """
    import os

    from featstore.corpora.manifest import read_manifest
    from featstore.simulation.recipe import read_recipe
    from featstore.simulation.simulate import simulate as run

    plan = read_recipe(recipe)
    utterances = read_manifest(manifest)
    with going_on_later(f"is in {out}"), bar(f"simulating {plan.name}") as shown:
        report = run(
            utterances,
            plan,
            out,
            seed=seed or 0,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, of, seconds: shown.update(done, of, f"{seconds / 3600:.2f} h"),
            split=split,
            sessions=sessions,
        )
    print(json.dumps(report.to_json()) if as_json else report)
    for failure in report.failures[:10]:
        print(f"failed: {failure}", file=sys.stderr)
    if report.failures:
        raise SystemExit(1)
