"""UNDIAL against numbers worked by hand (arXiv:2402.10052)."""

from __future__ import annotations

import math

import pytest
import table
import torch

from framework import ConfigError
from framework.trainer import reference_needed
from trainers.undial import UNDIAL

ROW = table.row(1, 0)


def test_the_teacher_has_the_true_tokens_logit_lowered():
    # the reference says 1/2, 1/2; lowered by ln 3: 1/4, 3/4. The model says the same as before:
    # the loss is ln 2, its gradient p - q
    trainer = table.trainer(UNDIAL, torch.zeros(2, 2), beta=math.log(3))
    assert table.loss(trainer, ROW) == pytest.approx(math.log(2), rel=1e-6)
    assert table.gradient(trainer, ROW)[1] == pytest.approx([0.25, -0.25], rel=1e-6)


def test_the_teacher_is_the_model_before_and_not_the_model_now():
    # the model now says 4/5, 1/5: -(log(4/5) + 3 log(1/5)) / 4
    now = torch.tensor([[0.0, 0.0], [math.log(4), 0.0]])
    trainer = table.trainer(UNDIAL, now, before=torch.zeros(2, 2), beta=math.log(3))
    right = -(math.log(0.8) + 3 * math.log(0.2)) / 4
    assert table.loss(trainer, ROW) == pytest.approx(right, rel=1e-6)
    assert table.gradient(trainer, ROW)[1] == pytest.approx([0.55, -0.55], rel=1e-6)


def test_with_beta_zero_the_model_before_unlearning_has_nothing_to_learn():
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    gradient = table.gradient(table.trainer(UNDIAL, values, beta=0.0), table.row(0, 1, 2, 3))
    assert torch.tensor(gradient).abs().max() <= 1e-7


def test_it_needs_the_whole_model_before_unlearning():
    assert reference_needed(UNDIAL, UNDIAL.Config()) == "frozen"
    with pytest.raises(ConfigError, match=r"set trainer\.reference=frozen"):
        reference_needed(UNDIAL, UNDIAL.Config(reference="cached"))


def test_beta_must_not_be_negative():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be >= 0, got -1"):
        UNDIAL.Config(beta=-1.0)
