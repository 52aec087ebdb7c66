"""The min-norm weighting against its closed form (arXiv:1810.04650, algorithm 1) and a search."""

from __future__ import annotations

import pytest
import torch

from framework import Vector, gram
from trainers.min_norm import MinNorm


def weights(forget: torch.Tensor, retain: torch.Tensor) -> tuple[float, float]:
    """(forget, retain), of gradients spread over shards of one."""
    vectors = {"forget": Vector(forget.split(1)), "retain": Vector(retain.split(1))}
    found = MinNorm(MinNorm.Config()).weights(gram(vectors))
    return float(found["forget"]), float(found["retain"])


@pytest.mark.parametrize(
    ("forget", "retain", "share"),
    [
        ((1.0, 0.0), (0.0, 1.0), 0.5),  # orthogonal, equally long
        ((1.0, 0.0), (0.0, 2.0), 0.8),  # orthogonal: in proportion to the other's square
        ((1.0, 0.0), (-3.0, 4.0), 28 / 32),  # (25 + 3) / (1 + 25 + 6)
        ((1.0, 0.0), (2.0, 1.0), 1.0),  # f is the shortest mixture by itself: <f, r> >= |f|^2
        ((2.0, 1.0), (1.0, 0.0), 0.0),
        ((3.0, 4.0), (-3.0, -4.0), 0.5),  # opposite: they cancel
        ((3.0, 4.0), (3.0, 4.0), 0.5),  # equal: any share
        ((0.0, 0.0), (3.0, 4.0), 1.0),  # a vanishing gradient is the shortest mixture
        ((0.0, 0.0), (0.0, 0.0), 0.5),
    ],
)
def test_the_closed_form(forget, retain, share):
    found = weights(torch.tensor(forget), torch.tensor(retain))
    assert found == pytest.approx((share, 1 - share))


def test_no_other_mixture_is_shorter():
    draw = torch.Generator().manual_seed(0)
    shares = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    for scale in (0.1, 1.0, 10.0):
        f, r = torch.randn(2, 9, generator=draw) * torch.tensor([[1.0], [scale]])
        a, b = weights(f, r)
        assert a >= 0
        assert b >= 0
        assert a + b == pytest.approx(1)
        mine = (a * f.double() + b * r.double()).norm()
        assert mine <= (shares * f + (1 - shares) * r).norm(dim=1).min() + 1e-6


def test_both_losses_fall_at_the_squared_length_or_faster():
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        f, r = torch.randn(2, 9, generator=draw)
        a, b = weights(f, r)
        u = a * f + b * r
        assert min(float(u @ f), float(u @ r)) >= float(u @ u) - 1e-5
