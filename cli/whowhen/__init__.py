"""``whowhen``: a trained run put to use."""

from __future__ import annotations

import typer

from cli.options import CONTEXT, VersionOption
from cli.whowhen import diarize, isolate, live, moshi, serve

app = typer.Typer(
    no_args_is_help=True,
    context_settings=CONTEXT,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def main(version: VersionOption = False) -> None:
    """Who spoke when, in recordings and on the fly."""


for command in (diarize.diarize, live.live, serve.serve, moshi.moshi, isolate.isolate):
    app.command()(command)
