"""The S3 server that the environment names."""

from __future__ import annotations

import os
import re

from featstore.store.layout import StoreError


def endpoint() -> str:
    """The S3 server that the AWS_… variables name, "" for none; refuses what obstore would fail over.

    obstore reads these variables by itself, and takes an empty one for an address; what it is told goes before them.

    Raises
    ------
    StoreError
    """
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name, value in variables.items():
        if re.search(r"[\x00-\x1f\x7f]", value):
            raise StoreError(f"{name}: holds a control character (a line break?); set it again without")
        if name.startswith("AWS_ENDPOINT") and value and not re.fullmatch(r"https?://[!-~]+", value):
            raise StoreError(f"{name}: expected http://HOST:PORT or https://HOST, found {value!r}")
    named = [variables.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")]
    if named[0] == "":  # which nothing that obstore is told goes before
        raise StoreError("AWS_ENDPOINT_URL_S3: is empty; unset it, or name the server")
    if not any(named) and "" in named:
        region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1"
        return f"https://s3.{region}.amazonaws.com"
    return next(filter(None, named), "")
