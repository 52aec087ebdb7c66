"""BLUR against numbers worked by hand (arXiv:2506.08164: u = gamma g_f + g_r - c g_f)."""

from __future__ import annotations

import pytest
import tiny
import torch

from framework import ConfigError, Vector, gram
from trainers.blur import BLUR
from trainers.grad_ascent import GradAscent, GradDiff


def vector(*numbers: float) -> Vector:
    """The numbers in shards of one, as if spread over groups of parameters."""
    return Vector([torch.tensor([float(number)]) for number in numbers])


def direction(forget: Vector, retain: Vector, **settings: object) -> list[float]:
    """What BLUR makes of two gradients."""
    weights = BLUR(BLUR.Config(**settings)).weights(gram({"forget": forget, "retain": retain}))
    whole = forget * weights["forget"] + retain * weights["retain"]
    return torch.cat(whole.shards).tolist()


@pytest.mark.parametrize("along", [-3.0, 3.0])
def test_the_retain_gradient_is_projected_whatever_the_sign_of_the_product(along):
    # g_f = (1, 0), g_r = (-+3, 4): c = -+3, u = (1, 0) + (0, 4)
    assert direction(vector(1, 0), vector(along, 4)) == pytest.approx([1, 4])


def test_the_scale_of_the_released_wmdp_code():
    # u = g_f + 800 (g_r - c g_f) = (1, 0) + 800 (0, 4)
    assert direction(vector(1, 0), vector(-3, 4), alpha=800.0) == pytest.approx([1, 3200])


def test_roles_swapped_keep_the_retain_gradient_whole():
    # lower = retain: c = <g_f, g_r> / |g_r|^2 = -3/25, u = g_r + g_f - c g_r = 28/25 g_r + g_f
    assert direction(vector(1, 0), vector(-3, 4), lower="retain") == pytest.approx([-2.36, 4.48])


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("alpha", [1.0, 800.0])
def test_the_forget_loss_falls_at_the_rate_gamma_whatever_the_retain_gradient(gamma, alpha):
    draw = torch.Generator().manual_seed(0)
    forget = torch.randn(500, generator=draw)
    for scale in (0.01, 1.0, 30.0):
        retain = scale * torch.randn(500, generator=draw) - forget
        weights = BLUR(BLUR.Config(gamma=gamma, alpha=alpha)).weights(
            gram({"forget": Vector([forget]), "retain": Vector([retain])})
        )
        u = weights["forget"] * forget.double() + weights["retain"] * retain.double()
        # fp32 products inside `gram`, scaled up by alpha
        error = 1e-6 * alpha * float(retain.norm() * forget.norm())
        rate = gamma * float(forget @ forget)
        assert float(u @ forget.double()) == pytest.approx(rate, abs=error)


def test_a_retain_loss_that_undoes_the_forgetting_leaves_gamma_times_the_forget_gradient():
    assert direction(vector(2, 1), vector(-2, -1), gamma=0.5) == pytest.approx([1, 0.5])


@pytest.mark.parametrize("alpha", [1.0, 800.0])
def test_where_the_forget_gradient_vanishes_the_retain_gradient_remains(alpha):
    assert direction(vector(0, 0), vector(-3, 4), alpha=alpha) == [-3 * alpha, 4 * alpha]


def test_forgetting_what_is_to_be_kept_is_plain_gradient_ascent():
    # r = -f on the same rows: the whole retain gradient is projected away
    rows = tiny.rows(4, name="both")
    plan = [{"forget": rows, "retain": rows}]
    weights = []
    for kind, weighting in ((GradDiff, BLUR(BLUR.Config())), (GradAscent, None)):
        optimizer = tiny.optimizer("sgd", clip=None)
        engine = tiny.local_engine(optimizer)
        parts = {"weighting": weighting, "optimizer": optimizer}
        trainer = tiny.assemble(kind, kind.Config(), engine, engine.model, plan, **parts)
        tiny.train(trainer, plan, tokens=1000)
        weights.append(engine.master_weights())
    assert max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0]) <= 1e-7


def test_one_step_on_two_bowls_changes_the_forget_loss_by_the_exact_amount():
    # f = 1/2 |w - a|^2: f(w - eta u) - f(w) = -eta gamma |g_f|^2 + eta^2/2 |u|^2
    eta, gamma = 0.125, 0.5
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=eta)
    engine = tiny.point_engine(1.0, 2.0, optimizer=optimizer)
    trainer = tiny.Bowls(
        tiny.Bowls.Config(),
        engine=engine,
        optimizer=optimizer,
        weighting=BLUR(BLUR.Config(gamma=gamma)),
    )
    trainer.a, trainer.b = (-1.0, 1.0), (4.0, -2.0)
    # by hand: g_f = (2, 1), g_r = (-3, 4), c = -2/5, u = (1/2 + 2/5) (2, 1) + (-3, 4) = (-1.2, 4.9)
    tiny.train(trainer, tiny.step_rows(1), tokens=1000)
    w = engine.master_weights()["weight"]
    assert w.tolist() == pytest.approx([1 + eta * 1.2, 2 - eta * 4.9])
    change = 0.5 * float((w - torch.tensor([-1.0, 1.0])).square().sum()) - 0.5 * 5
    squared = 1.2**2 + 4.9**2
    assert change == pytest.approx(-eta * gamma * 5 + eta**2 / 2 * squared, rel=1e-5)
    metrics = trainer.metrics()
    assert metrics["train/forget/weight"] == pytest.approx(0.9)
    assert metrics["train/retain/weight"] == 1
    assert metrics["train/gradient_norm"] == pytest.approx(squared**0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, "weighting.gamma must be > 0, got 0: at 0 nothing is forgotten"),
        ({"gamma": -1.0}, "weighting.gamma must be > 0, got -1: at 0 nothing is forgotten"),
        ({"alpha": -1.0}, "weighting.alpha must be >= 0, got -1"),
    ],
)
def test_settings_that_would_forget_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError) as refused:
        BLUR(BLUR.Config(**settings))
    assert str(refused.value) == message
