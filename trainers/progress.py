"""What a fit tells while it goes on; `cli.progress.Bar` shows it to people."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who looks on."""

    def update(self, done: float, of: float, note: str = "") -> None:
        """So much of the whole is done; the note stands beside it."""

    def line(self, text: str) -> None:
        """Something to keep, such as an epoch's figures."""


class Unseen:
    """Nobody looks on."""

    def update(self, done: float, of: float, note: str = "") -> None: ...

    def line(self, text: str) -> None: ...
