"""The loss of a set: by hand, and whatever the order of slots and voices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.unmix.losses import matched, set_loss

PLAIN = {"existence": 0.0, "apart": 0.0, "apart_margin": 0.3, "contrast": 0.0, "scale": 10.0}


def units(*degrees: float) -> Tensor:
    """Directions in a plane, (1, slots or voices, 2)."""
    return torch.tensor([[[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]])


def test_the_pairing_is_the_best_in_all() -> None:
    # Slot 0 is nearest to voice 0 (cos 30°), but then slot 1 would be left with voice 1 at 110°.
    slots, voices = units(30, -20), units(0, 90)
    rows, found, chosen = matched(slots, torch.zeros(1, 2), voices, torch.tensor([[4, 5]]))
    assert (rows.tolist(), found.tolist(), chosen.tolist()) == ([0, 0], [0, 1], [1, 0])
    loss = set_loss(slots, torch.zeros(1, 2), voices, torch.tensor([[4, 5]]), **PLAIN)
    assert float(loss) == pytest.approx(1 - (math.cos(math.radians(60)) + math.cos(math.radians(20))) / 2)


def test_of_equal_slots_the_surer_one_holds_the_voice() -> None:
    for logits, surer in (([[-2.0, 3.0]], 1), ([[3.0, -2.0]], 0)):
        assert matched(units(0, 0), torch.tensor(logits), units(0), torch.tensor([[1]]))[1].tolist() == [surer]


def test_existence_is_cross_entropy_of_slots_that_hold_a_voice() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    loss = set_loss(units(0, 90, 200), logits, units(90), torch.tensor([[1]]), **{**PLAIN, "existence": 2.0})
    expected = -(math.log(0.5) + math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(-1)))) / 3
    assert float(loss) == pytest.approx(2 * expected)


def test_slots_that_are_alike_cost_only_where_both_hold_a_voice() -> None:
    two, one = torch.tensor([[1, 2]]), torch.tensor([[1, -1]])
    voices, slots = units(0, 60), units(0, 60, 60)
    settings = {**PLAIN, "apart": 3.0}
    logits = torch.tensor([[5.0, 5.0, -5.0]])
    assert float(set_loss(slots, logits, voices, two, **settings)) == pytest.approx(3 * (0.5 - 0.3) ** 2, abs=1e-6)
    assert float(set_loss(slots, logits, voices, one, **settings)) == pytest.approx(0, abs=1e-6)


def test_another_target_of_the_same_speaker_is_no_contrast() -> None:
    slots, voices = torch.cat([units(0), units(10)]), torch.cat([units(0), units(10)])
    same = set_loss(slots, torch.zeros(2, 1), voices, torch.tensor([[7], [7]]), **{**PLAIN, "contrast": 1.0})
    other = set_loss(slots, torch.zeros(2, 1), voices, torch.tensor([[7], [8]]), **{**PLAIN, "contrast": 1.0})
    gap = 10 * (1 - math.cos(math.radians(10)))
    assert float(same) == pytest.approx(0, abs=1e-5)
    assert float(other) == pytest.approx(math.log(1 + math.exp(-gap)), abs=1e-5)


def test_no_order_is_better_than_another() -> None:
    torch.manual_seed(0)
    slots = torch.nn.functional.normalize(torch.randn(3, 4, 6), dim=2)
    voices = torch.nn.functional.normalize(torch.randn(3, 3, 6), dim=2)
    logits, speakers = torch.randn(3, 4), torch.tensor([[0, 1, 2], [3, 4, -1], [5, -1, -1]])
    settings = {**PLAIN, "existence": 1.0, "apart": 1.0, "contrast": 0.5}
    loss = float(set_loss(slots, logits, voices, speakers, **settings))
    order = torch.tensor([2, 0, 3, 1])
    assert float(set_loss(slots[:, order], logits[:, order], voices, speakers, **settings)) == pytest.approx(loss)
    turned = voices.clone()
    turned[0], turned[1, :2] = voices[0, [1, 2, 0]], voices[1, [1, 0]]
    whose = torch.tensor([[1, 2, 0], [4, 3, -1], [5, -1, -1]])
    assert float(set_loss(slots, logits, turned, whose, **settings)) == pytest.approx(loss)


def test_more_voices_than_slots_leave_some_without() -> None:
    rows, slots, chosen = matched(units(0, 90), torch.zeros(1, 2), units(85, 5, 45), torch.tensor([[1, 2, 3]]))
    assert (slots.tolist(), chosen.tolist()) == ([0, 1], [1, 0]) and rows.tolist() == [0, 0]
