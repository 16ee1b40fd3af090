"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _folder(store: Path) -> Path:
    from featstore.store.address import as_url

    if url := as_url(store):
        raise typer.BadParameter(f"{url}: this takes a folder; copy it with: featstore pull {url} STORE")
    return store


StoreOption = Annotated[Path, typer.Option(help="The store's folder.", callback=_folder)]
StoreArgument = Annotated[Path, typer.Argument(help="The store's folder.", callback=_folder)]
ReadableArgument = Annotated[Path, typer.Argument(help="The store's folder, or its address.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
