"""What is an address, and what a folder."""

from __future__ import annotations

import os
import re
from os import PathLike

_URL = re.compile(r"(s3|gs|az|https?|file):/+")


def as_url(path: str | PathLike[str]) -> str | None:
    """`path` as the address of a remote store, or None; also where pathlib made ``s3:/bucket`` of ``s3://bucket``."""
    text = os.fspath(path)
    found = _URL.match(text)
    slashes = "///" if found and found[1] == "file" else "//"
    return f"{found[1]}:{slashes}{text[found.end() :].rstrip('/')}" if found else None
