"""The report's pictures, each a self-contained SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtri

from evaluation.verification import DetCurve

if TYPE_CHECKING:
    from pyannote.core import Annotation

INK, FAINT, GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
#: Colour-blind safe (Okabe and Ito); a system keeps its colour through the report.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f4f24", "#6c757d")
#: Of figures that stand on a bar: read on those colours of the palette that bars have, in light and dark.
_ON_BAR = "#111418"
# In the page a colour is the variable of this name, which page.css sets for light and for dark.
_VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"} | {c: f"--p{i}" for i, c in enumerate(PALETTE)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp and searchable
    "font.family": "sans-serif",
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def _svg(name: str, title: str, width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """One picture for the page: its title for who cannot see it, ids that no other picture has.

    Parameters
    ----------
    name : stands before each id.
    width, height : in inches.
    """
    prefix = re.sub(r"\W", lambda found: f"-{ord(found[0]):x}", name)  # no two names become one
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", metadata={"Title": title, "Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = out.getvalue()
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", text[text.index("<svg") :])
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), text)
    return text.replace("<svg ", '<svg role="img" ', 1)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]}, {colour})" if colour in _VARIABLES else colour


def det(curves: Mapping[str, DetCurve]) -> str:
    """Miss against false-alarm rate on normal-deviate axes; the dot is where a curve meets the diagonal (EER)."""
    ticks = np.array([0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    low, high = ndtri(0.0008), ndtri(0.65)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=FAINT, linewidth=0.8, linestyle=":")
        for colour, (name, curve) in zip(PALETTE, curves.items(), strict=False):
            x, y = (ndtri(np.clip(v, 1e-4, 1 - 1e-4)) for v in (curve.false_alarm, curve.miss))
            eer = curve.eer[0]
            axes.plot(x, y, color=colour, linewidth=1.6, label=f"{name}: EER {100 * eer:.1f} %")
            at = ndtri(np.clip(eer, 1e-4, 1 - 1e-4))
            axes.plot([at], [at], "o", color=colour, markersize=5)
        labels = [f"{100 * t:g}" for t in ticks]
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="false alarms, %", ylabel="misses, %", aspect="equal")
        axes.set_xticks(ndtri(ticks), labels)
        axes.set_yticks(ndtri(ticks), labels)
        axes.legend(loc="lower left", fontsize=9)

    return _svg("det", "Detection error trade-off of " + ", ".join(curves), 5.6, 5.4, draw)


def histograms(systems: Mapping[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]) -> str:
    """Scores of same- and different-speaker trials, one panel a system: (scores, same)."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(systems), 1, squeeze=False)[:, 0]
        for axes, (name, (scores, same)) in zip(panels, systems.items(), strict=True):
            bins = np.linspace(scores.min(), scores.max(), 60)
            for kind, colour, mask in (("different", PALETTE[1], ~same), ("same", PALETTE[0], same)):
                axes.hist(scores[mask], bins, density=True, color=colour, alpha=0.55, label=f"{kind} speaker")
                axes.axvline(float(scores[mask].mean()), color=colour, linewidth=1.2)
            axes.set(yticks=[], title=name)
            axes.title.set_fontsize(10)
            axes.grid(False)
        panels[0].legend(loc="upper left", fontsize=9)
        panels[-1].set_xlabel("cosine score; the line is the mean")

    return _svg(
        "histograms",
        "Scores of same- and different-speaker trials: " + ", ".join(systems),
        5.6,
        1.2 + 1.55 * len(systems),
        draw,
    )


def stacks(bars: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], title: str, label: str) -> str:
    """Horizontal stacked bars: (name, [(part, share, colour)]); negative parts are drawn left of zero."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        named: dict[str, str] = {}
        for row, (_, parts) in enumerate(bars):
            right = left = 0.0
            for part, value, colour in parts:
                start = right if value >= 0 else left
                axes.barh(
                    row, 100 * value, left=100 * start, color=colour, height=0.62,
                    label=None if part in named else part,
                )  # fmt: skip
                named[part] = colour
                if abs(value) > 0.025:
                    axes.text(
                        100 * (start + value / 2), row, f"{100 * value:.1f}", ha="center", va="center",
                        color=_ON_BAR, fontsize=9,
                    )  # fmt: skip
                right, left = (right + value, left) if value >= 0 else (right, left + value)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)

    return _svg("stacks", title, 9.0, 1.3 + 0.5 * len(bars), draw)


def timeline(
    name: str,
    reference: Annotation,
    hypothesis: Annotation,
    mapping: Mapping[str, str],
    start_s: float,
    end_s: float,
) -> str:
    """Who spoke when, above, and who the system says spoke when, below; colours follow the optimal mapping."""
    sides = {"reference": reference, "system": hypothesis}
    tracks = [(side, *track) for side, said in sides.items() for track in said.itertracks(yield_label=True)]
    lanes = list(dict.fromkeys((side, str(label)) for side, _, _, label in tracks))
    speakers = [label for side, label in lanes if side == "reference"]
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(speakers)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for side, segment, _, label in tracks:
            lane = lanes.index((side, str(label))) + (side == "system") * 0.4
            colour = colours.get(str(label) if side == "reference" else mapping.get(str(label), ""), FAINT)
            axes.barh(lane, segment.duration, left=segment.start, height=0.78, color=colour)
        axes.set_yticks(
            [i + (side == "system") * 0.4 for i, (side, _) in enumerate(lanes)],
            [
                f"{side} {speaker}" + (f" → {mapping[speaker]}" if side == "system" and speaker in mapping else "")
                for side, speaker in lanes
            ],
            fontsize=8,
        )
        axes.axhline(len(speakers) - 0.3, color=INK, linewidth=0.8)
        axes.set(xlim=(start_s, end_s), ylim=(len(lanes), -0.6), xlabel="seconds")
        axes.grid(axis="y", visible=False)

    return _svg(f"timeline-{name}", f"Who spoke when, reference and system: {name}", 9.0, 0.8 + 0.24 * len(lanes), draw)


def training(name: str, history: Mapping[str, Sequence[float]], taken: int | None) -> str:
    """One run's way: loss on train and dev above, error rate on dev below, each where the log has it.

    Parameters
    ----------
    history : history.csv by column; "train_loss" (or "loss"), "dev_loss", "dev_der" are drawn by "step" (or "epoch").
    taken : the epoch whose weights the run kept.
    """
    by = "step" if "step" in history else "epoch"
    losses = {"train": history.get("train_loss", history.get("loss")), "dev": history.get("dev_loss")}
    rates = {"dev DER, %": history.get("dev_der"), "accuracy, %": history.get("accuracy")}
    below = [(label, values) for label, values in rates.items() if values is not None]
    epochs = list(history.get("epoch", ()))
    kept = history[by][epochs.index(taken)] if taken is not None and taken in epochs else None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1 + len(below), 1, sharex=True, squeeze=False)[:, 0]
        for colour, (label, values) in zip(PALETTE, losses.items(), strict=False):
            if values is not None:
                panels[0].plot(history[by], values, color=colour, label=label, marker=".", markersize=4)
        for axes, (label, values) in zip(panels[1:], below, strict=True):
            axes.plot(history[by], [100 * v for v in values], color=PALETTE[1], marker=".", markersize=4)
            axes.set_ylabel(label)
        for axes in panels if kept is not None else ():
            axes.axvline(kept, color=INK, linewidth=0.9, linestyle="--", label="taken")
        panels[0].set_ylabel("loss")
        panels[-1].set_xlabel(by)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)

    return _svg(f"training-{name}", f"Training of {name}: loss by {by}", 4.4, 1.8 + 1.3 * len(below), draw)


def learning(curves: Sequence[Mapping[str, Any]]) -> str:
    """DER, and the best loss on dev, by amount of training data: [{"label", "points"}], as the report's facts have them."""
    hours = all(point["hours"] is not None for curve in curves for point in curve["points"])
    losses = any(point["loss"] is not None for curve in curves for point in curve["points"])

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 1 + losses, squeeze=False)[0]
        for colour, curve in zip(PALETTE, curves, strict=False):
            points = sorted(curve["points"], key=lambda point: float(point["train_fraction"]))
            at = [point["hours"] if hours else 100 * point["train_fraction"] for point in points]
            panels[0].plot(at, [100 * p["der"] for p in points], color=colour, marker="o", label=curve["label"])
            for x, point in zip(at, points, strict=True):
                if spread := point["interval"]:
                    panels[0].plot([x, x], [100 * spread["low"], 100 * spread["high"]], color=colour, linewidth=1)
            if losses:
                values = [np.nan if p["loss"] is None else p["loss"] for p in points]
                panels[1].plot(at, values, color=colour, marker="o")
        for axes, label in zip(panels, ("DER on test, %", "best loss on dev"), strict=False):
            axes.set(xlabel="hours of training data" if hours else "share of the training data, %", ylabel=label)
            axes.set_xlim(left=0)
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)

    return _svg("learning", "Error by amount of training data", 8.0, 3.0, draw)
