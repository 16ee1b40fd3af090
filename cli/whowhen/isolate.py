"""``whowhen isolate``: one voice out of a recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import starting_over, user_errors, warn
from cli.whowhen.options import DeviceOption, EnrolOption, RunOption, WeightsOption, opened, pairs_of


@user_errors()
def isolate(
    audio: Annotated[Path, typer.Argument(metavar="AUDIO", help="The recording.")],
    speaker: Annotated[
        str, typer.Option(metavar="NAME|N", help="Whose voice: an enrolled name, or a number by who speaks first.")
    ],
    tse: Annotated[Path | None, typer.Option(help="Folder of a run of fit tse.")] = None,
    run: RunOption = None,
    enrol: EnrolOption = None,
    out: Annotated[Path | None, typer.Option(help="The WAV file \\[AUDIO's name, then the speaker's].")] = None,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere", help="Also where that voice does not speak by the diarization; silent there else."
        ),
    ] = False,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
    ] = False,
) -> None:
    """One voice out of a recording, the others taken away: a WAV file at 16 kHz as long as the recording.

    Any length: it is heard in overlapping pieces. Whose voice it is, the diarization says (--run) by where that person speaks
    alone, or an enrolment (--enrol) by a recording of that person.

    [bold]Examples[/bold]

        whowhen isolate meeting.wav --tse runs/tse --speaker 2

        whowhen isolate meeting.wav --tse runs/tse --speaker Ann --enrol Ann=ann.wav

        whowhen isolate mixture.wav --tse runs/tse --speaker Ann --enrol Ann=ann.wav --everywhere     (no diarization)
    """
    if tse is None:
        raise ValueError(
            "--tse: name the folder of a run that takes voices apart; train one with: trainers fit tse --store STORE --out RUN "
            "--preset small"
        )
    from cli.progress import bar
    from diarizer.isolate import Isolator, write
    from diarizer.sound import Sound
    from trainers.runs import Run

    sound, target = Sound(str(audio)), out or Path(f"{audio.stem}-{speaker.replace('/', '-')}.wav")
    duration_s = sound.duration_s
    if target.exists() and target.samefile(audio):
        raise ValueError(f"{target}: is the recording itself; choose another --out")
    extraction = Run.open(tse)
    moved, known = pairs_of("--weights", weights, "FEATURE=PATH"), dict(pairs_of("--enrol", enrol, "NAME=AUDIO"))
    isolator = Isolator(extraction, {k: v for k, v in moved if k in extraction.features}, device or "auto")
    for warning in isolator.warnings:
        warn(warning)
    with starting_over("recording"), bar(f"isolate {speaker}") as shown:
        turns = None
        if speaker not in known or not everywhere:
            rest = [f"{key}={value}" for key, value in moved if key not in extraction.features]
            turns = opened(run, rest, device, enrol)(audio)
        enrolment = Sound(known[speaker]) if speaker in known else None
        voice, spans = isolator.whose(sound, speaker, turns, enrolment)
        spans = None if everywhere else spans
        pieces = isolator.pieces(sound, voice, lambda done_s: shown.update(done_s, duration_s))
        written_s = write(target, pieces, spans)
    if as_json:
        spoken = None if spans is None else round(sum(b - a for a, b in spans), 3)
        facts = {"file": str(target), "speaker": speaker, "duration_s": round(written_s, 3), "speaking_s": spoken}
        print(json.dumps({**facts, "run": str(tse), "warnings": list(isolator.warnings)}))
    else:
        where = "" if spans is None else ", silent where that voice does not speak"
        print(f"{target}: {written_s:.1f} s of {speaker}{where}")
