"""Row 6 from made-up sums: errors, intervals, what is compared with what, and the sentences and the cell they come to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation.bootstrap import ratio_intervals
from evaluation.findings import findings
from evaluation.rows import Row, RunFacts
from evaluation.sets import SYSTEMS, set_figures
from evaluation.table import experiments_table
from evaluation.words import rate, span


def named(hits: tuple[int, int, int], **more: float) -> dict[str, dict[str, float]]:
    """By speaker a, b, c, who are in 4, 5 and 10 mixtures, the names found."""
    told = zip("abc", (4, 5, 10), hits, strict=True)
    return {
        n: {"voices": v, "hits": h, "given": 2 * v, "wrong": 1, "twice": 1, "several": 4, **more} for n, v, h in told
    }


def counted(*right: float) -> dict[str, dict[str, float]]:
    return {n: {"mixtures": m, "right": r} for n, m, r in zip("abc", (2.0, 3.0, 5.0), right, strict=True)}


def heard(hits: float, **more: float) -> dict[str, float]:
    return {"hits": hits, "present": 10.0, "given": 6.0, "switches": 3.0, "people": 2.0, "numbers": 3.0, **more}


def a_row(windows: bool = True, memory: bool = True, seed: int = 0) -> Row:
    plain = {"cosine": 0.5, "clusters": {"ari": 0.25}, "own": None, "counting": None}
    sets: dict[str, Any] = {
        "unmix": {**plain, "identified": named((3, 2, 8)), "own": named((2, 2, 6)), "counting": counted(1, 1, 4)},
        "windows": {**plain, "identified": named((4, 1, 5)), "own": named((1, 1, 5)), "counting": counted(2, 2, 2)},
        "mean": {**plain, "identified": named((0, 0, 1)), "own": named((0, 0, 1)), "counting": counted(1, 0, 1)},
        "tracks": {**plain, "cosine": 1.0, "identified": named((4, 5, 10), twice=0)},
    }
    if not windows:
        del sets["windows"], sets["mean"]
    recordings = {
        "unmix": {"y": heard(4.0), "x": heard(6.0, numbers=1.0)},
        "windows": {"x": heard(5.0, given=10.0), "y": heard(2.0, given=2.0, switches=0.0)},
        "constant": {"x": heard(2.0), "y": heard(2.0)},
    }
    result = {
        "kind": "unmix", "sets": sets, "majority": 0.4, "num_test_mixtures": 21, "num_test_speakers": 3, "num_mixtures": 50,
        "num_speakers": 9, "inputs": ["mimi"], "teacher": "titanet",
        "memory": {name: {"recordings": of} for name, of in recordings.items()} if memory else None,
    }  # fmt: skip
    files = SimpleNamespace(
        path=SimpleNamespace(parts=("run",)), protocol="sound", features={"mimi": None, "titanet": None}
    )
    files.config, files.warnings = {"config": {}, "store": "s"}, []
    row = Row([RunFacts(files, result, "6")], result)
    set_figures(row, 40, np.random.default_rng(seed))
    return row


def test_errors_of_sets_and_their_intervals_by_hand() -> None:
    row = a_row(seed=3)
    assert row.figures["majority"] == pytest.approx(0.6)
    rng, systems = np.random.default_rng(3), row.figures["systems"]
    voices, mixtures = [4, 5, 10], [2, 3, 5]
    expected = {
        "unmix": ([1, 3, 2], [1, 2, 1], 20),
        "windows": ([0, 4, 5], [0, 1, 3], 14),
        "mean": ([4, 5, 9], [1, 3, 4], 2),
    }
    for name, (missed, wrong, names) in expected.items():
        told, rival = systems[name], ([0, 4, 5], [0, 1, 3]) if name == "unmix" else (None, None)
        for key, errors, totals, other in (
            ("missed", missed, voices, rival[0]),
            ("miscounted", wrong, mixtures, rival[1]),
        ):
            interval, gap = ratio_intervals(errors, totals, rng, baseline=other, num_resamples=40)
            assert told[key] == pytest.approx(sum(errors) / sum(totals))
            assert told[f"{key}_interval"] == interval.to_json()
            assert told[f"{key}_gap"] == (gap.to_json() if gap else None)
        assert told["name"] == SYSTEMS[name] and told["twice"] == 3 / 12 and told["cosine"] == 0.5
        # F1 of its own names: hits of 19 voices that there are and 38 names that were given
        assert (
            told["wrong"] == pytest.approx(1 - 2 * {"unmix": 10, "windows": 7, "mean": 1}[name] / (19 + 38)) and names
        )
    assert systems["unmix"]["missed_gap"]["estimate"] == pytest.approx((6 - 9) / 19)
    assert systems["unmix"]["miscounted_gap"]["estimate"] == pytest.approx((4 - 4) / 10)
    assert (
        systems["tracks"]["missed"] == 0 and "miscounted" not in systems["tracks"] and systems["tracks"]["twice"] == 0
    )


def test_errors_of_the_memory_by_recording() -> None:
    memory = a_row(seed=5).figures["memory"]
    own, windows = memory["unmix"], memory["windows"]
    # 1 - F1: of 10 + 6 a recording; x 4 lost, y 8; of windows x 20 with 10 lost, y 12 with 8 lost
    assert (own["lost"], windows["lost"]) == pytest.approx((12 / 32, 18 / 32))
    rng = np.random.default_rng(5)
    for errors, totals, other in (([1] * 3, [1] * 3, [1] * 3),) * 2 + (([1] * 3, [1] * 3, None),) * 5:
        ratio_intervals(errors, totals, rng, baseline=other, num_resamples=40)  # what the sets drew before
    interval, gap = ratio_intervals([4, 8], [16, 16], rng, baseline=[10, 8], baseline_totals=[20, 12], num_resamples=40)
    assert own["lost_interval"] == interval.to_json() and own["lost_gap"] == gap.to_json()
    assert own["lost_gap"]["estimate"] == pytest.approx(12 / 32 - 18 / 32) and windows["lost_gap"] is None
    assert (own["switches"], windows["switches"]) == (6 / 4, 3 / 4)
    assert (own["numbers"], own["people"], own["off"], own["recordings"]) == (2.0, 2.0, 1.0, 2)
    assert memory["constant"]["lost"] == pytest.approx(24 / 32) and own["name"] == "the set"


def test_the_sentences_and_the_cell_say_it() -> None:
    row = a_row()
    own, memory = row.figures["systems"]["unmix"], row.figures["memory"]["unmix"]
    label = "set of voices from Mimi, taught by TitaNet"
    assert [(f["experiment"], f["measure"], f["text"]) for f in findings([row], 20, 0)] == [
        (
            "6", "names not found",
            f"The {label}: names not found 31.6 % [{span(own['missed_interval'])}] ({SYSTEMS['windows']} 47.4 %; {SYSTEMS['mean']} "
            f"94.7 %; {SYSTEMS['tracks']} 0.0 %), −15.8 points [{span(own['missed_gap'])}] against the grouped windows: "
            "not clearly different (" + more(own["missed_gap"], "speakers") + ").",
        ),
        (
            "6", "miscounted",
            f"It miscounts 40.0 % [{span(own['miscounted_interval'])}] of the mixtures (always the most frequent number: 60.0 %; "
            "grouped windows: 40.0 %); one name comes twice in 25.0 % of those with several voices.",
        ),
        (
            "6", "1 − F1",
            f"With a memory it follows people through 2 recordings: 1 − F1 37.5 % [{span(memory['lost_interval'])}], 2.0 voices "
            "kept for 2.0 people, 1.5 switches a person; the same numbers in every chunk: 75.0 % (the same memory on grouped "
            f"windows: 56.2 %, 3.0 voices), −18.8 points [{span(memory['lost_gap'])}] against that: better.",
        ),
    ]  # fmt: skip
    (line,) = [line for line in experiments_table([row]) if line["id"] == "6"]
    assert line["title"] == label and line["reference"] is None
    assert line["sound"]["on"] == (
        "21 mixtures, 3 speakers; trained on 50 mixtures of 9 other speakers; people followed through 2 recordings"
    )
    told = [(each["what"], rate(each["value"], None), each["interval"]) for each in line["sound"]["lines"]]
    systems, kept = row.figures["systems"], row.figures["memory"]
    missed = {"unmix": "31.6 %", "windows": "47.4 %", "mean": "94.7 %", "tracks": "0.0 %"}
    assert told == [
        *((f"names not found, {SYSTEMS[n]}", text, systems[n]["missed_interval"]) for n, text in missed.items()),
        *((f"miscounted, {SYSTEMS[n]}", "40.0 %", systems[n]["miscounted_interval"]) for n in ("unmix", "windows")),
        ("miscounted, always the most frequent number", "60.0 %", None),
        *(
            (f"1 − F1 of people followed, {SYSTEMS[n]}", text, kept[n]["lost_interval"])
            for n, text in (("unmix", "37.5 %"), ("windows", "56.2 %"), ("constant", "75.0 %"))
        ),
    ]


def more(gap: dict[str, Any], units: str) -> str:
    """How many would tell: an interval shrinks with the square root of what is drawn from."""
    reach = (gap["high"] - gap["estimate"]) / -gap["estimate"]
    return f"about {int(np.ceil(gap['num_units'] * reach**2))} {units} instead of {gap['num_units']} would tell"


def test_without_windows_or_memory_nothing_is_compared_with_them() -> None:
    row = a_row(windows=False, memory=False)
    assert row.figures["systems"]["unmix"]["missed_gap"] is None and row.figures["memory"] == {}
    texts = [f["text"] for f in findings([row], 20, 0)]
    assert len(texts) == 2 and "against" not in texts[0]
    assert (
        texts[1].startswith("It miscounts 40.0 % [")
        and "(always the most frequent number: 60.0 %); one name" in texts[1]
    )
