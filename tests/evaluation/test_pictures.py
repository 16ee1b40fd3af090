"""What is drawn, read back from the figures: rates in percent, times and steps at their places, bars that add up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pyannote.core import Annotation, Segment
from scipy.special import ndtri

from evaluation import plots
from evaluation.facts import gather
from evaluation.pictures import _flaw_bars, pictures
from evaluation.results import diarization_figures
from evaluation.verification import det_curve
from tests.evaluation.test_report import diarization_run, probe_run
from tests.evaluation.test_results import diarizer


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in place of their SVG."""
    figures: list[Figure] = []

    def draw_only(name: str, title: str, width: float, height: float, draw: Callable[[Figure], None]) -> str:
        figures.append(Figure())
        draw(figures[-1])
        return title

    monkeypatch.setattr(plots, "_svg", draw_only)
    return figures


def lines(axes: object) -> list[list[list[float]]]:
    return [[np.round(side, 6).tolist() for side in line.get_data()] for line in axes.lines]


def test_a_learning_curve(drawn: list[Figure]) -> None:
    """By hours where all have them, else by share; from the least data on."""
    points = [
        {"train_fraction": 1.0, "hours": 4.0, "der": 0.2, "interval": {"low": 0.15, "high": 0.27}, "loss": 0.5},
        {"train_fraction": 0.5, "hours": 2.0, "der": 0.3, "interval": None, "loss": None},
    ]
    plots.learning([{"label": "x", "points": points}])
    der, loss = drawn[0].axes
    assert lines(der) == [[[2.0, 4.0], [30.0, 20.0]], [[4.0, 4.0], [15.0, 27.0]]]
    (curve,) = lines(loss)
    assert curve[0] == [2.0, 4.0] and np.isnan(curve[1][0]) and curve[1][1] == 0.5
    plots.learning([{"label": "x", "points": [p | {"hours": None, "loss": None} for p in points]}])
    (der,) = drawn[1].axes
    assert lines(der)[0] == [[50.0, 100.0], [30.0, 20.0]] and der.get_xlabel().startswith("share")


def test_a_run_s_way(drawn: list[Figure]) -> None:
    history = {
        **{"epoch": [1, 2, 3], "step": [10, 20, 30], "train_loss": [3.0, 2.0, 1.0], "dev_loss": [3.5, 2.5, 2.6]},
        "dev_der": [0.5, 0.4, 0.45],
    }
    title = plots.training("x", history, 2)
    above, below = drawn[0].axes
    assert lines(above)[:2] == [[[10, 20, 30], [3.0, 2.0, 1.0]], [[10, 20, 30], [3.5, 2.5, 2.6]]]
    assert lines(below)[0] == [[10, 20, 30], [50.0, 40.0, 45.0]]
    assert lines(above)[2][0] == lines(below)[1][0] == [20, 20] and title == "Training of x: loss by step"
    plots.training("x", {"epoch": [1, 2], "loss": [3.0, 2.0], "accuracy": [0.2, 0.9]}, None)
    above, below = drawn[1].axes
    assert lines(above) == [[[1, 2], [3.0, 2.0]]] and lines(below) == [[[1, 2], [20.0, 90.0]]]


def test_stacked_bars_lie_end_to_end_and_what_is_negative_left_of_zero(drawn: list[Figure]) -> None:
    parts = [("a", 0.2, "#0072b2"), ("b", -0.1, "#d55e00"), ("c", 0.02, "#009e73"), ("d", -0.3, "#cc79a7")]
    plots.stacks([("x", parts), ("y", [("a", 0.5, "#0072b2")])], "t", "DER, %")
    (axes,) = drawn[0].axes
    bars = [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches]
    assert bars == [(0, 20), (0, -10), (20, 2), (-10, -30), (0, 50)]
    assert [text.get_text() for text in axes.texts] == ["20.0", "-10.0", "-30.0", "50.0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["x", "y"]


def test_what_the_reference_protocol_s_figure_is_made_of() -> None:
    """20 % of 100 s remain, 10 % come of training, 50 % of scoring."""
    reference = diarizer({"a": (30.0, 0.0, 0.0, 50.0), "b": (15.0, 0.0, 0.0, 25.0)}, protocol="reference")
    sound = diarizer({"a": (20.0, 0.0, 0.0, 0.0), "b": (10.0, 0.0, 0.0, 0.0)})
    alone = diarizer({"a": (20.0, 0.0, 0.0, 0.0), "b": (10.0, 0.0, 0.0, 0.0)}, "3")
    for row in (reference, sound, alone):
        diarization_figures(row, 20, np.random.default_rng(0))
    ((title, parts),) = _flaw_bars([alone, sound, reference])
    assert title == "2 adapter on Mimi"
    assert [(name.split()[0], value) for name, value, _ in parts] == [
        ("what", pytest.approx(0.2)), ("training", pytest.approx(0.1)), ("scoring", pytest.approx(0.5))
    ]  # fmt: skip


def test_error_trade_off_and_its_dot(drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    curve = det_curve(rng.normal(size=400) + 2 * same, same)
    plots.det({"x": curve})
    (axes,) = drawn[0].axes
    _, whole, dot = axes.lines
    x, y = whole.get_data()
    np.testing.assert_allclose(x, ndtri(np.clip(curve.false_alarm, 1e-4, 1 - 1e-4)))
    np.testing.assert_allclose(y, ndtri(np.clip(curve.miss, 1e-4, 1 - 1e-4)))
    assert [float(side[0]) for side in dot.get_data()] == pytest.approx([ndtri(curve.eer[0])] * 2)
    assert whole.get_label() == f"x: EER {100 * curve.eer[0]:.1f} %"
    assert axes.get_xticklabels()[3].get_text() == "10" and axes.get_xticks()[3] == pytest.approx(ndtri(0.1))


def test_histograms_of_both_kinds_with_their_means(drawn: list[Figure]) -> None:
    scores = np.float32([0.0, 0.2, 0.6, 1.0])
    plots.histograms({"x": (scores, np.array([False, False, True, True]))})
    (axes,) = drawn[0].axes
    assert [round(line.get_xdata()[0], 3) for line in axes.lines] == [0.1, 0.8]
    assert [to_hex(line.get_color()) for line in axes.lines] == [plots.PALETTE[1], plots.PALETTE[0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["different speaker", "same speaker"]


def test_who_spoke_when_in_the_colours_of_the_mapping(drawn: list[Figure]) -> None:
    said, heard = Annotation(), Annotation()
    said[Segment(0, 4)], said[Segment(4, 6)] = "ann", "bob"
    heard[Segment(1, 4)], heard[Segment(4, 7)], heard[Segment(8, 9)] = "x", "y", "z"
    plots.timeline("n", said, heard, {"x": "bob", "y": "ann"}, 0, 10)
    (axes,) = drawn[0].axes
    bars = [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor())) for bar in axes.patches]
    ann, bob = plots.PALETTE[:2]
    assert bars == [(0, 4, ann), (4, 2, bob), (1, 3, bob), (4, 3, ann), (8, 1, plots.FAINT)]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "reference ann", "reference bob", "system x → bob", "system y → ann", "system z"
    ]  # fmt: skip
    assert axes.get_xlim() == (0, 10)


# ---- which pictures there are


def test_a_report_s_pictures_are_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each sound head on all data the first windows of two sessions; of every run that has a history its way."""
    asked: dict[str, list[tuple]] = {name: [] for name in ("timeline", "training", "det", "histograms", "learning")}
    for name, calls in asked.items():
        monkeypatch.setattr(plots, name, lambda *a, name=name, calls=calls: calls.append(a) or f"{name}{len(calls)}")
    probe_run(tmp_path / "probe")
    diarization_run(tmp_path / "adapter", "adapter")
    diarization_run(tmp_path / "reference", "adapter", "reference", swap=True)
    diarization_run(tmp_path / "part", "adapter", late_s=1.0, train_fraction=0.5)
    (tmp_path / "probe" / "history.csv").write_text("epoch,accuracy\n1,0.5\n")
    for name in ("ref", "hyp"):  # a third session, and a second window of the first
        file = tmp_path / "adapter" / f"{name}.rttm"
        text = file.read_text()
        own = [line for line in text.splitlines(keepends=True) if "m1@0.00" in line]
        file.write_text(text + "".join(line.replace("m1@0.00", to) for to in ("m1@10.00", "m3@0.00") for line in own))
    uem = tmp_path / "adapter" / "windows.uem"
    uem.write_text(uem.read_text().replace("m2@", "m1@10.00 1 0 10\nm2@") + "m3@0.00 1 0 10\n")
    facts, rows, plotted = gather(sorted(tmp_path.iterdir()), 20, 0)
    made = pictures(facts, rows, plotted)
    label = "2 adapter on Mimi"
    assert [told["title"] for told in made["timelines"]] == [
        f"{label}: m1@0.00, DER 10.0 %",
        f"{label}: m2@0.00, DER 10.0 %",
    ]
    assert [told["svg"] for told in made["timelines"]] == ["timeline1", "timeline2"]
    name, reference, hypothesis, mapping, start_s, end_s = asked["timeline"][0]
    assert (name, mapping, start_s, end_s) == (f"{label} m1@0.00", {"0": "ann", "1": "bob"}, 0, 10)
    assert [(s.start, s.end, who) for s, _, who in hypothesis.itertracks(yield_label=True)] == [
        (0.5, 4.5, "0"),
        (4.5, 10, "1"),
    ]
    assert reference.labels() == ["ann", "bob"]
    titles = [
        f"{label}, {protocol}: {run}"
        for run, protocol in (("adapter", "sound"), ("part", "sound"), ("reference", "reference"))
    ]
    assert sorted(told["title"] for told in made["training"]) == sorted(titles)
    assert {title: taken for title, _, taken in asked["training"]} == dict.fromkeys(titles, 2)
    assert asked["training"][0][1] == {"epoch": [1, 2], "train_loss": [0.5, 0.3], "dev_der": [0.4, 0.2]}
    assert asked["det"] == [(plotted.curves,)] and asked["histograms"] == [(plotted.scores,)]
    assert (
        asked["learning"] == [(facts["learning"],)] and made["learning"] == "learning1" and len(facts["learning"]) == 1
    )
    assert "<svg" in made["flaws"] and "what remains under the sound protocol" in made["flaws"]
    alone = gather([tmp_path / "adapter"], 20, 0)
    made = pictures(*alone)
    assert [made[name] for name in ("det", "histograms", "flaws", "learning")] == [None] * 4 and len(
        made["timelines"]
    ) == 2
