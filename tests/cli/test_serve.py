"""`whowhen serve` and `whowhen moshi`: what they start, and one clear line for what they do not."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cli.whowhen import app
from tests.conftest import ROOT

TOKEN = "0123456789abcdef"


def run(*args, **variables):
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"WHOWHEN_TOKEN": None, **variables})


@pytest.fixture
def opened(monkeypatch):
    """What was to be opened, by `serve` and `moshi`; a run that nobody loads."""
    import cli.whowhen.moshi
    import cli.whowhen.serve

    asked = []
    made = SimpleNamespace(live=lambda *latency: latency, run=SimpleNamespace(path=ROOT / "r"), warnings=("toys",))
    for command in (cli.whowhen.serve, cli.whowhen.moshi):
        monkeypatch.setattr(command, "opened", lambda *options: asked.append(options) or made)
    return asked


@pytest.fixture
def started(opened, monkeypatch):
    """What would be served."""
    import diarizer.serve.run

    told = []
    monkeypatch.setattr(diarizer.serve.run, "serve", lambda *what: told.append(what))
    return told


WORDS = ("--run", "r", "--enrol", "Ann=a.wav", "--weights", "mimi=w", "--device", "cuda:1")
OPENED = (Path("r"), ["mimi=w"], "cuda:1", ["Ann=a.wav"])


def test_options_reach_the_server(started, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    done = run(
        "serve",
        "--port",
        0,
        "--latency",
        0.32,
        "--sessions",
        3,
        "--token-file",
        tmp_path / "token",
        "--beside",
        "ws://x:1",
    )
    assert done.exit_code == 0, done.stderr
    ((hub, address, _, beside),) = started
    assert (address.host, address.port, address.token, beside) == ("localhost", 0, TOKEN, "ws://x:1")
    assert (hub.limits.sessions, hub._make(None), hub._make(5.0)) == (3, (0.32,), (5.0,))
    assert hub.facts == {"run": "r", "warnings": ["toys"]}


def test_what_is_not_said_is_as_the_help_says_and_where_to_open_it_is_told(started, opened, capsys):
    done = run("serve", *WORDS, "--host", "0.0.0.0", "--tls-cert", "c.pem", "--tls-key", "k.pem", WHOWHEN_TOKEN=TOKEN)
    assert done.exit_code == 0 and opened == [OPENED]
    assert run("serve").exit_code == 0 and opened[1] == (None, None, None, None)
    (hub, there, told, beside), (_, usual, *_) = started
    assert (there.host, there.certificate, there.key, there.port) == ("0.0.0.0", "c.pem", "k.pem", 8765)
    assert (usual.host, usual.certificate, usual.key, usual.port, usual.token) == ("localhost", None, None, 8765, None)
    assert (hub.limits.sessions, hub._make(None), beside) == (8, (), None)
    told("http://x/")
    assert capsys.readouterr().out == "open http://x/ (Ctrl-C stops)\n"


def test_options_reach_moshi(opened, monkeypatch, capsys, tmp_path):
    import diarizer.serve.moshi

    asked, logged = [], []
    monkeypatch.setattr("logging.basicConfig", lambda **how: logged.append(how["level"]))
    monkeypatch.setattr(diarizer.serve.moshi, "run", lambda *what: asked.append(what))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    where = ("--port", 0, "--host", "127.0.0.1", "--token-file", tmp_path / "token")
    done = run("moshi", *WORDS, *where, "--latency", 0.48, "--", "--host", "localhost", "--port", "8998")
    assert done.exit_code == 0 and run("moshi").exit_code == 0
    assert opened == [OPENED, (None, None, None, None)]
    (made, arguments, address, told, latency_s), (_, nothing, usual, _, none) = asked
    assert made.run.path.name == "r" and arguments == ["--host", "localhost", "--port", "8998"]
    assert (address.host, address.port, address.token, latency_s) == ("127.0.0.1", 0, TOKEN, 0.48)
    assert (nothing, usual.host, usual.port, none) == ([], "localhost", 8765, None)
    told("http://x/")
    assert capsys.readouterr().out == "who speaks: http://x/\n"
    assert logged == [logging.WARNING] * 2  # a head that is too slow says so in Moshi's terminal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], r"error: --host 0\.0\.0\.0: others could listen .* token .* TLS"),
        (["--tls-cert", "c.pem"], "error: TLS needs both"),
        (["--token-file", "none"], "error: none: No such file"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "moshi"])
def test_what_is_wrong_is_one_line(command, options, message):
    done = run(command, *options)
    assert done.exit_code == 2
    assert re.fullmatch(message + ".*\n", done.stderr)


def test_a_token_may_come_from_the_environment(started):
    assert run("serve", WHOWHEN_TOKEN="short").exit_code == 2
    assert run("serve", WHOWHEN_TOKEN=TOKEN).exit_code == 0
    assert started[0][1].token == TOKEN


def test_a_port_that_is_taken():
    from diarizer.serve.address import Address
    from diarizer.serve.run import serve
    from diarizer.serve.session import Hub

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port}: .*another port: --port 0"):
            serve(Hub(lambda latency_s: None, {}), Address("127.0.0.1", port), print)


@pytest.mark.slow
def test_it_starts_answers_and_stops():
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.whowhen", "serve", "--port", "0"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    url = re.match(r"open (\S+) ", process.stdout.readline())[1]
    with urllib.request.urlopen(url) as answer:
        assert "demo weights: the run that comes along" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in said
