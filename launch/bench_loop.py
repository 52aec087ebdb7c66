"""The loop of a run beside one that only computes: plain torch, or DeepSpeed's own plain step.

All compute gradient difference on the same rows in the same packs. Ours also draws the rows of a
step, packs them, watches for NaN, keeps what may be logged, and logs the last of its steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from framework import LanguageModel, Row, Rows, distributed
from framework.data import StepTotals
from framework.loop import Loop, train
from framework.micro_batches import partition
from framework.sampler import ForgetRetainSampler
from framework.shared import pack

from .bench_result import Answer, Table
from .bench_steps import about, times_of
from .peer_style import Update
from .settings import is_sharded
from .timing import Way, cost, in_turns, ratios, with_spread
from .training_world import Batch, Stepper, World, draw

STEPS = 3
"""That a loop takes in a round."""


class Joint(NamedTuple):
    """Forget and retain rows in one pack."""

    rows: Rows
    signs: Tensor
    """[R] what a token of each row counts: for or against it, over its objective's tokens."""


def loop(world: World) -> Iterator[Answer]:
    """Our loop and the bare one; under ZeRO, also one rank's share alone, without any other."""
    bare = _bare_ways(world)
    for lengths in world.config.lengths:
        stepper = world.stepper("grad_diff", world.batch(lengths))
        ways = [Way(name, work(stepper.rows)) for name, work in bare.items()]
        ways.insert(1, Way("Lethe's loop", _ours(world, stepper)))
        timed = in_turns(ways, world.config.rounds, description=f"{lengths}, loop")
        lines, numbers = [], []
        for way in timed:
            times = ratios(way, timed[0])
            seconds = statistics.median(cost(way)) / STEPS
            wall = statistics.median(way.seconds) / STEPS
            cells = [f"{1e3 * seconds:.1f}", f"{1e3 * wall:.1f}", with_spread(times, 3)]
            lines.append([way.name, *cells])
            told = {"lengths": lengths, "way": way.name, "steps": STEPS}
            numbers.append({**told, "times": statistics.median(times), **times_of(way)})
        title = f"{lengths}: {about(world)}, the loop around gradient difference"
        yield [Table(title, ["way", "ms a step", "wall ms", "times"], lines)], numbers


def _bare_ways(world: World) -> dict[str, Callable[[Batch], Callable[[], None]]]:
    """What ours is set beside, the first above all; each from a step's rows."""
    if not is_sharded(world.config):
        return {"bare torch loop": lambda rows: _torch_loop(world, world.model, rows)}
    from .plain_deepspeed import PlainDeepSpeed  # takes seconds to import

    plain = PlainDeepSpeed(world.config, draw(world.config), world.optimizer)

    def deepspeed_loop(rows: Batch) -> Callable[[], None]:
        packs = joint_packs(plain.model, rows)
        world_size = distributed.world_size()
        losses = [lambda each=each: world_size * joint_loss(plain.model, each) for each in packs]

        def run() -> None:
            for _ in range(STEPS):
                plain.step(losses)

        return run

    alone = draw(world.config, sharded=False)
    return {
        "DeepSpeed's own step": deepspeed_loop,
        "one rank's share, plain torch": lambda rows: _torch_loop(world, alone, rows),
    }


def _ours(world: World, stepper: Stepper) -> Callable[[], None]:
    sampler = ForgetRetainSampler(stepper.rows, batch_size=world.config.rows, seed=0)

    def run() -> None:
        done = stepper.trainer.steps_done
        plan = Loop(steps=done + STEPS, log_every=STEPS)
        train(world.engine, stepper.trainer, sampler, plan)

    return run


def _torch_loop(world: World, model: LanguageModel, rows: Batch) -> Callable[[], None]:
    """Over rows that are packed beforehand, with an optimizer of its own."""
    packs = joint_packs(model, rows)
    update = Update(model.module, world.optimizer)

    def run() -> None:
        model.module.train()
        for _ in range(STEPS):
            for each in packs:
                joint_loss(model, each).backward()
            update.step()

    return run


def joint_packs(model: LanguageModel, rows: Batch) -> list[Joint]:
    """This rank's share of gradient difference's rows, all objectives in one pack."""
    count = {row.id: -1 / StepTotals.of(rows["forget"]).weight for row in rows["forget"]}
    count |= {row.id: 1 / StepTotals.of(rows["retain"]).weight for row in rows["retain"]}
    everyone = [*rows["forget"], *rows["retain"]]
    tokens, ranks = model.tokens_per_micro_batch, distributed.world_size()
    found = []
    shares = model.shares_beginnings()
    cut = partition({"all": everyone}, tokens=tokens, world_size=ranks, shares=shares)
    for part in cut[distributed.rank()]:
        packed = _packed(model, part["all"])
        signs = torch.tensor([count[name] for name in packed.ids], device=model.device)
        found.append(Joint(packed, signs))
    return found


def _packed(model: LanguageModel, rows: Sequence[Row]) -> Rows:
    """What they begin with alike is read once, where the model can."""
    if not model.shares_beginnings():
        return Rows.pack(rows, device=model.device)
    return pack(rows, device=model.device)


def joint_loss(model: LanguageModel, given: Joint) -> Tensor:
    """Gradient difference: the retain rows' nll less the forget rows'."""
    rows, signs = given
    return -(model.token_log_probs(rows) * rows.weights * signs[rows.row_of]).sum()
