"""An address without a Ray cluster was tried for eleven minutes; a wrong token was called a missing cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.featstore.jobs.test_ray import one_tone

pytest.importorskip("ray")
HOST = """\
import sys, ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def extract(folder: Path, address: str, seconds: float, **variables: str) -> subprocess.CompletedProcess[str]:
    arguments = (
        f"--store {folder}/s --feature mimi --weights demo --device cpu --engine ray --ray-address {address} --json"
    )
    command = ["extract", str(one_tone(folder)), *arguments.split()]
    return subprocess.run(
        [sys.executable, "-c", "from cli.featstore import app; app()", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def test_where_nobody_listens_one_line_says_so(tmp_path: Path) -> None:
    done = extract(tmp_path, "127.0.0.1:1", 100)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Ray cluster answers at 127.0.0.1:1 within 10 s; start one with: ray start")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_cluster_of_another_home_asks_for_its_token(tmp_path: Path) -> None:
    homes = tmp_path / "one", tmp_path / "two"
    for home in homes:
        home.mkdir()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], env={**os.environ, "HOME": str(homes[0])}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = host.stdout.readline().strip()
        refused = extract(tmp_path, address, 200, HOME=str(homes[1]))
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert f"the Ray cluster at {address} asks for its token: set RAY_AUTH_MODE=token" in refused.stderr
        token = (homes[0] / ".ray" / "auth_token").read_text()
        done = extract(tmp_path, address, 400, HOME=str(homes[1]), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["done"] == 1
    finally:
        host.communicate("", timeout=60)
