"""WGA against numbers worked by hand (arXiv:2502.19301)."""

from __future__ import annotations

import math

import pytest
import table

from framework import ConfigError
from trainers.grad_ascent import GradAscent
from trainers.wga import WGA

TOKENS = table.chain(0.1, 1.0, 3.0)
ROW = table.row(0, 1, 2, 3)


def test_tokens_of_a_tenth_one_and_three_nats():
    # -(0.1 e^-0.1 + e^-1 + 3 e^-3) / 3
    assert table.loss(table.trainer(WGA, TOKENS), ROW) == pytest.approx(-0.202575, abs=1e-6)


def test_the_weight_has_no_gradient():
    # d(w log p)/dz_y = w (1 - p), w = p; with the weight's own: p (1 - p) (1 + log p)
    gradient = table.gradient(table.trainer(WGA, TOKENS), ROW)
    for t, nll in enumerate((0.1, 1.0, 3.0)):
        p = math.exp(-nll)
        assert gradient[t][t + 1] == pytest.approx(p * (1 - p) / 3, rel=1e-5)


def test_with_beta_zero_it_is_gradient_ascent():
    zero, ascent = table.trainer(WGA, TOKENS, beta=0.0), table.trainer(GradAscent, TOKENS)
    assert table.loss(zero, ROW) == table.loss(ascent, ROW)
    assert table.gradient(zero, ROW) == table.gradient(ascent, ROW)


def test_beta_must_not_be_negative():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be >= 0, got -1"):
        WGA.Config(beta=-1.0)
