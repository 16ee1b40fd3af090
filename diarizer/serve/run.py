"""A server that runs: alone in this thread, or in one of its own beside somebody else's program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diarizer.serve.address import Address
from diarizer.serve.board import Limits
from diarizer.serve.server import Server
from diarizer.serve.session import Hub

if TYPE_CHECKING:
    from diarizer.diarizer import Diarizer
    from diarizer.live import Live


def hub_of(made: Diarizer, latency_s: float | None = None, limits: Limits | None = None) -> Hub:
    """Sessions of a run.

    Raises
    ------
    ValueError : a run that cannot be used live, or not at this latency.
    """

    def make(asked: float | None) -> Live:
        wanted = latency_s if asked is None else asked
        return made.live() if wanted is None else made.live(wanted)

    make(None)  # refuses now what it would refuse in each session
    return Hub(make, facts_of(made), limits)


def facts_of(made: Diarizer) -> dict[str, Any]:
    """What every client is told of a run: its folder's name and what must stand beside its answers."""
    return {"run": made.run.path.name, "warnings": list(made.warnings)}


async def listening(server: Server, address: Address) -> tuple[str, Callable[[], Any]]:
    """Listen; the address to open, and what stops it.

    Raises
    ------
    ValueError : the port is taken, the certificate cannot be read.
    """
    try:
        from aiohttp import web
    except ImportError:
        raise ValueError("serving needs aiohttp: pip install -e '.[serve]'") from None
    tls = address.tls
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host, address.port, ssl_context=tls)
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise ValueError(
            f"{address.host}:{address.port}: {error.strerror or error}; another port: --port 0 takes any that is free"
        ) from None
    scheme, port = "https" if address.certificate else "http", runner.addresses[0][1]
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{host}:{port}/", runner.cleanup


def serve(hub: Hub, address: Address, told: Callable[[str], None], beside: str | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; `told` gets the address once it can be opened.

    Parameters
    ----------
    beside : see `Server`.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError):  # not in a thread, not on Windows
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
        url, cleanup = await listening(Server(hub, address.token, beside), address)
        told(url)
        await stop.wait()
        await cleanup()

    asyncio.run(main())


class Beside:
    """A server in a thread with a loop of its own, which nobody else's work blocks.

    Parameters
    ----------
    watch : see `Server`.

    Attributes
    ----------
    url : to open.
    """

    def __init__(self, hub: Hub, address: Address, watch: str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="whowhen", daemon=True)
        self._thread.start()
        self.url, self._cleanup = self.wait(listening(Server(hub, address.token, watch=watch), address))

    def wait(self, work: Any) -> Any:
        """Run a coroutine there; what it gives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Call there, when its loop comes to it; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends
            self._loop.call_soon_threadsafe(work, *arguments)

    def close(self) -> None:
        """Stop serving."""
        self.wait(self._cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
