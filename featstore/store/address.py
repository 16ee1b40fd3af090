"""What is an address, and what a folder."""

from __future__ import annotations

import os
import re
from os import PathLike

from featstore.store.layout import StoreError

_URL = re.compile(r"(s3|gs|az|https?|file):/+")


def as_url(path: str | PathLike[str]) -> str | None:
    """`path` as the address of a remote store, or None; also where pathlib made ``s3:/bucket`` of ``s3://bucket``."""
    text = os.fspath(path)
    found = _URL.match(text)
    slashes = "///" if found and found[1] == "file" else "//"
    return f"{found[1]}:{slashes}{text[found.end() :].rstrip('/')}" if found else None


def refuse_address(path: str | PathLike[str]) -> None:
    """Refuse an address where a folder is meant: mkdir would make a folder named ``s3:`` of it.

    Raises
    ------
    StoreError
    """
    if url := as_url(path):
        raise StoreError(
            f"{url}: an address, and this takes a folder: write into one, then: featstore push FOLDER {url} "
            f"(to copy what is there: featstore pull {url} FOLDER)"
        )
