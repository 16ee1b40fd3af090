"""Figures in words, one way everywhere: rates in percent, differences in points, negative where fewer errors are made."""

from __future__ import annotations

import math
from typing import Any

SIGN = (
    "Differences are in points of the measure that a sentence names, the first thing minus the second: negative means "
    "fewer errors, better. Brackets hold 95 % intervals; a difference whose interval holds 0 may be chance."
)
#: Under so many speakers or recordings a bootstrap's interval is too narrow.
FEW = 20


def span(interval: dict[str, Any]) -> str:
    """The ends of an interval in percent."""
    return f"{_signed(100 * interval['low'])} … {_signed(100 * interval['high'])}"


def rate(value: float | None, interval: dict[str, Any] | None) -> str:
    """A rate in percent, with its interval where there is one."""
    if value is None:
        return "undefined"
    return f"{100 * value:.1f} %" + (f" [{span(interval)}]" if interval else "")


def points(gap: dict[str, Any]) -> str:
    """A difference with its interval: "−3.2 points [−5.0 … −1.4]"."""
    return f"{signed(gap['estimate'])} [{span(gap)}]"


def signed(difference: float) -> str:
    """A difference without an interval: "−3.2 points"."""
    return f"{_signed(100 * difference, '+')} points"


def verdict(gap: dict[str, Any], units: str) -> str:
    """What a difference's interval lets one say of it; `units`: what was resampled, "speakers" or "recordings"."""
    if gap["high"] < 0:
        return "better"
    if gap["low"] > 0:
        return "worse"
    needed = more_needed(gap, units)
    return f"not clearly different{f' ({needed})' if needed else ''}"


def more_needed(gap: dict[str, Any], units: str) -> str:
    """How many speakers or recordings would tell, should the difference stay as it is; "" where that says nothing.

    An interval narrows with the square root of what is drawn from.
    """
    reach = gap["high"] - gap["estimate"] if gap["estimate"] < 0 else gap["estimate"] - gap["low"]
    if not gap["estimate"] or reach <= 0:
        return ""
    count = math.ceil(gap["num_units"] * (reach / gap["estimate"]) ** 2)
    if count > 100 * gap["num_units"]:
        return ""
    return f"about {max(count, gap['num_units'] + 1):,} {units} instead of {gap['num_units']} would tell"


def _signed(value: float, plus: str = "") -> str:
    text = f"{abs(value):.1f}"
    return f"−{text}" if value < 0 and text != "0.0" else f"{plus}{text}"


def decibels(value: float | None, interval: dict[str, Any] | None) -> str:
    """A level or a difference of levels, with its interval where there is one: "3.1 dB [2.0 … 4.2]"."""
    if value is None:
        return "undefined"
    ends = f" [{_signed(interval['low'])} … {_signed(interval['high'])}]" if interval else ""
    return f"{_signed(value)} dB{ends}"
