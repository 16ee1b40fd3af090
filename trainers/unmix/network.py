"""Frames of a mixture to a set of unit embeddings, each with how sure it is that there is such a voice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.scale import OneScale


class Unmixer(nn.Module):
    """Learnt queries beside the frames in a small Transformer; what becomes of each query is one voice, or none.

    Sets by learnt queries: Carion et al., “End-to-End Object Detection with Transformers”, arXiv 2005.12872. There is no
    code of place: who is heard does not depend on when, and the first layer's neighbourhood tells what follows what.

    Parameters
    ----------
    dim : of the frames, features side by side.
    size : of the embeddings.
    windows : the last `size` numbers of a frame are the teacher's own of the mixture, and a slot is a weighted mean of their
        directions and a correction, so that a voice that is alone passes as it is; otherwise a slot is all learnt.
    own_centre : windows have a mean of their own; otherwise it is the teacher's.
    correction : slots of windows have one; otherwise a slot is nothing but a weighted mean.

    Attributes
    ----------
    centre : (size,) the teacher's mean; targets and embeddings are directions from there.
    windows_centre : (size,) from where windows are directions; that of their own mean where they are of another length.
    """

    centre: Tensor
    own_centre: Tensor | None

    def __init__(
        self,
        dim: int,
        size: int,
        slots: int,
        width: int,
        layers: int,
        heads: int,
        conv_frames: int,
        dropout: float,
        input_dropout: float,
        windows: bool = False,
        own_centre: bool = False,
        correction: bool = True,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.scale = OneScale(dim)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("own_centre", torch.zeros(size) if own_centre else None)
        self.channel_dropout = nn.Dropout1d(input_dropout)
        self.front = nn.Conv1d(dim, width, conv_frames, padding="same")
        self.queries = nn.Parameter(torch.randn(slots, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.embedding = nn.Linear(width, size) if correction or not windows else None
        self.existence = nn.Linear(width, 1)
        if windows:
            self.asks, self.answers = nn.Linear(width, width), nn.Linear(width, width)
            if self.embedding is not None:
                nn.init.zeros_(self.embedding.weight)  # to begin with nothing is corrected
                nn.init.zeros_(self.embedding.bias)

    @property
    def windows_centre(self) -> Tensor:
        return self.centre if self.own_centre is None else self.own_centre

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (batch, slots, size) and logits of existence (batch, slots).

        Parameters
        ----------
        frames : (batch, frames, dim) of any floating type. mask : (batch, frames) bool, True for frames that count.
        """
        x = self.scale(frames).masked_fill(~mask[..., None], 0).transpose(1, 2)
        x = functional.gelu(self.front(self.channel_dropout(x))).transpose(1, 2)
        slots = len(self.queries)
        tokens = torch.cat([self.queries.expand(len(x), -1, -1), x], 1)
        left_out = torch.cat([mask.new_zeros(len(mask), slots), ~mask], 1)
        tokens = self.encoder(tokens, src_key_padding_mask=left_out)
        found = tokens[:, :slots]
        voices = found.new_zeros(()) if self.embedding is None else self.embedding(found)
        if self.windows:
            heard = frames[..., -len(self.centre) :].to(found.dtype)
            own = functional.normalize(heard - self.windows_centre, dim=2)
            fit = self.asks(found) @ self.answers(tokens[:, slots:]).transpose(1, 2) / found.shape[2] ** 0.5
            voices = voices + torch.softmax(fit.masked_fill(~mask[:, None], float("-inf")), 2) @ own
        return functional.normalize(voices, dim=2), self.existence(found)[..., 0]
