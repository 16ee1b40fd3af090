"""What a newcomer meets: one line that says what is wrong and what to do next, where there was none."""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import logging
import os
import unicodedata
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import typer
from typer.testing import CliRunner, Result

import featstore
import featstore.extractors
from cli import evaluation, trainers, whowhen
from cli import featstore as cli_featstore
from cli.errors import going_on_later, message, starting_over, user_errors
from featstore import StoreError, Utterance, files
from featstore.corpora import audio, manifest
from featstore.exchange import export_hdf5
from featstore.settings import read_toml, table
from featstore.simulation.recipe import read_recipe
from featstore.store.writer import writer
from tests.fakes import FakeExtractor, tone
from tests.featstore.store.test_store import fill, spec, utterance
from tests.sessions import make_store
from trainers import kinds


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli_featstore.app, [str(a) for a in arguments])


def says(result: Result, *words: str) -> None:
    """One line on stderr with all of the words, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr, (word, result.stderr)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeExtractor:
    extractor = FakeExtractor()
    monkeypatch.setattr("featstore.extractors.create", lambda name, **settings: extractor)
    return extractor


def test_all_commands_are_set_up_by_one_function() -> None:
    by_hand = [
        p.name
        for p in sorted(Path(cli_featstore.__file__).parents[1].rglob("*.py"))
        if "typer.Typer(" in p.read_text("utf-8")
    ]
    assert by_hand == ["options.py"]


def test_audio_in_place_of_a_manifest(tmp_path: Path, fake: FakeExtractor) -> None:
    for name in ("meeting.wav", "in/a.flac", "in/deep/b.WAV", "in/notes.txt", "in/.c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x") if name.endswith("txt") else sf.write(tmp_path / name, tone(1.0), 8000)
    for given, ids in (("meeting.wav", ["meeting"]), ("in", ["a", "deep/b"])):
        store = tmp_path / f"s-{given}"
        result = run("extract", tmp_path / given, "--store", store, "--feature", "fake", "--split", "test")
        assert result.exit_code == 0 and result.stderr == "", result.output
        opened = featstore.open(store)
        assert sorted(opened.ids) == ids and set(opened.utterances["split"].to_pylist()) == {"test"}
        u = opened.utterance(ids[0])
        assert (u.speaker, u.turns, u.recording, Path(u.audio).is_file()) == (None, (), ids[0], True)
    (tmp_path / "empty").mkdir()
    arguments = ("--store", tmp_path / "s", "--feature", "fake")
    says(run("extract", tmp_path / "empty", *arguments), "neither a saved data set nor a folder with audio")
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    says(run("extract", tmp_path / "a.bin", *arguments), "neither text nor audio that is known by its name", ".wav")


@pytest.mark.parametrize(("number", "shown"), [(errno.ENOSPC, "df -h"), (errno.EDQUOT, "quota -s")])
def test_a_full_disk_names_the_path_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, shown: str
) -> None:
    fill(tmp_path / "s")
    real = builtins.open

    class Full:
        def __init__(self, file: object) -> None:
            self._file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()  # type: ignore[attr-defined]

        def write(self, data: bytes) -> int:
            raise OSError(number, os.strerror(number))  # as the system: no file in it

    monkeypatch.setattr(
        builtins, "open", lambda p, m="r", *a, **k: Full(real(p, m, *a, **k)) if "w" in m else real(p, m, *a, **k)
    )
    with pytest.raises(OSError) as found:
        files.write_atomically(tmp_path / "x.json", b"{}")
    monkeypatch.undo()
    told = message(found.value)
    assert str(tmp_path) in told and shown in told and "run the same command again" in told and "\n" not in told

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("featstore.store.commit._write_array", full)
    with pytest.raises(OSError) as found, writer(tmp_path / "s", spec()) as out:
        out.add(utterance("new"), np.ones((2, 8)))
    assert str(tmp_path / "s") in message(found.value) and shown in message(found.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\n  b"), "a b"),
        (KeyError("no utterance 'x' in s"), "no utterance 'x' in s"),
        (OSError("the line is dead"), "the line is dead"),
        (ValueError(), "ValueError"),
        (OSError(errno.EISDIR, "is one", "d"), "d: is one; a folder, where a file is expected: name the file"),
        (OSError(errno.EEXIST, "there", "d"), "d: there; a file is in the way of a folder: choose another path"),
        (OSError(errno.ENOTDIR, "none", "d"), "d: none; a file is in the way of a folder: choose another path"),
        (OSError(errno.ENFILE, "many", "d"), "d: many; close other programs, or raise the number of open files: ulimit -n 4096"),
        *(
            (OSError(n, "no", "d"), "d: no; ask for permission (ls -ld shows who has it), or choose another path")
            for n in (errno.EACCES, errno.EPERM, errno.EROFS)
        ),
        (OSError(errno.ENOENT, "gone", "d"), f"d: gone; check the path, which is seen from {os.getcwd()}"),
        (OSError(errno.EIO, "broken", "d"), "d: broken"),
    ],
)  # fmt: skip
def test_errors_of_input_are_one_line_with_a_next_step(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, user_errors():
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {told}\n")


def test_faults_show_where_and_ctrl_c_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    for fault in (TypeError("ours"), KeyError("key"), RuntimeError("ours")):
        with pytest.raises(SystemExit) as ended, user_errors():
            raise fault
        shown = capsys.readouterr().err
        assert ended.value.code == 70 and "Traceback" in shown and repr(fault)[:8] in shown and "error:" not in shown
    with pytest.raises(BrokenPipeError), user_errors():  # `| head` has had enough: nobody reads what we would say
        raise BrokenPipeError
    for inner, line in (
        (None, "nothing was changed; the same command begins anew"),
        (going_on_later(), "what was finished stays; the same command goes on"),
        (going_on_later("is in r", "begin again"), "what was finished is in r; begin again"),
        (starting_over("page"), "this page is not whole and counts for nothing; the same command makes it anew"),
    ):
        with pytest.raises(SystemExit) as ended, user_errors(), inner or contextlib.nullcontext():
            raise KeyboardInterrupt
        assert (ended.value.code, capsys.readouterr().err) == (130, f"interrupted: {line}\n")


def test_no_train_split_lists_those_that_are_there(tmp_path: Path) -> None:
    make_store(tmp_path / "s", {"dev": 2, "test": 3})
    result = CliRunner().invoke(
        trainers.app,
        ["fit", "adapter", "--store", str(tmp_path / "s"), "--out", str(tmp_path / "run"), "--set", "device=cpu"],
    )
    says(result, "has split=train", "Splits found: dev 2, test 3", "featstore relabel STORE MANIFEST")


def test_a_file_where_a_store_is_meant(tmp_path: Path, fake: FakeExtractor) -> None:
    fill(tmp_path / "s")
    export_hdf5(tmp_path / "s", tmp_path / "s.h5")
    says(run("info", tmp_path / "s.h5"), "an HDF5 file; unpack it: featstore import", "--store FOLDER")
    sf.write(tmp_path / "a.wav", tone(1.0), 8000)
    result = run("extract", tmp_path / "a.wav", "--store", tmp_path / "s.h5", "--feature", "fake")
    says(result, "an HDF5 file; unpack it: featstore import")
    says(run("info", tmp_path / "a.wav"), "expected a store's folder, found a file")


def test_an_address_without_a_bucket_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    says(
        run("push", tmp_path / "s", "s3://"),
        "s3://: names no bucket, host or folder; expected an address, such as s3://BUCKET",
    )
    says(run("pull", "https://", tmp_path / "t"), "names no bucket, host or folder")
    says(run("export", tmp_path / "s", tmp_path / "no" / "s.h5"), "no: no such folder; make it first: mkdir -p")


def test_an_encoders_error_names_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeExtractor
) -> None:
    sf.write(tmp_path / "a.wav", tone(1.0), 8000)
    arguments = ("extract", tmp_path / "a.wav", "--store", tmp_path / "s", "--feature", "fake")
    monkeypatch.setattr(fake, "extract", lambda waves: [])
    says(
        run(*arguments),
        "encoder 'fake' (tests.fakes.FakeExtractor): extract() gave 0 arrays for 1 waves",
        "check_extractor",
    )

    def broken(waves: list[np.ndarray]) -> list[np.ndarray]:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(fake, "extract", broken)
    result = run(*arguments)
    assert result.exit_code == 70
    assert (
        "out of luck" in result.stderr
        and "in the encoder 'fake' (tests.fakes.FakeExtractor), on 1 waves" in result.stderr
    )


@pytest.mark.parametrize("name", [".", "..", "a/..", "./."])
def test_a_folder_as_audio_names_file_and_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": name}) + "\n")
    with pytest.raises(ValueError, match=r"m.jsonl:1: audio_filepath '.*' is a folder, expected an audio file"):
        manifest.read_manifest(tmp_path / "m.jsonl")


def test_too_many_open_files_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "s")
    store = featstore.open(tmp_path / "s")
    real_open, real_read = builtins.open, Path.read_bytes

    def limited(path: object, *arguments: object, **named: object) -> object:
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return real_open(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", limited)
    monkeypatch.setattr(Path, "read_bytes", lambda self: limited(self) or real_read(self))
    for read in (lambda: featstore.open(tmp_path / "s"), lambda: len(store), lambda: store.frames("mimi", "u0")):
        with pytest.raises((StoreError, OSError)) as found:
            read()
        assert "ulimit -n" in message(found.value) and "repair" not in message(found.value), found.value


def test_a_data_set_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fake: FakeExtractor
) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("Couldn't reach 'x/y' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    result = run("extract", "hf:x/y", "--store", tmp_path / "s", "--feature", "fake")
    says(result, "hf:x/y: cannot be had (Couldn't reach 'x/y' on the Hub)", "save_to_disk")
    assert caplog.text == ""


@pytest.mark.parametrize(("there", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_that_look_the_same(tmp_path: Path, there: str, named: str) -> None:
    sf.write(tmp_path / unicodedata.normalize(there, "René.wav"), tone(1.0), 8000)
    path = tmp_path / unicodedata.normalize(named, "René.wav")
    if path.is_file():
        pytest.skip("this file system takes both for one")
    with pytest.raises(ValueError, match=rf"no such file; but one that looks the same is there, .*\({there}\)"):
        audio.load(Utterance("a", str(path), 0.0, 1.0, "a"), 8000)


def test_toml_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes("\ufeffsessions = 3\nspeakers = 2\noverlap = 0.1\nduration_s = 60.0\n".encode())
    assert read_toml(tmp_path / "r.toml")["sessions"] == 3
    assert read_recipe(tmp_path / "r.toml").name == "r"


def test_settings_can_be_seen() -> None:
    for kind in kinds.NAMES:
        shown = CliRunner().invoke(trainers.app, ["settings", kind])
        assert shown.exit_code == 0 and shown.stdout.rstrip("\n") == table(kinds.settings_of(kind))
    assert "epochs=" in shown.stdout or "lr=" in shown.stdout


@pytest.mark.parametrize(
    ("app", "command"),
    [(cli_featstore.app, "info"), (evaluation.app, "eer"), (trainers.app, "fit"), (whowhen.app, "diarize")],
)
def test_every_command_has_a_version_and_a_short_help(app: typer.Typer, command: str) -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"whowhen {version('whowhen')}\n")
    for arguments in (["-h"], [command, "-h"]):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 0 and "Usage:" in shown.stdout


def test_copies_speak_json(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    export = run("export", tmp_path / "s", tmp_path / "s.h5", "--json")
    assert json.loads(export.stdout) == {
        **{"store": str(tmp_path / "s"), "to": "hdf5", "path": str(tmp_path / "s.h5")},
        "bytes": (tmp_path / "s.h5").stat().st_size,
    }
    brought = run("import", tmp_path / "s.h5", "--store", tmp_path / "t", "--json")
    assert json.loads(brought.stdout) == {"file": str(tmp_path / "s.h5"), "store": str(tmp_path / "t"), "added": 5}


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "s")
    export_hdf5(tmp_path / "s", tmp_path / "s.h5")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name, arguments, words in (
        ("featstore.exchange.export_hdf5", ("export", tmp_path / "s", tmp_path / "t.h5"), "counts for nothing"),
        ("featstore.exchange.import_hdf5", ("import", tmp_path / "s.h5", "--store", tmp_path / "t"), "is in the store"),
        (
            "featstore.upkeep.merge.merge",
            ("merge", tmp_path / "s", "--out", tmp_path / "t"),
            "the same command goes on",
        ),
    ):
        monkeypatch.setattr(name, stop)
        result = run(*arguments)
        assert result.exit_code == 130 and words in result.stderr, result.output


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    far = f"file://{tmp_path}/far"
    for command in (
        ("export", tmp_path / "s", tmp_path / "s.h5"),
        ("export", tmp_path / "s", tmp_path / "kaldi", "--to", "kaldi", "--feature", "mimi"),
        ("import", tmp_path / "s.h5", "--store", tmp_path / "t"),
        ("push", tmp_path / "s", far),
        ("pull", far, tmp_path / "u"),
        ("merge", tmp_path / "s", tmp_path / "t", "--out", tmp_path / "v"),
        ("compact", tmp_path / "v"),
        ("verify", tmp_path / "v"),
        ("info", tmp_path / "v"),
    ):
        result = run(*command, "--json")
        assert result.exit_code == 0 and isinstance(json.loads(result.stdout), dict), (command, result.output)


def test_a_fit_warns_on_stderr_as_every_command_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"der": 0.5, "fixed_der": None, "detection": 0.1}
    told = {"kind": "adapter", "protocol": "sound", "parameters": 1, "test": figures, "input_share": None, "notes": []}
    told["warnings"] = ["mimi: UNTRAINED weights"]
    trainers._show(told, tmp_path)
    trainers._show_spread({"seed0": told, "seed1": told}, tmp_path)
    shown = capsys.readouterr()
    assert shown.err == "warning: mimi: UNTRAINED weights\n" * 2 and "warning" not in shown.out.lower()
