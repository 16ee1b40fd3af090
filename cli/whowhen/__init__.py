"""``whowhen``: a trained run put to use."""

from __future__ import annotations

from cli.options import VersionOption, new_app
from cli.whowhen import diarize, isolate, live, moshi, serve

app = new_app()


@app.callback()
def main(version: VersionOption = False) -> None:
    """Who spoke when, in recordings and on the fly."""


for command in (diarize.diarize, live.live, serve.serve, moshi.moshi, isolate.isolate):
    app.command()(command)
