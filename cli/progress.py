"""The progress bar of every long command: on a terminal a live line, elsewhere a line now and then, always on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between lines where the output is not a terminal (a log file, a job's output).
_LINE_EVERY_S = 15.0


class Bar:
    """``update(done, of, note)`` shows how far the work is, its time left and a note such as the speed; ``line(text)``
    adds a line that stays."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()
        self._first: tuple[float, float] | None = None  # time of the first update, and what was done by then
        self._live = None
        # Of the processes that torchrun started, the first speaks for all.
        if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._live.add_task(title, total=None, note="")
            self._live.start()

    def update(self, done: float, of: float, note: str = "") -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)  # work that goes on has done much before it began
        if self._live:
            self._live.update(self._task, completed=done, total=of or None, note=note)
        elif now - self._last >= _LINE_EVERY_S:
            self._last = now
            new = done - self._first[1]
            left_s = (now - self._first[0]) * (of - done) / new if new > 0 else float("inf")
            print(
                f"{self._title}: {done / of if of else 1:.0%} {note}, {clock(left_s)} left", file=sys.stderr, flush=True
            )

    def line(self, text: str) -> None:
        if self._live:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self._live:
            self._live.stop()


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """A bar for as long as the work takes."""
    shown = Bar(title)
    try:
        yield shown
    finally:
        shown.stop()


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03``, or ``?`` where nobody knows."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
