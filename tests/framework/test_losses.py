"""Losses from logits, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from framework.losses import kl_divergence, raw_kl, state_distance


def test_kl_by_hand():
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = ln(4/3)/2
    model = torch.tensor([[1 / 4, 3 / 4], [1 / 2, 1 / 2]]).log() + 5  # logits have no origin
    reference = torch.tensor([[1 / 2, 1 / 2], [1 / 2, 1 / 2]]).log()
    assert kl_divergence(model, reference).tolist() == pytest.approx([math.log(4 / 3) / 2, 0])


def test_kl_is_of_the_reference_against_the_model():
    certain, open_ = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert kl_divergence(open_, certain).item() == pytest.approx(math.log(2), abs=1e-3)
    assert kl_divergence(certain, open_).item() == pytest.approx(5 - math.log(2), abs=1e-3)


def test_kl_of_equal_logits_is_zero_with_a_zero_gradient():
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kl = kl_divergence(logits, logits.detach())
    assert kl.abs().max().item() <= 1e-6
    kl.sum().backward()
    assert logits.grad.abs().max() <= 1e-7


def test_the_gradient_of_kl_is_the_difference_of_probabilities():
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 9, generator=draw, requires_grad=True)
    reference = torch.randn(3, 9, generator=draw)
    kl_divergence(logits, reference).sum().backward()
    right = logits.detach().softmax(-1) - reference.softmax(-1)
    assert torch.allclose(logits.grad, right, atol=1e-6)


def test_raw_kl_takes_logits_for_log_probabilities():
    # e^(ln 2) (ln 2 - 3) + e^0 (0 - 1) = 2 ln 2 - 7; its gradient is minus exp of the reference
    logits = torch.tensor([[3.0, 1.0]], requires_grad=True)
    found = raw_kl(logits, torch.tensor([[math.log(2), 0.0]]))
    assert found.tolist() == pytest.approx([2 * math.log(2) - 7])
    found.sum().backward()
    assert logits.grad.tolist() == [pytest.approx([-2, -1])]
    certain = torch.tensor([[0.25, 0.75]]).log()
    open_ = torch.tensor([[0.5, 0.5]]).log()
    assert raw_kl(certain, open_).item() == pytest.approx(kl_divergence(certain, open_).item())


def test_the_distance_of_states_is_per_dimension():
    states = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert state_distance(states, torch.zeros(4)).tolist() == [7.5, 0]  # (1 + 4 + 9 + 16) / 4
    assert state_distance(states, states + 3).tolist() == [9, 9]
    half = state_distance(states.bfloat16(), torch.zeros(4, dtype=torch.bfloat16))
    assert half.dtype == torch.float32
