"""A Transformer over chunks: a frame hears its own chunk and a bounded time before it, nothing that comes later.

So a stream goes on from the keys and values of the tokens before, and a step costs a chunk, while a whole recording (or
a training crop) is heard at once through a mask; both say the same. In a stack of layers what came before reaches further
than `left` tokens, in both alike, since what is kept are keys and values, which hold what was heard then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Kept(NamedTuple):
    """What goes from one part of a stream to the next.

    Attributes
    ----------
    frames : (batch, half a kernel, width), the last ones that the convolution heard.
    keys : (layers, 2, batch, heads, tokens, size) keys and values of the last `left` tokens.
    """

    frames: Tensor
    keys: Tensor


class ChunkEncoder(nn.Module):
    """Transformer layers whose attention sees the chunk and `left` tokens before it, and a convolution that does likewise.

    Instead of positions, which a stream has no end of, each head has a learned weight for every distance in tokens.

    Parameters
    ----------
    layer : is copied; no layer norm comes first in it.
    chunk, left : tokens.
    """

    def __init__(self, layer: nn.TransformerEncoderLayer, layers: int, chunk: int, left: int) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).layers
        self.chunk, self.left = chunk, left
        self.distance = nn.Parameter(torch.zeros(layer.self_attn.num_heads, left + 2 * chunk - 1))

    def forward(self, x: Tensor, mask: Tensor | None, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Answers (batch, tokens, width), and `Kept.keys` for what follows; `x` begins with a chunk.

        Parameters
        ----------
        mask : (batch, tokens) bool, True on real ones; None: all are.
        keys : of the tokens before; None: there are none.
        """
        weights = self._weights(x.shape[1], 0 if keys is None else keys.shape[4], mask)
        kept = []
        for number, layer in enumerate(self.layers):
            x, here = _heard(layer, x, weights, None if keys is None else keys[number])
            kept.append(here[..., max(0, here.shape[3] - self.left) :, :])
        return x, torch.stack(kept)

    def _weights(self, tokens: int, before: int, mask: Tensor | None) -> Tensor:
        """What is added to scores, (batch or 1, heads, tokens, before + tokens): by distance; -∞ where nothing is seen."""
        device = self.distance.device
        here = torch.arange(tokens, device=device)[:, None]
        there = torch.arange(-before, tokens, device=device)
        begin = here // self.chunk * self.chunk
        seen = ((there >= begin - self.left) & (there < begin + self.chunk))[None]
        if mask is not None:  # a token always sees itself, so that padding is a number
            seen = seen & (functional.pad(mask, (before, 0), value=True)[:, None] | (here == there))
        # Behind the first and the last distance lies what is not seen.
        index = (here - there + self.chunk - 1).clamp(0, self.distance.shape[1] - 1)
        return self.distance[:, index].masked_fill(~seen[:, None], -torch.inf)


def _heard(layer: nn.TransformerEncoderLayer, x: Tensor, weights: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a layer makes of tokens (batch, tokens, width), and keys and values of all that it attended to.

    The layer's own `forward` cannot go on from keys; with nothing kept and all weights 0 they agree.
    """
    attention = layer.self_attn
    found = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, *here = found.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    there = torch.stack(here)
    if keys is not None:
        there = torch.cat([keys, there], 3)
    dropout = attention.dropout if layer.training else 0.0
    said = functional.scaled_dot_product_attention(query, there[0], there[1], weights.to(x.dtype), dropout)
    x = layer.norm1(x + layer.dropout1(attention.out_proj(said.transpose(1, 2).flatten(2))))
    fed = layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))
    return layer.norm2(x + layer.dropout2(fed)), there


def convolve(conv: nn.Conv1d, x: Tensor, chunk: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """A convolution "same" over frames (batch, frames, width) that hears nothing behind a chunk; and `Kept.frames`.

    Parameters
    ----------
    chunk : frames.
    before : `Kept.frames` of what came before; None: silence.
    """
    half = conv.kernel_size[0] // 2
    if before is None:
        before = x.new_zeros(x.shape[0], half, x.shape[2])
    missing = -x.shape[1] % chunk
    heard = torch.cat([before, functional.pad(x, (0, 0, 0, missing))], 1)
    # (batch, chunks, width, half + chunk), each with nothing behind it
    parts = functional.pad(heard.unfold(1, half + chunk, chunk), (0, half))
    found = functional.conv1d(parts.flatten(0, 1), conv.weight, conv.bias, groups=conv.groups)
    found = found.unflatten(0, parts.shape[:2]).transpose(2, 3).flatten(1, 2)[:, : x.shape[1]]
    heard = heard[:, : half + x.shape[1]]
    return found, heard[:, heard.shape[1] - half :]
