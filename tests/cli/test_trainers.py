"""`trainers fit`: every option reaches the run, and what people are shown of a result is what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import featstore
from cli.trainers import _show, _show_spread, app
from evaluation.sets import SYSTEMS
from tests.sessions import make_store
from trainers import kinds
from trainers.config import FitConfig
from trainers.runs import Run

TOLD = {"kind": "adapter", "protocol": "sound", "parameters": 1234567, "input_share": None}
TOLD |= {"test": {"der": 0.1234, "fixed_der": None, "detection": 0.05}, "notes": [], "warnings": []}


class Fitting:
    """In place of the fits: writes the configuration and says what a result says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seen: list[tuple[FitConfig, str]] = []
        self.result: dict[str, Any] = TOLD
        self.stops = False

    def of(self, kind: str) -> Any:
        self.asked.append(kind)
        return self

    def __call__(self, run: Run, store: featstore.Store, *, progress: Any) -> dict[str, Any]:
        self.seen.append((run.config, str(run.path)))
        run.begin()
        progress.line(f"seed {run.config.seed} of {len(store)} utterances")
        if self.stops:
            raise KeyboardInterrupt
        return self.result


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fitting:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "s", {"train": 2, "dev": 1, "test": 1}, seconds=2.0)
    made = Fitting()
    monkeypatch.setattr(kinds, "function_of", made.of)
    return made


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def test_settings_come_from_preset_file_and_command_line_in_this_order(fitting: Fitting) -> None:
    """The small preset says width=96, lr=0.002, epochs=16."""
    Path("a.toml").write_text("lr = 0.5\nepochs = 9\n")
    words = ("adapter", "--store", "s", "--out", "r", "--preset", "small", "--config", "a.toml")
    done = fit(*words, "--protocol", "reference", "--set", "epochs=4", "--set", "crop_s=7")
    assert done.exit_code == 0, done.output
    config = json.loads(Path("r/config.json").read_text())["config"]
    found = {key: config[key] for key in ("width", "lr", "epochs", "crop_s", "protocol", "kind")}
    assert found == {"width": 96, "lr": 0.5, "epochs": 4, "crop_s": 7.0, "protocol": "reference", "kind": "adapter"}
    assert fitting.asked == ["adapter"] and "seed 0 of 4 utterances" in done.stderr
    assert fit("adapter", "--store", "s", "--out", "plain").exit_code == 0
    assert fitting.seen[1] == (FitConfig.make("adapter"), "plain") and fitting.seen[1][0].protocol == "sound"


def test_json_is_the_result_and_nothing_else(fitting: Fitting) -> None:
    assert json.loads(fit("adapter", "--store", "s", "--out", "r", "--json").stdout) == TOLD
    words = ("adapter", "--store", "s", "--out", "many", "--seeds", 2, "--set", "seed=5")
    assert json.loads(fit(*words, "--json").stdout) == {"seed5": TOLD, "seed6": TOLD}
    shown = fit(*words, "--resume")
    assert shown.stdout.splitlines() == [
        "  many/seed5  DER  12.34%",
        "  many/seed6  DER  12.34%",
        "DER of 2 seeds: mean 12.34%, between 12.34% and 12.34%",
    ]
    assert "seed 6 of 4 utterances" in shown.stderr
    fitting.result = {}  # another process than the first has nothing to say
    for more in ((), ("--seeds", 1)):
        assert fit("adapter", "--store", "s", "--out", f"none{len(more)}", *more).stdout == ""


@pytest.mark.parametrize("more", [(), ("--seeds", 2)])
def test_ctrl_c_says_how_to_go_on(fitting: Fitting, more: tuple) -> None:
    fitting.stops = True
    words = ("adapter", "--store", "s", "--out", "r", *more)
    for resume, how in (((), "the same command with --resume goes on"), (("--resume",), "the same command goes on")):
        done = fit(*words, *resume)
        assert done.exit_code == 130
        assert f"interrupted: what was finished is in r; {how} (" in done.stderr


def shown(result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    _show({"notes": ["a note"], "warnings": [], **result}, Path("out/run"))
    *lines, note, run = capsys.readouterr().out.splitlines()
    assert (note, run) == ("note: a note", "run: out/run")
    return lines


def test_what_is_shown_of_a_probe(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {"kind": "probe", "protocol": "reference", "num_utterances": 90, "num_speakers": 30}
    told |= {"num_pieces": 0, "piece_s": 2.5, "train_accuracy": 0.987, "num_trials": 400, "num_trial_speakers": 12}
    told["systems"] = {"raw": {"eer": 0.25}, "probe": {"eer": 0.0125}}
    lines = [
        "reference protocol: trained on 90 utterances of 30 speakers (accuracy 98.7%), scored on 400 trials of 12 speakers",
        "  raw          EER  25.00%",
        "  probe        EER   1.25%",
    ]
    assert shown(told, capsys) == lines
    lines[0] = lines[0].replace("90 utterances", "90 utterances and 70 pieces of 2.5 s")
    assert shown({**told, "num_pieces": 70}, capsys) == lines


def test_what_is_shown_of_a_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {"kind": "proxy", "parameters": 25_000, "num_utterances": 90, "num_speakers": 30}
    told |= {"loss": "ce", "num_trials": 400, "num_trial_speakers": 12}
    told["systems"] = {"proxy": {"eer": 0.015, "mean_same": 0.8, "mean_different": 0.1}}
    accepted = {"target": {"accepted": 7}, "wrong": {"accepted": 3}, "random": {"accepted": 1}}
    told["ascent"] = {"judges": {"the teacher": {"pairs": 9, **accepted}}}
    assert shown(told, capsys) == [
        "sound protocol, 25,000 parameters: trained on 90 utterances of 30 speakers, loss ce (best on dev), scored on 400 "
        "trials of 12 speakers",
        "  proxy                    EER   1.50%   cosine 0.80 / 0.10",
        "  gradient ascent, judged by the teacher: of 9 pairs accepted: target 7, wrong 3, random 1",
    ]


def test_what_is_shown_of_sets(capsys: pytest.CaptureFixture[str]) -> None:
    """Memory: 6 of 10 hits in one recording, 2 of 6 in the other: F1 = 2 · 8 / (10 + 6 + 8 + 4)."""
    one = {"unmix": {"identified": 0.75, "counted": 0.5, "cosine": 0.9}}
    two = {"windows": {"identified": 0.25, "counted": None, "cosine": 0.4}}
    recordings = {
        "a": {"hits": 6, "present": 10, "given": 8, "numbers": 3, "people": 4},
        "b": {"hits": 2, "present": 6, "given": 4, "numbers": 2, "people": 2},
    }
    told: dict[str, Any] = {"kind": "unmix", "parameters": 1000, "best_step": 40, "num_mixtures": 60, "majority": 0.4}
    told |= {"num_speakers": 20, "num_test_mixtures": 12, "num_test_speakers": 6}
    told["by_voices"] = [
        {"voices": 2, "mixtures": 8, "trained": True, "systems": one},
        {"voices": 3, "mixtures": 4, "trained": False, "systems": two},
    ]
    told["memory"] = {"unmix": {"recordings": recordings}}
    assert shown(told, capsys) == [
        "1,000 parameters, best step 40 (dev): trained on 60 mixtures of 20 speakers, tried on 12 of 6 others",
        f"  {'by number of voices':50s} names found | counted right | cosine",
        "  2 (8 mixtures)",
        f"    {SYSTEMS['unmix']:50s}   75.0%     50.0%     0.90",
        "  3 (4 mixtures, such were never trained on)",
        f"    {SYSTEMS['windows']:50s}   25.0%         —     0.40",
        "  always the most frequent number: 40.0% counted right",
        f"  memory on {SYSTEMS['unmix']}: F1 57.1%, 5 voices kept for 6 people",
    ]
    assert shown({**told, "memory": None}, capsys)[-1].startswith("  always")


def test_what_is_shown_of_voices(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {"kind": "tse", "parameters": 1000, "best_step": 40, "num_mixtures": 60, "num_speakers": 20}
    told |= {"num_test_voices": 12, "num_test_speakers": 6}
    told["extraction"] = {
        "enrolled": {"name": "by voice", "si_sdri": 7.25, "several": {"si_sdri": 8.75}},
        "none": {"name": "blind", "si_sdri": None},
    }
    told["swaps"] = {"enrolled": {"pairs": 10, "swapped": 9}, "none": {"pairs": 0, "swapped": 0}}
    assert shown(told, capsys) == [
        "1,000 parameters, best step 40 (dev): trained on 60 mixtures of 20 speakers, tried on 12 voices of 6 others",
        f"  {'by voice':60s} SI-SDRi +8.8 dB in mixtures of several, +7.2 dB in all",
        f"  {'blind':60s} SI-SDRi — in mixtures of several, — in all",
        "  of 10 pairs of voices 9 swap with who is asked for (by voice)",
    ]


def test_what_is_shown_of_who_spoke_when(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(TOLD | {"notes": ["a note"]}, capsys) == [
        "sound protocol, 1,234,567 parameters",
        "  DER                     12.34%",
        "  DER, fixed channels    —",
        "  missed + false alarm     5.00%",
    ]
    told: dict[str, Any] = TOLD | {"notes": ["a note"], "protocol": "reference", "best_epoch": 7, "input_share": 0.0125}
    told |= {"test": {"der": None, "fixed_der": 0.5, "detection": 0.25}, "whole": {"der": 0.2}}
    told["ceilings"] = {"true_when_own_who": {"test": {"der": 0.125}}, "own_when": {"test": {"der": None}}}
    assert shown(told, capsys) == [
        "reference protocol, 1,234,567 parameters, best epoch 7",
        "  DER                    —",
        "  DER, fixed channels     50.00%",
        "  missed + false alarm    25.00%",
        "  DER, whole recordings   20.00%",
        "  true when own who       12.50%",
        "  own when               —",
        "  input 1.25% of the step time",
    ]
    assert shown(told | {"whole": {"der": None}}, capsys)[4] == "  DER, whole recordings  —"


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            {"systems": {"probe": {"eer": 0.25}}, "kind": "probe"},
            "EER of 1 seeds: mean 25.00%, between 25.00% and 25.00%",
        ),
        ({"sets": {}, "names_found": 0.75}, "names not found of 1 seeds: mean 25.00%, between 25.00% and 25.00%"),
        (
            {"extraction": {"enrolled": {"si_sdri": -2.5}, "none": {"si_sdri": 1.0}}},
            "SI-SDRi of 1 seeds: mean -2.5 dB, between -2.5 dB and -2.5 dB",
        ),
        ({"extraction": {"none": {"si_sdri": 1.0}}}, "SI-SDRi of 1 seeds: mean 1.0 dB, between 1.0 dB and 1.0 dB"),
        ({"test": {"der": None}}, "  out/seed0  DER —"),
    ],
)
def test_by_what_seeds_of_each_kind_are_told_apart(
    result: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _show_spread({"seed0": {**TOLD, **result}}, Path("out"))
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_seeds_warn_once_of_what_they_share(capsys: pytest.CaptureFixture[str]) -> None:
    _show_spread({f"seed{k}": {**TOLD, "warnings": [f"{k}", "all"]} for k in range(3)}, Path("out"))
    assert capsys.readouterr().err.splitlines() == [f"warning: {text}" for text in ("0", "all", "1", "2")]
