"""A method's step beside the same step in the peers' way, and whether the two are the same step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from framework import attention
from framework.engine import LocalEngine, trained
from framework.errors import ConfigError
from framework.modules import trainable_parameters

from .bench_result import Table
from .flops import Multiplication, flops_of
from .peak_bytes import peak_bytes
from .peer_style import BEST, METHODS, PUBLISHED, PeerStyle, Update
from .timing import Timed, Way, cost, in_turns, ratios, with_spread
from .training_world import Stepper, World, recipe_of

HEADLINE = ("npo", "npo_kl")
"""What is set beside peers unless methods are named."""
LIMITS = {"fp32": 1e-4, "bf16": 5e-2}
"""The largest relative error with which two steps count as the same."""
LETHE, IN_TWO = "Lethe", "Lethe, in two"
"""Ours, and ours in twice as many micro-batches: what less memory costs."""
MIB = 2**20


@dataclass(frozen=True)
class Errors:
    """How far two steps are apart, relative to the second."""

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
class _Measured:
    """One way to take a method's step."""

    method: str
    way: str
    work: Callable[[], None]
    tokens: int
    flops: int
    """That our step does: what is useful of it, whoever takes it."""
    memory: int
    """Bytes at most, beside weights, gradient and optimizer."""
    error: Errors | None
    """Of ours beside this one; of ours in two beside the peers' at best."""

    def beside(self, times: Sequence[float], limit: float) -> list[str]:
        """How many times our cost it is, and whether that counts: how far apart the steps are."""
        if self.error is None:
            return ["", ""]
        told = with_spread(times)
        return [told if self.error.within(limit) else f"does not count: {told}", str(self.error)]

    def numbers(self, way: Timed, times: Sequence[float], rate: float) -> dict[str, object]:
        """What the JSON holds."""
        error = self.error
        return {
            "method": self.method,
            "way": self.way,
            "tokens": self.tokens,
            "useful_flops": self.flops,
            "device_flops_per_second": rate,
            "memory_bytes": self.memory,
            "times_our_cost": statistics.median(times),
            "loss_error": None if error is None else error.loss,
            "gradient_error": None if error is None else error.gradient,
            "seconds": list(way.seconds),
            "cpu_seconds": list(way.cpu_seconds),
        }


def peers(world: World) -> Iterator[tuple[list[Table], list[dict[str, object]]]]:
    """Each method's step and the peers' two ways of it, on rows of each length."""
    named = [x for x in world.config.methods or HEADLINE if x in METHODS]
    if not named:
        raise ConfigError(f"there is a peers' way of {', '.join(METHODS)} only; name one of them")
    world.leave_reference()
    update = Update(world.model.module, world.optimizer)
    for lengths in world.config.lengths:
        yield _beside_peers(world, update, lengths, named)


def _beside_peers(
    world: World, update: Update, lengths: str, named: Sequence[str]
) -> tuple[list[Table], list[dict[str, object]]]:
    rows = world.batch(lengths)
    product = Multiplication(world.model.device, world.model.module.dtype)
    measured = [
        each
        for method in named
        for each in _ways(world, update, method, world.stepper(method, rows))
    ]
    ways = [Way("product", product), *(Way(f"{x.method}/{x.way}", x.work) for x in measured)]
    timed = {x.name: x for x in in_turns(ways, world.config.rounds, description=lengths)}
    rate = product.flops / statistics.median(cost(timed["product"]))
    lines, held, numbers = [], [], []
    memory = {(x.method, x.way): x.memory for x in measured}
    for each in measured:
        way, ours = timed[f"{each.method}/{each.way}"], timed[f"{each.method}/{LETHE}"]
        seconds = statistics.median(cost(way))
        times = ratios(way, ours)
        name = f"{each.method}: {each.way}"
        own = [f"{1e3 * seconds:.0f}", f"{each.tokens / seconds:.0f}"]
        own.append(f"{100 * each.flops / seconds / rate:.0f} %")
        lines.append([name, *own, *each.beside(times, LIMITS[world.config.precision])])
        shares = [memory[each.method, own] / max(1, each.memory) for own in (LETHE, IN_TWO)]
        peers = each.way not in (LETHE, IN_TWO)
        told = [f"{share:.2f}" if peers else "" for share in shares]
        held.append([name, f"{each.memory / MIB:.0f}", *told])
        numbers.append(each.numbers(way, times, rate) | {"lengths": lengths})
    count = len(rows["forget"])
    title = f"{lengths}: {count} + {count} rows a step, {world.config.shape}"
    columns = ["way", "ms", "tokens/s", "MFU", "times ours", "error"]
    return [
        Table(f"{title}, time", columns, lines),
        Table(f"{title}, memory", ["way", "MiB", "ours, of it", "in two, of it"], held),
    ], numbers


def _ways(world: World, update: Update, method: str, ours: Stepper) -> Iterator[_Measured]:
    """Ours and the peers', looked at before anything is timed."""
    theirs = {
        name: PeerStyle(
            recipe_of(method, ours),
            habits,
            module=world.model.module,
            reference=None if world.before is None else world.before.module,
            update=update,
            batch=world.config.peer_rows,
        )
        for name, habits in (("peers at best", BEST), ("peers as published", PUBLISHED))
    }
    memory, flops = held_and_done(world, ours.step)
    own = _Measured(method, LETHE, ours.step, ours.tokens, flops, memory, None)
    yield own
    half = ours.in_two()
    memory, _ = held_and_done(world, half.step)
    error = difference(world, half, theirs["peers at best"])
    yield replace(own, way=IN_TWO, work=half.step, memory=memory, error=error)
    for name, peer in theirs.items():
        error = difference(world, ours, peer)
        work = _stepped(world, ours, peer)
        held, _ = held_and_done(world, work)
        yield replace(own, way=name, work=work, memory=held, error=error)


def _stepped(world: World, ours: Stepper, peer: PeerStyle) -> Callable[[], None]:
    def step() -> None:
        with attending(world):
            peer.step(ours.rows["forget"], ours.rows["retain"])

    return step


@contextmanager
def attending(world: World) -> Iterator[None]:
    """The models read padded batches inside, as transformers has them read."""
    models = [x for x in (world.model, world.before) if x is not None]
    for model in models:
        model.attend("sdpa")
    try:
        yield
    finally:
        for model in models:
            model.attend(attention.NAME)


def difference(world: World, ours: Stepper, peer: PeerStyle) -> Errors:
    """How far losses and gradient of our step are from the peer's, at the weights as they are."""
    trainer, engine = ours.trainer, ours.trainer.engine
    assert isinstance(engine, LocalEngine)
    taken: list[Tensor] = []

    def take(optimizer: torch.optim.Optimizer, *_: object) -> None:
        groups = optimizer.param_groups
        taken.extend(_flat(p.grad, p) for group in groups for p in group["params"])

    hook = engine.optimizer.register_step_pre_hook(take)
    ours.step(rate=0.0)  # nothing moves
    hook.remove()
    metrics = trainer.metrics()
    limit = trainer.optimizer.config.max_gradient_norm
    norm = metrics["train/gradient_norm"]
    clipped = 1.0 if limit is None else min(1.0, limit / norm)
    with attending(world):
        losses = peer.differentiate(ours.rows["forget"], ours.rows["retain"])
    groups = trainer.optimizer.groups(trained(trainer.model.module))
    parameters = [p for group in groups for p in _tensors(group)]
    apart = whole = 0.0
    for mine, p in zip(taken, parameters, strict=True):
        theirs = _flat(p.grad, p).double()
        apart += float((mine.double() / clipped - theirs).square().sum())
        whole += float(theirs.square().sum())
        p.grad = None
    furthest = max(abs(metrics[f"train/{n}/loss"] - float(x)) for n, x in losses.items())
    largest = max(abs(float(x)) for x in losses.values())
    return Errors(loss=furthest / largest, gradient=(apart / max(whole, 1e-300)) ** 0.5)


def held_and_done(world: World, work: Callable[[], None]) -> tuple[int, int]:
    """The most bytes that a step holds beside weights, gradient and optimizer, and its FLOPs.

    The gradient is there before the step, as the optimizer's moments are.
    """
    if isinstance(world.engine, LocalEngine):
        for _, p in trainable_parameters(world.model.module):
            p.grad = torch.zeros_like(p)
    with peak_bytes(world.model.device) as peak:
        flops = flops_of(work)
    return peak.bytes, flops


def _tensors(group: dict[str, object]) -> list[Tensor]:
    found = group["params"]
    assert isinstance(found, list)
    return found


def _flat(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    found = torch.zeros_like(parameter) if gradient is None else gradient
    return found.detach().reshape(-1).float().clone()
