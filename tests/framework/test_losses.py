"""Losses from logits, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from framework.losses import kl_divergence


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
