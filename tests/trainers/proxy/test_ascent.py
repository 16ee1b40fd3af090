"""The gradient test: that the climb climbs, and that judges are asked the right thing about the right speakers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.proxy import Proxy, ascent
from trainers.proxy.config import ProxyConfig
from trainers.proxy.data import ProxyData, Voices

DEVICE = torch.device("cpu")


def small_proxy() -> Proxy:
    torch.manual_seed(0)
    return Proxy(torch.randn(2, 12, 10), channels=16, size=6).eval().requires_grad_(False)


def voices(speakers: int, utterances: int = 4, first: int = 0) -> Voices:
    """Speaker s says code s only, in one book and the other."""
    names = [f"s{s}" for s in range(first, first + speakers) for _ in range(utterances)]
    codes = [np.full((20, 2), int(name[1:]), np.int16) for name in names]
    return Voices([f"u{k}" for k in range(len(names))], np.array(names), codes)


def test_likeliest_codes_come_nearer_to_the_target_and_padding_stays() -> None:
    proxy, generator = small_proxy(), torch.Generator().manual_seed(1)
    codes = torch.randint(12, (3, 20, 2), generator=generator)
    targets = proxy(torch.randint(12, (3, 20, 2), generator=generator))
    mask = torch.arange(20) < torch.tensor([[20], [20], [9]])
    after = ascent.climb(proxy, codes, mask, targets, 60, 0)
    before, now = (1 - (proxy(c, mask) * targets).sum(1) for c in (codes, after))
    assert (now < before / 2).all(), (before, now)
    assert torch.equal(after[2, 9:], codes[2, 9:])  # nothing pulls at frames that do not count


def test_a_judge_lets_one_stranger_in_twenty_pass() -> None:
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((40, 3))
    dev = voices(40)
    told = np.stack([directions[int(name[1:])] for name in dev.speakers])
    told = (told / np.linalg.norm(told, axis=1, keepdims=True)).astype(np.float32)
    unit = told[::4]
    threshold = ascent._threshold(lambda codes: told, dev)
    strangers = (unit @ unit.T)[~np.eye(40, dtype=bool)]
    assert (strangers >= threshold).mean() == pytest.approx(0.05, abs=0.002)


def test_aims_and_controls_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A climb that makes exactly the speaker whose embedding it was given: judges must accept all, and no control."""
    proxy, test, dev = small_proxy(), voices(6), voices(6, first=6)
    known = proxy(torch.arange(6)[:, None, None].expand(6, 20, 2))

    def perfect(
        proxy: Proxy, codes: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor, steps: int, seed: int
    ) -> torch.Tensor:
        meant = (targets @ known.T).argmax(1)
        nobody = (targets @ known.T).max(1).values < 0.999
        return torch.where(nobody, 11, meant)[:, None, None].expand(codes.shape)

    def judge(codes: list[np.ndarray]) -> np.ndarray:
        heard = np.eye(12, dtype=np.float32)
        heard[6:, 11] += 1  # strangers of dev resemble each other, those of the test do not
        return (heard / np.linalg.norm(heard, axis=1, keepdims=True))[[int(own[0, 0]) for own in codes]]

    monkeypatch.setattr(ascent, "climb", perfect)
    config = ProxyConfig(trials="t", pairs=12)
    told = ascent.ascent(proxy, {"a judge": judge}, ProxyData(dev, dev, None, test), 10, config, DEVICE)
    found = told["judges"]["a judge"]
    assert (found["pairs"], found["own"], found["others"]) == (12, 1, 0)
    assert [found[aim]["accepted"] for aim in ("target", "wrong", "random")] == [12, 0, 0]
    assert found["target"]["nearer"] == 12 and found["cosine_before"] < found["threshold"] <= found["target"]["cosine"]
    assert set(told["judges"]) == {"itself", "a judge"}


def test_aim_and_voice_are_of_different_utterances() -> None:
    for aim, voice in ascent._halves(voices(5, utterances=3)).values():
        assert len(aim) == 2 and len(voice) == 1 and not set(aim) & set(voice)


def test_the_aim_is_no_utterance_that_judges_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, names, aims = small_proxy(), np.repeat(["a", "b", "c"], 4), []
    codes = [np.random.default_rng(k).integers(12, size=(20, 2)).astype(np.int16) for k in range(12)]
    test = Voices([f"u{k}" for k in range(12)], names, codes)

    def climb(proxy: Proxy, codes: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor, *rest: int) -> torch.Tensor:
        aims.append(targets.numpy())
        return codes

    monkeypatch.setattr(ascent, "climb", climb)
    ascent.ascent(proxy, {}, ProxyData(test, test, None, test), 10, ProxyConfig(trials="t", pairs=6), DEVICE)
    with torch.no_grad():
        known = np.stack([proxy(torch.from_numpy(own[None].astype(np.int64)))[0].numpy() for own in codes])
    means = np.stack([known[row : row + 4 : 2].mean(0) for row in (0, 4, 8)])  # of the first half, by speaker
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    for given in np.concatenate(aims[:2]):
        assert np.abs(means - given).max(1).min() < 1e-5
