"""NGDiff against numbers worked by hand (arXiv:2410.22086: g_R/|g_R| - g_F/|g_F|)."""

from __future__ import annotations

import pytest
import torch

from framework import Vector, gram
from trainers.ngdiff import NormalizedGradients


def combined(forget: Vector, retain: Vector) -> torch.Tensor:
    """What NGDiff makes of two gradients, both to be minimized."""
    part = NormalizedGradients(NormalizedGradients.Config())
    weights = part.weights(gram({"forget": forget, "retain": retain}))
    return torch.cat((forget * weights["forget"] + retain * weights["retain"]).shards)


def test_each_gradient_counts_one_over_its_norm():
    # losses: g_F = (3, 4), to be increased, so the forget objective's gradient is (-3, -4)
    g_f, g_r = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    u = combined(Vector([-g_f[:1], -g_f[1:]]), Vector([g_r[:1], g_r[1:]]))
    assert u.tolist() == pytest.approx([-0.6, 0.2])
    assert float(u @ g_r) == pytest.approx(0.4)  # |g_R| (1 - cos), cos = 0.8
    assert float(u @ g_f) == pytest.approx(-1.0)  # -|g_F| (1 - cos)
    assert float(u @ u) == pytest.approx(0.4)  # 2 - 2 cos


def test_the_scale_of_a_loss_does_not_matter():
    g_f, g_r = torch.tensor([-3.0, -4.0]), torch.tensor([0.0, 2.0])
    scaled = combined(Vector([1000 * g_f]), Vector([g_r / 1000]))
    assert scaled.tolist() == pytest.approx([-0.6, 0.2])


def test_a_vanishing_gradient_counts_nothing():
    assert combined(Vector([torch.zeros(2)]), Vector([torch.tensor([0.0, 2.0])])).tolist() == [0, 1]


def test_gradients_that_point_the_same_way_cancel():
    # nothing can be forgotten without hurting what is kept: the losses' gradients are parallel
    g = torch.tensor([3.0, 4.0])
    assert combined(Vector([-g]), Vector([2 * g])).abs().max() <= 1e-7
