"""What a set of embeddings is trained by: no order of the voices is better than another."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional


def matched(embeddings: Tensor, logits: Tensor, voices: Tensor, speakers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots hold which voices: of each mixture the pairing of the largest cosines and surest slots in all.

    A mixture of more voices than slots leaves some without.

    Parameters
    ----------
    embeddings : (batch, slots, size). logits : (batch, slots).
    voices : (batch, most voices, size), of length 1. speakers : (batch, most voices) whole numbers, -1 where there is none.

    Returns
    -------
    of every pair, over all mixtures: number of the mixture, of the slot, of the voice.

    Source: Carion et al., arXiv 2005.12872, equation 1.
    """
    with torch.no_grad():
        worth = (embeddings @ voices.transpose(1, 2) + torch.sigmoid(logits)[..., None]).cpu().numpy()
    counts = (speakers >= 0).sum(1).tolist()
    pairs = [linear_sum_assignment(own[:, :count], maximize=True) for own, count in zip(worth, counts, strict=True)]
    rows = np.repeat(np.arange(len(pairs)), [len(slots) for slots, _ in pairs])
    slots, chosen = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    told = [torch.from_numpy(found).to(embeddings.device) for found in (rows, slots, chosen)]
    return told[0], told[1], told[2]


def set_loss(
    embeddings: Tensor,
    logits: Tensor,
    voices: Tensor,
    speakers: Tensor,
    *,
    existence: float,
    apart: float,
    apart_margin: float,
    contrast: float,
    scale: float,
) -> Tensor:
    """Matched ``1 - cos``, plus weighted: existence (cross-entropy), slots alike, and telling a voice from the batch's others.

    Slots alike: ``max(0, cos - margin)²`` between the slots of a mixture that hold voices. Contrast: cross-entropy over the
    scaled cosines to the targets of all voices of the batch, in which other targets of the same speaker do not count.

    Parameters
    ----------
    embeddings, logits, voices, speakers : as `matched` takes them.
    """
    rows, slots, chosen = matched(embeddings, logits, voices, speakers)
    held = torch.zeros_like(logits).index_put((rows, slots), logits.new_ones(()))
    cosines = embeddings[rows, slots] @ voices[rows, chosen].T
    loss = (1 - cosines.diagonal()).mean() + existence * functional.binary_cross_entropy_with_logits(logits, held)
    couples = (held[:, :, None] * held[:, None]).triu(1)
    alike = (embeddings @ embeddings.transpose(1, 2) - apart_margin).clamp(min=0).square()
    loss = loss + apart * (alike * couples).sum() / couples.sum().clamp(min=1)
    if contrast:
        who = speakers[rows, chosen]
        same = (who[:, None] == who[None]).fill_diagonal_(False)
        loss = loss + contrast * functional.cross_entropy(
            scale * cosines.masked_fill(same, float("-inf")), torch.arange(len(who), device=who.device)
        )
    return loss
