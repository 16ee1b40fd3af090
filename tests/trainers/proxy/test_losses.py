"""The losses by hand, and codes as logits."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.proxy.forms import corrupted, logits_of, mixed
from trainers.proxy.losses import AngularMargin, contrastive, to_teacher
from trainers.proxy.network import Proxy


def unit(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_contrastive_by_hand() -> None:
    # Pairs: (0°, 60°) one speaker, cos 0.5; (0°, 90°) cos 0 and (60°, 90°) cos √3/2 of two.
    found = contrastive(unit(0, 60, 90), torch.tensor([4, 4, 7]), weight=5.0)
    assert float(found) == pytest.approx(0.25 + 5 * (0 + 0.75) / 2, rel=1e-5)
    margin = contrastive(unit(0, 60, 90), torch.tensor([4, 4, 7]), weight=5.0, margin=0.5)
    assert float(margin) == pytest.approx(0.25 + 5 * (math.sqrt(0.75) - 0.5) ** 2 / 2, rel=1e-5)


def test_contrastive_does_not_reward_speakers_for_being_opposite() -> None:
    assert float(contrastive(unit(0, 180), torch.tensor([0, 1]))) == 0


def test_angular_margin_by_hand() -> None:
    loss = AngularMargin(2, 2, angle=0.2, scale=10.0)
    loss.directions.data = unit(0, 90)
    loss.requires_grad_(False)
    own, other = math.cos(math.radians(30) + 0.2), math.cos(math.radians(60))
    expected = -math.log(math.exp(10 * own) / (math.exp(10 * own) + math.exp(10 * other)))
    assert float(loss(unit(30), torch.tensor([0]))) == pytest.approx(expected, rel=1e-4)


def test_angular_margin_still_falls_where_the_margin_passes_180_degrees() -> None:
    loss = AngularMargin(3, 2, angle=0.5, scale=1.0).requires_grad_(False)
    loss.directions.data = torch.tensor([[1.0, 0, 0], [0, 0, 1]])  # the other speaker is as far from all of these
    turned = torch.cat([unit(150, 160, 170, 179), torch.zeros(4, 1)], 1)
    values = [float(loss(one[None], torch.tensor([0]))) for one in turned]
    assert values == sorted(values)


def test_to_teacher_by_hand() -> None:
    assert float(to_teacher(unit(0, 90), 7 * unit(60, 90))) == pytest.approx((0.5 + 0) / 2, abs=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_logits_give_the_right_code_its_share(share: float) -> None:
    codes = torch.randint(256, (4, 50, 8), generator=torch.Generator().manual_seed(0))
    logits = logits_of(codes, 256, share, torch.Generator().manual_seed(1))
    own = logits.softmax(-1).gather(-1, codes[..., None])
    assert float(own.mean()) == pytest.approx(share, abs=0.04)
    again = logits_of(codes, 256, share, torch.Generator().manual_seed(1))
    assert torch.equal(logits, again)


def test_so_many_codes_are_wrong() -> None:
    codes = torch.randint(256, (4, 50, 8), generator=torch.Generator().manual_seed(0))
    assert float(
        (corrupted(codes, 256, 0.3, torch.Generator().manual_seed(1)) != codes).float().mean()
    ) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(corrupted(codes, 256, 0.0, torch.Generator().manual_seed(1)), codes)


def test_shares_of_a_batch_come_as_logits_and_with_wrong_codes() -> None:
    proxy = Proxy(torch.randn(4, 64, 24, generator=torch.Generator().manual_seed(0)), channels=16, size=6)
    codes = torch.randint(64, (200, 12, 4), generator=torch.Generator().manual_seed(1))
    plain = proxy.frames(codes)

    def kinds(soft: float, wrong: float) -> tuple[float, float, float]:
        """Shares of crops as they are, with some frames as they are, with none."""
        same = (mixed(proxy, codes, soft, wrong, torch.Generator().manual_seed(2)) == plain).all(2)
        whole, some = same.all(1), same.any(1) & ~same.all(1)
        return float(whole.float().mean()), float(some.float().mean()), float((~same.any(1)).float().mean())

    assert kinds(0, 0) == (1, 0, 0)
    assert kinds(1, 0) == (0, 0, 1)
    whole, some, none = kinds(0.3, 0.5)  # in one batch, so that the batch norms see what they are set to
    assert (
        whole == pytest.approx(0.2, abs=0.1)
        and some == pytest.approx(0.5, abs=0.1)
        and none == pytest.approx(0.3, abs=0.1)
    )
