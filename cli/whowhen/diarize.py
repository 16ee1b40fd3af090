"""``whowhen diarize``: whole recordings."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import going_on_later, user_errors, warn
from cli.whowhen.options import DeviceOption, EnrolOption, RunOption, WeightsOption, opened

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer
    from diarizer.jobs import Outcome


@user_errors()
def diarize(
    audio: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AUDIO…",
            help="Files, patterns, folders, NeMo manifests (.jsonl), or - for standard input; with --store, ids or patterns.",
        ),
    ] = None,
    run: RunOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for RTTM, JSON and page of each recording \\[whowhen-out].")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Take features from this store in place of audio; all its utterances if none is named."),
    ] = None,
    speakers: Annotated[int | None, typer.Option(help="How many speak \\[found out].")] = None,
    min_speakers: Annotated[int | None, typer.Option(help="At least so many.")] = None,
    max_speakers: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    enrol: EnrolOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
) -> None:
    """Who spoke when in each recording: OUT/NAME.rttm, NAME.json, and NAME.html to look at and listen to.

    Any length, rate and number of channels. Kill it whenever you like: the same command goes on where it was. Recordings
    that fail are listed and the exit code is 1; the rest is kept.

    [bold]Examples[/bold]

        whowhen diarize meeting.wav

        whowhen diarize recordings/ --run runs/cascade --out told --enrol Ann=ann.wav --enrol Bob=bob.wav

        whowhen diarize 'interviews/*.mp3' --speakers 2

        ffmpeg -i talk.mp4 -f wav - | whowhen diarize -
    """
    import tempfile

    import featstore
    from cli.progress import bar
    from diarizer.inputs import recordings_of, stored
    from diarizer.jobs import diarize_all
    from featstore.store.show import counted

    held = featstore.open(store) if store else None
    if not audio and held is None:
        raise ValueError("nothing to diarize: name audio files, folders, manifests or -, or a --store")
    folder = out or Path("whowhen-out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as temporary, going_on_later():
        recordings = stored(held, audio or []) if held else recordings_of(audio or [], Path(temporary))
        made = opened(run, weights, device, enrol)
        limits = {"speakers": speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
        with bar(f"diarize {counted(len(recordings), 'recording')}") as shown:
            outcome = diarize_all(made, recordings, folder, store=held, limits=limits, shown=shown.update)
    _show(outcome, made, folder, as_json)
    if outcome.failed:
        raise SystemExit(1)


def _show(outcome: Outcome, made: Diarizer, out: Path, as_json: bool) -> None:
    from featstore.store.show import counted

    if as_json:
        all_of_it = {
            "run": str(made.run.path),
            "out": str(out),
            "warnings": list(made.warnings),
            "recordings": list(outcome.told.values()),
            "there": outcome.there,
            "failed": outcome.failed,
            "speed": round(outcome.speed, 2),
        }
        print(json.dumps(all_of_it))
    else:
        for name, told in outcome.told.items():
            people = ", ".join(f"{s['name']} {s['share']:.0%}" for s in told["speakers"]) or "nobody speaks"
            there = " (there already)" if name in outcome.there else ""
            print(f"{out / name}.html: {counted(len(told['speakers']), 'speaker')}: {people}{there}")
            for warning in told["warnings"]:
                if warning not in made.warnings:  # which were told at the start
                    warn(f"{name}: {warning}")
        if outcome.audio_s:
            print(f"{outcome.audio_s:.0f} s of audio in {outcome.seconds:.1f} s, {outcome.speed:.1f} × real time")
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
