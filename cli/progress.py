"""The progress bar of every long command: on a terminal a live line, elsewhere a line now and then, always on stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

#: Seconds between lines where the output is not a terminal (a log file, a job's output).
_LINE_EVERY_S = 15.0
#: The pace is that of the last minute, or of the last eight steps where they take longer. It is known after three seconds
#: in which a fiftieth of the work was done, or after fifteen: the beginning is slow.
_PACE_S, _PACE_STEPS, _KNOWN_S, _KNOWN_SHARE, _SURELY_S = 60.0, 8, 3.0, 0.02, 15.0
#: Columns of the bar itself, and the least that a note is worth showing in.
_BAR, _LEAST_NOTE = 20, 8


class Bar:
    """``update(done, of, note)`` shows how far the work is, its time left and a note such as the speed; ``line(text)``
    adds a line that stays."""

    def __init__(self, title: str) -> None:
        self._title, self._note, self._share = title, "", 0.0
        self._left = Left()
        self._last = time.monotonic()
        self._live = None
        # Of the processes that torchrun started, the first speaks for all.
        if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self, console=Console(stderr=True), refresh_per_second=4)
            self._live.start()

    def update(self, done: float, of: float, note: str = "") -> None:
        now = time.monotonic()
        self._share, self._note = min(done / of, 1.0) if of else 1.0, note
        self._left.heard(now, done, of)
        if not self._live and now - self._last >= _LINE_EVERY_S:
            self._last = now
            note = f" {note}," if note else ""
            print(
                f"{self._title}: {self._share:.0%}{note} {clock(self._left.at(now))} left", file=sys.stderr, flush=True
            )

    def line(self, text: str) -> None:
        if self._live:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self._live:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        left = clock(self._left.at(time.monotonic()))
        text = one_line(self._title, self._share, self._note, left, options.max_width - 1)
        yield Text(text, no_wrap=True, overflow="crop")


class Left:
    """Seconds left. What is shown runs down or stands still; it goes up only where the work has become slower by far."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque()  # when, and what was done by then
        self._of, self._ends_s, self._shown_s = 0.0, math.inf, math.inf

    def heard(self, now: float, done: float, of: float) -> None:
        """So much of the whole is done at this time."""
        steps = self._steps
        if of != self._of or (steps and done < steps[-1][1] / 2):  # other work, such as the next seed's
            steps.clear()
            self._of, self._ends_s, self._shown_s = of, math.inf, math.inf
        if steps and done <= steps[-1][1]:
            return
        steps.append((now, done))
        while len(steps) > _PACE_STEPS and now - steps[1][0] > _PACE_S:
            steps.popleft()
        self._ends_s = now + self._estimate(now)

    def at(self, now: float) -> float:
        """Seconds left at this time; infinite where nobody knows yet."""
        found = max(self._ends_s - now, 0.0)
        if not found:  # a step that takes longer than those before
            found = self._estimate(now)
        if found < self._shown_s or found > 1.5 * self._shown_s + 5.0:
            self._shown_s = found
        return self._shown_s

    def _estimate(self, now: float) -> float:
        """At the pace so far; a step that is under way counts as if it ended now."""
        (began, before), (_, done) = self._steps[0], self._steps[-1]
        if done >= self._of:
            return 0.0
        new, spent = done - before, now - began
        known = spent >= (_KNOWN_S if new >= _KNOWN_SHARE * self._of else _SURELY_S)
        return spent * (self._of - done) / new if new > 0 and known else math.inf


def one_line(title: str, share: float, note: str, left: str, width: int) -> str:
    """Title, bar, share, note and time left within `width` columns: first the bar goes, then the note, then the title."""
    share_of = f"{math.floor(100 * share):3d} %"
    end = f"{left} left"
    room = width - len(share_of) - len(end) - 4 - min(len(title), 24)
    bar = ""
    if room - (len(note) + 2 if note else 0) >= _BAR + 2:
        full = round(share * _BAR)
        bar = "━" * full + "─" * (_BAR - full)
        room -= _BAR + 2
    if len(note) + 2 > room:
        note = _cut(note, room - 2) if room - 2 >= _LEAST_NOTE else ""
    rest = [part for part in (bar, share_of, note, end) if part]
    title = _cut(title, width - sum(len(part) + 2 for part in rest))
    return "  ".join([title, *rest])[: max(width, 0)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


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
    if seconds == math.inf:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
