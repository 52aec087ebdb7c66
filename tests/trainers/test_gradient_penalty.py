"""The gradient penalty against numbers worked by hand and against double backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch

from framework import ConfigError, LocalEngine, Vector
from trainers.gradient_penalty import GradientPenalty

Function = Callable[[torch.Tensor], torch.Tensor]


def bowl(w: torch.Tensor) -> torch.Tensor:
    """1/2 w'Hw, H = diag(1, 10)."""
    return 0.5 * (torch.tensor([1.0, 10.0], dtype=w.dtype) * w.square()).sum()


def hilly(w: torch.Tensor) -> torch.Tensor:
    """A function with third derivatives."""
    return w.pow(4).sum() / 4 + (w[0] * w[1]).sin()


def penalized(
    function: Function, at: tuple[float, ...], penalty: float, step: float
) -> list[float]:
    engine = tiny.point_engine(*at, optimizer=tiny.optimizer("sgd", clip=None))
    found = GradientPenalty(GradientPenalty.Config(penalty=penalty, step=step)).gradient(
        lambda: engine.gradient([lambda: function(engine.model.module.weight)]),
        engine.shifted,
        engine.noise,
    )
    assert engine.model.module.weight.tolist() == list(at)
    return found.shards[0].tolist()


def test_on_a_quadratic_it_is_the_hessian_times_the_unit_gradient():
    # w = (1, 1): g = (1, 10), |g| = sqrt(101), H g / |g| = (1, 100) / sqrt(101) = (0.0995, 9.950)
    found = penalized(bowl, (1.0, 1.0), penalty=2.0, step=0.1)
    assert found == pytest.approx([1 + 2 * 0.0995037, 10 + 2 * 9.9503719], rel=1e-5)


def test_the_finite_difference_is_right_to_first_order_in_its_step():
    w = torch.tensor([0.75, -0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(hilly(w), w, create_graph=True)
    (curved,) = torch.autograd.grad(gradient.norm(), w)
    right = gradient.detach() + 3 * curved
    errors = [
        float((torch.tensor(penalized(hilly, (0.75, -0.5), 3.0, step)) - right).norm())
        for step in (0.1, 0.05, 0.025)
    ]
    assert errors[0] > 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_a_vanishing_gradient_stays_zero():
    assert penalized(bowl, (0.0, 0.0), penalty=1.0, step=0.01) == [0.0, 0.0]


def test_without_penalty_it_is_one_plain_gradient():
    gradient = Vector([torch.tensor([0.1, 0.7])])
    readings = iter([gradient])
    found = GradientPenalty(GradientPenalty.Config(penalty=0.0)).gradient(
        lambda: next(readings),
        lambda _: pytest.fail("asked for"),
        lambda _: pytest.fail("asked for"),
    )
    assert found is gradient


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_parameters_come_back_bit_for_bit(precision):
    engine: LocalEngine = tiny.local_engine(tiny.optimizer("sgd", clip=None), precision=precision)
    before = {n: t.clone() for n, t in engine.model.module.state_dict().items()}
    batch = tiny.packed(tiny.rows(3, name="f"))
    GradientPenalty(GradientPenalty.Config(step=3.0)).gradient(
        lambda: engine.gradient([lambda: engine.model.token_log_probs(batch).sum()]),
        engine.shifted,
        engine.noise,
    )
    after = engine.model.module.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    ("penalty", "step", "message"),
    [(-1.0, 0.1, "penalty must be >= 0, got -1"), (0.1, 0.0, "step must be > 0, got 0")],
)
def test_settings_outside_their_ranges_are_refused(penalty, step, message):
    with pytest.raises(ConfigError, match=rf"perturbation\.{message}"):
        GradientPenalty(GradientPenalty.Config(penalty=penalty, step=step))
