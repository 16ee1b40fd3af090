"""Proxy: codes of a neural codec, or logits over them, to a unit speaker embedding. Needs torch and safetensors alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

#: Frames by which Moshi and PersonaPlex write their eight audio books late: the semantic one at once, the others one later.
MOSHI_DELAYS = (0, 1, 1, 1, 1, 1, 1, 1)
#: Under this key a safetensors header says what is needed beside the tensors, as JSON.
_FACTS = "whowhen"
_SCALE, _SQUEEZED = 8, 128


class Proxy(nn.Module):
    """An ECAPA-like network on the sum of the codes' vectors: one 1x1 layer, three SE-Res2 blocks (dilations 2, 3, 4),
    attentive statistics pooling with global context, one linear layer, length 1.

    The layers are the published ones; what the publication leaves open is filled in so that the sizes are right: 512
    channels on 2048 inputs have 4.5 M parameters, on Mimi's 512 inputs 3,752,832.

    Parameters
    ----------
    table : (n_q, bins, dim), what each code adds to its frame; a buffer, never trained.
    channels : of every layer; a multiple of 8.
    size : of the embedding.
    """

    table: Tensor

    def __init__(self, table: Tensor, channels: int = 512, size: int = 192) -> None:
        super().__init__()
        if table.ndim != 3 or not table.is_floating_point():
            raise ValueError(f"table: expected (n_q, bins, dim) in floating point, found {tuple(table.shape)}")
        if channels < _SCALE or channels % _SCALE:
            raise ValueError(f"channels must be a multiple of {_SCALE}, found {channels}")
        self.register_buffer("table", table.detach().float().clone())
        self.channels, self.size = channels, size
        self.front = _Layer(table.shape[2], channels)
        self.blocks = nn.ModuleList(_Block(channels, dilation) for dilation in (2, 3, 4))
        self.gathered = _Layer(3 * channels, channels)
        self.pooling = _Pooling(channels)
        self.embedding = nn.Linear(2 * channels, size)

    def forward(
        self, given: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0, straight_through: bool = False
    ) -> Tensor:
        """Unit embeddings (batch, size).

        Parameters
        ----------
        given : codes (batch, frames, n_q), whole numbers, or logits (batch, frames, n_q, bins).
        mask : (batch, frames) bool, True for frames that count: not padding, not frames with special ids. An example
            needs one at least.
        temperature, straight_through : see `frames`; of logits only.

        Raises
        ------
        ValueError : of another shape, or a code that is in no book (in a frame that counts).
        """
        return self.embed(self.frames(given, mask, temperature=temperature, straight_through=straight_through), mask)

    def frames(
        self, given: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0, straight_through: bool = False
    ) -> Tensor:
        """The codec's own vectors (batch, frames, dim) of codes, or those to be expected under logits.

        Expected: ``sum over books of softmax(logits / temperature) @ table``. With `straight_through` the likeliest codes
        go forward, and the gradient of the expectation goes back (Bengio et al., arXiv 1308.3432).
        """
        n_q, bins, _ = self.table.shape
        if not given.is_floating_point():
            if given.ndim != 3 or given.shape[2] != n_q:
                raise ValueError(f"codes: expected (batch, frames, {n_q}), found {tuple(given.shape)}")
            if mask is not None:
                given = given.masked_fill(~mask[..., None], 0)
            if not torch.compiler.is_compiling() and given.numel() and not 0 <= given.min() <= given.max() < bins:
                raise ValueError(
                    f"codes must be 0 to {bins - 1}, found {int(given.min())} to {int(given.max())}: "
                    "leave out special ids, or mask their frames"
                )
            return self._looked_up(given)
        if given.ndim != 4 or given.shape[2:] != (n_q, bins):
            raise ValueError(
                f"logits: expected (batch, frames, {n_q}, {bins}), found {tuple(given.shape)}; leave out special ids"
            )
        # A loop in bfloat16 hands over logits whose shares would be too coarse to add up.
        share = functional.softmax(given.to(self.table.dtype) / temperature, dim=-1)
        expected = share.flatten(2) @ self.table.flatten(0, 1)
        if straight_through:
            return self._looked_up(given.argmax(-1)) + (expected - expected.detach())
        return expected

    def _looked_up(self, codes: Tensor) -> Tensor:
        return torch.stack([functional.embedding(codes[..., k].long(), book) for k, book in enumerate(self.table)]).sum(
            0
        )

    def embed(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit embeddings (batch, size) of frames (batch, frames, dim)."""
        x = frames.transpose(1, 2)
        counts = x.new_ones(x.shape[0], 1, x.shape[2]) if mask is None else mask[:, None].to(x)
        x = self.front(x) * counts
        found = []
        for block in self.blocks:
            x = block(x, counts)
            found.append(x)
        pooled = self.pooling(self.gathered(torch.cat(found, 1)), counts)
        return functional.normalize(self.embedding(pooled), dim=1)

    # ---- files

    @property
    def facts(self) -> dict[str, Any]:
        """What a file of the weights says beside them."""
        return {"kind": "proxy", "channels": self.channels, "size": self.size}

    def save(self, path: str | PathLike[str]) -> None:
        """One safetensors file: weights, table, and sizes in its header."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, metadata={_FACTS: json.dumps(self.facts)})

    @classmethod
    def load(cls, path: str | PathLike[str], device: str | torch.device = "cpu") -> Proxy:
        """A proxy from a file, or from the folder of a run of `trainers fit proxy`: in eval mode, its weights frozen.

        Raises
        ------
        ValueError : no such file, damaged, or no proxy.
        """
        file = Path(path)
        file = file / "model.safetensors" if file.is_dir() else file
        try:
            with safe_open(file, framework="pt") as opened:
                facts = json.loads((opened.metadata() or {})[_FACTS])
                if facts.get("kind") != "proxy":
                    raise ValueError(f"weights of another kind: {facts.get('kind')!r}")
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            proxy = cls(tensors["table"], facts["channels"], facts["size"])
            proxy.load_state_dict(tensors)
        except FileNotFoundError:
            raise ValueError(f"{file}: no such file") from None
        except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{file}: not the weights of a proxy ({' '.join(str(error).split())[:200]})") from None
        return proxy.to(device).eval().requires_grad_(False)

    def to_onnx(self, path: str | PathLike[str]) -> None:
        """An ONNX file of the way from codes to embeddings: input "codes" (batch, frames, n_q) int64 of any batch and two or
        more frames, output "embedding" (batch, size).

        There is no mask, so examples of one batch are of one length; and the file does not check that codes lie in the books.

        Raises
        ------
        ModuleNotFoundError : onnxscript, which PyTorch writes it with, is not installed.
        """
        if not find_spec("onnxscript"):
            raise ModuleNotFoundError(
                "writing ONNX needs onnxscript, which is not installed; where whowhen was cloned: pip install -e '.[onnx]'"
            )
        proxy = copy.deepcopy(self).cpu().eval()
        codes = torch.zeros(2, 25, self.table.shape[0], dtype=torch.int64)
        any_of = {
            0: torch.export.Dim("batch", min=2),
            1: torch.export.Dim("frames", min=2),
        }  # a batch of 1 runs as well
        torch.onnx.export(
            proxy,
            (codes,),
            path,
            input_names=["codes"],
            output_names=["embedding"],
            dynamic_shapes=(any_of,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def undelayed(given: Tensor, delays: Sequence[int] = MOSHI_DELAYS) -> Tensor:
    """A language model's codes or logits as `Proxy` takes them: books that stand later are moved back beside the others.

    Parameters
    ----------
    given : audio codes (batch, n_q, frames) or logits (batch, n_q, frames, bins), as Moshi has them: the text stream is
        no audio, leave it out; so are the columns of special ids.
    delays : frames by which each book stands late.

    Returns
    -------
    (batch, frames - max(delays), n_q) or (batch, frames - max(delays), n_q, bins).

    Raises
    ------
    ValueError : not one delay a book, or not more frames than the longest.
    """
    if given.ndim not in (3, 4) or given.shape[1] != len(delays) or min(delays, default=-1) < 0:
        raise ValueError(f"expected (batch, {len(delays)}, frames) or (…, bins), found {tuple(given.shape)}")
    num = given.shape[2] - max(delays)
    if num < 1:
        raise ValueError(f"expected more than {max(delays)} frames, found {given.shape[2]}")
    return torch.stack([given[:, k, delay : delay + num] for k, delay in enumerate(delays)], dim=2)


class _Layer(nn.Sequential):
    """Convolution, ReLU, batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        same = dilation * (kernel - 1) // 2
        convolution = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=same)
        super().__init__(convolution, nn.ReLU(), nn.BatchNorm1d(outputs))


class _Block(nn.Module):
    """SE-Res2 block (ECAPA-TDNN: Desplanques et al., arXiv 2005.07143). Frames that do not count stay 0 throughout."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // _SCALE
        self.before, self.after = _Layer(channels, channels), _Layer(channels, channels)
        self.inner = nn.ModuleList(_Layer(width, width, 3, dilation) for _ in range(_SCALE - 1))
        self.squeeze, self.excite = nn.Conv1d(channels, _SQUEEZED, 1), nn.Conv1d(_SQUEEZED, channels, 1)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        first, *others = (self.before(x) * counts).chunk(_SCALE, dim=1)
        done = [first]
        for layer, part in zip(self.inner, others, strict=True):
            done.append(layer(part if len(done) == 1 else part + done[-1]) * counts)
        out = self.after(torch.cat(done, 1)) * counts
        mean = out.sum(2, keepdim=True) / counts.sum(2, keepdim=True)
        return x + out * torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))


class _Pooling(nn.Module):
    """Attentive statistics with global context: (batch, channels, frames) → (batch, 2 · channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.attention = _Layer(3 * channels, _SQUEEZED), nn.Conv1d(_SQUEEZED, channels, 1)
        self.norm = nn.BatchNorm1d(2 * channels)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        even = (counts / counts.sum(2, keepdim=True)).expand_as(x)
        context = [moment[..., None].expand_as(x) for moment in _moments(x, even)]
        heard = self.attention(torch.tanh(self.hidden(torch.cat([x, *context], 1))))
        share = functional.softmax(heard.masked_fill(counts == 0, float("-inf")), dim=2)
        return self.norm(torch.cat(_moments(x, share), 1))


def _moments(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time, each (batch, channels); `share` sums to 1 over time."""
    mean = (x * share).sum(2)
    return mean, ((x - mean[..., None]).square() * share).sum(2).clamp(min=1e-6).sqrt()
