"""Where a server listens, and who may come."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Address:
    """Where a server listens, and who may come.

    Raises
    ------
    ValueError : another machine could come, without a token or without TLS; a certificate without its key; no port.
    """

    host: str = "localhost"
    port: int = 8765
    token: str | None = None
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"--port must be 0 to 65535, found {self.port}; 0 takes any that is free")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS needs both a certificate and its key: --tls-cert and --tls-key")
        if not is_local(self.host) and (self.token is None or self.certificate is None):
            raise ValueError(
                f"--host {self.host}: others could listen to your speakers: this needs a token (WHOWHEN_TOKEN or "
                "--token-file) and TLS (--tls-cert, --tls-key); or keep localhost, behind a proxy with TLS (docs/serve.md)"
            )
        if self.token is not None and len(self.token) < 16:
            raise ValueError(f"the token has {len(self.token)} characters, expected 16 or more: openssl rand -hex 16")

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What a listening socket needs for TLS.

        Raises
        ------
        ValueError : no such files, or they are no certificate and its key.
        """
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # an SSLError is one
            raise ValueError(
                f"--tls-cert {self.certificate}, --tls-key {self.key}: {error.strerror or error}; expected a certificate and its "
                "key, both as PEM"
            ) from None
        return context


def is_local(host: str) -> bool:
    """Whether a host's name or number, with or without a port, is this machine's own."""
    name = urlsplit(f"//{host}").hostname or ""
    with contextlib.suppress(ValueError):
        return ip_address(name).is_loopback
    return name == "localhost"
