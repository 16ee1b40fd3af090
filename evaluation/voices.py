"""Row 7 of a report: runs that take voices out of mixtures, in a cell, in sentences, in a table, and to listen to."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.extraction import PACKAGES, SYSTEMS, figures, judged_by
from evaluation.rows import Row, RunFacts
from evaluation.runs import VOICES, RunError, RunFiles
from evaluation.words import decibels, rate

#: By this way of asking a run is judged: nobody chooses by the clean voice.
JUDGED = ("enrolled", "none")
#: What can be listened to, in this order.
_PLAYED = {"enrolled": "extracted", "none": "separated", "memory": "by the memory's choice", "reference": "reference"}


def read_voices(run: RunFiles) -> dict[str, list[Any]]:
    """The columns of voices.parquet: a line a voice.

    Raises
    ------
    RunError : it is missing or damaged.
    """
    try:
        found: dict[str, list[Any]] = pq.read_table(run.path / VOICES).to_pydict()
        return found
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{run.path / VOICES}: missing or damaged: {error}") from None


def extraction_figures(row: Row | RunFacts, num_resamples: int, rng: np.random.Generator) -> None:
    """Fill ``row.figures``: "systems" by what was asked for (see `evaluation.extraction.figures`), "swaps", "seeds".

    Of several seeds, voice by voice the mean in dB: they have the same voices.

    Raises
    ------
    RunError : the file is damaged, or of other voices than another seed's.
    """
    of_seeds = row.runs if isinstance(row, Row) else [row]
    tables = [read_voices(run.files) for run in of_seeds]
    first = tables[0]
    for run, table in zip(of_seeds, tables, strict=True):
        if table["track"] != first["track"]:
            raise RunError(
                f"{run.files.path}: was measured on other voices than {of_seeds[0].files.path}, of another seed"
            )
    shared = [name for name in first if " " in name and all(name in table for table in tables)]
    facts = {name: values for name, values in first.items() if " " not in name}
    means = {name: np.mean([table[name] for table in tables], axis=0) for name in shared}
    told = figures({**facts, **means}, num_resamples, int(rng.integers(1 << 31)))
    swaps: dict[str, dict[str, int]] = {}
    for run in of_seeds:
        for system, sums in run.result["swaps"].items():
            own = swaps.setdefault(system, {"pairs": 0, "swapped": 0})
            swaps[system] = {key: own[key] + sums[key] for key in own}
    row.figures = {"systems": told, "swaps": swaps, "seeds": len(of_seeds)}


def judged(row: Row) -> str:
    """The system that a row is judged by."""
    return next(name for name in JUDGED if name in row.figures["systems"])


def cell(row: Row) -> dict[str, Any]:
    """What stands in the table of experiments."""
    result = row.result
    lines = [
        {
            "what": f"SI-SDRi, {told['name']}",
            "value": judged_by(told)["si_sdri"],
            "interval": judged_by(told)["interval"],
            "spread": None,
            "unit": "dB",
        }
        for name, told in row.figures["systems"].items()
        if name != "mixture"
    ]
    lines.sort(key=lambda line: -(line["value"] or 0))
    lines += [
        {
            "what": f"pairs whose voice swaps, {SYSTEMS[name]}",
            "value": sums["swapped"] / sums["pairs"],
            "interval": None,
            "spread": None,
        }
        for name, sums in row.figures["swaps"].items()
        if sums["pairs"]
    ]
    several = judged_by(row.figures["systems"]["mixture"])["num_voices"]
    on = f"{several} of {result['num_test_voices']} voices, those of mixtures of several, of {result['num_test_speakers']} "
    on += "speakers, medians; trained on "
    on += f"{result['num_mixtures']} mixtures of {result['num_speakers']} other speakers"
    if silent := result["silent_voices"]["test"]:
        on += f"; {silent} silent voices left out"
    return {"lines": lines, "on": on}


def sentences(row: Row) -> Iterator[tuple[str, str]]:
    """What a row says, each as (measure, text)."""
    systems, name = row.figures["systems"], judged(row)
    own = judged_by(systems[name])
    text = (
        f"{row.label[:1].upper()}{row.label[1:]}, {systems[name]['name']}: {decibels(own['si_sdri'], own['interval'])} "
    )
    text += "(median over voices of mixtures of several; the mixture itself: 0.0 dB"
    beside = [
        f"{systems[k]['name']} {decibels(judged_by(systems[k])['si_sdri'], None)}"
        for k in systems
        if k not in ("mixture", name)
    ]
    every = f"with voices that are alone in theirs {decibels(systems[name]['si_sdri'], systems[name]['interval'])}"
    yield "SI-SDRi", "; ".join([text, *beside, every]) + ")."
    if gap := own["over_wrong"]:
        clear = "clearly" if gap["low"] > 0 else "not clearly"
        text = f"Asked for the right voice it is {decibels(gap['estimate'], gap)} nearer to it than asked for a wrong one: {clear} different"
        if (sums := row.figures["swaps"].get(name)) and sums["pairs"]:
            text += (
                f"; of {sums['pairs']} pairs of voices of one mixture {rate(sums['swapped'] / sums['pairs'], None)} swap with "
                "who is asked for (what does not listen: 0 %)"
            )
        yield "SI-SDR", f"{text}."


def tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each row its systems, with all that was measured, for the page's own section."""
    return [
        {
            "label": row.label,
            "name": row.name,
            "systems": list(row.figures["systems"].values()),
            "swaps": [{"name": SYSTEMS[name], **sums} for name, sums in row.figures["swaps"].items() if sums["pairs"]],
            "rated": [name for name in PACKAGES if any(name in s["sounds"] for s in row.figures["systems"].values())],
        }
        for row in rows
        if row.extracts
    ]


def players(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mixtures to listen to, out of the first run of each row: sounds as data: addresses, so that a page needs nothing else."""
    return [
        {
            "label": row.label,
            "mixture": example["mixture"],
            "sound": _sound(row.files, example["file"]),
            "voices": [
                {
                    "speaker": voice["speaker"],
                    "sounds": [
                        {
                            "what": words,
                            "gain": voice["si_sdri"].get(system),
                            "sound": _sound(row.files, voice["files"][system]),
                        }
                        for system, words in _PLAYED.items()
                        if system in voice["files"]
                    ],
                }
                for voice in example["voices"]
            ],
        }
        for row in rows
        if row.extracts
        for example in row.result["examples"]
    ]


def _sound(run: RunFiles, file: str) -> str:
    path = run.path / file
    if path.parent != run.path / "examples":  # what a file says is no path until it is checked
        raise RunError(f"{run.path}: an example lies outside of it ({file})")
    try:
        return "data:audio/mpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise RunError(f"{path}: missing or damaged: {error.strerror}") from None
