"""UNDIAL against numbers worked by hand (arXiv:2402.10052)."""

from __future__ import annotations

import math

import pytest
import table
import torch

from framework import ConfigError, Row
from framework.method import reference_needed
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


def test_with_prompts_it_needs_the_whole_model_before_unlearning():
    assert reference_needed(UNDIAL, UNDIAL.Config()) == "cached"
    assert reference_needed(UNDIAL, UNDIAL.Config(prompt_parity=True)) == "frozen"
    with pytest.raises(ConfigError, match=r"type trainer\.reference=frozen"):
        reference_needed(UNDIAL, UNDIAL.Config(prompt_parity=True, reference="cached"))


def test_beta_must_not_be_negative():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be >= 0, got -1"):
        UNDIAL.Config(beta=-1.0)


# ---- open-unlearning's loss ----------------------------------------------------------------------


def with_a_prompt(micro_batches: int) -> float:
    """Of 0 1 2 and 1 2 under a uniform model of 128 tokens; 2 is the answer to both."""
    rows = Row("a", (0, 1, 2), (0.0, 0.0, 1.0)), Row("b", (1, 2), (0.0, 1.0))
    now = torch.zeros(128, 128)
    now[0, 28] = math.log(129)  # after 0 the model says 28 with p = 129 / 256
    settings = {"before": torch.zeros(128, 128), "beta": 1000.0, "prompt_parity": True}
    trainer = table.trainer(UNDIAL, now, **settings)
    return table.loss(trainer, *rows, micro_batches=micro_batches)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_prompts_have_the_hundredth_token_from_the_end_lowered(micro_batches):
    # V - 100 = 28 is what the teacher does not say after 0: the others cost log 256. After 1 both
    # rows have the answer: log 128. Nothing follows a row's last token: three positions in all
    right = (math.log(256) + 2 * math.log(128)) / 3
    assert with_a_prompt(micro_batches) == pytest.approx(right, rel=1e-6)


def test_where_all_is_answer_there_is_no_difference():
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    rows = table.row(0, 1, 2, 3), table.row(2, 1)
    losses = [
        table.loss(table.trainer(UNDIAL, values, prompt_parity=parity), *rows, micro_batches=2)
        for parity in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
