"""Maximum entropy against numbers worked by hand (arXiv:2410.08109)."""

from __future__ import annotations

import math

import pytest
import table
import torch

from trainers.max_entropy import MaxEntropy

ROW = table.row(0, 1)
QUARTER = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # after token 0: 1/4, 3/4


@pytest.mark.parametrize(
    ("divergence", "right"),
    [
        ("model", math.log(2) - 2 * 0.25 * math.log(2) - 0.75 * math.log(4 / 3)),  # 0.130812
        ("uniform", (math.log(4) + math.log(4 / 3)) / 2 - math.log(2)),  # 0.143841
    ],
)
def test_a_quarter_and_three_quarters(divergence, right):
    trainer = table.trainer(MaxEntropy, QUARTER, divergence=divergence)
    assert table.loss(trainer, ROW) == pytest.approx(right, rel=1e-5)


def test_the_gradient_of_the_divergence_from_uniform_is_p_minus_uniform():
    trainer = table.trainer(MaxEntropy, QUARTER, divergence="uniform")
    assert table.gradient(trainer, ROW)[0] == pytest.approx([-0.25, 0.25], rel=1e-6)


@pytest.mark.parametrize("divergence", ["model", "uniform"])
def test_the_uniform_distribution_is_what_it_wants(divergence):
    trainer = table.trainer(MaxEntropy, torch.zeros(4, 4), divergence=divergence)
    assert table.loss(trainer, ROW) == pytest.approx(0, abs=1e-6)
    assert torch.tensor(table.gradient(trainer, ROW)).abs().max() <= 1e-7
