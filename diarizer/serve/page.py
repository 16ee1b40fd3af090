"""The page that the server shows: one file, whose script and style are inside of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(facts: Mapping[str, Any], nonce: str = "", *, needs_token: bool = False, watch: str | None = None) -> str:
    """The page as HTML.

    Parameters
    ----------
    facts : the run and its warnings.
    nonce : what its script and style carry, for the server's Content-Security-Policy.
    watch : a session to look at, in place of a microphone.
    """
    environment = Environment(
        # The report's looks: one place has the colours.
        loader=ChoiceLoader([PackageLoader("diarizer.serve", "."), PackageLoader("evaluation", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("live.html.j2").render(
        facts=facts,
        nonce=nonce,
        needs_token=json.dumps(needs_token),
        watch=watch,
        version=metadata.version("whowhen"),
    )
