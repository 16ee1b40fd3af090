"""The proxy as others use it: codes, logits, gradients, padding, files, Moshi's delays, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainers.proxy import MOSHI_DELAYS, Proxy, undelayed

N_Q, BINS, DIM = 3, 10, 12


@pytest.fixture
def proxy() -> Proxy:
    """With running statistics as training leaves them: not 0 and 1."""
    torch.manual_seed(0)
    proxy = Proxy(torch.randn(N_Q, BINS, DIM), channels=16, size=6)
    for module in proxy.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return proxy.eval().requires_grad_(False)


def some_codes(batch: int = 2, frames: int = 15, seed: int = 1) -> torch.Tensor:
    return torch.randint(BINS, (batch, frames, N_Q), generator=torch.Generator().manual_seed(seed))


def one_hot(codes: torch.Tensor) -> torch.Tensor:
    """Logits that leave no doubt."""
    return torch.where(torch.nn.functional.one_hot(codes, BINS) > 0, 0.0, -torch.inf)


@pytest.mark.parametrize(
    ("inputs", "channels", "parameters"), [(512, 512, 3_752_832), (2048, 512, 4_539_264), (512, 128, 448_176)]
)
def test_it_has_the_published_size(inputs: int, channels: int, parameters: int) -> None:
    with torch.device("meta"):
        made = Proxy(torch.empty(2, 2, inputs), channels)
    assert sum(p.numel() for p in made.parameters()) == parameters


def test_embeddings_have_length_one_and_depend_on_the_codes(proxy: Proxy) -> None:
    found = proxy(some_codes())
    assert found.shape == (2, 6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert (found[0] - found[1]).norm() > 0.01


def test_frames_of_codes_are_sums_of_the_table(proxy: Proxy) -> None:
    codes = some_codes(1, 4)
    expected = [sum(proxy.table[k, codes[0, t, k]] for k in range(N_Q)) for t in range(4)]
    torch.testing.assert_close(proxy.frames(codes)[0], torch.stack(expected))


def test_logits_without_doubt_are_codes(proxy: Proxy) -> None:
    codes = some_codes()
    torch.testing.assert_close(proxy(one_hot(codes)), proxy(codes), atol=1e-6, rtol=0)
    torch.testing.assert_close(proxy.frames(one_hot(codes)), proxy.frames(codes), atol=3e-6, rtol=0)


def test_soft_frames_are_expectations(proxy: Proxy) -> None:
    logits = torch.randn(1, 2, N_Q, BINS)
    share = torch.softmax(logits[0, 1] / 0.5, -1)
    expected = sum(share[k, v] * proxy.table[k, v] for k in range(N_Q) for v in range(BINS))
    torch.testing.assert_close(proxy.frames(logits, temperature=0.5)[0, 1], expected)


def test_gradients_to_logits_are_those_of_finite_differences(proxy: Proxy) -> None:
    proxy = proxy.double()
    logits = torch.randn(1, 15, N_Q, BINS, dtype=torch.float64, requires_grad=True)
    target = torch.nn.functional.normalize(torch.randn(6, dtype=torch.float64), dim=0)

    def towards(given: torch.Tensor) -> torch.Tensor:
        return (proxy(given, temperature=0.7)[0] * target).sum()

    (gradient,) = torch.autograd.grad(towards(logits), logits)
    direction = torch.randn_like(gradient)
    step = 1e-6
    with torch.no_grad():
        slope = (towards(logits + step * direction) - towards(logits - step * direction)) / (2 * step)
    assert abs(float(slope - (gradient * direction).sum())) < 1e-8
    assert float(gradient.abs().max()) > 1e-6


def test_straight_through_goes_forward_as_codes_and_back_as_the_expectation(proxy: Proxy) -> None:
    logits = torch.randn(2, 15, N_Q, BINS, requires_grad=True)
    torch.testing.assert_close(proxy(logits, straight_through=True), proxy(logits.argmax(-1)), atol=1e-5, rtol=0)
    weights = torch.randn(2, 15, DIM)
    gradients = [
        torch.autograd.grad((proxy.frames(logits, straight_through=hard, temperature=0.7) * weights).sum(), logits)[0]
        for hard in (False, True)
    ]
    torch.testing.assert_close(*gradients)


def test_logits_of_half_precision_are_taken(proxy: Proxy) -> None:
    logits = torch.randn(1, 15, N_Q, BINS).bfloat16().requires_grad_()
    found = proxy(logits)
    torch.testing.assert_close(found, proxy(logits.float()))
    assert torch.autograd.grad(found.sum(), logits)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("soft", [False, True])
def test_padding_and_what_stands_there_change_nothing(proxy: Proxy, soft: bool) -> None:
    codes = some_codes(2, 20)
    mask = torch.arange(20) < torch.tensor([[20], [13]])
    padded = codes.masked_fill(~mask[..., None], 3 if soft else BINS + 5)  # special ids lie outside of the books
    given = 4 * torch.nn.functional.one_hot(padded, BINS).float() if soft else padded
    alone = 4 * torch.nn.functional.one_hot(codes, BINS).float() if soft else codes
    found = proxy(given, mask)
    torch.testing.assert_close(found[:1], proxy(alone[:1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1:], proxy(alone[1:, :13]), atol=1e-6, rtol=0)


def test_codes_outside_of_the_books_are_refused(proxy: Proxy) -> None:
    codes = some_codes()
    codes[0, 3, 0] = BINS  # Moshi's id of "no token yet"
    with pytest.raises(ValueError, match=r"codes must be 0 to 9, found 0 to 10: leave out special ids, or mask"):
        proxy(codes)
    with pytest.raises(ValueError, match=r"logits: expected \(batch, frames, 3, 10\), found \(1, 4, 3, 11\)"):
        proxy(torch.zeros(1, 4, N_Q, BINS + 1))
    with pytest.raises(ValueError, match=r"logits: expected \(batch, frames, 3, 10\), found \(1, 4, 4, 10\)"):
        proxy(torch.zeros(1, 4, N_Q + 1, BINS))
    with pytest.raises(ValueError, match=r"codes: expected \(batch, frames, 3\), found \(1, 3, 4\)"):
        proxy(torch.zeros(1, 3, 4, dtype=torch.int64))


def test_the_table_is_not_trained_and_gradients_reach_the_logits_alone(proxy: Proxy) -> None:
    assert "table" not in dict(proxy.named_parameters())
    logits = torch.randn(1, 5, N_Q, BINS, requires_grad=True)
    proxy(logits).sum().backward()
    assert logits.grad is not None and all(p.grad is None for p in proxy.parameters())


def test_undelayed_moves_late_books_back() -> None:
    whole = some_codes(2, 9)
    delays = (0, 1, 2)
    late = torch.full((2, N_Q, 11), BINS)
    for k, delay in enumerate(delays):
        late[:, k, delay : delay + 9] = whole[..., k]
    assert torch.equal(undelayed(late, delays), whole)
    logits = torch.randn(2, N_Q, 11, BINS)
    assert torch.equal(undelayed(logits, delays)[:, 4, 2], logits[:, 2, 6])
    assert undelayed(torch.zeros(1, 8, 5)).shape == (1, 4, 8) and max(MOSHI_DELAYS) == 1


@pytest.mark.parametrize(
    ("shape", "match"),
    [((1, 4, 9), r"expected \(batch, 3, frames\)"), ((1, 3, 2), "expected more than 2 frames, found 2")],
)
def test_what_cannot_be_undelayed_is_refused(shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        undelayed(torch.zeros(shape), (0, 1, 2))


def test_a_file_brings_it_back_frozen(proxy: Proxy, tmp_path: Path) -> None:
    proxy.save(tmp_path / "proxy.safetensors")
    again = Proxy.load(tmp_path / "proxy.safetensors")
    assert torch.equal(again(some_codes()), proxy(some_codes()))
    assert not again.training and not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("what", ["nothing", "text", "no header", "other kind", "other tensors"])
def test_files_that_hold_no_proxy_are_refused_in_a_line(proxy: Proxy, tmp_path: Path, what: str) -> None:
    path = tmp_path / "p.safetensors"
    facts = {"whowhen": json.dumps({**proxy.facts, **({"kind": "probe"} if what == "other kind" else {})})}
    state = {k: v for k, v in proxy.state_dict().items() if what != "other tensors" or k != "embedding.bias"}
    if what == "text":
        path.write_text("no weights")
    elif what != "nothing":
        save_file(state, path, metadata=None if what == "no header" else facts)
    with pytest.raises(ValueError, match=r"p.safetensors: (no such file|not the weights of a proxy)") as error:
        Proxy.load(path)
    assert "\n" not in str(error.value)


def test_the_hard_path_exports_with_any_batch_and_length(proxy: Proxy) -> None:
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("frames", min=2)},)
    exported = torch.export.export(proxy, (some_codes(),), dynamic_shapes=sizes).module()
    for codes in (some_codes(), some_codes(1, 31, seed=5)):
        torch.testing.assert_close(exported(codes), proxy(codes), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_onnx_says_what_torch_says_with_any_batch_and_length(proxy: Proxy, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    proxy.train().to_onnx(tmp_path / "proxy.onnx")
    assert proxy.training and [file.name for file in tmp_path.iterdir()] == ["proxy.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "proxy.onnx")
    for codes in (some_codes(), some_codes(1, 31, seed=5), some_codes(3, 2, seed=6)):
        (found,) = session.run(["embedding"], {"codes": codes.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), proxy.eval()(codes), atol=1e-5, rtol=0)


def test_onnx_without_its_package_says_what_to_install(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.proxy.network.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"writing ONNX needs onnxscript.*'\.\[onnx\]'"):
        proxy.to_onnx(tmp_path / "proxy.onnx")


def test_it_imports_neither_the_store_nor_moshi() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('featstore', 'evaluation', 'moshi', 'nemo', 'sklearn')))\n"
    subprocess.run([sys.executable, "-c", f"{blocked}from trainers.proxy import Proxy"], check=True, timeout=60)


def test_one_step_of_a_voice_conversion_loss_brings_the_voice_nearer(proxy: Proxy) -> None:
    target = proxy(some_codes(1, 30, seed=9)).detach()
    logits = torch.randn(1, N_Q, 16, BINS, requires_grad=True)  # as a language model has them, books late
    values = []
    for _ in range(10):
        loss = 1 - (proxy(undelayed(logits, (0, 1, 1))) * target).sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 5 * gradient / gradient.abs().max()).detach().requires_grad_()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] / 5, np.round(values, 3)
