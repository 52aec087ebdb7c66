"""NPO against numbers worked by hand (arXiv:2404.05868), and its KL retain loss."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from framework import CachedReference, ConfigError, Row, Vector
from framework.token_table import TokenTable
from trainers.grad_ascent import GradAscent
from trainers.npo import NPO


def npo(row: Row, *, above: float = 0.0, beta: float = 0.1) -> NPO:
    """NPO on one row whose reference log-probability is `above` nats above the model's."""
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    (score,) = engine.model.score_rows([row])
    values = torch.from_numpy(score.log_probs).float() + above / len(score.log_probs)
    reference = CachedReference({"log_probs": TokenTable([row], values, engine.model.device)})
    return NPO(NPO.Config(beta=beta), engine=engine, optimizer=optimizer, reference=reference)


def gradient_per_nll(trainer: NPO, row: Row) -> float:
    """The loss's gradient over that, parallel to it, of the row's negative log-likelihood."""
    batch = tiny.packed([row])
    loss = trainer.engine.gradient([lambda: trainer.forget_loss(batch)])
    nll = trainer.engine.gradient([lambda: -trainer.model.log_probs(batch).sum()])
    ratio = float(loss.dot(nll) / nll.dot(nll))
    assert float((loss - nll * ratio).norm() / nll.norm()) <= 1e-6
    return ratio


ROW = tiny.rows(1, name="npo")[0]


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_at_the_reference_the_loss_is_2_ln_2_over_beta(beta):
    trainer = npo(ROW, beta=beta)
    loss = trainer.forget_loss(tiny.packed([ROW]))
    assert loss.item() == pytest.approx(2 / beta * math.log(2), rel=1e-6)


def test_at_the_reference_it_pushes_as_hard_as_gradient_ascent():
    assert gradient_per_nll(npo(ROW), ROW) == pytest.approx(-1, rel=1e-5)


def test_it_pushes_less_once_an_answer_is_less_likely_than_before():
    # 5 nats below the reference, beta = 0.1: -2 sigmoid(-0.5) = -0.7551
    trainer = npo(ROW, above=5.0)
    assert gradient_per_nll(trainer, ROW) == pytest.approx(-0.7551, abs=5e-5)
    loss = trainer.forget_loss(tiny.packed([ROW]))
    assert loss.item() == pytest.approx(20 * math.log(1 + math.exp(-0.5)), rel=1e-5)


def test_of_a_long_answer_the_log_ratio_keeps_its_digits():
    # of log-probabilities that add up to some 6,500 nats fp32 tells no thousandth
    ids = tuple(3 + (7 * t * t + t) % 61 for t in range(1500))
    row = Row("long", ids, (0.0,) + (1.0,) * (len(ids) - 1))
    trainer = npo(row, above=1.0)
    with torch.no_grad():
        loss = trainer.forget_loss(tiny.packed([row]))
    assert loss.item() == pytest.approx(20 * math.log(1 + math.exp(-0.1)), rel=1e-5)


def test_with_a_small_beta_it_is_gradient_ascent_even_far_from_the_reference():
    trainer = npo(ROW, above=5.0, beta=1e-4)
    assert gradient_per_nll(trainer, ROW) == pytest.approx(-1, abs=3e-4)
    batch = tiny.packed([ROW])
    ascent = GradAscent(
        GradAscent.Config(), engine=trainer.engine, optimizer=tiny.optimizer("sgd", clip=None)
    )
    per_token: Vector = trainer.engine.gradient([lambda: ascent.forget_loss(batch)])
    per_row: Vector = trainer.engine.gradient([lambda: trainer.forget_loss(batch)])
    tokens = ROW.weight
    assert float((per_row - per_token * tokens).norm() / per_row.norm()) <= 1e-3


def test_each_row_counts_once_whatever_its_length():
    # two rows at the reference: the mean of two equal losses
    rows = tiny.rows(2, name="two")
    assert len(rows[0]) != len(rows[1])
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    reference = CachedReference.build(engine.model, {"log_probs": rows})
    trainer = NPO(NPO.Config(), engine=engine, optimizer=optimizer, reference=reference)
    loss = trainer.forget_loss(tiny.packed(rows))
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-6)


def test_beta_must_be_positive():
    with pytest.raises(ConfigError, match=r"trainer\.beta must be > 0, got 0"):
        npo(ROW, beta=0.0).forget_loss(tiny.packed([ROW]))


def test_kl_to_the_reference_begins_at_zero_with_a_zero_gradient():
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    plan = tiny.step_rows(1)
    trainer = tiny.trainer(
        engine, tiny.language_model(), plan, method="npo_kl", optimizer=optimizer
    )
    batch = tiny.packed(plan[0]["retain"])
    assert abs(trainer.retain_loss(batch).item()) <= 1e-6
    assert float(engine.gradient([lambda: trainer.retain_loss(batch)]).norm()) <= 1e-6
    tiny.train(trainer, plan, tokens=1000)
    assert trainer.retain_loss(batch).item() > 1e-4
