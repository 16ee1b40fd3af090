"""The diarization loss on logits: sort and permutation-invariant loss (PIL), weighted; masked, from one K×K cost matrix.

With logits o and labels y, BCE(o, y) = softplus(o) − o·y. Summed over frames, the cost of giving output channel i to
speaker j is ``cost[i, j] = Σ_t softplus(o_ti) − Σ_t o_ti y_tj``, so the loss under any assignment is a sum of K
entries: one matrix product instead of K! passes.

Source: Sortformer, arXiv 2409.06656, section 3 (sort loss, PIL, hybrid).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import softplus


@lru_cache(maxsize=16)
def all_permutations(k: int, device: torch.device | str = "cpu") -> Tensor:
    """Every assignment of `k` speakers to `k` channels, (k!, k): entry ``[p, i]`` is the speaker of channel i."""
    return torch.tensor(list(permutations(range(k))), device=device)


def cost_matrix(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Summed binary cross-entropy of every output channel against every speaker.

    Parameters
    ----------
    logits, labels : (batch, frames, K)
    mask : (batch, frames), True where a frame counts; None counts all.

    Returns
    -------
    (batch, K, K), ``[b, i, j]``: channel i scored as speaker j, summed over the frames that count.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()  # sums over 1125 frames need more than bf16
    labels = labels.to(logits.dtype)
    if mask is not None:
        counts = mask.unsqueeze(-1).to(logits.dtype)
        silence = (softplus(logits) * counts).sum(1)
        labels = labels * counts
    else:
        silence = softplus(logits).sum(1)
    return silence.unsqueeze(-1) - logits.transpose(1, 2) @ labels


def assignment_costs(cost: Tensor) -> Tensor:
    """Cost of every assignment: (batch, K, K) → (batch, K!)."""
    table = all_permutations(cost.shape[-1], cost.device)
    return cost[:, torch.arange(cost.shape[-1], device=cost.device), table].sum(-1)


def first_frames(labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The frame in which each speaker is first active, (batch, K); the number of frames for one who never is."""
    active = labels > 0.5
    if mask is not None:
        active = active & mask.unsqueeze(-1)
    frames = labels.shape[1]
    return torch.where(active.any(1), active.to(torch.uint8).argmax(1), frames)


def in_arrival_order(arrival: Tensor) -> Tensor:
    """Which assignments put speakers on channels in the order they arrive: (batch, K) → bool (batch, K!).

    Speakers who arrive in the same frame may stand either way round, and so may those who never do.
    """
    table = all_permutations(arrival.shape[-1], arrival.device)
    ordered = arrival[:, table]  # (batch, K!, K): arrival of the speaker on each channel
    return (ordered[..., 1:] >= ordered[..., :-1]).all(-1)


def hybrid_loss(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    sort_weight: float = 0.5,
    pil_weight: float = 0.5,
    resort: bool = True,
    known: Tensor | None = None,
) -> Tensor:
    """``sort_weight · sort + pil_weight · PIL`` (a scalar), each a mean binary cross-entropy.

    Sort: speakers stand on channels in order of arrival, who speaks first in the example on channel 0, absent ones last;
    where several arrive in one frame, the order that fits the predictions best counts. PIL: the best of the K!
    assignments of each example.

    Parameters
    ----------
    logits, labels : (batch, frames, K)
    mask : (batch, frames), True where a frame counts; None counts all.
    resort : order speakers by their arrival in the example; False takes the labels' own order (reference protocol).
    known : (batch, K) bool, channels that are taken: PIL leaves their speakers on them.
    """
    cost = cost_matrix(logits, labels, mask)
    costs = assignment_costs(cost)
    if resort:
        valid = in_arrival_order(first_frames(labels, mask))
        sort = costs.masked_fill(~valid, torch.inf).amin(1)
    else:
        sort = cost.diagonal(dim1=1, dim2=2).sum(1)
    if known is not None:
        table = all_permutations(cost.shape[-1], cost.device)
        stays = table == torch.arange(cost.shape[-1], device=cost.device)
        costs = costs.masked_fill(~(stays | ~known.unsqueeze(1)).all(-1), torch.inf)
    summed = (sort_weight * sort + pil_weight * costs.amin(1)).sum()
    # Every frame that counts weighs the same, whichever example it is from; so padding cannot change the loss.
    frames = mask.sum() if mask is not None else logits.shape[0] * logits.shape[1]
    return summed / (frames * logits.shape[-1])
