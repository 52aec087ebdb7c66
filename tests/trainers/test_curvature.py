"""Curvature regularization against numbers worked by hand and against double backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch

from framework import ConfigError, LocalEngine, Vector
from trainers.curvature import Curvature

Function = Callable[[torch.Tensor], torch.Tensor]


def bowl(w: torch.Tensor) -> torch.Tensor:
    """1/2 w'Hw, H = diag(1, 10)."""
    return 0.5 * (torch.tensor([1.0, 10.0], dtype=w.dtype) * w.square()).sum()


def hilly(w: torch.Tensor) -> torch.Tensor:
    """A function with third derivatives."""
    return w.pow(4).sum() / 4 + (w[0] * w[1]).sin()


def regularized(
    function: Function, at: tuple[float, ...], *, penalty: float, radius: float, step: float
) -> list[float]:
    engine = tiny.point_engine(*at, optimizer=tiny.optimizer("sgd", clip=None))
    found = Curvature(Curvature.Config(penalty=penalty, radius=radius, step=step)).gradient(
        lambda: engine.gradient([lambda: function(engine.model.module.weight)]),
        engine.shifted,
        engine.noise,
    )
    assert engine.model.module.weight.tolist() == list(at)
    return found.shards[0].tolist()


def test_on_a_quadratic_there_is_nothing_to_regularize():
    # the Hessian is constant: the four gradients (1, 10), ... cancel, up to rounding times 10
    found = regularized(bowl, (1.0, 1.0), penalty=1.0, radius=0.1, step=0.1)
    assert found == pytest.approx([1, 10], abs=5e-5)


def test_what_is_penalized_is_how_far_the_gradient_moves_over_the_radius():
    # w = (1, 1): g = (1, 10), v = g / sqrt(101), mu |H v| = 0.01 |(1, 100)| / sqrt(101) = 0.09951
    engine = tiny.point_engine(1.0, 1.0, optimizer=tiny.optimizer("sgd", clip=None))
    readings = []

    def gradient() -> Vector:
        readings.append(engine.gradient([lambda: bowl(engine.model.module.weight)]))
        return readings[-1].clone()

    Curvature(Curvature.Config(radius=0.01)).gradient(gradient, engine.shifted, engine.noise)
    here, away, *_ = readings
    assert float((away - here).norm()) == pytest.approx(0.09951, abs=5e-6)


def test_the_finite_difference_is_right_to_first_order_in_its_step():
    penalty, radius = 2.0, 0.5
    w = torch.tensor([0.75, -0.5], dtype=torch.float64, requires_grad=True)

    def slope(at: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(hilly(at), at, create_graph=True)[0]

    here = slope(w)
    away = (radius * here / here.norm()).detach()  # held constant
    (curved,) = torch.autograd.grad((slope(w + away) - here).norm(), w)
    right = here.detach() + penalty * curved
    errors = []
    for step in (0.1, 0.05, 0.025):
        found = regularized(hilly, (0.75, -0.5), penalty=penalty, radius=radius, step=step)
        errors.append(float((torch.tensor(found) - right).norm()))
    assert errors[0] > 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("function", [bowl, lambda w: w.sum() * 0])
def test_a_vanishing_gradient_stays_zero(function):
    found = regularized(function, (0.0, 0.0), penalty=10.0, radius=0.01, step=0.01)
    assert found == [0.0, 0.0]


def test_a_gradient_that_does_not_change_is_left_as_it_is():
    found = regularized(lambda w: 3 * w[0], (1.0, 2.0), penalty=10.0, radius=0.01, step=0.01)
    assert found == [3.0, 0.0]


def test_without_penalty_it_is_one_plain_gradient():
    gradient = Vector([torch.tensor([0.1, 0.7])])
    readings = iter([gradient])
    found = Curvature(Curvature.Config(penalty=0.0)).gradient(
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
    Curvature(Curvature.Config(radius=2.0, step=3.0)).gradient(
        lambda: engine.gradient([lambda: engine.model.token_log_probs(batch).sum()]),
        engine.shifted,
        engine.noise,
    )
    after = engine.model.module.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": -1.0}, "penalty must be >= 0, got -1"),
        ({"radius": 0.0}, "radius must be > 0, got 0"),
        ({"step": -0.5}, r"step must be > 0, got -0\.5"),
    ],
)
def test_settings_outside_their_ranges_are_refused(settings, message):
    with pytest.raises(ConfigError, match=rf"perturbation\.{message}"):
        Curvature(Curvature.Config(**settings))
