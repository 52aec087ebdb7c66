"""SimNPO against numbers worked by hand (arXiv:2410.07163)."""

from __future__ import annotations

import math

import pytest
import table

from framework import ConfigError, Row
from trainers.simnpo import SimNPO

TWO = table.chain(1.0, 3.0)  # two tokens of a mean of 2 nats
ROW = table.row(0, 1, 2)


def test_two_nats_per_token():
    # 2/4.5 log(1 + exp(-4.5 * 2)) = 0.4444 * 1.23402e-4
    assert table.loss(table.trainer(SimNPO, TWO), ROW) == pytest.approx(5.4845e-5, rel=1e-4)


def test_the_margin_moves_where_the_loss_bends():
    # at a mean of delta nats: 2/beta ln 2
    trainer = table.trainer(SimNPO, TWO, beta=0.5, delta=2.0)
    assert table.loss(trainer, ROW) == pytest.approx(4 * math.log(2), rel=1e-6)


def test_at_the_margin_it_pushes_as_hard_as_gradient_ascent_per_token():
    # dL/d(mean nll) = -2 sigmoid(0) = -1, the second token's share of the mean is 1/2, and
    # dnll/dz_y = p - 1 with p = exp(-3)
    gradient = table.gradient(table.trainer(SimNPO, TWO, delta=2.0), ROW)
    assert gradient[1][2] == pytest.approx(0.5 * (1 - math.exp(-3)), rel=1e-5)


def test_each_row_counts_once_and_each_of_its_tokens_the_same():
    trainer = table.trainer(SimNPO, TWO, beta=0.5)
    short, long = table.loss(trainer, table.row(1, 2)), table.loss(trainer, ROW)
    # one token of 3 nats; two of 2 nats on average
    assert short == pytest.approx(4 * math.log1p(math.exp(-1.5)), rel=1e-6)
    assert long == pytest.approx(4 * math.log1p(math.exp(-1.0)), rel=1e-6)
    both = table.loss(trainer, table.row(1, 2), ROW)
    assert both == pytest.approx((short + long) / 2, rel=1e-6)


def test_a_token_of_half_weight_counts_half_in_the_mean():
    # (1 + 3/2) / (3/2) nats
    half = Row("half", (0, 1, 2), (0.0, 1.0, 0.5))
    found = table.loss(table.trainer(SimNPO, TWO, beta=0.5), half)
    assert found == pytest.approx(4 * math.log1p(math.exp(-0.5 * 5 / 3)), rel=1e-6)


def test_beta_must_be_positive():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be > 0, got 0"):
        SimNPO.Config(beta=0.0)
