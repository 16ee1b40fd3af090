"""Mistakes that were refused in words which named no way out, or, in milliseconds, not refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import evaluation, featstore, trainers
from featstore.exchange import export_hdf5
from tests.featstore.store.test_store import fill
from tests.sessions import make_store

RTTM = "SPEAKER a 1 0.00 1.00 <NA> <NA> s <NA> <NA>\n"

#: what was typed → the words that help
CASES = {
    "featstore extract speakers.jsonl --store new --feature mimi": [
        "no 'audio_filepath' in it, only name",
        "README.md",
    ],
    "featstore extract table.csv --store new --feature mimi": ["not JSON", "make_manifest.py"],
    "featstore extract list.json --store new --feature mimi": ["expected a JSON object, found list", "README.md"],
    "featstore extract s --store speakers.jsonl --feature mimi": ["is a store, and no manifest; are the two swapped?"],
    "featstore extract https://host/a/train.jsonl --store new --feature mimi": [
        "https://host/a/train.jsonl: an address",
        "download",
    ],
    "featstore info s/features.zarr": ["is inside of a store; name the store itself: ", "/s"],
    "featstore import in.h5 --store s/index": ["is inside of a store; name the store itself: ", "/s"],
    "featstore info s/features.zarr/mimi": ["is inside of a store; name the store itself: ", "/s"],
    "featstore info speakers.jsonl": ["found a file; featstore extract MANIFEST --store STORE makes one"],
    "featstore extract ok.jsonl --store new --feature Mimi": ["did you mean mimi?"],
    "featstore remove s --from speakers.jsonl": ["a manifest, and no ids", "jq -r .utt_id speakers.jsonl > ids.txt"],
    "featstore remove s a b": ["'a' is not in it, nor is 'b'"],
    "featstore remove s a b c": ["'a' is not in it, nor are 2 others"],
    "featstore import speakers.jsonl --store new": ["not an HDF5 file", "featstore export STORE FILE.h5 makes one"],
    "featstore import s --store new": ["is a folder", "stores are joined by featstore merge"],
    "featstore push s far": ["expected an address", "of this folder it is file:///"],
    "featstore pull file:///nowhere/at/all new": ["no such folder; check the address"],
    "trainers fit adapter --store s --out run": ["has turns, which say who speaks when", "featstore simulate"],
    "trainers fit adapter --store turns --out speakers.jsonl": ["file is in the way of a folder: choose another path"],
    "trainers fit adapter --store s --out run --config speakers.jsonl": ["not a TOML file", "such as key = 1"],
    "trainers fit probe --store turns --out run --set trials=nothere": [
        "nothere",
        "check the path, which is seen from",
    ],
    "evaluation der --ref a.rttm --hyp a.rttm --collar 250": ["collar must be 0 to 10 seconds", "found 250"],
}


@pytest.mark.parametrize("typed", CASES)
def test_it_says_what_to_do(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("s"))
    if "turns" in typed:
        make_store(Path("turns"), {"train": 2, "test": 1})
    Path("speakers.jsonl").write_text('{"name": "a"}\n')
    Path("ok.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    Path("table.csv").write_text("audio,speaker\na.wav,a\n")
    Path("list.json").write_text("[]")
    if "in.h5" in typed:
        export_hdf5("s", "in.h5")
    Path("a.rttm").write_text(RTTM)
    command, *words = typed.split()
    app = {"featstore": featstore, "trainers": trainers, "evaluation": evaluation}[command].app
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and all(part in last for part in CASES[typed]), result.stderr
