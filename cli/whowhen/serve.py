"""``whowhen serve``: live diarization for others, with a page."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import user_errors
from cli.whowhen.options import DeviceOption, EnrolOption, RunOption, WeightsOption, opened

if TYPE_CHECKING:
    from diarizer.serve.address import Address

HostOption = Annotated[
    str | None, typer.Option(help="Where to listen; others than localhost need a token and TLS \\[localhost].")
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the token that clients say; or the variable WHOWHEN_TOKEN."),
]
CertificateOption = Annotated[str | None, typer.Option("--tls-cert", help="Certificate (PEM).")]
KeyOption = Annotated[str | None, typer.Option("--tls-key", help="Its key (PEM).")]
LatencyOption = Annotated[
    float | None,
    typer.Option(
        "--latency", help="Seconds that an answer may wait, 0.16 to 10; clients may ask for another \\[1.04]."
    ),
]


@user_errors()
def serve(
    run: RunOption = None,
    host: HostOption = None,
    port: Annotated[int | None, typer.Option(help="0 takes one that is free \\[8765].")] = None,
    latency: LatencyOption = None,
    sessions: Annotated[int | None, typer.Option(help="At most so many at a time \\[8].", min=1)] = None,
    token_file: TokenOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A Moshi server (ws://localhost:8998) that keeps its latents to itself: stand between it and its clients.",
        ),
    ] = None,
    enrol: EnrolOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
) -> None:
    """Who speaks now, over WebSockets, for as many as ask; open the address in a browser for microphone, lanes and names.

    For localhost it needs nothing. Others reach it with a token and TLS. What it says and takes is in docs/serve.md;
    /health and /metrics are for those who watch over it. Sound is not kept.

    [bold]Examples[/bold]

        whowhen serve

        whowhen serve --run runs/cascade --enrol Ann=ann.wav --latency 0.32

        WHOWHEN_TOKEN=$(openssl rand -hex 16) whowhen serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
    """
    from diarizer.serve.board import Limits
    from diarizer.serve.run import hub_of
    from diarizer.serve.run import serve as serving

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    address = address_of(host, port, token_file, tls_cert, tls_key)
    hub = hub_of(
        opened(run, weights, device, enrol), latency, Limits() if sessions is None else Limits(sessions=sessions)
    )
    serving(hub, address, lambda url: print(f"open {url} (Ctrl-C stops)", flush=True), beside)


def address_of(
    host: str | None, port: int | None, token_file: Path | None, tls_cert: str | None, tls_key: str | None
) -> Address:
    """Where to listen, by the options and the variable for the token."""
    from diarizer.serve.address import Address

    token = token_file.read_text(encoding="utf-8").strip() if token_file else os.environ.get("WHOWHEN_TOKEN") or None
    given: dict[str, Any] = {"host": host, "port": port, "token": token, "certificate": tls_cert, "key": tls_key}
    return Address(**{name: value for name, value in given.items() if value is not None})
