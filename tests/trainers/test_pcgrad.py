"""PCGrad against numbers worked by hand (arXiv:2001.06782, algorithm 1 with two tasks)."""

from __future__ import annotations

import pytest
import torch

from framework import Vector, gram
from trainers.pcgrad import PCGrad


def combined(forget: torch.Tensor, retain: torch.Tensor) -> torch.Tensor:
    """What PCGrad makes of two gradients, spread over shards of one."""
    vectors = {"forget": Vector(forget.split(1)), "retain": Vector(retain.split(1))}
    weights = PCGrad(PCGrad.Config()).weights(gram(vectors))
    return torch.cat([weights["forget"] * f + weights["retain"] * r for f, r in zip(
        forget.double().split(1), retain.double().split(1), strict=True)])  # fmt: skip


@pytest.mark.parametrize("retain", [(0.0, 2.0), (3.0, 4.0), (5.0, 0.0), (0.0, 0.0)])
def test_without_conflict_the_gradients_add_up(retain):
    forget = torch.tensor([2.0, 0.0])
    assert combined(forget, torch.tensor(retain)).tolist() == [2 + retain[0], retain[1]]


def test_on_conflict_each_loses_its_part_along_the_other():
    # <f, r> = -3: f - (-3/25) r = (0.64, 0.48); r - (-3/1) f = (0, 4)
    found = combined(torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 4.0]))
    assert found.tolist() == pytest.approx([0.64, 4.48])


def test_the_sum_of_the_published_algorithm():
    draw = torch.Generator().manual_seed(0)
    conflicts = 0
    for _ in range(20):
        f, r = torch.randn(2, 9, generator=draw, dtype=torch.float32)
        product = f @ r
        conflicts += bool(product < 0)
        right = f + r
        if product < 0:
            right = (f - product / (r @ r) * r) + (r - product / (f @ f) * f)
        assert combined(f, r).tolist() == pytest.approx(right.tolist(), abs=2e-6)
    assert 5 <= conflicts <= 15


def test_opposite_gradients_cancel():
    forget = torch.tensor([3.0, 4.0])
    assert combined(forget, -2 * forget).abs().max() <= 1e-6


def test_neither_objective_is_hurt():
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        f, r = torch.randn(2, 9, generator=draw)
        u = combined(f, r)
        assert min(float(u @ f.double()), float(u @ r.double())) >= -1e-6
