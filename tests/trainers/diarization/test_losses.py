"""The diarization losses: by hand, against brute force over the 24 permutations, and by gradient check."""

from __future__ import annotations

import math
from functools import partial
from itertools import permutations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from trainers.diarization.losses import (
    all_permutations,
    assignment_costs,
    cost_matrix,
    first_frames,
    hybrid_loss,
    in_arrival_order,
)

pil_loss = partial(hybrid_loss, sort_weight=0.0, pil_weight=1.0)
sort_loss = partial(hybrid_loss, sort_weight=1.0, pil_weight=0.0)
given_order_loss = partial(sort_loss, resort=False)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def example(rng, batch=3, frames=11, speakers=4):
    logits = torch.randn(batch, frames, speakers, generator=rng, dtype=torch.float64)
    labels = (torch.rand(batch, frames, speakers, generator=rng) < 0.4).double()
    return logits, labels


def brute_force(logits, labels, keep):
    """Mean over examples of the least mean BCE over permutations that `keep` (labels, permutation) allows."""
    total = 0.0
    for o, y in zip(logits, labels, strict=True):
        total += min(bce(o, y[:, list(p)]) for p in permutations(range(o.shape[1])) if keep(y, p))
    return total / len(logits)


def arrives_in_order(y, p):
    first = [int(y[:, k].argmax()) if y[:, k].any() else len(y) for k in p]
    return first == sorted(first)


def test_one_frame_by_hand():
    # Channel 0 says 0.75 (logit ln 3), channel 1 says 0.5; speaker 1 talks, speaker 0 does not.
    logits = torch.tensor([[[math.log(3.0), 0.0]]])
    labels = torch.tensor([[[0.0, 1.0]]])
    as_given = (-math.log(0.25) - math.log(0.5)) / 2
    swapped = (-math.log(0.75) - math.log(0.5)) / 2
    assert given_order_loss(logits, labels).item() == pytest.approx(as_given)
    assert pil_loss(logits, labels).item() == pytest.approx(swapped)
    assert sort_loss(logits, labels).item() == pytest.approx(swapped)  # the absent speaker goes last
    assert hybrid_loss(logits, labels).item() == pytest.approx(swapped)


def test_pil_equals_brute_force_over_24_permutations(rng):
    logits, labels = example(rng)
    expected = brute_force(logits, labels, lambda y, p: True)
    assert pil_loss(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)


def test_sort_equals_brute_force_over_permutations_in_arrival_order(rng):
    logits, labels = example(rng, batch=20, frames=6)
    labels[0] = 0  # nobody talks
    labels[1, :, 2] = 0  # one absent
    labels[2, 0] = 1  # all arrive at once
    expected = brute_force(logits, labels, arrives_in_order)
    assert sort_loss(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)


def test_sort_takes_the_first_speaker_as_channel_0_even_where_another_order_fits_better():
    labels = torch.zeros(1, 4, 2)
    labels[0, 0, 1] = 1  # speaker 1 comes first …
    labels[0, 2, 0] = 1
    logits = 20 * (labels - 0.5)  # … and the model puts it on channel 1
    assert pil_loss(logits, labels).item() < 1e-3
    assert sort_loss(logits, labels).item() == pytest.approx(bce(logits, labels.flip(-1)).item())


def test_reference_protocol_keeps_the_order_it_is_given(rng):
    logits, labels = example(rng)
    expected = 0.5 * bce(logits, labels) + 0.5 * brute_force(logits, labels, lambda y, p: True)
    assert hybrid_loss(logits, labels, resort=False).item() == pytest.approx(expected.item(), abs=1e-12)
    assert given_order_loss(logits, labels).item() == pytest.approx(bce(logits, labels).item(), abs=1e-12)


def test_hybrid_is_the_weighted_sum(rng):
    logits, labels = example(rng)
    expected = 0.3 * sort_loss(logits, labels) + 0.7 * pil_loss(logits, labels)
    found = hybrid_loss(logits, labels, sort_weight=0.3, pil_weight=0.7)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("loss", [sort_loss, pil_loss, given_order_loss, hybrid_loss])
def test_padding_changes_nothing(rng, loss):
    logits, labels = example(rng)
    plain = loss(logits, labels)
    junk_logits, junk_labels = example(rng, frames=5)
    mask = torch.arange(16).expand(3, 16) < 11
    padded = loss(torch.cat([logits, 9 * junk_logits], 1), torch.cat([labels, junk_labels], 1), mask)
    assert padded.item() == pytest.approx(plain.item(), abs=1e-12)
    in_front = loss(torch.cat([9 * junk_logits, logits], 1), torch.cat([junk_labels, labels], 1), mask.flip(1))
    assert in_front.item() == pytest.approx(plain.item(), abs=1e-12)  # nobody arrives in a frame that does not count


def test_frames_weigh_the_same_whichever_example_they_are_from(rng):
    logits, labels = example(rng, batch=2)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 3:] = False
    expected = (11 * pil_loss(logits[:1], labels[:1]) + 3 * pil_loss(logits[1:, :3], labels[1:, :3])) / 14
    assert pil_loss(logits, labels, mask).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("loss", [sort_loss, pil_loss, given_order_loss, hybrid_loss])
def test_gradients(rng, loss):
    logits, labels = example(rng, batch=2, frames=5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, mask), logits.requires_grad_())


def test_large_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4]]], dtype=torch.float32, requires_grad=True)
    loss = hybrid_loss(logits, torch.tensor([[[0.0, 1.0]]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_float16_labels_do_not_overflow_sums():
    logits = torch.full((1, 1125, 4), 60.0, dtype=torch.bfloat16)
    assert torch.isfinite(pil_loss(logits, torch.ones(1, 1125, 4, dtype=torch.float16)))


def test_half_precision_logits_are_summed_in_single(rng):
    """What autocast hands over is rounded already; its sums over 1125 frames must not be once more."""
    logits, labels = example(rng, frames=1125)
    half = logits.bfloat16()
    for weights in ((0.5, 0.5), (0.0, 1.0)):
        kind = partial(hybrid_loss, sort_weight=weights[0], pil_weight=weights[1])
        found = kind(half, labels.to(torch.uint8))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, kind(half.float(), labels.float()), rtol=1e-5, atol=0)


def test_cost_matrix_entries_are_summed_bce(rng):
    logits, labels = example(rng)
    cost = cost_matrix(logits, labels)
    for i in range(4):
        for j in range(4):
            expected = bce(logits[0, :, i], labels[0, :, j], reduction="sum")
            assert cost[0, i, j].item() == pytest.approx(expected.item())
    costs = assignment_costs(cost)
    assert costs.shape == (3, 24)
    p = all_permutations(4)[17].tolist()
    assert costs[1, 17].item() == pytest.approx(sum(cost[1, i, j].item() for i, j in enumerate(p)))


def test_first_frames_and_order():
    labels = torch.zeros(1, 5, 3)
    labels[0, 3:, 0] = 1
    labels[0, 1, 1] = 1
    assert first_frames(labels).tolist() == [[3, 1, 5]]
    mask = torch.tensor([[True, True, True, False, False]])
    assert first_frames(labels, mask).tolist() == [[5, 1, 5]]  # speaker 0 talks in padding only: absent
    allowed = in_arrival_order(first_frames(labels))[0]
    assert [all_permutations(3)[i].tolist() for i in allowed.nonzero().flatten()] == [[1, 0, 2]]
    assert int(in_arrival_order(torch.tensor([[2, 2, 5]])).sum()) == 2
