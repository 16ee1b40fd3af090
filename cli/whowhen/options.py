"""What several commands ask for in the same words: a run, its encoders' weights, a device, known voices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import warn

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer

RunOption = Annotated[
    Path | None, typer.Option(help="Folder of a trained run \\[a small one on demo weights that comes along].")
]
EnrolOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=AUDIO", help="A known voice: 10 s or more of that person alone; may be repeated."),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FEATURE=PATH", help="Where an encoder's weights lie now; may be repeated."),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps \\[auto].")]


def opened(run: Path | None, weights: list[str] | None, device: str | None, enrol: list[str] | None) -> Diarizer:
    """The run that these options say, its voices enrolled; its warnings go to stderr.

    Raises
    ------
    ValueError : a pair without ``=``, a name twice; like `diarizer.load` and `Diarizer.enrol`.
    """
    import diarizer

    moved = dict(pairs_of("--weights", weights, "FEATURE=PATH (such as mimi=tokenizer.safetensors)"))
    made = diarizer.load(run, weights=moved, device=device or "auto")
    for warning in made.warnings:
        warn(warning)
    for name, path in pairs_of("--enrol", enrol, "NAME=AUDIO"):
        if name in made.voices:
            raise ValueError(f"--enrol: {name!r} is named twice; join that person's recordings into one file")
        made.enrol(name, path)
    return made


def pairs_of(option: str, given: list[str] | None, form: str) -> list[tuple[str, str]]:
    """What an option of the form ``KEY=VALUE`` says, in order.

    Raises
    ------
    ValueError : a text without ``=``, or with nothing on one side of it.
    """
    pairs = []
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value:
            raise ValueError(f"{option}: expected {form}, found {text!r}")
        pairs.append((key.strip(), value))
    return pairs
