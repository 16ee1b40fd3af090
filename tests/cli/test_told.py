"""What the featstore commands hand over and tell: each option where it has its effect, each figure in its place and unit.

The work itself is replaced: it gives figures of which no two are alike.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner, Result

import featstore
import featstore.extractors
from cli.featstore import app, copies, simulate, stores
from cli.featstore import extract as extract_command
from featstore import Turn
from featstore.corpora.corrections import Correction
from featstore.jobs import ray as ray_engine
from featstore.jobs.result import Result as Outcome
from featstore.remote.transfer import Transfer
from featstore.simulation.outcome import SimulationReport
from featstore.store.check import Finding
from featstore.upkeep.compact import Compaction
from featstore.upkeep.merge import Merged
from featstore.upkeep.relabel import Relabelled, Removed, relabel
from featstore.upkeep.verify import Report
from tests.fakes import FakeExtractor, tone
from tests.featstore.store.test_store import fill


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


class Calls(list):
    """Stands for a function: keeps what it is called with, gives `answer`."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer

    def __call__(self, *arguments: object, **named: object) -> object:
        self.append((arguments, {key: value for key, value in named.items() if key != "progress"}))
        return self.answer(**named) if callable(self.answer) else self.answer


@pytest.fixture
def replace_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], Calls]:
    def put(name: str, answer: object) -> Calls:
        calls = Calls(answer)
        monkeypatch.setattr(name, calls)
        return calls

    return put


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[tuple]]]:
    """Title and updates of every bar that is shown."""
    shown: list[tuple[str, list[tuple]]] = []

    @contextmanager
    def bar(title: str) -> Iterator[object]:
        updates: list[tuple] = []
        shown.append((title, updates))
        yield type("Shown", (), {"update": lambda self, *told: updates.append(told)})()

    for module in (copies, extract_command, simulate, stores):
        monkeypatch.setattr(module, "bar", bar)
    return shown


def test_what_push_and_pull_tell(tmp_path: Path, replace_with) -> None:
    s = tmp_path / "s"
    for command, arguments, told in (
        ("push", (s, "s3://b/p"), "pushed 3 parts, 7.5 MB, 3.0 MB/s; 2 were there already\n"),
        ("pull", ("s3://b/p", s), "pulled 3 parts, 7.5 MB, 3.0 MB/s; 2 were there already\n"),
    ):
        calls = replace_with(f"featstore.remote.transfer.{command}", Transfer(3, 2, 7_500_000, 2.5))
        assert run(command, *arguments).stdout == told
        assert json.loads(run(command, *arguments, "--json").stdout) == {
            **{"url": "s3://b/p", "parts": 3, "parts_there": 2, "bytes": 7_500_000, "seconds": 2.5}
        }
        assert calls == [(arguments, {})] * 2
        calls.answer = Transfer(0, 5, 0, 0.1)
        assert run(command, *arguments).stdout == told[:6] + " 0 parts, 0.0 MB; 5 were there already\n"
        calls.answer = Transfer(1, 0, 0, 0.1)
        assert run(command, *arguments).stdout.startswith(told[:6] + " 1 part, ")


def test_what_merge_and_import_tell(tmp_path: Path, replace_with) -> None:
    a, b, out = (tmp_path / name for name in "abc")
    calls = replace_with("featstore.upkeep.merge.merge", Merged(4, 0, 12_340_000, 9))
    assert run("merge", a, b, "--out", out).stdout == f"{out}: 9 utterances; 4 parts, 12.3 MB copied\n"
    calls.answer = Merged(4, 2, 12_340_000, 9)
    assert run("merge", a, b, "--out", out).stdout.endswith(" copied; 2 were there already\n")
    assert calls[0] == (([a, b], out), {})
    figures = {"store": str(out), "parts": 4, "parts_there": 2, "bytes": 12_340_000, "utterances": 9}
    assert json.loads(run("merge", a, "--out", out, "--json").stdout) == figures
    calls = replace_with("featstore.exchange.import_hdf5", 11)
    assert run("import", a, "--store", b).stdout == f"{b}: 11 utterances added (counted once a feature)\n"
    assert calls == [((a, b), {})]


@pytest.mark.parametrize("to", ["lhotse", "kaldi"])
def test_an_export_for_a_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """Of the feature that is named, by that toolkit's writer, of frames that are checked; the size is that of all files."""
    fill(tmp_path / "s")
    asked = []

    def write(store: featstore.Store, target: Path, feature: str, **more: object) -> None:
        asked.append((feature, store.frames("mimi", "u0").shape[1]))
        target.mkdir(exist_ok=True)
        for name, size in (("a", 1_500_000), ("b", 800_000)):
            (target / name).write_bytes(bytes(size))

    monkeypatch.setattr(f"featstore.toolkits.export_{to}", write)
    command = ("export", tmp_path / "s", tmp_path / "out", "--to", to, "--feature", "mimi")
    assert run(*command).stdout == f"{tmp_path / 'out'}: 2.3 MB\n"
    facts = {"store": str(tmp_path / "s"), "to": to, "path": str(tmp_path / "out"), "bytes": 2_300_000}
    assert json.loads(run(*command, "--json").stdout) == facts and asked == [("mimi", 8)] * 2
    (chunk,) = (tmp_path / "s").glob("features.zarr/mimi/*/frames/c/0/0")
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    assert "CRC32C" in run(*command, code=2).stderr
    refused = run("export", tmp_path / "s", tmp_path / "s.h5", "--feature", "mimi", code=2)
    assert "--feature goes with --to" in refused.stderr and not (tmp_path / "s.h5").exists()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for i in range(2):
        sf.write(tmp_path / f"{i}.wav", tone(1.0, hz=200 + 50 * i), 8000)
    rows = [{"audio_filepath": f"{i}.wav", "duration": 1.0, "speaker": "s"} for i in range(2)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> FakeExtractor:
    extractor = FakeExtractor()
    extractor.spec.settings["weights"] = "random:3"
    monkeypatch.setattr("featstore.extractors.create", lambda name, **settings: extractor)
    return extractor


def outcome(**more: object) -> Outcome:
    done = Outcome("fake", 40, 5, 20, audio_s=1234.4, total_s=2000.0, wall_s=100.2, writers=3, decoders=2)
    done.busy_s = {"encode": 50.1, "decode": 40.08}
    for key, value in more.items():
        setattr(done, key, value)
    return done


def test_what_an_extraction_tells(tmp_path: Path, manifest: Path, untrained, replace_with, bars) -> None:
    """Of 2000 s 1234 in 100.2 s; encoders 50.1 s of 3 × 100.2 s, decoders 40.08 s of 6 × 100.2 s."""
    failed = [{"id": f"f{k}", "error": f"bad {k}"} for k in range(12)]
    found = outcome(changed=["c1", "c2"], failures=failed, put_off=3)

    def work(progress: Callable[[Outcome], None], **_: object) -> Outcome:
        progress(Outcome("fake", audio_s=30.0, total_s=120.0, wall_s=10.0))
        progress(Outcome("fake", audio_s=0.0, total_s=120.0))
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler  # a rented machine's end is like Ctrl-C
        return found

    replace_with("featstore.jobs.extract.extract", work)
    store, before = tmp_path / "s", signal.getsignal(signal.SIGTERM)
    try:
        told = run("extract", manifest, "--store", store, "--feature", "fake", code=1)
        as_json = json.loads(run("extract", manifest, "--store", store, "--feature", "fake", "--json", code=1).stdout)
        found.failures = []  # what was put off is not done either
        run("extract", manifest, "--store", store, "--feature", "fake", code=1)
        found.put_off = 0
        quiet = run("extract", manifest, "--store", store, "--feature", "fake")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told.stdout == (
        "fake: 20 utterances added, 5 there already, 12 failed, 3 put off; 1234 s of audio in 100.2 s, 12.3 × real time "
        "by 3 actors; time spent: decode 7%, encode 17%\n"
    )
    warning = "fake: UNTRAINED weights (random:3): its numbers say nothing about fake"
    assert told.stderr.splitlines() == [
        f"warning: {warning}",
        f"warning: 2 utterance(s) have another recording, speaker, split or turns in {manifest} than in the store, which keeps "
        f"its own (first: c1); to take these over: featstore relabel {store} {manifest}",
        *(f"failed: f{k}: bad {k}" for k in range(10)),
        f"failed: 12 utterance(s), listed in {store / 'failures.jsonl'}; 2 more",
        "put off: 3 utterance(s) of batches in which the disk failed; run the same command again",
    ]
    assert (as_json["warning"], as_json["store"], as_json["failures"]) == (warning, str(store), failed)
    assert as_json["times_real_time"] == pytest.approx(1234.4 / 100.2)
    assert "0 failed; 1234 s" in quiet.stdout
    assert bars[0] == ("fake of 2 utterances", [(30.0, 120.0, "3.0 × real time"), (0.0, 120.0, "0.0 × real time")])
    found = Outcome("fake")
    rows = manifest.read_text().splitlines()
    manifest.write_text(json.dumps({**json.loads(rows[0]), "mood": "glad", "age": 3}) + "\n")
    try:
        nothing = run("extract", manifest, "--store", store, "--feature", "fake")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert nothing.stdout == "fake: 0 utterances added, 0 there already, 0 failed; 0 s of audio in 0.0 s\n"
    assert f"warning: {manifest}: keys that nothing here reads: age, mood\n" in nothing.stderr
    assert bars[-1][0] == "fake of 1 utterance"


def test_what_reaches_ray(tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of weights is told whole: an actor's folder is another. A GPU each where CUDA is named, none elsewhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("w.safetensors", "demo"):
        (tmp_path / name).touch()
    spec = FakeExtractor().spec
    spec.settings["weights"] = "demo"
    asked: dict[str, object] = {}

    def engine(utterances: list, make: object, store: Path, **named: object) -> tuple[Outcome, object]:
        asked.clear()
        asked.update(named, made=make.keywords, name=make.args, ids=len(utterances), store=store)
        named["progress"](Outcome("fake"))
        return Outcome("fake"), spec

    monkeypatch.setattr(ray_engine, "extract", engine)
    monkeypatch.setattr("featstore.extractors.create", lambda *_, **__: pytest.fail("an encoder is made by the actors"))
    before = signal.getsignal(signal.SIGTERM)
    command = ("extract", "m.jsonl", "--store", "s", "--feature", "fake", "--engine", "ray")
    try:
        for device, gpu in ((None, None), ("auto", None), ("cuda", True), ("cpu", False), ("mps", False)):
            shown = run(*command, *(("--device", device) if device else ()))
            assert (asked["gpu"], asked["made"]["device"]) == (gpu, device)
        assert f"warning: {spec.warning}\n" in shown.stderr
        assert (asked["address"], asked["actors"], asked["workers"], asked["batch_s"]) == (None, None, None, None)
        assert (asked["name"], asked["ids"], asked["store"], asked["resume"]) == (("fake",), 2, Path("s"), True)
        for given, made in (
            ("w.safetensors", str(tmp_path / "w.safetensors")),
            ("demo", "demo"),
            ("random:7", "random:7"),
        ):
            run(*command, "--weights", given, "--ray-address", "auto", "--no-resume", "--batch-s", 9, "--actors", 2)
            assert asked["made"]["weights"] == made
        assert (asked["address"], asked["resume"], asked["batch_s"], asked["actors"]) == ("auto", False, 9.0, 2)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_simulate_tells(tmp_path: Path, manifest: Path, replace_with, bars) -> None:
    failures = [{"id": f"x{k}", "error": "y"} for k in range(12)]

    def work(progress: Callable[[float, int, float], None], **_: object) -> SimulationReport:
        progress(1.5, 4, 1800.0)
        return SimulationReport("tiny", "o", 2, 1, 3, 0.5, 0.1, 0.125, 0.2, 0.25, 4, failures)

    replace_with("featstore.simulation.simulate.simulate", work)
    told = run("simulate", manifest, "--recipe", "tiny", "--out", tmp_path / "o", code=1)
    assert told.stderr.splitlines() == [f"failed: {failure}" for failure in failures[:10]]
    assert told.stdout.endswith("  12 failures, listed in failures.jsonl\n")
    assert bars == [("simulating tiny", [(1.5, 4, "0.50 h")])]


def test_every_line_of_a_simulation_s_report() -> None:
    """What a recipe does not ask for has no line."""
    figures = dict(
        many_voices=0.0625, asked_to_return=6, returned=5, asked_room_share=0.75, in_room=9, asked_t60_s=0.4375
    )
    figures |= dict(got_t60_s=0.4567, with_noise=8, asked_snr_db=12.25, got_snr_db=11.84)
    full = SimulationReport("r", "out", 12, 3, 7, 1.25, 0.1, 0.125, None, 0.25, 0, **figures)
    assert str(full).splitlines() == [
        "r: 12 sessions (3 made now), in out",
        "  7 speakers, 1.25 h",
        "  overlap 0.125 (asked 0.100)",
        "  silence 0.250",
        "  three or more at once 0.062",
        "  5 speakers back after a long absence (asked 6)",
        "  9 sessions in a room (asked 0.75 of them)",
        "  T60 0.457 s (asked 0.438 s)",
        "  8 sessions with noise",
        "  SNR 11.8 dB (asked 12.2 dB)",
    ]
    assert full.to_json()["returned"] == 5 and len(full.to_json()) == 22
    bare = SimulationReport("r", "out", 12, 3, 7, 1.25, 0.1, 0.125, 0.2, 0.25, 0, got_t60_s=0.5, got_snr_db=3.0)
    assert str(bare).splitlines()[3:] == ["  silence 0.250 (asked 0.200)", "  T60 0.500 s", "  SNR 3.0 dB"]


def test_what_relabel_tells(tmp_path: Path, replace_with, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = (Turn(0, 1, "a"), Turn(1, 2, "b"), Turn(2, 3, "a"))
    done = Relabelled(12, 7, Counter(split=9, speaker=2, turns=1, audio=3, start_s=1))
    done.splits = Counter(
        {("train", "dev"): 3, ("", "test"): 2, ("a", ""): 1, ("c", "d"): 1, ("e", "f"): 1, ("g", "h"): 1}
    )
    done.first = {
        **{"split": ("u0", "train", "dev"), "speaker": ("u1", "s", None), "turns": ("u2", (), turns)},
        **{"audio": ("u3", "a.wav", "b.wav"), "start_s": ("u4", 0.0, 12.5)},
    }
    done.unknown = ["x0", "x1", "x2", "x3"]
    calls, read = replace_with("featstore.upkeep.relabel.relabel", done), [Correction("u0", "here", {})]
    replace_with("featstore.corpora.corrections.read_corrections", read)
    s, m = tmp_path / "s", tmp_path / "m.jsonl"
    told = run("relabel", s, m)
    assert calls == [((s, read), {})]
    assert told.stdout.splitlines() == [
        f"{s}: 7 of 12 utterances changed, frames as they were",
        "  split: 9 (train → dev 3, (none) → test 2, a → (none) 1, c → d 1, e → f 1, …)",
        "  speaker: 2 (u1: s → (none))",
        "  turns: 1 (u2: 0 turns of 0 speakers → 3 turns of 2 speakers)",
        "  source path: 3 (u3: a.wav → b.wav)",
        "  offset: 1 (u4: 0.0 → 12.5)",
    ]
    assert told.stderr == f"warning: 4 id(s) of {m} are not in {s}: x0, x1, x2, …\n"
    done.unknown, done.splits = ["x0", "x1", "x2"], Counter({("train", "dev"): 9})
    told = run("relabel", s, m)
    assert told.stderr.endswith(": x0, x1, x2\n") and "  split: 9 (train → dev 9)\n" in told.stdout
    as_json = run("relabel", s, m, "--json")
    assert json.loads(as_json.stdout) == {"store": str(s), **done.to_json()} and "3 id(s)" in as_json.stderr
    done.unknown = []
    monkeypatch.chdir(tmp_path)
    calls = replace_with("featstore.upkeep.relabel.move_audio", done)
    assert run("relabel", s, "--audio-root", "old=new/x").stderr == ""
    assert calls == [((s, str(tmp_path / "old"), str(tmp_path / "new" / "x")), {})]
    assert "one of the two" in run("relabel", s, m, "--audio-root", "a=b", code=2).stderr


def test_what_remove_tells(tmp_path: Path, replace_with) -> None:
    calls = replace_with("featstore.upkeep.relabel.remove", Removed(3, 5400.0, 9, 2_540_000))
    (tmp_path / "ids.txt").write_text("b\n\n c \na\n")
    s = tmp_path / "s"
    told = run("remove", s, "a", "d", "--split", "dev", "--from", tmp_path / "ids.txt")
    assert told.stdout == (
        f"{s}: 3 utterances (1.50 h) out of it, 9 left; their frames (2.5 MB) stay on the disk until: "
        f"featstore compact {s}\n"
    )
    run("remove", s, "--split", "dev")
    assert calls == [((s, ["a", "d", "b", "c"]), {"split": "dev"}), ((s, []), {"split": "dev"})]
    (tmp_path / "ids.txt").write_text("\n\n")
    assert (
        "(" + str(tmp_path / "ids.txt") + " is empty)"
        in run("remove", s, "--from", tmp_path / "ids.txt", code=2).stderr
    )


def test_what_info_tells(tmp_path: Path, replace_with) -> None:
    feature = {"dim": 3, "dtype": "float16", "step_s": 0.08, "utterances": 4, "frames": 99, "parts": 2, "model": "net"}
    feature |= {"weights": "demo", "weights_sha256": "0123456789abcdef", "fingerprint": "fedc", "warning": "small ones"}
    facts = {
        "store": "S",
        "utterances": 5,
        "splits": {"train": 3, "": 2},
        "hours": 1.234,
        "speakers": 6,
        "recordings": 7,
    }
    facts |= {
        "bytes": 12_345_678,
        "changes": 8,
        "failures": 9,
        "features": {"f": feature, "g": {**feature, "warning": None}},
    }
    replace_with("featstore.facts.facts_of", facts)
    told = run("info", tmp_path / "s").stdout.splitlines()
    assert told == [
        "S: 5 utterances (train 3, (no split) 2), 1.23 h, 6 speakers, 7 recordings, 12.3 MB",
        "  f: 3-d float16 at 12.5 Hz, 4 utterances, 99 frames in 2 parts",
        "    net, weights demo (sha256 0123456789ab), fedc",
        "    warning: small ones",
        *(told[1].replace(" f:", " g:"), told[2]),
        f"  8 changes by relabel or remove since; featstore compact {tmp_path / 's'} writes all into the parts",
        f"  9 failures, listed in {tmp_path / 's' / 'failures.jsonl'}",
    ]
    assert json.loads(run("info", tmp_path / "s", "--json").stdout) == facts


def test_info_counts_changes(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    assert "changes by" not in run("info", tmp_path / "s").stdout
    for split in ("dev", "test"):
        relabel(tmp_path / "s", [Correction("u0", "here", {"split": split})])
    assert "  2 changes by relabel" in run("info", tmp_path / "s").stdout


def test_what_verify_tells(tmp_path: Path, replace_with) -> None:
    """Two damaged parts, three leftovers, four specs, one root, five that cannot be read now: what a repair does with each."""
    broken = [
        Finding("mimi", f"p{k}", "broken", tuple("abcdef")[: 5 + k], remedy="move", paths=("x",)) for k in range(2)
    ]
    left = [Finding("mimi", f"q{k}", "half", ("z",), True, "delete", ("y",)) for k in range(3)]
    specs = [Finding(f"f{k}", "", "spec", remedy="move", paths=("s",)) for k in range(4)]
    root = [Finding("", "", "edited", remedy="write", paths=("features.zarr/zarr.json",))]
    later = [Finding("mimi", f"r{k}", "not now") for k in range(5)]
    read = {("mimi", "p0"): 1_000_000, ("mimi", "p1"): 1_540_000}
    ids = set("abcdefghijk")
    mended = [*broken, *left, *specs, *root]
    calls = replace_with("featstore.upkeep.verify.verify", Report(read, ids, [*mended, *later]))
    s = tmp_path / "s"
    size = "11 utterances in 2 parts, 2.5 MB of frames"
    lines = [
        *("DAMAGED mimi/p0: broken", "  5 utterance(s): a, b, c, d, e"),
        *("DAMAGED mimi/p1: broken", "  6 utterance(s): a, b, c, d, e, …"),
        *(f"leftover mimi/q{k}: half" for k in range(3)),
        *(f"DAMAGED f{k}: spec" for k in range(4)),
        "DAMAGED features.zarr/zarr.json: edited",
        *(f"DAMAGED mimi/r{k}: not now" for k in range(5)),
    ]
    told = run("verify", s, code=2).stdout.splitlines()
    assert told == [*lines, f"{s}: 15 findings; {size} read. Run: featstore verify {s} --repair"]
    as_json = json.loads(run("verify", s, "--json", code=2).stdout)
    assert [finding.pop("part") for finding in as_json["findings"]][:3] == ["p0", "p1", "q0"]
    assert as_json["findings"][0] == {
        **{"feature": "mimi", "problem": "broken", "utterances": list("abcde"), "leftover": False, "remedy": "move"},
        "paths": ["x"],
    }
    figures = {key: as_json[key] for key in ("parts", "utterances", "bytes", "repaired", "busy")}
    assert figures == {"parts": 2, "utterances": 11, "bytes": 2_540_000, "repaired": False, "busy": False}
    assert calls == [((s,), {"repair": False})] * 2
    calls.answer = Report(read, ids, [*mended, *later], mended)
    told = run("verify", s, "--repair", code=2).stdout.splitlines()
    assert told[-1] == (
        f"{s}: repaired: 2 damaged parts set aside in {s / 'damaged'}, 3 leftovers cleaned up, 4 damaged specs set aside "
        f"(extract again with the same command), 1 zarr.json of the store written anew, 5 left as they are; {size} read"
    )
    calls.answer = Report(read, ids, mended, mended)
    told = run("verify", s, "--repair", "--json")  # all of it is mended
    assert calls[-1] == ((s,), {"repair": True}) and json.loads(told.stdout)["repaired"] is True
    calls.answer = Report(read, ids, later)
    assert run("verify", s, code=2).stdout.endswith(f"{s}: 5 findings; {size} read.\n")  # no advice helps
    calls.answer = Report(read, ids, left, busy=True)
    told = run("verify", s).stdout.splitlines()
    assert told[0] == "unfinished mimi/q0: half"
    assert told[-1] == f"{s}: 3 unfinished parts, something is writing now; {size} read"
    calls.answer = Report(read, ids, [*left, *broken], busy=True)
    run("verify", s, code=2)
    calls.answer = Report(read, ids)
    assert run("verify", s).stdout == f"{s}: whole: {size}, every checksum right\n"


def test_what_compact_tells(tmp_path: Path, replace_with) -> None:
    calls = replace_with("featstore.upkeep.compact.compact", Compaction(40, 3))
    s = tmp_path / "s"
    assert run("compact", s).stdout == f"{s}: 40 parts, now 3\n"
    told = json.loads(run("compact", s, "--part-mb", 3, "--json").stdout)
    assert told == {"store": str(s), "parts_before": 40, "parts_after": 3}
    assert [named for _, named in calls] == [{"part_bytes": 512 << 20}, {"part_bytes": 3 << 20}]


def test_every_bar_goes_to_its_end(tmp_path: Path, bars) -> None:
    with featstore.writer(tmp_path / "s", FakeExtractor().spec, part_bytes=1) as out:
        for i in range(3):
            u = featstore.Utterance(f"u{i}", "a.wav", 0.0, 0.2, "r")
            out.add(u, np.full((2, 8), i))
    s, far = tmp_path / "s", f"file://{tmp_path}/far"
    for command, title in (
        (("export", s, tmp_path / "s.h5"), "exporting"),
        (("export", s, tmp_path / "k", "--to", "kaldi"), "exporting"),
        (("import", tmp_path / "s.h5", "--store", tmp_path / "t"), "importing"),
        (("push", s, far), "pushing s"),
        (("pull", far, tmp_path / "u"), "pulling u"),
        (("merge", s, "--out", tmp_path / "v"), "merging into v"),
        (("verify", s), "verifying parts"),
        (("compact", s), "compacting parts"),
    ):
        run(*command)
        told, updates = bars[-1]
        assert told == title and updates, command
        done, of = updates[-1]
        assert done == of > 0 and [d for d, _ in updates] == sorted(d for d, _ in updates), command
