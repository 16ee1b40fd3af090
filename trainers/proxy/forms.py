"""Codes as something that makes codes would hand them over: as logits, or with some of them wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from trainers.proxy.network import Proxy

#: Logits that are trained on give the right codes a share of the probability between these; of codes that are trained on
#: wrong, up to this share is.
_SHARES, _WRONG = (0.3, 0.95), 0.3


def logits_of(codes: Tensor, bins: int, share: float | Tensor, generator: torch.Generator) -> Tensor:
    """Logits (…, bins): normal noise of spread 1, and at the right code so much more that `share` of the probability is its.

    The noise takes ``bins · e^½`` on average. There is no language model's own doubt in this: which codes are probable
    besides the right one is drawn blindly.

    Parameters
    ----------
    share : between 0 and 1; a tensor goes with `codes`.

    Raises
    ------
    ValueError : `share` is not between 0 and 1.
    """
    shares = torch.as_tensor(share)
    if not ((shares > 0) & (shares < 1)).all():
        raise ValueError(f"share must lie between 0 and 1, found {share}")
    noise = torch.randn(*codes.shape, bins, generator=generator)
    more = math.log(bins) + 0.5 + torch.logit(shares)
    return noise + more[..., None] * functional.one_hot(codes.long(), bins)


def corrupted(codes: Tensor, bins: int, rate: float | Tensor, generator: torch.Generator) -> Tensor:
    """Codes of which a share of `rate` (a tensor goes with `codes`) is replaced by any."""
    wrong = torch.rand(codes.shape, generator=generator) < rate
    return torch.where(wrong, torch.randint(bins, codes.shape, generator=generator), codes.long())


def mixed(proxy: Proxy, codes: Tensor, soft: float, wrong: float, generator: torch.Generator) -> Tensor:
    """Frames (crops, frames, dim), on the proxy's device, of crops of which each is drawn to be codes, logits or wrong codes.

    Crop by crop and not batch by batch: the batch norms then see in training what they are set to afterwards, and crops of
    one voice that come in two forms are pulled together.

    Parameters
    ----------
    codes : (crops, frames, n_q).
    soft, wrong : shares of the crops that come as logits, and with wrong codes.
    """
    device, bins = proxy.table.device, proxy.table.shape[1]
    kind, amount = torch.rand(2, len(codes), 1, 1, generator=generator)
    as_logits = (kind < soft).flatten()
    rate = torch.where(kind < soft + wrong, _WRONG * amount, 0)  # those that come as logits are replaced below
    frames = proxy.frames(corrupted(codes, bins, rate, generator).to(device))
    if as_logits.any():
        share = (_SHARES[0] + (_SHARES[1] - _SHARES[0]) * amount)[as_logits]
        frames[as_logits.to(device)] = proxy.frames(logits_of(codes[as_logits], bins, share, generator).to(device))
    return frames
