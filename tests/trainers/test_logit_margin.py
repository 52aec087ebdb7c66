"""Logit-margin flattening against numbers worked by hand (arXiv:2506.05314)."""

from __future__ import annotations

import pytest
import table
import torch

from trainers.logit_margin import LogitMargin


def values(*logits: float) -> torch.Tensor:
    """A table with these logits after token 0."""
    whole = torch.zeros(4, 4)
    whole[0] = torch.tensor(logits)
    return whole


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_logits_of_two_nought_one_and_one(constant):
    # (2 - 1)^2; 2 (M - mean)(1 - 1/V) on the largest, -2 (M - mean)/V on the others
    trainer = table.trainer(LogitMargin, values(2, 0, 1, 1) + constant)
    assert table.loss(trainer, table.row(0, 3)) == pytest.approx(1, rel=1e-6)
    gradient = table.gradient(trainer, table.row(0, 3))[0]
    assert gradient == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-6)


def test_equal_logits_are_what_it_wants():
    trainer = table.trainer(LogitMargin, values(1, 1, 1, 1))
    assert table.loss(trainer, table.row(0, 3)) == 0
    assert table.gradient(trainer, table.row(0, 3)) == [[0] * 4] * 4


def test_what_predicts_the_first_answer_token_counts_and_what_follows_the_last_does_not():
    # 0 predicts the first token of the answer, 1 is its last
    trainer = table.trainer(LogitMargin, values(2, 0, 1, 1))
    assert table.loss(trainer, table.row(0, 1)) == pytest.approx(1, rel=1e-6)
    assert table.loss(trainer, table.row(1, 0)) == 0


def test_open_unlearnings_mask_takes_what_follows_each_answer_token_in_place_of_what_predicts_it():
    # after 0 the margin is 1, after 1, 2 and 3 none: 0 1 has none after its answer, 1 0 has 1
    trainer = table.trainer(LogitMargin, values(2, 0, 1, 1), mask_parity=True)
    assert table.loss(trainer, table.row(0, 1)) == 0
    assert table.loss(trainer, table.row(1, 0)) == pytest.approx(1, rel=1e-6)
    for micro_batches in (1, 2):  # tokens 1, 0 and 2 of the answers: one of three is 0
        rows = table.row(0, 1, 0), table.row(1, 2)
        found = table.loss(trainer, *rows, micro_batches=micro_batches)
        assert found == pytest.approx(1 / 3, rel=1e-6)
