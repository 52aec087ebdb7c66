"""NPO as MUSE's code has it, against numbers worked by hand (muse_bench)."""

from __future__ import annotations

import math

import pytest
import table
import torch

from framework import ConfigError, Row
from framework.method import reference_needed
from trainers.npo_muse import NPOMuse


def test_at_the_reference_every_logit_is_pushed_alike_whatever_the_answer():
    # 2 ln 2 / beta; d/dz of -2/beta log sigmoid(beta (z_ref - z)) is 1 at z_ref, over 2 x 3 logits
    values = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    trainer = table.trainer(NPOMuse, values, beta=0.1)
    assert table.loss(trainer, table.row(0, 1)) == pytest.approx(20 * math.log(2), rel=1e-6)
    sixth = [pytest.approx(1 / 6, rel=1e-5)] * 3
    assert table.gradient(trainer, table.row(0, 1)) == [sixth, sixth, [0] * 3]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_prompts_and_last_positions_count_like_answers(micro_batches):
    # after 0 both logits are ln 3 above the reference: -2 log sigmoid(-ln 3) = 2 ln 4; after 1
    # they are the same: 2 ln 2. Four of the five positions hold a 1
    now = torch.tensor([[math.log(3), math.log(3)], [0.0, 0.0]])
    trainer = table.trainer(NPOMuse, now, before=torch.zeros(2, 2), beta=1.0)
    rows = Row("a", (1, 1, 1), (0.0, 0.0, 1.0)), Row("b", (0, 1), (0.0, 1.0))
    found = table.loss(trainer, *rows, micro_batches=micro_batches)
    assert found == pytest.approx((2 * math.log(4) + 4 * 2 * math.log(2)) / 5, rel=1e-6)


def test_it_needs_the_whole_model_before_unlearning():
    assert reference_needed(NPOMuse, NPOMuse.Config()) == "frozen"


def test_beta_must_be_positive():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be > 0, got 0"):
        NPOMuse.Config(beta=0.0)
