"""The automatic learning rate: the parabola by hand, and a probe that leaves no trace."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor

from framework import ConfigError, Rows
from framework.automatic import AutomaticLearningRate
from framework.checkpoint import Checkpoints
from framework.optimizers import SGD, AdamW
from framework.trainer import UnlearningTrainer
from trainers.finetune import Finetune
from trainers.grad_ascent import GradAscent

PLAN = tiny.step_rows(4)
H = torch.tensor([1.0, 10.0])


def loss(x: Tensor) -> float:
    return float(0.5 * (H * x * x).sum())


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.001, 0.01, 0.1, 1.0])
def test_the_optimum_of_a_quadratic_is_found_from_any_rate(eta):
    # 1/2 w'Hw at w = (1, 1), d = g = (1, 10): g'g / g'Hg = 101 / 1001
    w = torch.ones(2, dtype=torch.float64)
    found = AutomaticLearningRate(1)
    found.fit(eta, up=loss(w + eta * H * w), origin=loss(w), down=loss(w - eta * H * w))
    assert found.optimum == pytest.approx(0.100899, abs=1e-6)


def test_the_rate_moves_a_tenth_of_the_way_and_never_beyond_the_double_or_half():
    # optimum 0.1009 from 0.01: 0.9 (0.01) + 0.1 (0.02) = 0.011; from 1: 0.9 + 0.1 (0.5)
    for eta, coming in ((0.01, 0.011), (1.0, 0.95), (0.1, 0.1000899)):
        found = AutomaticLearningRate(1)
        w = torch.ones(2, dtype=torch.float64)
        found.fit(eta, up=loss(w + eta * H * w), origin=loss(w), down=loss(w - eta * H * w))
        assert eta * found.factor == pytest.approx(coming, abs=1e-7)


@pytest.mark.parametrize(
    ("up", "origin", "down"),
    [
        (1.0, 1.5, 1.0),  # a hill
        (2.0, 1.5, 1.0),  # a straight line
        (1.0, 0.5, 2.0),  # the loss climbs along the step
        (2.0 + 1e-7, 1.5, 1.0 + 1e-7),  # a bend that fp32 would round to
        (math.nan, 1.5, 1.0),
        (math.inf, 1.5, 1.0),
    ],
)
def test_a_fit_that_says_nothing_changes_nothing(up, origin, down):
    found = AutomaticLearningRate(1)
    found.fit(0.1, up=up, origin=origin, down=down)
    assert (found.factor, found.optimum) == (1.0, None)
    assert found.metrics() == {}


# ---- in a run ------------------------------------------------------------------------------------


class Quadratic(Finetune):
    """Retain 1/2 w'Hw, whatever the rows."""

    @classmethod
    def reads_once(cls, config: Finetune.Config) -> bool:
        """Not at all: there is no model to read them."""
        return False

    def retain_loss(self, rows: Rows) -> Tensor:
        height = 0.5 * (H * self.model.module.weight.square()).sum()
        return rows.row_mean(height.expand(len(rows)))


def test_the_line_is_that_of_the_step_and_the_next_step_has_the_new_rate():
    optimizer = SGD(SGD.Config(learning_rate=0.01, max_gradient_norm=None, automatic_every=2))
    engine = tiny.point_engine(1.0, 1.0, optimizer=optimizer)
    trainer = Quadratic(Quadratic.Config(), engine=engine, optimizer=optimizer)
    rates, weights = [], []
    for step in tiny.step_rows(3, n=1):
        trainer.step([{"retain": tiny.packed(step["retain"])}], learning_rate=0.01)
        rates.append(trainer.metrics()["train/learning_rate"])
        weights.append(engine.master_weights()["weight"])
    assert rates == pytest.approx([0.01, 0.011, 0.011])
    assert weights[0].tolist() == pytest.approx([0.99, 0.9])
    assert weights[1].tolist() == pytest.approx([0.99 * (1 - 0.011), 0.9 * (1 - 0.11)])
    # the last optimum on record is of the third step, from w = (0.97911, 0.801)
    g = H * weights[1]
    optimum = float(g @ g / (g @ (H * g)))
    assert trainer.metrics()["train/learning_rate_optimum"] == pytest.approx(optimum, rel=1e-3)


def run(every: int, *, rate: float = 1e-3) -> UnlearningTrainer:
    optimizer = AdamW(AdamW.Config(learning_rate=rate, automatic_every=every))
    engine = tiny.local_engine(optimizer)
    model = tiny.language_model()
    return tiny.assemble(Finetune, Finetune.Config(), engine, model, PLAN, optimizer=optimizer)


def test_a_probe_leaves_weights_and_moments_bit_for_bit():
    probed, plain = run(1), run(0)
    for trainer in (probed, plain):  # the first fit finds a hill, the second a valley
        tiny.train(trainer, PLAN[:2], tokens=40)
    right, found = plain.engine.master_weights(), probed.engine.master_weights()
    assert all(torch.equal(right[name], found[name]) for name in right)
    states = [t.engine.optimizer.state_dict()["state"] for t in (plain, probed)]
    for i, moments in states[0].items():
        assert all(torch.equal(moments[name], states[1][i][name]) for name in moments)
    assert probed.automatic.factor == pytest.approx(1.1)


def test_the_rate_does_not_depend_on_how_the_batch_is_cut():
    factors = []
    for tokens in (1000, 30):
        trainer = run(1)
        tiny.train(trainer, PLAN, tokens=tokens)
        factors.append(trainer.automatic.factor)
    assert factors[0] == pytest.approx(factors[1], rel=1e-5)


def test_a_restart_finds_the_rate(tmp_path):
    whole, begun, again = (run(2) for _ in range(3))
    tiny.train(whole, PLAN, tokens=40)
    tiny.train(begun, PLAN[:2], tokens=40)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(checkpoints.save(begun.engine, begun), again.engine, again)
    tiny.train(again, PLAN[2:], tokens=40)
    right, found = whole.engine.master_weights(), again.engine.master_weights()
    assert all(torch.equal(right[name], found[name]) for name in right)
    assert again.automatic.state_dict() == whole.automatic.state_dict()
    assert whole.automatic.factor != 1


def test_without_a_retain_loss_there_is_nothing_to_fit():
    optimizer = SGD(SGD.Config(learning_rate=0.1, automatic_every=5))
    with pytest.raises(ConfigError, match=r"set optimizer\.automatic_every=0") as refused:
        GradAscent(
            GradAscent.Config(retain_loss="none"),
            engine=tiny.local_engine(optimizer),
            optimizer=optimizer,
        )
    assert "\n" not in str(refused.value)


def test_a_negative_interval_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.automatic_every must be a number of steps"):
        SGD(SGD.Config(learning_rate=0.1, automatic_every=-1))
