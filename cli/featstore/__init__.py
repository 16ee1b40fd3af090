"""``featstore``: speech in, features out."""

from __future__ import annotations

from cli.featstore import copies, extract, labels, simulate, stores
from cli.options import VersionOption, new_app

app = new_app()


@app.callback()
def main(version: VersionOption = False) -> None:
    """Frame-level features of speech in a store that a laptop trains from."""


for command in (extract.extract, simulate.simulate, stores.info, stores.verify, copies.push, copies.pull):
    app.command()(command)
for upkeep in (stores.compact, labels.relabel, labels.remove, copies.merge):
    app.command()(upkeep)
app.command("export")(copies.export)
app.command("import")(copies.import_)
