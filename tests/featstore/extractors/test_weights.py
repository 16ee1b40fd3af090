"""Weights: where they come from, what is refused, and that refusals say what to do."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featstore.extractors import sources, weights
from featstore.extractors.sources import WeightsError
from tests.conftest import ROOT

FILE = {"file": "net.safetensors", "demo": "nobody.safetensors", "suffixes": (".safetensors",)}


def test_random_and_file_sources(tmp_path: Path) -> None:
    assert sources.resolve("random:7", **FILE) == sources.Source(label="random:7", seed=7)
    assert sources.resolve("random:7:full", **FILE).full
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x")
    found = sources.resolve(str(path), **FILE)
    assert found.path == path and found.label == "file", "a label must not hold a path of this machine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("random:x", "expected random:SEED"),
        ("random:-1", "expected random:SEED"),
        ("hf:one-part", "expected hf:OWNER/REPO"),
        ("hf:a/b@", "expected hf:OWNER/REPO"),
        ("demo", "demo weights nobody.safetensors are not in this installation"),
        ("/nowhere/x.safetensors", "is not there"),
        ("/", "is a folder"),
        (__file__, "expected .safetensors, found .py"),
    ],
)
def test_sources_that_are_none(text: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as caught:
        sources.resolve(text, **FILE)
    assert "\n" not in str(caught.value)


def test_state_hash_depends_on_names_shapes_and_values() -> None:
    base = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    others = [
        {"b": base["b"], "a": base["a"]},  # order of insertion does not matter
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"].half(), "b": base["b"]},
    ]
    first, *rest = [weights.state_sha256(state) for state in others]
    assert first == weights.state_sha256(base)
    assert len({first, *rest}) == len(others)


def test_random_weights_do_not_depend_on_the_global_seed() -> None:
    def made(seed: int) -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.Conv1d(3, 400, 5), torch.nn.ReLU(), torch.nn.Linear(8, 8))
        weights.randomise(net, seed)
        return net

    torch.manual_seed(1)
    one = made(0)
    state = torch.random.get_rng_state()
    two = made(0)
    assert weights.state_sha256(one.state_dict()) == weights.state_sha256(two.state_dict())
    assert weights.state_sha256(one.state_dict()) != weights.state_sha256(made(1).state_dict())
    # Kaiming: variance 2 / fan-in, here 15; no bias.
    assert one[0].weight.std().item() == pytest.approx((2 / 15) ** 0.5, rel=0.05)
    assert one[0].bias.abs().max() == 0
    assert state.shape == torch.random.get_rng_state().shape


def test_safetensors_and_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_file({"w": torch.ones(2)}, path)
    assert weights.read_safetensors(path)[1] is None
    save_file({"w": torch.ones(2)}, path, metadata={"config": json.dumps({"a": [1, 2]})})
    state, config = weights.read_safetensors(path)
    assert config == {"a": [1, 2]} and state["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "config", ["{", "[1]", json.dumps({"n": 10**9}), "[" * 5000 + "]" * 5000, json.dumps({"n": [0] * 20_000})]
)
def test_configurations_that_are_none(tmp_path: Path, config: str) -> None:
    path = tmp_path / "n.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"config": config})
    with pytest.raises(WeightsError, match="must be a network configuration"):
        weights.read_safetensors(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 100, None])
def test_damaged_safetensors(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "n.safetensors"
    if content is None:
        save_file({"w": torch.ones(1000)}, path)
        content = path.read_bytes()[:-50]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        weights.read_safetensors(path)


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    source = sources.Source(label="file", path=tmp_path / "w.safetensors")

    def load(state: dict[str, torch.Tensor], **settings: tuple[str, ...]) -> torch.nn.Module:
        with torch.device("meta"):
            net = torch.nn.Linear(3, 2)
        weights.load(net, state, source, **settings)
        return net

    good = {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "bias": torch.zeros(2), "other": torch.zeros(1)}
    assert load(good).weight.dtype == torch.float32
    with pytest.raises(WeightsError, match=r"size mismatch for weight.*\[2, 4\].*\[2, 3\]"):
        load({**good, "weight": torch.ones(2, 4)})
    with pytest.raises(WeightsError, match="1 of 2 tensors are missing, the first is 'bias'"):
        load({"weight": good["weight"]})
    assert load({"weight": good["weight"]}, optional=("bias",)).bias.is_meta
    with pytest.raises(WeightsError, match="'bias' holds NaN"):
        load({**good, "bias": torch.tensor([0.0, torch.nan])})


# ------------------------------------------------------------------------------------------------ the Hub


class _Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the Hub's protocol: one public file, one gated repository, nothing else."""

    content = b"the weights"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        status, code = 404, "RepoNotFound"
        if self.path.startswith("/lab/gated/"):
            status, code = 403, "GatedRepo"
        elif self.path.startswith("/lab/broken/"):
            status, code = 500, "Oops"
        elif self.path.startswith("/lab/open/resolve/"):
            revision, _, name = self.path.removeprefix("/lab/open/resolve/").partition("/")
            if revision not in ("main", "v1"):
                code = "RevisionNotFound"
            elif name not in ("net.safetensors", "deep/er.safetensors"):
                code = "EntryNotFound"
            else:
                status, code = 200, ""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if body and status == 200:
            self.wfile.write(self.content)

    def log_message(self, *args: object) -> None:
        pass


_RESOLVE = """
import json, sys
from featstore.extractors.sources import WeightsError, resolve
answers = []
for text in json.loads(sys.argv[1]):
    try:
        source = resolve(text, file="net.safetensors", demo="", suffixes=(".safetensors",))
        answers.append([source.label, source.path.read_text()])
    except WeightsError as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _resolve(texts: list[str], cache: Path, **environment: str) -> list[list[str]]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE, json.dumps(texts)],
        env={**os.environ, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert all("\n" not in text for _, text in answers)
    return answers


def test_hub_download_and_what_its_errors_say(tmp_path: Path, hub: str) -> None:
    texts = [
        "hf:lab/open",
        "hf:lab/open/deep/er.safetensors@v1",
        "hf:lab/gated",
        "hf:lab/nobody",
        "hf:lab/open/none.safetensors",
        "hf:lab/open@v9",
        "hf:lab/broken",
    ]
    open_, deep, gated, nobody, no_file, no_revision, broken = _resolve(texts, tmp_path, HF_ENDPOINT=hub, HF_TOKEN="")
    assert open_ == ["hf:lab/open", "the weights"]
    assert deep == ["hf:lab/open/deep/er.safetensors@v1", "the weights"]
    for (kind, text), says in (
        (gated, "accept its licence"),
        (nobody, "no such repository"),
        (no_file, "no such file"),
        (no_revision, "no revision 'v9'"),
        (broken, "Hub"),
    ):
        assert kind == "WeightsError" and says in text, text
        assert "pass --weights PATH" in text
    assert "log in" in gated[1] and "HF_TOKEN" in gated[1] and "https://huggingface.co/lab/gated" in gated[1]


def test_a_pinned_digest_is_checked_before_anything_is_loaded(tmp_path: Path, hub: str) -> None:
    digest = hashlib.sha256(_Hub.content).hexdigest()
    texts = [f"hf:lab/open@v1#sha256={digest}", f"hf:lab/open@v1#sha256={'0' * 64}", "hf:lab/open#sha256=abc"]
    right, wrong, short = _resolve(texts, tmp_path, HF_ENDPOINT=hub, HF_TOKEN="")
    assert right == [texts[0], "the weights"]
    assert wrong[0] == "WeightsError" and digest in wrong[1] and "0" * 64 in wrong[1]
    assert short[0] == "WeightsError" and "#sha256=" in short[1]


def test_hub_without_network(tmp_path: Path) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        ((kind, text),) = _resolve(["hf:lab/open"], tmp_path, **environment)
        assert kind == "WeightsError"
        assert "cannot be reached" in text and "pass --weights PATH" in text
