"""What all commands have: their settings, ``-h``, ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

#: For `typer.Typer`: commands inside take it over.
CONTEXT = {"help_option_names": ["-h", "--help"]}


def new_app() -> typer.Typer:
    """A command that holds others."""
    return typer.Typer(
        no_args_is_help=True,
        context_settings=CONTEXT,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )


def _show(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"whowhen {version('whowhen')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_show, is_eager=True)
]
