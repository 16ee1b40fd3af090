"""The page: seen whole on a screen, a phone, in the dark and on paper, and by those who do not see it."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyannote.core import Annotation, Segment

from evaluation import plots
from evaluation.report import render
from evaluation.verification import det_curve
from tests.browser import AXE, look, needs_browser, violations

WINDOW, WHOLE = "per window", "whole recording"
CSS = (Path(plots.__file__).parent / "page.css").read_text(encoding="utf-8")
HISTORY = {"epoch": [1, 2], "step": [4, 8], "train_loss": [0.5, 0.3], "dev_loss": [0.4, 0.5], "dev_der": [0.4, 0.3]}


def interval(value: float) -> dict[str, float]:
    return {"estimate": value, "low": value - 0.04, "high": value + 0.04}


def chart_row(label: str, der: float, scope: str = WINDOW, **more: Any) -> dict[str, Any]:
    return {
        "label": label, "what": "fusion", "der": der, "interval": interval(der), "published": False, "scope": scope,
        "parts": {"missed": der / 2, "false_alarm": der / 4, "confusion": der / 4}, "seeds": 1, "spread": None,
        "weights": "demo", "experiment": "3", "note": "", "runs": ["a-run"],
    } | more  # fmt: skip


def cell(value: float) -> dict[str, Any]:
    lines = [{"what": what, "value": value, "interval": interval(value), "spread": None} for what in ("DER", "JER")]
    return {"run": "a-run", "warnings": ["demo"], "lines": lines, "on": "8 recordings, 8.0 min", "seeds": 1}


def made_up() -> dict[str, Any]:
    """A report that has everything."""
    runs = [
        {
            "name": f"seed{seed}", "label": f"fusion of a-long-name and another-long-name{seed}", "seed": seed,
            "kind": "fusion", "experiment": "3", "protocol": "sound", "features": {"mimi": "0123456789abcdef"},
            "weights": {"mimi": {"model": "Mimi", "from": "demo", "sha256": "f" * 64}}, "warnings": [], "figures": {},
            "notes": ["a note"], "path": "/runs/a-run",
            "result": {
                "trainable_parameters": 10**6, "steps": 8, "best_epoch": 1, "epochs": 2, "step_seconds": 0.1,
                "input_share": 0.1, "peak_memory_bytes": 10**9, "seconds": 10.0, "device_name": "cpu",
            },
        }
        for seed in (0, 1)
    ]  # fmt: skip
    system = {
        "name": "linear probe", "eer": 0.2, "interval": interval(0.2), "against_raw": interval(-0.1),
        "min_dcf": {"0.01": 0.9, "0.05": 0.8}, "mean_same": 0.6, "mean_different": 0.1, "min_score": -0.5, "max_score": 1.0,
    }  # fmt: skip
    probe = runs[0] | {"kind": "probe", "figures": {"probe": system}, "notes": []}
    experiment = {
        "id": "3", "name": "fusion", "title": "fusion of mimi and titanet", "question": "Mimi for when, TitaNet for who?",
        "published": "DER 60.93 %", "measure": "DER", "command": "trainers fit fusion", "features": ["mimi", "titanet"],
    }  # fmt: skip
    return {
        "whowhen": "0", "made": "2026-01-01 00:00 UTC", "question": "Can Mimi tell who speaks when?",
        "answer": {"lead": "Partly.", "detail": "DER 32.0 %.", "basis": "From 8.", "text": "Partly: DER 32.0 %.", "verdict": "partly", "num_recordings": 8, "demo": True},
        "warnings": ["mimi: small demo weights"], "sign": "Below zero is better.",
        "failed_checks": [{"name": "der", "found": "1", "expected": "2", "level": "error"}],
        "terms": [
            {"term": "DER / diarization error rate", "text": "errors over speech"}, {"term": "EER", "text": "equal errors"},
            {"term": "fixed channel", "text": "the i-th to arrive"}, {"term": "never said", "text": "so not explained"},
            {"term": "95 % interval", "text": "chance"},
        ],
        "chart": [
            chart_row("adapter on mimi", 0.46, what="codec alone"), chart_row("fusion", 0.32, seeds=3, spread=[0.3, 0.35]),
            chart_row("cascade", 0.15, WHOLE), chart_row("true who", 0.11, WHOLE, what="ceiling", parts=None),
            chart_row("the study", 0.61, "", published=True, interval=None, parts=None, weights="", note="other data"),
        ],
        "chart_on": {"num_recordings": 8, "minutes": 8.0, "left_out": []},
        "baselines": [{"what": "one speaker throughout", "measure": "DER", "value": 0.68, "interval": interval(0.68), "scope": WINDOW}],
        "findings": [{"experiment": "3", "measure": "DER", "text": "Adding TitaNet is 14.0 points better."}],
        "experiments": [experiment | {"sound": cell(0.32), "reference": cell(0.72)}, experiment | {"sound": None, "reference": None}],
        "flaws": [{"number": 1, "flaw": "fixed channels", "sound": "mapped", "ours": None}],
        "learning": [{"label": "fusion", "points": [
            {"train_fraction": f, "hours": f, "der": 0.5 - f / 5, "interval": interval(0.4), "loss": None, "seeds": 1} for f in (0.5, 1.0)
        ]}],
        "whole": [{"label": "fusion", "per_window": 0.3, "whole": 0.4, "difference": 0.1, "interval": interval(0.1), "identity": 0.1, "rest": 0.0}],
        "proxies": [], "voices": [{"label": "one voice out of a mixture", "name": "a-run", "rated": ["estoi"], "systems": [
            {"name": "asked for by another utterance", "si_sdr": 4.0, "si_sdri": 3.0, "interval": interval(3.0), "better": 0.7, "several": {"si_sdri": 2.5, "interval": interval(2.5)}, "sounds": {"estoi": 0.5}}
        ], "swaps": [{"name": "asked for by another utterance", "pairs": 9, "swapped": 8}]}],
        "yardsticks": [{"what": "TitaNet-L", "figure": "EER 0.66 %", "source": "model card"}], "runs": [*runs, probe],
    }  # fmt: skip


def pictures(facts: dict[str, Any]) -> dict[str, Any]:
    scores, same = np.linspace(0, 1, 20, dtype=np.float32), np.arange(20) % 3 > 0
    said = Annotation()
    said[Segment(0, 4)] = "ann"
    return {
        "det": plots.det({"raw": det_curve(scores, same)}), "histograms": plots.histograms({"raw": (scores, same)}),
        "flaws": plots.stacks([("fusion", [("scoring", 0.2, plots.PALETTE[1]), ("rest", -0.1, plots.PALETTE[4])])], "Flaws", "%"),
        "learning": plots.learning(facts["learning"]),
        "training": [{"title": name, "svg": plots.training(name, HISTORY, 2)} for name in ("a-run", "a run")],
        "timelines": [{"title": name, "svg": plots.timeline(name, said, said, {"ann": "ann"}, 0, 5)} for name in ("a", "b")],
    }  # fmt: skip


SILENCE = "data:audio/mpeg;base64,"
PLAYERS = [
    {
        "label": "one voice out of a mixture", "mixture": "mix-0", "sound": SILENCE,
        "voices": [{"speaker": "ann", "sounds": [{"what": "extracted", "gain": 3.0, "sound": SILENCE}]}],
    }
]  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    facts = made_up()
    return render("report.html.j2", facts | {"pictures": pictures(facts), "players": PLAYERS})


class Seen(HTMLParser):
    """What of a page matters to who does not see it: ids, headings, and pictures with what names them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.pictures: list[dict[str, str | None]] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []
        if tag == "svg" and "svg" not in self.inside:
            self.pictures.append(given)
        elif tag == "title" and self.inside[-1] == "svg" and self.inside.count("svg") == 1:
            self.pictures[-1]["title"] = "given"
        if tag not in ("meta", "br", "path", "line", "rect", "use"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass


def test_ids_are_unique_pictures_have_titles_headings_leave_no_level_out(page: str) -> None:
    seen = Seen(page)
    assert len(seen.ids) > 100
    assert [id for id, times in Counter(seen.ids).items() if times > 1] == []
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', page))
    assert used and used <= set(seen.ids)
    assert len(seen.pictures) > 15
    assert [p for p in seen.pictures if not ("title" in p and p.get("role") == "img") and "aria-hidden" not in p] == []
    assert seen.headings[0] == 1 and all(after <= before + 1 for before, after in pairwise(seen.headings))


def test_pictures_take_their_colours_from_the_page() -> None:
    facts = made_up()
    for name, made in pictures(facts).items():
        for svg in [made] if isinstance(made, str) else [one["svg"] for one in made]:
            bare = set(re.findall(r"(?<!, )#[0-9a-f]{6}\b", svg))
            assert bare <= {"#111418"}, name  # what stands on a bar
            assert set(re.findall(r"var\((--\w+)", svg)) <= set(re.findall(r"(--\w+):", CSS))


def test_a_term_is_explained_once_and_where_it_first_stands(page: str) -> None:
    told = re.findall(r"<dfn>(.*?)</dfn>", page)
    assert told == ["DER", "95 % interval", "EER", "fixed channel"]
    first, rest = page.split("What these runs say")
    assert "errors over speech" in first and "errors over speech" not in rest
    assert ">chance<" in first
    assert "so not explained" not in page


def test_the_axis_holds_every_interval_and_the_marks_differ(page: str) -> None:
    chart = page[page.index('<ul class="chart">') : page.index('<ul class="legend"')]
    assert max(float(place) for place in re.findall(r'x\d?="([\d.]+)%"', chart)) <= 100
    groups = chart.split('class="group"')[1:]
    marks = [set(re.findall(r'<path class="(\w+)" d="([^"]+)"', group)) for group in groups]
    assert [len(group) for group in marks] == [1, 1, 1] and len(set.union(*marks)) == 3
    assert [mark for mark, _ in (*marks[0], *marks[1], *marks[2])] == ["mark", "mark", "published"]
    assert "fusion: DER 32.0 % [28.0 … 36.0]" in chart
    assert [len(re.findall('class="trivial"', group)) for group in groups] == [3, 0, 0]  # in each track of its kind
    assert "<strong>Demo weights:</strong>" in page


def test_rows_say_which_weights_when_they_are_not_all_alike() -> None:
    facts = made_up()
    facts["chart"][0]["weights"] = ""
    text = render("report.html.j2", facts | {"pictures": pictures(facts)})
    assert "where a row says so" in text
    assert text.count("demo weights</span>") == 3 + 2  # of the chart, of the experiments


class Tables(HTMLParser):
    """The texts of each table's rows, cell by cell; head and body alike."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag in ("br", "div", "small", "span") and self.inside:
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data

    def under(self, *columns: str) -> list[list[str]]:
        """The body of the one table that has these columns, in this order."""
        read = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]
        (found,) = [table for table in read if table[0] == list(columns)]
        return found[1:]


def numbered() -> dict[str, Any]:
    """A report in which no two figures are alike."""
    facts = made_up()
    lines = [
        {"what": "DER", "value": 0.11, "interval": interval(0.11), "spread": [0.105, 0.125]},
        {"what": "SI-SDRi", "value": 2.5, "interval": {"low": 1.5, "high": 3.5}, "spread": None, "unit": "dB"},
        {"what": "JER", "value": None, "interval": None, "spread": None},
    ]
    facts["experiments"] = [
        facts["experiments"][0] | {"sound": cell(0.5) | {"lines": lines}, "reference": cell(0.75) | {"warnings": ["UNTRAINED"]}},
        facts["experiments"][1] | {"id": "6"}, facts["experiments"][1] | {"id": "4"}, facts["experiments"][1] | {"id": "poc"},
    ]  # fmt: skip
    facts["whole"] = [
        {
            "label": "a head",
            "per_window": 0.3,
            "whole": 0.45,
            "difference": 0.15,
            "interval": interval(0.15),
            "identity": 0.2,
            "rest": -0.05,
        }
    ]
    facts["voices"][0]["systems"].append(
        {
            "name": "mixture",
            "si_sdr": -1.0,
            "si_sdri": None,
            "interval": None,
            "better": 0.0,
            "several": None,
            "sounds": {},
        }
    )
    facts["learning"][0]["points"][1] |= {"loss": 0.625, "der": 0.35}
    facts["proxies"] = [{
        "label": "proxy on codes", "seeds": 2, "steps": 80, "changed": 0.25, "verdict": "partly",
        "judges": [
            {"name": "linear", "independent": True, "pairs": 40, "target": 30, "wrong": 4, "random": 2, "own": 0.9, "others": 0.15},
            {"name": "itself", "independent": False, "pairs": 0, "target": 0, "wrong": 0, "random": 0, "own": 1.0, "others": 0.0},
        ],
        "published": [
            {"name": "proxy", "seen_separation": 0.11, "unseen_separation": 0.22, "all_separation": 0.33, "worst_cosine": 0.44, "eer": 0.125},
            {"name": "titanet", "seen_separation": 0.5, "unseen_separation": 0.6, "all_separation": 0.7, "worst_cosine": 0.8, "eer": None},
        ],
        "agreement": [{"name": "raw cosine", "value": 0.375}],
    }]  # fmt: skip
    for run in facts["runs"][:2]:
        run["result"] = {
            "trainable_parameters": 1234567, "steps": 89, "best_epoch": 3, "epochs": 7, "step_seconds": 0.125,
            "input_share": 0.031, "peak_memory_bytes": 456e6, "seconds": 78.0, "device_name": "a device",
        }  # fmt: skip
    facts["runs"][1]["result"] |= {"step_seconds": None, "input_share": None, "peak_memory_bytes": 0}
    del facts["runs"][1]["result"]["best_epoch"]
    return facts


def test_every_figure_stands_in_its_column() -> None:
    facts = numbered()
    text = render("report.html.j2", facts | {"pictures": pictures(facts), "players": PLAYERS}).replace("\u00a0", " ")
    told = Tables(text)
    experiments = told.under("experiment", "sound protocol", "reference protocol", "published")
    assert [row[1:3] for row in experiments] == [
        ["DER 11.0 % [7.0 … 15.0] seeds 10.5 … 12.5 SI-SDRi 2.5 dB [1.5 … 3.5] JER undefined 8 recordings, 8.0 min demo weights",
         "DER 75.0 % [71.0 … 79.0] JER 75.0 % [71.0 … 79.0] 8 recordings, 8.0 min untrained weights"],
        ["not run: trainers fit fusion", "not run: trainers fit fusion --protocol reference"],
        ["not run: trainers fit fusion", "not run"],  # of a cascade there is no reference protocol
        ["not run: trainers fit fusion", "not run"],
    ]  # fmt: skip
    assert [row[0].split()[0] for row in experiments] == ["3", "6", "4", "fusion"] and experiments[0][
        3
    ] == "DER 60.93 %"
    assert told.under(
        "head", "DER per window", "DER, whole recordings", "difference, points", "of it wrong speaker", "of it the rest"
    ) == [["a head", "30.0 %", "45.0 %", "+15.0 [11.0 … 19.0]", "+20.0", "−5.0"]]
    assert told.under(
        *("what was asked for", "SI-SDR, median", "SI-SDRi, mixtures of several", "SI-SDRi, all voices"),
        *("improved by 1 dB", "ESTOI"),
    ) == [
        ["asked for by another utterance", "4.0 dB", "2.5 dB [2.5 … 2.5]", "3.0 dB [3.0 … 3.0]", "70.0 %", "0.50"],
        ["mixture", "−1.0 dB", "–", "undefined", "0.0 %", "–"],
    ]
    assert told.under(
        "system", "run", "EER", "against raw, points", "minDCF .01 / .05", "mean score same / different", "range"
    ) == [
        [
            "linear probe",
            "seed0 sound",
            "20.0 % [16.0 … 24.0]",
            "−10.0 [−14.0 … −6.0]",
            "0.900 / 0.800",
            "0.60 / 0.10",
            "-0.50 … 1.00",
        ]
    ]
    assert told.under(
        *(
            "judge",
            "pairs to change",
            "accepted after a climb towards the target",
            "control: a third speaker",
            "control: nobody",
        ),
        "accepts of real speech, the target's / strangers'",
    ) == [
        ["linear", "40", "30 (75 %)", "4 (10 %)", "2 (5 %)", "90 % / 15 %"],
        ["the proxy itself (proves nothing)", "0", "0", "0", "0", "100 % / 0 %"],
    ]
    assert "(80 steps)" in " ".join(text.split()).replace("speaker (80", "(80") and "(25 % have changed)" in " ".join(
        text.split()
    )
    assert "proxy on codes, 2 seeds." in text and "but not past the bar that was set beforehand" in text
    assert told.under(
        "embeddings", "1 − mean cosine, trained speakers", "strangers", "all", "highest cosine", "EER"
    ) == [["proxy", "0.11", "0.22", "0.33", "0.44", "12.5 %"], ["titanet", "0.50", "0.60", "0.70", "0.80", "–"]]
    assert told.under("system", "rank correlation with TitaNet") == [["raw cosine", "0.38"]]
    assert [row[1:] for row in told.under(
        "run", "trainable parameters", "steps", "best epoch", "a step", "input's share", "peak memory", "time", "device"
    )] == [
        ["1,234,567", "89", "3 of 7", "125 ms", "3.1 %", "456 MB", "78 s", "a device"],
        ["1,234,567", "89", "–", "–", "–", "–", "78 s", "a device"],
    ]  # fmt: skip
    weights = told.under("run", "protocol", "feature", "weights", "weights sha256", "fingerprint")
    assert weights[0][1:] == ["sound", "mimi: Mimi", "demo", "f" * 16, "0123456789abcdef"] and len(weights) == 3
    assert "asked for by another utterance: of 9 pairs of voices of one mixture 8 swap" in text
    assert "8 test recordings, 8 minutes" in text and "SI-SDRi 3.0 dB" in text
    assert "Checks that failed" in text and "der: found 1, expected 2" in text
    assert "Made 2026-01-01 00:00 UTC by whowhen 0 from 3 runs." in text
    flaws = told.under("flaw", "the sound protocol", "what it is worth here")
    assert flaws == [["1. fixed channels", "mapped", "not measured by these runs"]]


def test_bars_lie_where_their_figures_are() -> None:
    """On an axis up to 80 %: parts end to end, the spread of seeds, the interval, and what knows nothing."""
    facts = numbered()
    page = render("report.html.j2", facts | {"pictures": pictures(facts)})
    chart = page[page.index('<ul class="chart">') : page.index('<ul class="legend"')]
    (track,) = re.findall(
        r"<svg role=.img.><title>fusion: DER.*?</svg>\n *</svg>|<svg role=.img.><title>fusion: DER.*?</svg>.*?</svg>",
        chart,
        re.S,
    )
    rects = [
        (css, float(x), float(width))
        for css, x, width in re.findall(r'<rect class="([\w-]+)" x="([\d.]+)%" width="([\d.]+)%"', track)
    ]
    assert rects == [
        ("missed", 0, pytest.approx(20)), ("false-alarm", pytest.approx(20), pytest.approx(10)),
        ("confusion", pytest.approx(30), pytest.approx(10)), ("spread", pytest.approx(37.5), pytest.approx(6.25)),
    ]  # fmt: skip
    ((low, high),) = re.findall(r'<line x1="([\d.]+)%" x2="([\d.]+)%" y1="50%"', track)
    assert (float(low), float(high)) == (pytest.approx(35), pytest.approx(45))
    assert re.findall(r'class="trivial" x1="([\d.]+)%"', track) == ["85.00"] and '<svg x="40.00%"' in track
    assert re.findall(r'text-anchor="middle">(\d+)<', chart) == [str(10 * k) for k in range(9)]
    assert "3 seeds" in chart and "<small>codec alone</small>" in chart


def test_the_page_in_plain_text_has_the_same_figures() -> None:
    facts = numbered()
    text = render("report.md.j2", facts)
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert ["fusion", "32.0 % [28.0 … 36.0] (3 seeds: 30.0 … 35.0) ⚠", "per window"] in rows
    assert ["one speaker throughout (baseline)", "68.0 % [64.0 … 72.0]", "per window"] in rows
    assert ["the study", "61.0 %", "published; other data"] in rows
    assert [
        "3 fusion of mimi and titanet",
        "DER 11.0 % [7.0 … 15.0]; SI-SDRi 2.5 dB [1.5 … 3.5]; JER undefined (8 recordings, 8.0 min) ⚠",
        "DER 75.0 % [71.0 … 79.0]; JER 75.0 % [71.0 … 79.0] (8 recordings, 8.0 min) ⚠", "DER 60.93 %",
    ] in rows  # fmt: skip
    assert [
        "a-run",
        "asked for by another utterance",
        "4.0 dB",
        "2.5 dB [2.5 … 2.5]",
        "3.0 dB [3.0 … 3.0]",
        "70.0 %",
        "0.50",
        "–",
        "–",
    ] in rows
    assert ["fusion", "50 %, 0.5 h", "40.0 % [36.0 … 44.0]", "–"] in rows
    assert ["fusion", "100 %, 1.0 h", "35.0 % [36.0 … 44.0]", "0.625"] in rows
    assert ["linear", "40", "30", "4", "2", "90 % / 15 %"] in rows
    assert ["proxy", "0.33", "12.5 %"] in rows and ["titanet", "0.70", "–"] in rows
    assert [
        "fusion of a-long-name and another-long-name1 (seed1)",
        "sound",
        "mimi: Mimi",
        "demo",
        "f" * 16,
        "0123456789abcdef",
    ] in rows
    assert (
        "- a-run, asked for by another utterance: of 9 pairs of voices of one mixture 8 swap with who is asked for."
        in text
    )
    assert "- DER: Adding TitaNet is 14.0 points better." in text and "- der: found 1, expected 2" in text
    assert "Made 2026-01-01 00:00 UTC by whowhen 0 from 3 runs." in text and "Partly: DER 32.0 %." in text


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))  # Source: WCAG 2.1


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_written_can_be_read(dark: bool) -> None:
    light_css, dark_css = CSS.split("prefers-color-scheme: dark", 1)
    colours = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6})", light_css))
    if dark:
        colours |= dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6})", dark_css))
    on_paper = [(colours[name], colours["paper"]) for name in ("ink", "soft", "link")]
    on_wash = [(colours[name], colours["wash"]) for name in ("ink", "soft")]
    on_bars = [("#111418", colours[f"p{i}"]) for i in (1, 2, 4)]
    warned = [(colours[name], colours[f"{name}-wash"]) for name in ("warn", "bad")]
    for text, behind in (*on_paper, *on_wash, *on_bars, *warned):
        dim, bright = sorted((luminance(text), luminance(behind)))
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, behind)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_nothing(page: str, tmp_path: Path, width: int, dark: bool) -> None:
    needs_browser()
    assert violations(page, tmp_path, width=width, dark=dark) == []


def test_axe_would_find_something(page: str, tmp_path: Path) -> None:
    needs_browser()
    faulty = page.replace('<html lang="en">', "<html>").replace("--soft: #52606d", "--soft: #b0b8c0")
    found = {line.split(":")[0] for line in violations(faulty, tmp_path)}
    assert found == {"html-has-lang", "color-contrast"}


def test_the_answer_and_the_whole_chart_stand_on_the_first_screen(page: str, tmp_path: Path) -> None:
    needs_browser()
    end, folded = look(
        page.replace("Checks that failed", ""),
        """return [document.querySelector(".chart").getBoundingClientRect().bottom, !document.querySelector("details").open]""",
        tmp_path,
    )
    assert end < 800 and folded


def test_a_phone_shows_all_of_it_and_the_sound_protocol_first(page: str, tmp_path: Path) -> None:
    needs_browser()
    found = look(
        page,
        """
        const row = document.querySelector(".stack tbody tr").children, top = e => e.getBoundingClientRect().top;
        return { wide: document.documentElement.scrollWidth, tops: [...row].map(top),
                 labels: [...row].map(cell => cell.dataset.label ?? ""),
                 lost: [...document.querySelectorAll("p, li, .stack td, .chart svg, h2")].filter(e =>
                   e.getBoundingClientRect().right > innerWidth && !e.closest(".scroll")).length }
        """,
        tmp_path,
        width=390,
    )
    assert found["wide"] == 390 and found["lost"] == 0
    assert found["tops"] == sorted(set(found["tops"]))  # each below the one before
    assert found["labels"] == ["", "sound protocol", "reference protocol", "published"]


def test_paper_shows_all_of_it(page: str, tmp_path: Path) -> None:
    """A4 less its margins is 182 mm wide; the print rules are put in force on a page of that width."""
    needs_browser()
    found = look(
        page.replace("</main>", "<audio controls></audio></main>"),
        """
        for (const rule of document.styleSheets[0].cssRules)
          if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
        const right = Math.max(...[...document.querySelectorAll("body *")].map(e => e.getBoundingClientRect().right));
        const shown = e => e.checkVisibility();
        return { right, sound: shown(document.querySelector("audio")), folded: shown(document.querySelector("details svg")) }
        """,
        tmp_path,
        width=688,
    )
    assert found["right"] <= 688 and not found["sound"] and found["folded"]


def test_the_browsers_lock_names_no_address() -> None:
    assert "http" not in (AXE.parents[2] / "package-lock.json").read_text(encoding="utf-8")
