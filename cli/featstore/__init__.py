"""``featstore``: speech in, features out."""

from __future__ import annotations

import typer

from cli.featstore import copies, extract, simulate, stores

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Frame-level features of speech in a store that a laptop trains from."""


for command in (extract.extract, simulate.simulate, stores.info, stores.verify, copies.push, copies.pull):
    app.command()(command)
app.command()(stores.compact)
app.command("export")(copies.export)
app.command("import")(copies.import_)
