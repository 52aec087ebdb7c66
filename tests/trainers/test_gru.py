"""GRU's rectified gradient against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from framework import ConfigError
from framework.checkpoint import Checkpoints
from framework.vectors import Vector, gram
from trainers.grad_ascent import GradDiff
from trainers.gru import GRU


def part(**settings: float) -> GRU:
    return GRU(GRU.Config(**settings))


def direction(g_f: tuple[float, ...], g_r: tuple[float, ...], **settings: float) -> list:
    vectors = {
        name: Vector([torch.tensor(values)], replicated=True)
        for name, values in (("forget", g_f), ("retain", g_r))
    }
    weights = part(**settings).weights(gram(vectors))
    return sum(float(weights[n]) * vectors[n].shards[0] for n in vectors).tolist()


def test_on_conflict_the_forget_gradient_loses_its_part_along_the_retain_gradient():
    # <(-3, 4), (2, 0)> = -6, |(2, 0)|^2 = 4: (-3, 4) + 1.5 (2, 0)
    assert direction((-3.0, 4.0), (2.0, 0.0)) == pytest.approx([0, 4])


def test_without_conflict_it_is_the_forget_gradient_alone():
    assert direction((3.0, 4.0), (2.0, 0.0)) == [3, 4]


def test_the_retain_gradient_is_followed_where_that_is_asked_for():
    assert direction((3.0, 4.0), (2.0, 0.0), retain=0.5) == pytest.approx([4, 4])


def test_a_vanishing_mean_leaves_the_forget_gradient():
    assert direction((3.0, 4.0), (0.0, 0.0)) == [3, 4]


def bowls(weighting: GRU) -> tiny.Bowls:
    """f = 1/2 |w - (0, 0)|^2, r = 1/2 |w - b|^2 at w = (3, 4); b is set by each step."""
    optimizer = tiny.optimizer("sgd", clip=None, learning_rate=1.0)
    engine = tiny.point_engine(3.0, 4.0, optimizer=optimizer)
    trainer = tiny.Bowls(
        tiny.Bowls.Config(), engine=engine, optimizer=optimizer, weighting=weighting
    )
    trainer.a = (0.0, 0.0)
    return trainer


def test_it_is_the_running_mean_that_decides():
    # g_f = w = (3, 4) at both steps, for the rate of the first is 0. g_r = w - b: (-6, 0), (6, 0).
    # Mean at rate 0.25: (-6, 0), then 0.25 (6, 0) + 0.75 (-6, 0) = (-3, 0): still a conflict,
    # where the step's own gradient is none. u = (3, 4) - (-9 / 9)(-3, 0) = (0, 4).
    trainer = bowls(part(rate=0.25))
    (step,) = tiny.step_rows(1, n=1)
    for b, rate in (((9.0, 4.0), 0.0), ((-3.0, 4.0), 1.0)):
        trainer.b = b
        trainer.step([{n: tiny.packed(rows)} for n, rows in step.items()], learning_rate=rate)
    assert trainer.engine.master_weights()["weight"].tolist() == pytest.approx([3, 0])
    assert trainer.metrics()["train/retain/gradient_norm"] == pytest.approx(3)
    assert trainer.metrics()["train/cosine"] == pytest.approx(-0.6)


def run(plan) -> tuple[tiny.LocalEngine, object]:
    optimizer = tiny.optimizer("adamw", clip=None)
    engine = tiny.local_engine(optimizer)
    parts = {"weighting": part(rate=0.3), "optimizer": optimizer}
    return engine, tiny.assemble(
        GradDiff, GradDiff.Config(), engine, tiny.language_model(), plan, **parts
    )


def test_a_restart_finds_the_running_mean(tmp_path):
    plan = tiny.step_rows(4)
    (engine, whole), (first, begun), (second, again) = (run(plan) for _ in range(3))
    tiny.train(whole, plan, tokens=40)
    tiny.train(begun, plan[:2], tokens=40)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(checkpoints.save(first, begun), second, again)
    tiny.train(again, plan[2:], tokens=40)
    right, found = engine.master_weights(), second.master_weights()
    assert all(torch.equal(right[name], found[name]) for name in right)


class Broken(GradDiff):
    """Its retain loss is infinite at the second step."""

    def retain_loss(self, rows):
        return super().retain_loss(rows) * (math.inf if self.steps_done == 1 else 1.0)


def test_a_step_that_is_skipped_leaves_the_mean_as_it_was():
    plan = tiny.step_rows(3)
    found = []
    for steps in (plan, [plan[0], plan[2]]):
        optimizer = tiny.optimizer("sgd", clip=None)
        engine = tiny.local_engine(optimizer)
        kind = Broken if len(steps) == 3 else GradDiff
        parts = {"weighting": part(rate=0.3), "optimizer": optimizer}
        trainer = tiny.assemble(
            kind, kind.Config(on_nonfinite="skip"), engine, engine.model, plan, **parts
        )
        tiny.train(trainer, steps, tokens=1000)
        found.append(engine.master_weights())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "weighting.rate must be in (0, 1], got 0"),
        ({"rate": 1.5}, "weighting.rate must be in (0, 1], got 1.5"),
        ({"retain": -1.0}, "weighting.retain must be >= 0, got -1"),
    ],
)
def test_numbers_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError) as refused:
        part(**settings)
    assert str(refused.value) == message
