"""From a codec's codes to a speaker embedding, differentiable: `Proxy` for anyone's training loop, and how it is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.proxy.network import MOSHI_DELAYS as MOSHI_DELAYS
    from trainers.proxy.network import Proxy as Proxy
    from trainers.proxy.network import undelayed as undelayed

_PUBLIC = ("MOSHI_DELAYS", "Proxy", "undelayed")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trainers.proxy import network  # torch takes seconds: only who asks for it waits

    return getattr(network, name)
