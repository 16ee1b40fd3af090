"""What all commands have: their settings, ``-h``, ``--version``."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_EMPTY = re.compile(r"--(?!split)[\w-]+=")
#: For `typer.Typer`: commands inside take it over.
CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Commands(TyperGroup):
    """Refuses what a shell makes of a variable that is not set: an empty path would be the folder one happens to be in."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        for before, word in zip(["", *own], own, strict=False):
            if (not word and before != "--split") or _EMPTY.fullmatch(word):
                where = word or f"{before} ''"
                raise typer.BadParameter(f"{where.strip()}: is empty; a variable that is not set?")
        return super().parse_args(ctx, args)


def new_app() -> typer.Typer:
    """A command that holds others."""
    return typer.Typer(
        cls=_Commands,
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
