"""DPO against numbers worked by hand (arXiv:2305.18290, as TOFU and open-unlearning use it)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch

from framework import CachedReference, ConfigError, Row
from framework.token_table import TokenTable
from trainers.dpo import DPO

(PAIR,) = tiny.pairs(1, name="dpo")


def dpo(pair: Row, *, given: float = 0.0, preferred: float = 0.0, beta: float = 0.1) -> DPO:
    """DPO on a pair whose log-probabilities are so many nats above the reference's."""
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    answers = [replace(pair, preferred=None), pair.preferred]
    scores = engine.model.score_rows(answers)
    values = []
    for score, above in zip(scores, (given, preferred), strict=True):
        own = torch.from_numpy(score.log_probs).float()
        values.append(own - above / len(own))
    table = TokenTable(answers, torch.cat(values), engine.model.device)
    reference = CachedReference({"log_probs": table})
    return DPO(DPO.Config(beta=beta), engine=engine, optimizer=optimizer, reference=reference)


def pushes(trainer: DPO, pair: Row) -> tuple[float, float]:
    """The loss's slope in the log-probability of the given and of the preferred answer."""
    batch = tiny.packed([pair])
    model, engine = trainer.model, trainer.engine
    loss = engine.gradient([lambda: trainer.forget_loss(batch)])
    given, preferred = (
        engine.gradient([lambda i=i: batch.split(model.log_probs(batch))[i].sum()]) for i in (0, 1)
    )
    # loss = a given + b preferred
    products = [[float(x.dot(y)) for y in (given, preferred)] for x in (given, preferred)]
    right = [float(loss.dot(x)) for x in (given, preferred)]
    a, b = torch.linalg.solve(torch.tensor(products), torch.tensor(right)).tolist()
    rest = loss - given * a - preferred * b
    assert float(rest.norm() / loss.norm()) <= 1e-5
    return a, b


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_at_the_reference_the_loss_is_2_ln_2_over_beta(beta):
    loss = dpo(PAIR, beta=beta).forget_loss(tiny.packed([PAIR]))
    assert loss.item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)


def test_at_the_reference_it_pushes_one_answer_down_and_the_other_up_as_hard():
    assert pushes(dpo(PAIR), PAIR) == pytest.approx((1, -1), rel=1e-3)


def test_the_loss_is_of_the_difference_of_the_log_ratios():
    # 4 nats down, 3 up: beta 7 = 0.7
    trainer = dpo(PAIR, given=-4.0, preferred=3.0)
    loss = trainer.forget_loss(tiny.packed([PAIR]))
    assert loss.item() == pytest.approx(20 * math.log(1 + math.exp(-0.7)), rel=1e-5)
    slope = 2 / (1 + math.exp(0.7))
    assert pushes(trainer, PAIR) == pytest.approx((slope, -slope), rel=1e-3)


def test_what_both_answers_lost_together_does_not_matter():
    trainer = dpo(PAIR, given=-5.0, preferred=-5.0)
    loss = trainer.forget_loss(tiny.packed([PAIR]))
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-5)


def test_each_pair_counts_once_whatever_its_lengths():
    pairs = tiny.pairs(3, name="three")
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    reference = CachedReference.build(engine.model, {"log_probs": pairs})
    trainer = DPO(DPO.Config(), engine=engine, optimizer=optimizer, reference=reference)
    loss = trainer.forget_loss(tiny.packed(pairs))
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-6)


def test_a_selection_of_the_given_answer_leaves_the_preferred_one_whole():
    last = max(t for t, w in enumerate(PAIR.weights) if w)
    pair = replace(PAIR, weights=tuple(float(t == last) for t in range(len(PAIR))))
    trainer = dpo(PAIR)
    batch = tiny.packed([pair])
    given, preferred = batch.split(batch.row_sum(torch.ones_like(batch.weights)))
    assert (given.item(), preferred.item()) == (1, PAIR.preferred.weight)
    assert trainer.forget_loss(batch).item() == pytest.approx(20 * math.log(2), rel=1e-6)


def test_beta_must_be_positive():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be > 0, got 0"):
        DPO.Config(beta=0.0)
