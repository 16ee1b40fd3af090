"""Ctrl-C, really pressed: every command says what is kept and how to go on, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featstore.exchange import export_hdf5
from tests.featstore.store.test_store import fill
from tests.sessions import make_store
from tests.terminal import on_terminal

#: The work itself is replaced: it waits for the key.
_SCRIPT = """
import importlib, sys, time
def work(*_, **__):
    print("at work", flush=True)
    while True:  # a signal between Python's last look at it and one long sleep would wait for its end
        time.sleep(0.05)
module, name, app, *sys.argv[1:] = sys.argv[1:]
setattr(importlib.import_module(module), name, work)
importlib.import_module("cli." + app).app()
"""
_GOES_ON = "the same command goes on"
_ANEW = "nothing was changed; the same command begins anew"

CASES = {
    "featstore verify STORE": ("featstore.upkeep.verify.verify", _ANEW),
    "featstore verify STORE --repair": ("featstore.upkeep.verify.verify", _GOES_ON),
    "featstore compact STORE": ("featstore.upkeep.compact.compact", _GOES_ON),
    "featstore merge STORE --out NEW": ("featstore.upkeep.merge.merge", _GOES_ON),
    "featstore push STORE file://NEW": ("featstore.remote.transfer.push", _GOES_ON),
    "featstore pull file://STORE NEW": ("featstore.remote.transfer.pull", _GOES_ON),
    "featstore export STORE NEW.h5": ("featstore.exchange._export_feature", "the same command makes it anew"),
    "featstore import STORE.h5 --store NEW": ("featstore.exchange.import_hdf5", _GOES_ON),
    "featstore relabel STORE x.jsonl": ("featstore.corpora.corrections.read_corrections", _ANEW),
    "featstore extract x.jsonl --store NEW --feature mimi": ("featstore.corpora.manifest.read_manifest", _ANEW),
    "featstore simulate STORE.jsonl --recipe 2spk --out NEW": ("featstore.simulation.simulate.simulate", _GOES_ON),
    "evaluation eer --store STORE --trials x": ("evaluation.measure.measure_eer", _ANEW),
    "evaluation report x --out NEW": ("evaluation.report.report", "the same command makes it anew"),
}


def pressed(module: str, name: str, app: str, *arguments: object) -> str:
    """The last line after Ctrl-C, once it is known that all else is the bar."""
    code, shown = on_terminal(_SCRIPT, [module, name, app, *arguments], interrupt_at="at work")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 130 and "Traceback" not in plain and plain.count("interrupted: ") == 1, plain
    return plain.split("interrupted: ")[1].strip()


@pytest.mark.parametrize("command", CASES)
def test_ctrl_c(tmp_path: Path, command: str) -> None:
    fill(tmp_path / "s")
    (tmp_path / "s.jsonl").write_text('{"audio_filepath": "a.wav", "speaker": "a"}\n')
    export_hdf5(tmp_path / "s", tmp_path / "s.h5")
    inner, expected = CASES[command]
    words = command.replace("STORE", str(tmp_path / "s")).replace("NEW", str(tmp_path / "new")).split()
    assert expected in pressed(*inner.rsplit(".", 1), *words)
    assert not list(tmp_path.glob("new*")), "it began, and left something half done"


def test_ctrl_c_while_training(tmp_path: Path) -> None:
    make_store(tmp_path / "s", {"train": 2, "dev": 1, "test": 1})
    arguments = ("trainers", "fit", "adapter", "--store", tmp_path / "s", "--out", tmp_path / "run")
    told = pressed("trainers.diarization.loop", "Training", *arguments, "--set", "device=cpu")
    assert f"is in {tmp_path / 'run'}; the same command with --resume goes on" in told
