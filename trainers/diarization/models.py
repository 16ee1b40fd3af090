"""The head that says who speaks when: a small Transformer on frozen features."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.diarization.causal import ChunkEncoder, Kept, convolve
from trainers.diarization.config import DiarizationConfig
from trainers.scale import OneScale


class Earlier(NamedTuple):
    """What a head is told of what came before its window: see `trainers.diarization.cache`.

    Attributes
    ----------
    frames : (batch, blocks, dim), means over blocks of frames as a store has them.
    told : (batch, blocks, channels) 0 to 1, how active each channel was.
    mask : (batch, blocks) bool, True where there is a block.
    """

    frames: Tensor
    told: Tensor
    mask: Tensor

    @property
    def known(self) -> Tensor:
        """(batch, channels) bool: whose voice is there."""
        return ((self.told > 0.5) & self.mask.unsqueeze(-1)).any(1)


class Adapter(nn.Module):
    """The diarization head: features → per-frame logits of who is active.

    One scale (the sound protocol's; as made it changes nothing), Linear(dim → width) + sinusoidal positions →
    Transformer encoder → Linear(width → speakers). With the published sizes and 512-d features it has 7,296,388
    parameters. Fusion is the same class on concatenated features. What the published one has not is off by default:

    Parameters
    ----------
    conv_frames : odd kernel of a depthwise convolution over time, added to the projected frames through a GELU; 0: none.
    token_frames : so many frames are averaged into one token of the Transformer, which answers for each of them.
    channel_dropout : dropout takes whole channels of an example, one mask for all its frames, and attention none.
    input_dropout : share of the input's dimensions that are dropped over a whole example.
    cache_s : above 0, each token is told which channels were active when earlier frames sounded as it does (`Recall`).
    chunk_frames, left_frames : above 0, a frame hears its chunk of so many frames and at most `left_frames` before that;
        whole tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        speakers: int = 4,
        width: int = 384,
        layers: int = 4,
        heads: int = 6,
        ffn: int = 1536,
        dropout: float = 0.1,
        conv_frames: int = 0,
        token_frames: int = 1,
        channel_dropout: bool = False,
        input_dropout: float = 0.0,
        cache_s: float = 0.0,
        chunk_frames: int = 0,
        left_frames: int = 0,
    ) -> None:
        super().__init__()
        self.speakers, self.token_frames, self.chunk_frames = speakers, token_frames, chunk_frames
        self.scale = OneScale(dim)
        self.input_dropout = _ChannelDropout(input_dropout)
        self.project = nn.Linear(dim, width)
        self.conv = nn.Conv1d(width, width, conv_frames, padding="same", groups=width) if conv_frames else None
        layer = nn.TransformerEncoderLayer(width, heads, ffn, dropout, activation="gelu", batch_first=True)
        if channel_dropout:
            for name in ("dropout", "dropout1", "dropout2"):
                setattr(layer, name, _ChannelDropout(dropout))
            layer.self_attn.dropout = 0.0
        # Nested tensors would take another path in eval than in training, and drop padded frames from the output.
        self.encoder = (
            ChunkEncoder(layer, layers, chunk_frames // token_frames, left_frames // token_frames)
            if chunk_frames
            else nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        )
        self.head = nn.Linear(width, token_frames * speakers)
        self.recall = Recall(dim, speakers, width) if cache_s else None

    def forward(self, features: Tensor, mask: Tensor | None = None, earlier: Earlier | None = None) -> Tensor:
        """Logits (batch, frames, speakers) of features (batch, frames, dim).

        `mask` (batch, frames) is True on real frames: padding is not attended to. None attends to all.
        """
        return self.go_on(features, mask, earlier)[0]

    def go_on(
        self, features: Tensor, mask: Tensor | None = None, earlier: Earlier | None = None, kept: Kept | None = None
    ) -> tuple[Tensor, Kept | None]:
        """As `forward`, of the next chunks of a stream: and what is to be `kept` until those that follow.

        What is kept is right for them where `features` are whole chunks; a head without chunks keeps nothing.
        """
        frames, real = self.input_dropout(self.scale(features).to(self.project.weight.dtype)), mask
        x = self.project(frames)
        ends = x[:, :0]
        if self.conv is not None:
            heard = _zero_padding(x, mask)
            if self.chunk_frames:
                found, ends = convolve(self.conv, heard, self.chunk_frames, None if kept is None else kept.frames)
            else:
                found = self.conv(heard.transpose(1, 2)).transpose(1, 2)
            x = x + functional.gelu(found)
        if self.token_frames > 1:
            x, mask = _tokens(_zero_padding(x, mask), mask, self.token_frames)
        if not self.chunk_frames:
            x = x + sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        said = 0.0
        if earlier is not None:
            assert self.recall is not None  # only a head that was made for it is told
            tokens = _tokens(_zero_padding(frames, real), None, self.token_frames)[0]
            told = self.recall(tokens, earlier._replace(frames=self.scale(earlier.frames).to(x.dtype)))
            x = x + self.recall.say(told)
            said = (self.recall.weight * told).repeat_interleave(self.token_frames, 1)[:, : features.shape[1]]
        if self.chunk_frames:
            x, keys = self.encoder(x, mask, None if kept is None else kept.keys)
            kept = Kept(ends, keys)
        else:
            x = self.encoder(x, src_key_padding_mask=None if mask is None else ~mask)
        x = self.head(x)
        return x.unflatten(2, (self.token_frames, self.speakers)).flatten(1, 2)[:, : features.shape[1]] + said, kept


class Recall(nn.Module):
    """What was said of earlier frames that sound like these: attention by cosine, whose values are activities.

    ``softmax(e^size · cos(Wq, Wk)) · told``, where one more key of its own size, whose value is silence, stands for nobody. It
    is told to the Transformer, by a linear layer, and has its `weight` in what comes out.
    """

    def __init__(self, dim: int, speakers: int, width: int) -> None:
        super().__init__()
        self.sound = nn.Linear(dim, width, bias=False)
        nn.init.orthogonal_(self.sound.weight)
        self.size = nn.Parameter(torch.tensor(2.3))
        self.nobody = nn.Parameter(torch.tensor(2.0))
        self.weight = nn.Parameter(torch.tensor(4.0))
        self.say = nn.Linear(speakers, width, bias=False)  # told nothing is as told of nobody

    def forward(self, x: Tensor, earlier: Earlier) -> Tensor:
        """(batch, tokens, channels) 0 to 1 for tokens (batch, tokens, dim) and what came before, both on one scale."""
        here, there = (functional.normalize(self.sound(frames), dim=-1) for frames in (x, earlier.frames))
        alike = self.size.exp() * here @ there.transpose(1, 2)
        alike = alike.masked_fill(~earlier.mask.unsqueeze(1), -torch.inf)
        weights = torch.cat([alike, self.nobody.expand(*alike.shape[:2], 1)], 2).softmax(2)[:, :, :-1]
        return weights @ earlier.told.to(x.dtype)


def adapter_sizes(config: DiarizationConfig) -> dict[str, Any]:
    """What an `Adapter` of these settings is made of, but for the dimension of what it takes."""
    left_out = {"dim"} if config.cache else {"dim", "cache_s", "chunk_frames", "left_frames"}
    return {name: getattr(config, name) for name in inspect.signature(Adapter).parameters if name not in left_out}


class _ChannelDropout(nn.Dropout1d):
    """Dropout of whole channels of (batch, frames, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def _zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """What lies behind a session looks like what a convolution finds behind an example, whatever the scale made of it."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


def _tokens(x: Tensor, mask: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Means of `size` frames of (batch, frames, width), the last filled up with zeros; a token is real if a frame is."""
    missing = -x.shape[1] % size
    x = functional.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, size)).mean(2)
    return x, None if mask is None else functional.pad(mask, (0, missing)).unflatten(1, (-1, size)).any(2)


def sinusoids(frames: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Position encoding (frames, width) float32: sines in even columns, cosines in odd ones.

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(frames, dtype=torch.float32, device=device).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32, device=device) * (-math.log(10000.0) / width))
    table = torch.empty(frames, width, device=device)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, trainable or not."""
    return sum(p.numel() for p in module.parameters())
