"""FLAT's four divergences against numbers worked by hand (arXiv:2410.11143 and its code)."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from framework import Row
from framework.head import Head
from trainers.flat import BOUNDS, FLAT

# p of the preferred answer 0.5, of the answer to forget 0.2; the released code's signs
BY_HAND = {
    "total_variation": -0.5 * math.tanh(0.5) + 0.5 * math.tanh(0.2),
    "kl": -0.5 + math.exp(0.2 - 1),
    "jensen_shannon": math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.2)) - math.log(4),
    "pearson": -0.5 + 0.2**2 / 4 + 0.2,
}


def flat(divergence: str) -> FLAT:
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = tiny.local_engine(optimizer)
    return FLAT(FLAT.Config(divergence=divergence), engine=engine, optimizer=optimizer)


@pytest.mark.parametrize("divergence", BOUNDS)
def test_the_loss_of_two_probabilities(divergence):
    loss = BOUNDS[divergence](torch.tensor([0.5]), torch.tensor([0.2]))
    assert loss.item() == pytest.approx(BY_HAND[divergence], rel=1e-6)


@pytest.mark.parametrize("divergence", BOUNDS)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_it_raises_the_preferred_answer_and_lowers_the_other(divergence, p):
    preferred, given = (torch.tensor([p], requires_grad=True) for _ in range(2))
    BOUNDS[divergence](preferred, given).sum().backward()
    assert preferred.grad.item() < 0 < given.grad.item()


@pytest.mark.parametrize("divergence", BOUNDS)
def test_a_probability_is_the_mean_over_the_answers_tokens(divergence):
    # a model of equal logits: every token has probability 1/64, however long the answers are
    trainer = flat(divergence)
    with torch.no_grad():
        trainer.model.module.lm_head.weight.zero_()
    loss = trainer.forget_loss(tiny.packed(tiny.pairs(3, name="flat")))
    p = torch.tensor([1 / 64])
    assert loss.item() == pytest.approx(BOUNDS[divergence](p, p).item(), abs=1e-7)


def test_the_answer_to_forget_is_the_one_that_is_lowered():
    # a table of one favoured token, probability q, the other 63 share the rest: KL's bound by hand
    trainer = flat("kl")
    logits = torch.zeros(64)
    logits[5] = math.log(63.0)  # q = 1/2, the others 1/126
    trainer.model.at_head = lambda rows, of: of(Head(table=logits.expand(len(rows.targets), 64)))
    given, other = Row("g", (1, 5, 5), (0.0, 1.0, 1.0)), Row("g/p", (1, 7, 5), (0.0, 1.0, 1.0))
    pair = Row(given.id, given.input_ids, given.weights, preferred=other)
    right = math.exp(0.5 - 1) - (1 / 126 + 1 / 2) / 2
    assert trainer.forget_loss(tiny.packed([pair])).item() == pytest.approx(right, rel=1e-6)


def test_a_silent_row_has_a_gradient_without_nan():
    trainer = flat("kl")
    pair, other = tiny.pairs(2, name="silent")
    silent = Row(pair.id, pair.input_ids, (0.0,) * len(pair), preferred=pair.preferred)
    both = trainer.engine.gradient([lambda: trainer.forget_loss(tiny.packed([silent, other]))])
    alone = trainer.engine.gradient([lambda: trainer.forget_loss(tiny.packed([other]))])
    assert float((both - alone).norm()) <= 1e-6 * float(alone.norm())


def test_it_needs_neither_retain_rows_nor_a_reference():
    optimizer = tiny.optimizer("sgd", clip=None)
    config = FLAT.Config(retain_loss="none", compare_every=0)
    trainer = FLAT(config, engine=tiny.local_engine(optimizer), optimizer=optimizer)
    batch = tiny.packed(tiny.pairs(3, name="flat"))
    before = trainer.forget_loss(batch).item()
    trainer.step([{"forget": batch}], learning_rate=0.1)
    assert trainer.forget_loss(batch).item() < before
