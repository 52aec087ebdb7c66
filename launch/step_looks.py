"""A look at a step before it is timed: what it holds and does, how far it is from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from framework import distributed
from framework.engine import Engine, LocalEngine
from framework.modules import trainable_parameters
from framework.optimizers import Optimizer

from .flops import useful_flops_of
from .peak_bytes import peak_bytes

LIMITS = {"fp32": 1e-4, "bf16": 5e-2}
"""The largest relative error with which two steps count as the same."""
MIB = 2**20
TOO_LARGE = "does not fit"
"""The cell of a way that ran out of the GPU's memory."""

Losses = Mapping[str, float]
"""By objective."""
T = TypeVar("T")


@dataclass(frozen=True)
class Errors:
    """How far two steps are apart, relative to the second.

    Infinitely, where there is nothing to tell by: a number that is none, or nothing but 0.
    """

    loss: float
    """Of the objective that is furthest, over the largest of the losses."""
    gradient: float
    """The norm of the difference over the norm."""

    def within(self, limit: float) -> bool:
        """Whether the two are the same step."""
        return max(self.loss, self.gradient) <= limit

    def __str__(self) -> str:
        """The larger."""
        return f"{max(self.loss, self.gradient):.0e}"


@dataclass(frozen=True)
class Look:
    """A step, taken where nothing moves."""

    memory: int
    """The most bytes held beside weights, gradient and optimizer."""
    flops: int
    """Useful ones."""
    losses: Losses
    gradient: Sequence[Tensor]
    """What the optimizer was given, which was not clipped, tensor by tensor in its own order."""

    def errors(self, other: Look) -> Errors:
        """How far this step is from the other."""
        losses = torch.tensor(
            [[self.losses[x], other.losses[x]] for x in other.losses], dtype=torch.float64
        )
        furthest = float((losses[:, 0] - losses[:, 1]).abs().max())  # NaN where one is
        apart = whole = 0.0
        for mine, theirs in zip(self.gradient, other.gradient, strict=True):
            apart += float((mine.double() - theirs.double()).square().sum())
            whole += float(theirs.double().square().sum())
        largest = float(losses[:, 1].abs().max())
        return Errors(loss=_share(furthest, largest), gradient=_share(apart, whole) ** 0.5)


def _share(apart: float, whole: float) -> float:
    found = apart / whole if whole > 0 else math.inf
    return math.inf if math.isnan(found) else found


def look(
    engine: Engine,
    config: Optimizer.Config,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], Losses],
) -> Look:
    """What `step`, which ends in a step of `optimizer` of these settings, holds, does and finds."""
    losses: dict[str, float] = {}

    def work() -> None:
        losses.update(step())

    with _standing(config, optimizer) as gradient:
        memory, flops = held_and_done(engine, work)
    return Look(memory, flops, losses, gradient)


@contextmanager
def _standing(config: Optimizer.Config, optimizer: torch.optim.Optimizer) -> Iterator[list[Tensor]]:
    """Inside, steps of the optimizer move nothing; their gradients are kept, not copied.

    Nothing is clipped: torch's norm of 20 million numbers in fp32 is 1.5e-4 off on a CPU, and a
    step of the wrong length would look right once both are clipped to the same.
    """
    limit = config.max_gradient_norm
    rates = [group["lr"] for group in optimizer.param_groups]
    kept: list[Tensor] = []

    def keep(stepped: torch.optim.Optimizer, *_: object) -> None:
        for group in stepped.param_groups:
            group["lr"] = 0.0
            kept.extend(_flat(p.grad, p) for p in group["params"])

    hook = optimizer.register_step_pre_hook(keep)
    config.max_gradient_norm = None
    try:
        yield kept
    finally:
        hook.remove()
        config.max_gradient_norm = limit
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _flat(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    found = torch.zeros_like(parameter) if gradient is None else gradient
    return found.detach().reshape(-1)


def held_and_done(engine: Engine, work: Callable[[], object]) -> tuple[int, int]:
    """The most bytes that a step holds beside weights, gradient and optimizer; its useful FLOPs.

    On one device the gradient is there before the step, as the optimizer's moments are; under ZeRO
    DeepSpeed's gradient and its buffers are held beside the rest.
    """
    if isinstance(engine, LocalEngine):
        for _, p in trainable_parameters(engine.model.module):
            p.grad = torch.zeros_like(p)
    with peak_bytes(engine.model.device) as peak:
        flops = useful_flops_of(work)
    return peak.bytes, flops


def where_it_fits(engine: Engine, seen: Callable[[], T]) -> T | None:
    """What `seen` gives; None: it ran out of the GPU's memory, and left nothing there.

    Of several ranks the others would wait for the one: there it ends the bench.
    """
    try:
        return seen()
    except torch.OutOfMemoryError:
        if distributed.world_size() > 1:
            raise
    engine.model.module.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
