"""A step that is not logged waits for nothing: counted over whole steps of what is in configs/."""

from __future__ import annotations

import pytest
import torch
from compositions import EACH, Composition, build, plan_of

from framework.loop import Loop, train
from framework.sampler import ForgetRetainSampler
from framework.trainer import UnlearningTrainer
from launch.host_syncs import host_syncs

STEPS = 3


def promised(trainer: UnlearningTrainer) -> int:
    """How often a step waits: where it must know whether it was taken, and to read the losses."""
    weighting = trainer.weighting
    reads = weighting.needs_losses or weighting.losses_first
    optimizer = type(trainer.optimizer).__name__
    knows = reads or weighting.running_means or optimizer == "Muon" or trainer.automatic
    # of a fit of the rate: three losses, and how much of the shift was realised, twice
    return bool(knows) + reads + 5 * (trainer.automatic is not None)


@pytest.mark.parametrize("composition", EACH, ids="-".join)
def test_a_step_that_is_not_logged_waits_for_nothing_but_what_steers_it(composition: Composition):
    plan = plan_of(composition, STEPS)
    trainer = build(composition, plan)
    trainer.model.tokens_per_micro_batch = 1000
    for step in plan:
        with host_syncs() as found:
            batches = trainer.micro_batches(step, trainer.steps_done)
            trainer.step(batches, learning_rate=0.01)
        assert found.total() == promised(trainer), found
    with host_syncs() as found:
        trainer.metrics()
    assert found.total() > 0


@pytest.mark.parametrize("weighting", ["none", "primal_dual"])
def test_the_loop_waits_for_nothing_but_its_steps(weighting: str):
    composition = ("npo", weighting, "none")
    plan = plan_of(composition, STEPS)
    rows = {name: [row for step in plan for row in step[name]] for name in plan[0]}

    def waits(steps: int) -> int:
        trainer = build(composition, plan)
        sampler = ForgetRetainSampler(rows, batch_size=len(plan[0]["forget"]), seed=0)
        with host_syncs() as found:
            train(trainer.engine, trainer, sampler, Loop(steps=steps, log_every=0))
        return found.total()

    per_step = promised(build(composition, plan))
    assert waits(2 * STEPS) - waits(STEPS) == STEPS * per_step
    # at its end it looks for steps that were not finite, unless each step did
    assert waits(STEPS) == STEPS * per_step + (per_step == 0)


def test_every_way_to_wait_is_counted():
    numbers, mask = torch.arange(3), torch.tensor([True, False, True])
    with host_syncs() as found:
        numbers.sum().item()
        float(numbers[0])
        bool(mask[0])
        numbers.tolist()
        numbers.numpy()
        torch.equal(numbers, numbers)
        mask.nonzero()
        numbers[mask]
        numbers.masked_select(mask)
        numbers.unique()
        numbers.repeat_interleave(numbers)
        torch.tensor([1.0], device="meta")
        numbers.to("meta")
    assert found.total() == 13, found


def test_what_does_not_wait_is_not_counted():
    numbers = torch.arange(3.0)
    with host_syncs() as found:
        numbers.where(numbers > 1, numbers.norm()).clone()
        numbers[torch.tensor([0, 2])].to(torch.float64)
        numbers.to("meta").sum().to("meta") if numbers.is_pinned() else numbers.sum()
        numbers.long().repeat_interleave(torch.tensor([1, 1, 1]), output_size=3)
    assert not found, found
