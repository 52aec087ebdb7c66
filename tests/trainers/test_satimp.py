"""SatImp against numbers worked by hand (arXiv:2505.11953)."""

from __future__ import annotations

import math

import pytest
import table

from framework import ConfigError
from trainers.grad_ascent import GradAscent
from trainers.satimp import SatImp
from trainers.wga import WGA

TOKENS = table.chain(0.1, 1.0, 3.0)
ROW = table.row(0, 1, 2, 3)


def test_tokens_of_a_tenth_one_and_three_nats():
    # p^5 (1 - p) l: 0.00577190 + 0.00425920 + 0.00000087, over 3
    assert table.loss(table.trainer(SatImp, TOKENS), ROW) == pytest.approx(-0.00334399, abs=1e-8)


def test_the_weights_have_no_gradient():
    gradient = table.gradient(table.trainer(SatImp, TOKENS), ROW)
    for t, nll in enumerate((0.1, 1.0, 3.0)):
        p = math.exp(-nll)
        assert gradient[t][t + 1] == pytest.approx(p**5 * (1 - p) ** 2 / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("other", "betas"), [(GradAscent, {"beta1": 0.0}), (WGA, {"beta1": 1.0})], ids=["ga", "wga"]
)
def test_without_importance_it_is_gradient_ascent_or_wga(other, betas):
    mine, theirs = table.trainer(SatImp, TOKENS, beta2=0.0, **betas), table.trainer(other, TOKENS)
    assert table.loss(mine, ROW) == pytest.approx(table.loss(theirs, ROW), rel=1e-6)


def test_a_token_that_is_certain_counts_nothing_and_breaks_nothing():
    certain = table.trainer(SatImp, [[0.0, 200.0], [0.0, 0.0]], beta2=0.5)
    assert table.loss(certain, table.row(0, 1)) == 0
    assert table.gradient(certain, table.row(0, 1)) == [[0, 0], [0, 0]]


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_exponents_must_not_be_negative(name):
    with pytest.raises(ConfigError, match=rf"trainer\.{name} must be >= 0, got -1"):
        SatImp.Config(**{name: -1.0})
