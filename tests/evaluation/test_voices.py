"""Row 7 from made-up voices: seeds, what a row is judged by, its cell, sentences, table, and what can be listened to."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from evaluation.audit import check_run
from evaluation.extraction import SYSTEMS, figures
from evaluation.findings import findings
from evaluation.rows import Row, RunFacts
from evaluation.runs import RunError, RunFiles
from evaluation.table import experiments_table
from evaluation.voices import extraction_figures, judged, players, tables
from evaluation.words import decibels
from tests.sessions import spec

VOICES = {
    "track": ["m0/a", "m0/b", "m1/a", "m1/c"],
    "speaker": ["a", "b", "a", "c"],
    "voices": [2, 2, 2, 2],
    "mixture si_sdr": [0.0, 1.0, -2.0, 3.0],
    "wrong si_sdr": [-5.0, -4.0, -9.0, -8.0],
    "oracle si_sdr": [6.0, 5.0, 4.0, 9.0],
    "enrolled si_sdr": [5.0, 3.0, 1.0, float("nan")],
    "enrolled estoi": [0.5, 0.7, 0.9, float("nan")],
}
SWAPS = {
    "oracle": {"pairs": 4, "swapped": 3},
    "enrolled": {"pairs": 2, "swapped": 1},
    "memory": {"pairs": 0, "swapped": 0},
}


def a_run(folder: Path, voices: dict[str, list] = VOICES, **more: Any) -> RunFacts:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(voices), folder / "voices.parquet")
    result = {
        "kind": "tse", "extraction": {}, "swaps": SWAPS, "num_test_voices": 4, "num_test_speakers": 3, "num_mixtures": 30,
        "num_speakers": 8, "silent_voices": {"train": 7, "test": 2}, "examples": [], **more,
    }  # fmt: skip
    config = {"config": {"kind": "tse"}, "protocol": "sound", "store": "s"}
    return RunFacts(RunFiles(folder, config, {"titanet": spec("titanet", 4)}), result, "7")


def measured(*runs: RunFacts, seed: int = 0) -> Row:
    row = Row(list(runs), runs[0].result)
    extraction_figures(row, 30, np.random.default_rng(seed))
    return row


def later(voices: dict[str, list], gain: float) -> dict[str, list]:
    """The same, by so many dB better where something was asked for."""
    return {
        n: [v + gain for v in of] if n.endswith("si_sdr") and "mixture" not in n else of for n, of in voices.items()
    }


def test_of_several_seeds_each_voice_counts_with_its_mean(tmp_path: Path) -> None:
    row = measured(a_run(tmp_path / "seed0"), a_run(tmp_path / "seed1", later(VOICES, 2)), seed=6)
    means = later(VOICES, 1)
    drawn = int(np.random.default_rng(6).integers(1 << 31))
    assert row.figures["systems"] == figures(means, 30, drawn)
    assert row.figures["systems"]["oracle"]["si_sdri"] == 6 + 1  # gains 6, 4, 6, 6 and one more
    assert row.figures["systems"]["oracle"]["interval"]["num_resamples"] == 30
    assert row.figures["swaps"]["oracle"] == {"pairs": 8, "swapped": 6} and row.figures["seeds"] == 2
    broken = {**VOICES, "track": ["m0/a", "m0/b", "m1/c", "m1/a"]}
    with pytest.raises(RunError, match="seed2: was measured on other voices than .*seed0, of another seed"):
        measured(row.runs[0], a_run(tmp_path / "seed2", broken))


def test_the_cell_and_the_sentences(tmp_path: Path) -> None:
    row = measured(a_run(tmp_path / "run"))
    systems = row.figures["systems"]
    (line,) = [line for line in experiments_table([row]) if line["id"] == "7"]
    told = line["sound"]["lines"]
    # The best first; of gains 6, 4, 6, 6 the median; 5, 2, 3; -5, -5, -7, -11
    assert [(each["what"], each["value"], each.get("unit")) for each in told] == [
        ("SI-SDRi, asked for by the clean voice itself", 6.0, "dB"),
        ("SI-SDRi, asked for by another utterance", 3.0, "dB"),
        ("SI-SDRi, asked for somebody who is not in it", -6.0, "dB"),
        ("pairs whose voice swaps, asked for by the clean voice itself", 0.75, None),
        ("pairs whose voice swaps, asked for by another utterance", 0.5, None),
    ]
    assert [each["interval"] for each in told[:3]] == [systems[n]["interval"] for n in ("oracle", "enrolled", "wrong")]
    assert line["sound"]["on"] == (
        "4 of 4 voices, those of mixtures of several, of 3 speakers, medians; trained on 30 mixtures of 8 other speakers; "
        "2 silent voices left out"
    )
    own, gap = systems["enrolled"]["interval"], systems["enrolled"]["over_wrong"]
    assert gap["estimate"] == 10.0  # 10, 7, 10
    assert [(f["measure"], f["text"]) for f in findings([row], 20, 0)] == [
        (
            "SI-SDRi",
            f"One voice out of a mixture, told by TitaNet, asked for by another utterance: {decibels(3.0, own)} (median over voices "
            "of mixtures of several; the mixture itself: 0.0 dB; asked for somebody who is not in it −6.0 dB; asked for by the clean "
            f"voice itself 6.0 dB; with voices that are alone in theirs {decibels(3.0, own)}).",
        ),
        (
            "SI-SDR",
            f"Asked for the right voice it is {decibels(10.0, gap)} nearer to it than asked for a wrong one: clearly different; "
            "of 2 pairs of voices of one mixture 50.0 % swap with who is asked for (what does not listen: 0 %).",
        ),
    ]
    assert judged(row) == "enrolled"
    worse = measured(
        a_run(tmp_path / "worse", {**VOICES, "wrong si_sdr": [-5.0, 9.0, 9.0, 9.0]}, silent_voices={"test": 0})
    )
    assert "not clearly different; of 2 pairs" in findings([worse], 20, 0)[1]["text"]
    assert "silent" not in experiments_table([worse])[-1]["sound"]["on"]


def test_a_voice_that_is_alone_does_not_decide(tmp_path: Path) -> None:
    """Harmed, as it can only be: it stands in the sentence's end, in the figures of all voices, and nowhere else."""
    alone = {name: [{"track": "m2/b", "speaker": "b", "voices": 1}.get(name, 40.0), *of] for name, of in VOICES.items()}
    alone["enrolled si_sdr"][0] = -40.0
    row, without = measured(a_run(tmp_path / "run", alone, num_test_voices=5)), measured(a_run(tmp_path / "without"))
    (line,), (same,) = ([each for each in experiments_table([r]) if each["id"] == "7"] for r in (row, without))
    values = [[each["value"] for each in told["sound"]["lines"]] for told in (line, same)]
    assert values[0] == values[1] and line["sound"]["on"].startswith("4 of 5 voices, those of mixtures of several")
    (_, said), (_, gap) = ((f["measure"], f["text"]) for f in findings([row], 20, 0))
    every = row.figures["systems"]["enrolled"]
    assert every["si_sdri"] == 2.5  # of -80, 5, 2, 3
    assert f"with voices that are alone in theirs {decibels(2.5, every['interval'])})." in said
    assert gap.startswith(f"Asked for the right voice it is {decibels(10.0, every['several']['over_wrong'])} nearer")


def test_without_a_condition_a_row_is_judged_by_all_voices_at_once(tmp_path: Path) -> None:
    blind = {k: v for k, v in VOICES.items() if k.split()[0] not in ("wrong", "oracle", "enrolled")} | {
        "none si_sdr": [1.0] * 4
    }
    row = measured(a_run(tmp_path / "run", blind, swaps={}))
    assert judged(row) == "none" and len(findings([row], 20, 0)) == 1


def test_the_table_of_all_that_was_measured(tmp_path: Path) -> None:
    row = measured(a_run(tmp_path / "run"))
    (told,) = tables([row])
    assert (told["label"], told["name"], told["rated"]) == (
        "one voice out of a mixture, told by TitaNet",
        "run",
        ["estoi"],
    )
    assert [system["name"] for system in told["systems"]] == [
        SYSTEMS[n] for n in ("mixture", "wrong", "enrolled", "oracle")
    ]
    assert told["systems"][2]["sounds"] == {"estoi": pytest.approx(0.7)}
    assert told["swaps"] == [{"name": SYSTEMS[n], **SWAPS[n]} for n in ("oracle", "enrolled")]


def test_players_hold_the_sounds_of_the_first_run(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (tmp_path / "run" / "examples").mkdir()
    for name in ("mix", "ref", "own", "mem"):
        (tmp_path / "run" / "examples" / name).write_bytes(name.encode())
    voice = {
        "speaker": "a",
        "files": {"reference": "examples/ref", "memory": "examples/mem", "enrolled": "examples/own"},
    }
    run.result["examples"] = [
        {"mixture": "m0", "file": "examples/mix", "voices": [{**voice, "si_sdri": {"enrolled": 3.5}}]}
    ]

    def sound(name: str) -> str:
        return "data:audio/mpeg;base64," + base64.b64encode(name.encode()).decode()

    (told,) = players([Row([run], run.result)])
    assert told == {
        "label": "one voice out of a mixture, told by TitaNet", "mixture": "m0", "sound": sound("mix"),
        "voices": [{"speaker": "a", "sounds": [
            {"what": "extracted", "gain": 3.5, "sound": sound("own")},
            {"what": "by the memory's choice", "gain": None, "sound": sound("mem")},
            {"what": "reference", "gain": None, "sound": sound("ref")},
        ]}],
    }  # fmt: skip
    run.result["examples"][0]["file"] = "examples/../voices.parquet"
    with pytest.raises(RunError, match="an example lies outside of it"):
        players([Row([run], run.result)])
    run.result["examples"][0]["file"] = "examples/absent"
    with pytest.raises(RunError, match="absent: missing or damaged"):
        players([Row([run], run.result)])


# ---- its audit


@pytest.mark.parametrize(("protocol", "level"), [("sound", "error"), ("reference", "warning")])
def test_figures_and_speakers_of_an_extraction_are_audited(tmp_path: Path, protocol: str, level: str) -> None:
    run = a_run(tmp_path / "run")
    told = figures(VOICES, 2, 0)
    specs = {name: {"spec": feature.to_json()} for name, feature in run.files.features.items()}
    (run.files.path / "config.json").write_text(json.dumps({"protocol": protocol, "features": specs, "config": {}}))
    (run.files.path / "result.json").write_text(json.dumps(run.result | {"extraction": told}))
    names = json.dumps({"classes": ["b", "x", "c"]})
    save_file({"w": np.zeros(1, np.float32)}, run.files.path / "model.safetensors", metadata={"whowhen": names})
    found = {c.name.partition(": ")[2]: (c.found, c.expected, c.level) for c in check_run(run.files.path)}
    assert found["test speakers that it was trained on"] == ("2: b, c", "none", level)
    levels = {name.split(", ")[1]: level for name, (_, _, level) in found.items() if name.startswith("SI-SDRi")}
    assert levels == dict.fromkeys([SYSTEMS[n] for n in ("mixture", "wrong", "enrolled", "oracle")], "ok")
    told["enrolled"]["si_sdri"] += 0.25
    (run.files.path / "result.json").write_text(json.dumps(run.result | {"extraction": told}))
    (failed,) = [c for c in check_run(run.files.path) if c.level == "error" and "SI-SDRi" in c.name]
    assert SYSTEMS["enrolled"] in failed.name and (failed.found, failed.expected) == ("3.0 dB", "3.2 dB")
