"""Weight averaging: the mean of known weights, put in place at the end, kept over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from framework import ConfigError
from framework.averaging import WeightAveraging
from framework.checkpoint import Checkpoints
from framework.parts import Plan
from framework.trainer import UnlearningTrainer
from trainers.grad_ascent import GradDiff

PLAN = tiny.step_rows(6, n=2)


def run(precision: str = "fp32", **settings: float) -> UnlearningTrainer:
    optimizer = tiny.optimizer("adamw", clip=None)
    engine = tiny.local_engine(optimizer, precision=precision)
    averaging = WeightAveraging(WeightAveraging.Config(**settings)) if settings else None
    parts = {"optimizer": optimizer, "averaging": averaging}
    trainer = tiny.assemble(GradDiff, GradDiff.Config(), engine, engine.model, PLAN, **parts)
    trainer.begin(Plan(steps=len(PLAN), steps_per_epoch=len(PLAN)))
    return trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_result_is_the_mean_of_the_weights_after_the_steps_that_count(precision):
    plain, averaged = run(precision), run(precision, start=0.3, every=2)
    after = []
    for step in PLAN:
        tiny.train(plain, [step], tokens=1000)
        after.append(plain.engine.master_weights())
    tiny.train(averaged, PLAN, tokens=1000)
    last = averaged.engine.master_weights()
    assert all(torch.equal(last[name], after[-1][name]) for name in last)  # it trains on as ever
    assert averaged.metrics()["train/averaged_steps"] == 3
    averaged.finish()
    found = averaged.engine.master_weights()
    for name in found:  # after 2, 4 and 6 of 6 steps: 0.3 of them are 1.8
        mean = torch.stack([after[i][name].double() for i in (1, 3, 5)]).mean(0)
        assert (found[name] - mean).abs().max() < 1e-7
    for name, weight in averaged.model.module.state_dict().items():
        assert torch.equal(weight.float(), found[name].to(weight.dtype).float())


def test_the_last_step_counts_however_short_the_run():
    trainer = run(start=0.9, every=100)
    tiny.train(trainer, PLAN, tokens=1000)
    before = trainer.engine.master_weights()
    trainer.finish()
    after = trainer.engine.master_weights()
    assert trainer.averaging.count == 1
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_restart_finds_the_mean(tmp_path: Path):
    whole, begun, again = (run(start=0.0, every=1) for _ in range(3))
    tiny.train(whole, PLAN, tokens=1000)
    tiny.train(begun, PLAN[:3], tokens=1000)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(checkpoints.save(begun.engine, begun), again.engine, again)
    tiny.train(again, PLAN[3:], tokens=1000)
    for trainer in (whole, again):
        trainer.finish()
    right, found = whole.engine.master_weights(), again.engine.master_weights()
    assert all(torch.equal(right[name], found[name]) for name in right)
    assert again.averaging.count == len(PLAN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1.0}, r"averaging\.start must be in \[0, 1\), got 1"),
        ({"start": -0.1}, r"averaging\.start must be in \[0, 1\), got -0\.1"),
        ({"every": 0}, r"averaging\.every must be at least 1 step, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        WeightAveraging.Config(**settings)
