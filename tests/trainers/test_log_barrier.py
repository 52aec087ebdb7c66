"""The log-barrier weighting against numbers worked by hand (the extension: arXiv:1904.04205)."""

from __future__ import annotations

import math

import pytest
import tiny
from torch import Tensor

from framework import ConfigError, Rows
from trainers.grad_ascent import GradDiff
from trainers.log_barrier import LogBarrier
from trainers.primal_dual import PrimalDual


def part(**settings: object) -> LogBarrier:
    return LogBarrier(LogBarrier.Config(**settings))


def dual(loss: float, **settings: object) -> float:
    """The retain weight at a retain loss."""
    weighting = part(**settings)
    weighting.update({"forget": 7.0, "retain": loss})
    return weighting.weights(None)["retain"]


def barrier(z: float, s: float) -> float:
    """The extension as it is published, t written s."""
    if z <= -1 / s**2:
        return -math.log(-z) / s
    return s * z - math.log(1 / s**2) / s + 1 / s


# ---- the dual by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-1.0, -0.3, -0.041, -0.039, 0.0, 0.5, 3.0])
def test_the_dual_is_the_slope_of_the_barrier(z):
    # s = 5: the logarithm up to z = -0.04, the line from there
    slope = (barrier(z + 1e-6, 5) - barrier(z - 1e-6, 5)) / 2e-6
    assert dual(4 + z, level=4.0, sharpness=5.0) == pytest.approx(slope, rel=1e-6)


def test_logarithm_and_line_meet():
    z, step = -1 / 25, 1e-9
    assert barrier(z + step, 5) == pytest.approx(barrier(z - step, 5), abs=2e-8)
    below, above = (dual(1 + z + d, level=1.0, sharpness=5.0) for d in (-step, step))
    assert below == pytest.approx(5, rel=1e-6)
    assert above == 5


def test_the_dual_is_of_the_mean_of_all_rows_not_the_mean_of_duals():
    # losses 0.2 and 0.9 on two ranks, level 1, s = 10: 0.1 / 0.45; each on its own: 0.125 and 1
    assert dual(0.55, level=1.0, sharpness=10.0) == pytest.approx(0.2222, abs=5e-5)
    # losses 0.2 and 1.3: the second alone is above the level; 0.1 / 0.25
    assert dual(0.75, level=1.0, sharpness=10.0) == pytest.approx(0.4)


def test_a_start_above_the_level_has_the_largest_dual():
    assert dual(17.0, level=1.0, sharpness=10.0) == 10


def test_the_sharpness_grows_by_the_step_up_to_its_limit():
    weighting = part(sharpness=2.0, growth=1.5, max_sharpness=4.0, level=1.0)
    found = []
    for _ in range(4):
        weighting.update({"retain": 2.0})  # above the level: the dual is s
        found.append(weighting.duals["retain"])
    assert found == pytest.approx([2, 3, 4, 4])


def test_a_run_of_many_steps_does_not_leave_the_range_of_floats():
    weighting = part(growth=2.0, max_sharpness=50.0)
    weighting.load_state_dict({"retain/dual": 1.0, "retain/level": 0.3, "steps": 10**9})
    assert weighting.sharpness == 50


# ---- constrained problems ------------------------------------------------------------------------


class Line(tiny.Bowls):
    """Forget w, retain 1/2 |w - b|^2."""

    def forget_loss(self, rows: Rows) -> Tensor:
        return rows.row_mean(self.model.module.weight.sum().expand(len(rows)))


@pytest.mark.parametrize(
    ("t", "optimum", "steps"),
    [(0.5, -0.618034, 60), (0.1, -0.904988, 80), (0.01, -0.990050, 350), (1.0, -1.0, 200)],
)
def test_descent_finds_the_optimum_of_the_barrier_problem(t, optimum, steps):
    # min w subject to w^2 / 2 <= 1/2: 1 + w / (s (1 - w^2) / 2) = 0 at t - sqrt(t^2 + 1), t = 1/s.
    # At s = 1 the line begins at z = -1, before the bowl: its slope is 1 everywhere, and w = -1.
    assert t == 1 or optimum == pytest.approx(t - math.sqrt(t**2 + 1), abs=1e-6)
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=min(0.1, t / 2))
    engine = tiny.point_engine(0.0, optimizer=optimizer)
    weighting = part(level=0.5, sharpness=1 / t)
    trainer = Line(Line.Config(), engine=engine, optimizer=optimizer, weighting=weighting)
    trainer.b = (0.0,)
    tiny.train(trainer, tiny.step_rows(1, n=1) * steps, tokens=1000)
    assert engine.master_weights()["weight"].item() == pytest.approx(optimum, abs=2e-6)
    # 1 + dual w = 0; tends to the true dual, 1
    assert trainer.metrics()["train/retain/weight"] == pytest.approx(-1 / optimum, rel=2e-4)


def test_it_comes_to_the_dual_that_the_primal_dual_weighting_comes_to():
    # min x^2 / 2 subject to (x - 2)^2 / 2 <= 1/2: x = 1, dual 1; the barrier is off by t
    found = {}
    for name, weighting in {
        "barrier": part(level=0.5, sharpness=5.0, growth=1.01, max_sharpness=200.0),
        "primal-dual": PrimalDual(PrimalDual.Config(level=0.5, dual=0.0, rate=0.2)),
    }.items():
        optimizer = tiny.optimizer("sgd", clip=None, learning_rate=0.005 if "b" in name else 0.1)
        engine = tiny.point_engine(0.0, optimizer=optimizer)  # above the level
        parts = {"optimizer": optimizer, "weighting": weighting}
        bowls = tiny.Bowls(tiny.Bowls.Config(), engine=engine, **parts)
        bowls.a, bowls.b = (0.0,), (2.0,)
        tiny.train(bowls, tiny.step_rows(1, n=1) * 600, tokens=1000)
        found[name] = engine.master_weights()["weight"].item(), weighting.duals["retain"]
    assert found["primal-dual"] == pytest.approx((1, 1), abs=1e-5)
    assert found["barrier"] == pytest.approx((1, 1), abs=0.02)


# ---- in a run ------------------------------------------------------------------------------------

PLAN = tiny.step_rows(3)


@pytest.mark.parametrize("tokens", [1000, 30])
def test_each_steps_weight_is_of_that_steps_loss(tokens):
    optimizer = tiny.optimizer("sgd", clip=None)
    parts = {"weighting": part(level=5.0, gamma=2.0), "optimizer": optimizer}
    engine = tiny.local_engine(optimizer)
    trainer = tiny.assemble(GradDiff, GradDiff.Config(), engine, engine.model, PLAN, **parts)
    losses = []
    for step in PLAN:
        tiny.train(trainer, [step], tokens=tokens)
        line = trainer.metrics()
        losses.append(line["train/retain/loss"])
        assert line["train/forget/weight"] == 2
        assert line["train/retain/weight"] == pytest.approx(1 / (5 * (5 - losses[-1])), rel=1e-9)
        assert line["train/retain/sharpness"] == 5
        assert line["train/retain/slack"] == pytest.approx(5 - losses[-1])
    assert len(set(losses)) == len(PLAN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharpness": 0.0}, "weighting.sharpness must be > 0, got 0"),
        ({"growth": 0.9}, "weighting.growth must be >= 1, got 0.9"),
        ({"max_sharpness": 4.0}, "weighting.max_sharpness must be >= 5, got 4"),
    ],
)
def test_numbers_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError) as refused:
        part(**settings)
    assert str(refused.value) == message


def test_a_run_without_a_retain_loss_has_no_constraint():
    optimizer = tiny.optimizer("sgd", clip=None)
    with pytest.raises(ConfigError, match=r"LogBarrier balances two objectives.*only forget"):
        GradDiff(
            GradDiff.Config(retain_loss="none"),
            engine=tiny.local_engine(optimizer),
            optimizer=optimizer,
            weighting=part(),
        )
