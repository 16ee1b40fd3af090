"""The test that decides: do gradients through the proxy move codes towards a voice, as others than the proxy hear it?

Logits climb towards a target speaker's embedding, their likeliest codes are taken, and judges that had no part in it say
whether these now sound like the target. Beside it the same towards somebody else and towards nobody, and what the judges say
of the target's own voice.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainers.proxy.config import ProxyConfig
from trainers.proxy.data import ProxyData, Voices
from trainers.proxy.loop import embed
from trainers.proxy.network import Proxy

#: Adam's rate, what the logits begin with, how many frames each step hears. Chosen on dev speakers.
RATE, SURE, HEARD = 0.2, 0.9, 0.6
#: How many strangers a judge lets pass on dev.
STRANGERS = 0.05

#: Codes of some utterances → vectors (utterances, …), whose cosine is the judge's opinion.
Judge = Callable[[list[NDArray[np.int16]]], NDArray[np.float32]]


def linear_judge(train: Voices, table: NDArray[np.float32]) -> Judge:
    """Linear discriminants of mean and deviation of the codes' vectors: no network, no gradient of it was ever used."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.preprocessing import StandardScaler

    def statistics(codes: Sequence[NDArray[np.int16]]) -> NDArray[np.float32]:
        frames = [vectors_of(own, table) for own in codes]
        return np.stack([np.concatenate([f.mean(0), f.std(0)]) for f in frames])

    x = statistics(train.codes)
    scaler = StandardScaler().fit(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one sample available")  # shrinkage copes with it
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(scaler.transform(x), train.speakers)

    def judge(codes: list[NDArray[np.int16]]) -> NDArray[np.float32]:
        found = lda.transform(scaler.transform(statistics(codes)))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    return judge


def proxy_judge(proxy: Proxy, device: torch.device) -> Judge:
    """Another proxy, of another start and loss."""
    return lambda codes: embed(proxy, codes, device)


def vectors_of(codes: NDArray[np.int16], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The codec's own vectors (frames, dim) of codes (frames, n_q)."""
    found: NDArray[np.float32] = table[np.arange(len(table)), codes].sum(1)
    return found


def climb(proxy: Proxy, codes: Tensor, mask: Tensor, targets: Tensor, steps: int, seed: int) -> Tensor:
    """Codes (batch, frames, n_q) after `steps` of Adam on logits that begin `SURE` of `codes`, towards unit `targets`.

    Straight through, so that what climbs is what codes sound like and not a blend that no code stands for; with Gumbel noise
    on the logits and on `HEARD` of the frames, another draw at each step, so that it is no matter of single codes.
    """
    bins = proxy.table.shape[1]
    start = math.log(SURE / (1 - SURE)) + math.log(max(1, bins - 1))
    logits = (start * functional.one_hot(codes, bins)).float().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    generator = torch.Generator(codes.device).manual_seed(seed)
    proxy.eval().requires_grad_(False)
    for _ in range(steps):
        optimizer.zero_grad()
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
        heard = mask & (torch.rand(mask.shape, generator=generator, device=mask.device) < HEARD)
        heard[:, 0] = True  # a frame at least
        found = proxy(logits + gumbel, heard, straight_through=True)
        (1 - (found * targets).sum(1)).sum().backward()
        optimizer.step()
    return logits.detach().argmax(-1)


def ascent(
    proxy: Proxy,
    judges: Mapping[str, Judge],
    data: ProxyData,
    frames: int,
    config: ProxyConfig,
    device: torch.device,
) -> dict[str, Any]:
    """The test on pairs of test speakers: one's crop climbs towards the other's mean embedding, and judges compare what
    came of it with other utterances of him. A judge accepts from where it takes `STRANGERS` of dev's strangers.

    Parameters
    ----------
    judges : by name; the proxy itself is added as "itself", which proves nothing.
    frames : of the crops that climb.

    Returns
    -------
    dict : pairs, the share of codes that changed, and by judge: how many pairs it had to decide (it did not take the crop for
        the target's voice before), and by aim ("target", "wrong", "random") how many of these it accepted after, and its
        mean cosine to that voice; "own", "others": the shares that it accepts of real crops, of the target's other half and of
        everybody else's: no climb can be asked for more than the first, nor controls for less than the second.
    """
    rng, dev, test = np.random.default_rng([config.seed, 5]), data.dev.pieces(frames), data.test
    half = _halves(test)
    names = sorted(half)
    drawn = [rng.choice(names, 3, replace=len(names) < 3) for _ in range(config.pairs)]
    crops = [test.codes[int(rng.choice(np.concatenate(half[source])))][:frames] for source, _, _ in drawn]
    codes = np.zeros((len(crops), frames, proxy.table.shape[0]), np.int64)
    mask = np.zeros(codes.shape[:2], bool)
    for row, crop in enumerate(crops):
        codes[row, : len(crop)], mask[row, : len(crop)] = crop, True
    known = embed(proxy, test.codes, device)
    towards = {name: _unit(known[half[name][0]].mean(0)) for name in names}
    aims = {
        "target": np.stack([towards[target] for _, target, _ in drawn]),
        "wrong": np.stack([towards[third] for _, _, third in drawn]),
        "random": _unit(rng.standard_normal((len(crops), proxy.size))).astype(np.float32),
    }
    moved, changed = {}, {}
    for aim, targets in aims.items():
        start, counts, to = (torch.from_numpy(array).to(device) for array in (codes, mask, targets))
        after = climb(proxy, start, counts, to, config.climb, config.seed).cpu().numpy()
        changed[aim] = float((after != codes)[mask].mean())
        moved[aim] = [row[keep].astype(np.int16) for row, keep in zip(after, mask, strict=True)]
    told: dict[str, Any] = {}
    for called, judge in {"itself": proxy_judge(proxy, device), **judges}.items():
        threshold = _threshold(judge, dev)
        heard = judge(test.codes)
        voices = {speaker: _unit(heard[of].mean(0)) for speaker, (_, of) in half.items()}
        voice = np.stack([voices[target] for _, target, _ in drawn])
        before = (judge(crops) * voice).sum(1)
        open_ = before < threshold
        crops_of = {speaker: judge([test.codes[row][:frames] for row in of]) for speaker, (of, _) in half.items()}
        own = [crops_of[name] @ voices[name] >= threshold for name in names]
        others = [crops_of[other] @ voices[name] >= threshold for name in names for other in names if other != name]
        told[called] = {"threshold": threshold, "pairs": int(open_.sum()), "cosine_before": float(before.mean())}
        told[called] |= {"own": float(np.concatenate(own).mean()), "others": float(np.concatenate(others).mean())}
        for aim, codes_after in moved.items():
            cosine = (judge(codes_after) * voice).sum(1)
            told[called][aim] = {
                "accepted": int((cosine >= threshold)[open_].sum()),
                "cosine": float(cosine.mean()),
                "nearer": int((cosine > before).sum()),
            }
    settings = {
        "steps": config.climb,
        "lr": RATE,
        "sure": SURE,
        "heard": HEARD,
        "strangers": STRANGERS,
        "frames": frames,
    }
    return {"pairs": len(crops), **settings, "changed_codes": changed, "judges": told}


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


def _halves(voices: Voices) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """By speaker two halves of the utterances' rows, nothing in common where there are two or more of them."""
    rows = {str(name): np.flatnonzero(voices.speakers == name) for name in np.unique(voices.speakers)}
    return {name: (of[::2], of[1::2] if len(of) > 1 else of) for name, of in rows.items()}


def _threshold(judge: Judge, dev: Voices) -> float:
    """From where a judge takes `STRANGERS` of the pieces of other speakers for a voice, the mean of half of its pieces."""
    half, vectors = _halves(dev), judge(dev.codes)
    voices = {name: _unit(vectors[of].mean(0)) for name, (of, _) in half.items()}
    strangers = [vectors[of] @ voices[name] for name in half for other, (_, of) in half.items() if other != name]
    return float(np.quantile(np.concatenate(strangers), 1 - STRANGERS))
