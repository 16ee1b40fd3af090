"""``whowhen moshi``: Moshi's own server, and who speaks to it."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cli.errors import user_errors
from cli.whowhen.options import DeviceOption, EnrolOption, RunOption, WeightsOption, opened
from cli.whowhen.serve import CertificateOption, HostOption, KeyOption, LatencyOption, TokenOption, address_of


@user_errors()
def moshi(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="Of moshi.server, as they are.")
    ] = None,
    run: RunOption = None,
    host: HostOption = None,
    port: Annotated[int | None, typer.Option(help="Of our page; 0 takes one that is free \\[8765].")] = None,
    latency: LatencyOption = None,
    token_file: TokenOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    enrol: EnrolOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
) -> None:
    """Start moshi.server with a head on its Mimi: who speaks, of latents that it computes anyway.

    Turns go to Moshi's page as metadata (docs/serve.md) and to a page of ours. What Moshi says stays as it is, token for
    token; a head that fails costs turns, not the conversation.

    [bold]Examples[/bold]

        whowhen moshi --run runs/cascade -- --hf-repo kyutai/moshiko-pytorch-bf16

        whowhen moshi --port 8080 -- --host localhost --port 8998
    """
    from diarizer.serve.moshi import run as start

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    address = address_of(host, port, token_file, tls_cert, tls_key)
    made = opened(run, weights, device, enrol)
    start(made, arguments or [], address, lambda url: print(f"who speaks: {url}", flush=True), latency)
