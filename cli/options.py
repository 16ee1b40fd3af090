"""What all commands have: ``-h``, ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

#: For `typer.Typer`: commands inside take it over.
CONTEXT = {"help_option_names": ["-h", "--help"]}


def _show(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"whowhen {version('whowhen')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_show, is_eager=True)
]
