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

    Attributes
    ----------
    centre : (size,) the teacher's mean; targets and embeddings are directions from there.
    """

    centre: Tensor

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
    ) -> None:
        super().__init__()
        self.scale = OneScale(dim)
        self.register_buffer("centre", torch.zeros(size))
        self.channel_dropout = nn.Dropout1d(input_dropout)
        self.front = nn.Conv1d(dim, width, conv_frames, padding="same")
        self.queries = nn.Parameter(torch.randn(slots, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.embedding, self.existence = nn.Linear(width, size), nn.Linear(width, 1)

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
        found = self.encoder(tokens, src_key_padding_mask=left_out)[:, :slots]
        return functional.normalize(self.embedding(found), dim=2), self.existence(found)[..., 0]
