"""The test that decides: do gradients through the proxy move codes towards a voice, as others than the proxy hear it?

Logits climb towards a target speaker's embedding, their likeliest codes are taken, and judges that had no part in it say
whether these now sound like the target. Beside it the same towards somebody else and towards nobody, with the same judges.
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

from evaluation.verification import det_curve
from trainers.proxy.data import Voices
from trainers.proxy.loop import all_pairs, embed
from trainers.proxy.network import Proxy

#: Fixed before the first look at any judge.
PAIRS, STEPS, RATE, SURE = 40, 60, 0.2, 0.9

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


def climb(proxy: Proxy, codes: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Codes (batch, frames, n_q) after `STEPS` of Adam on logits that begin `SURE` of `codes`, towards unit `targets`."""
    bins = proxy.table.shape[1]
    start = math.log(SURE / (1 - SURE)) + math.log(max(1, bins - 1))
    logits = (start * functional.one_hot(codes, bins)).float().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=RATE)
    proxy.eval().requires_grad_(False)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (1 - (proxy(logits, mask) * targets).sum(1)).sum().backward()
        optimizer.step()
    return logits.detach().argmax(-1)


def ascent(
    proxy: Proxy, judges: Mapping[str, Judge], dev: Voices, test: Voices, frames: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """The test on pairs of test speakers; each judge accepts from its threshold of equal error on dev.

    Parameters
    ----------
    judges : by name; the proxy itself is added as "itself", which proves nothing.
    frames : of the crops that climb.

    Returns
    -------
    dict : pairs, the share of codes that changed, and by judge and aim ("target", "wrong", "random") how many of the pairs
        that the judge did not take for the target's voice before it does so after; and its mean cosine to that voice.
    """
    rng = np.random.default_rng([seed, 5])
    sources, heard, aims = _pairs(test, rng)
    crops = [test.codes[i][:frames] for i in sources]
    codes = np.zeros((len(crops), frames, proxy.table.shape[0]), np.int64)
    mask = np.zeros(codes.shape[:2], bool)
    for row, crop in enumerate(crops):
        codes[row, : len(crop)], mask[row, : len(crop)] = crop, True
    known = torch.from_numpy(embed(proxy, test.codes, device))
    nobody = functional.normalize(
        torch.from_numpy(rng.standard_normal((len(crops), proxy.size)).astype(np.float32)), dim=1
    )
    moved, changed = {}, {}
    for aim, targets in {**{k: known[v] for k, v in aims.items()}, "random": nobody}.items():
        inputs = (torch.from_numpy(codes).to(device), torch.from_numpy(mask).to(device), targets.to(device))
        after = climb(proxy, *inputs).cpu().numpy()
        changed[aim] = float((after != codes)[mask].mean())
        moved[aim] = [row[keep].astype(np.int16) for row, keep in zip(after, mask, strict=True)]
    pieces = dev.pieces(frames)
    left, right, same = all_pairs(pieces)
    told: dict[str, Any] = {}
    for name, judge in {"itself": proxy_judge(proxy, device), **judges}.items():
        vectors = judge(pieces.codes)
        threshold = float(det_curve((vectors[left] * vectors[right]).sum(1), same).eer[1])
        voice = judge(test.codes)[heard]
        before = (judge(crops) * voice).sum(1)
        open_ = before < threshold
        told[name] = {"threshold": threshold, "pairs": int(open_.sum()), "cosine_before": float(before.mean())}
        for aim, codes_after in moved.items():
            after = (judge(codes_after) * voice).sum(1)
            accepted = int((after >= threshold)[open_].sum())
            told[name][aim] = {
                "accepted": accepted,
                "cosine": float(after.mean()),
                "nearer": int((after > before).sum()),
            }
    settings = {"steps": STEPS, "lr": RATE, "sure": SURE, "frames": frames}
    return {"pairs": len(crops), **settings, "changed_codes": changed, "judges": told}


def _pairs(test: Voices, rng: np.random.Generator) -> tuple[list[int], list[int], dict[str, list[int]]]:
    """Utterances that climb, those that judges compare with, and those whose embedding is the aim: another utterance of
    the same target speaker where there is one, and one of a third speaker."""
    names = np.unique(test.speakers)
    of = {name: np.flatnonzero(test.speakers == name) for name in names}
    sources, heard, target, wrong = [], [], [], []
    for _ in range(PAIRS):
        a, b, c = rng.choice(names, 3, replace=len(names) < 3)
        first, second = rng.choice(of[b], 2, replace=len(of[b]) < 2)
        sources.append(int(rng.choice(of[a])))
        heard.append(int(first))
        target.append(int(second))
        wrong.append(int(rng.choice(of[c])))
    return sources, heard, {"target": target, "wrong": wrong}
