"""CE-U against numbers worked by hand (arXiv:2503.01224)."""

from __future__ import annotations

import math

import pytest
import table

from trainers.ceu import CEU

TABLE = [[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_logits_of_two_nought_one_and_one():
    # q = softmax(0, 1, 1) of the tokens 1, 2, 3; the gradient is p_y (e_y - q), p_y = 0.53445
    trainer = table.trainer(CEU, TABLE)
    assert table.loss(trainer, table.row(1, 0)) == pytest.approx(1.78189, abs=5e-6)
    expected = [0.53445, -0.08303, -0.22571, -0.22571]
    assert table.gradient(trainer, table.row(1, 0))[1] == pytest.approx(expected, abs=5e-6)


def test_a_token_that_is_forgotten_is_left_alone():
    trainer = table.trainer(CEU, [[-200.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3])
    assert table.gradient(trainer, table.row(0, 0))[0] == [0, 0, 0]
    # the others are as likely as each other
    assert table.loss(trainer, table.row(0, 0)) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_rows_first_token_can_be_left_out(micro_batches):
    # 1 0 2: the token 0 after 1 is skipped, 2 after 0 has uniform logits: log 4. 1 0 alone: nothing
    rows = [table.row(1, 0, 2), table.row(1, 0)]
    skipping = table.trainer(CEU, TABLE, skip_first_token=True)
    found = table.loss(skipping, *rows, micro_batches=micro_batches)
    assert found == pytest.approx(math.log(4), rel=1e-6)
    every = table.loss(table.trainer(CEU, TABLE), *rows, micro_batches=micro_batches)
    assert every == pytest.approx((2 * 1.78189 + math.log(4)) / 3, abs=5e-6)


def test_rows_of_one_token_have_no_loss_without_their_first():
    assert table.loss(table.trainer(CEU, TABLE, skip_first_token=True), table.row(1, 0)) == 0
