"""A method's step beside the same step in the peers' way, and whether the two are the same step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from framework import attention, gated
from framework.engine import Engine
from framework.recomputation import recompute

from .bench_result import Answer, Table
from .flops import Multiplication
from .peer_style import BEST, METHODS, PUBLISHED, Habits, PeerStyle, Update
from .step_looks import LIMITS, MIB, TOO_LARGE, Errors, Look, Losses, look, where_it_fits
from .timing import Timed, Way, cost, in_all, in_rounds, ratios, with_spread
from .training_world import Stepper, World, recipe_of

HEADLINE = ("npo", "npo_kl")
"""What is set beside peers unless methods are named."""
LETHE, IN_TWO, SELECTIVE = "Lethe", "Lethe, in two", "Lethe, selective"
"""Ours, and what less memory costs: ours in twice as many micro-batches, and ours with activations
computed again selectively (`model.gradient_checkpointing`), set beside peers that keep theirs."""
PEERS = {"peers at best": BEST, "peers as published": PUBLISHED}


class Step(NamedTuple):
    """One way to take a method's step, of one draw's rows."""

    work: Callable[[], object]
    look: Callable[[], Look]


@dataclass
class Seen:
    """What one way to take a method's step was seen to do, before it is timed."""

    method: str
    way: str
    steps: Sequence[Step]
    """Of each draw."""
    tokens: int
    """Of all draws."""
    flops: int = 0
    """That our own steps do, of all draws: what is useful of it, whoever takes them."""
    fits: bool = True
    memory: int = 0
    """Bytes at most, beside weights, gradient and optimizer, of any draw."""
    errors: list[Errors] = field(default_factory=list)
    """Of ours beside this one, draw by draw."""

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.method}: {self.way}"

    @property
    def error(self) -> Errors | None:
        """The largest of any draw."""
        return max(self.errors, key=lambda x: max(x.loss, x.gradient), default=None)

    def time(self, way: Timed, ours: Timed | None, rate: float, limit: float) -> list[str]:
        """Its line in the table of times."""
        seconds = cost(way)
        own = [f"{1e3 * statistics.median(seconds):.0f}", f"{self.tokens / sum(seconds):.0f}"]
        own.append(f"{100 * self.flops / sum(seconds) / rate:.0f} %" if self.flops else "")
        if self.error is None or ours is None:
            return [self.name, *own, "", "", ""]
        told = with_spread(ratios(way, ours))
        counts = told if self.error.within(limit) else f"does not count: {told}"
        return [self.name, *own, counts, f"{in_all(way, ours):.2f}", str(self.error)]

    def numbers(self, way: Timed | None, ours: Timed | None, rate: float) -> dict[str, object]:
        """What the JSON holds."""
        timed = {} if way is None else {"seconds": way.seconds, "cpu_seconds": way.cpu_seconds}
        beside = None if way is None or ours is None else (ratios(way, ours), in_all(way, ours))
        return {
            "method": self.method,
            "way": self.way,
            "fits": self.fits,
            "tokens": self.tokens,
            "useful_flops": self.flops,
            "device_flops_per_second": rate,
            "memory_bytes": self.memory,
            "times_our_cost": None if beside is None else statistics.median(beside[0]),
            "times_our_cost_in_all": None if beside is None else beside[1],
            "loss_errors": [_finite(error.loss) for error in self.errors],
            "gradient_errors": [_finite(error.gradient) for error in self.errors],
            **{name: list(values) for name, values in timed.items()},
        }


def _finite(error: float) -> float | None:
    """Which JSON has a number for."""
    return error if math.isfinite(error) else None


def peers(world: World) -> Iterator[Answer]:
    """Each method's step and the peers' two ways of it, on rows of each length."""
    named = [x for x in world.config.methods or HEADLINE if x in METHODS]
    assert named, "the bench asks for a method that peers have"
    world.leave_reference()
    update = Update(world.model.module, world.optimizer)
    for lengths in world.config.lengths:
        world.engine.set_weights(world.engine.weights())  # the peers' update left its own, in bf16
        update.follow()
        yield _beside_peers(world, update, lengths, named)


def _beside_peers(world: World, update: Update, lengths: str, named: Sequence[str]) -> Answer:
    draws = world.draws(lengths)
    seen: list[Seen] = []
    for method in named:
        steppers = world.steppers(method, draws)
        ways = ways_of(world, update, method, steppers)
        seen += looked_at(world.engine, method, ways, tokens=sum(x.tokens for x in steppers))
    return told(world, lengths, seen)


def told(world: World, lengths: str, seen: Sequence[Seen]) -> Answer:
    """Take the steps of the ways that fit in turns; tables and numbers of all."""
    product = Multiplication(world.model.device, world.model.module.dtype)
    turns = [
        [Way("product", product), *(Way(x.name, x.steps[i].work) for x in seen if x.fits)]
        for i in (0, *range(world.config.rounds))
    ]
    timed = {x.name: x for x in in_rounds(turns, description=lengths)}
    rate = product.flops / statistics.median(cost(timed["product"]))
    memory = {(x.method, x.way): x.memory for x in seen if x.fits}
    lines, held, numbers = [], [], []
    for each in seen:
        way, ours = timed.get(each.name), timed.get(f"{each.method}: {LETHE}")
        numbers.append(each.numbers(way, ours, rate) | {"lengths": lengths})
        if way is None:
            lines.append([each.name, TOO_LARGE, *[""] * 5])
            held.append([each.name, TOO_LARGE, "", "", ""])
            continue
        lines.append(each.time(way, ours, rate, LIMITS[world.config.precision]))
        own = [memory.get((each.method, x)) for x in (LETHE, IN_TWO, SELECTIVE)]
        shares = [
            "" if x is None or each.way not in PEERS else f"{x / max(1, each.memory):.2f}"
            for x in own
        ]
        held.append([each.name, f"{each.memory / MIB:.0f}", *shares])
    count = world.config.rows
    title = f"{lengths}: {count} + {count} rows a step, {world.config.shape}"
    columns = ["way", "ms", "tokens/s", "MFU", "times ours", "in all", "error"]
    shares_of = ["ours, of it", "in two, of it", "selective, of theirs without"]
    return [
        Table(f"{title}, time", columns, lines),
        Table(f"{title}, memory", ["way", "MiB", *shares_of], held),
    ], numbers


def looked_at(
    engine: Engine, method: str, ways: Mapping[str, Sequence[Step]], *, tokens: int
) -> list[Seen]:
    """Every way on every draw's rows, before anything is timed; ours, `LETHE`, is the first."""
    found = {name: Seen(method, name, steps, tokens) for name, steps in ways.items()}
    for i in range(len(ways[LETHE])):
        ours: Look | None = None
        for name, way in found.items():
            if not way.fits:
                continue
            seen = where_it_fits(engine, way.steps[i].look)
            if seen is None:
                way.fits = False
                continue
            way.memory = max(way.memory, seen.memory)
            if name == LETHE:
                ours = seen
            elif ours is not None:
                way.errors.append(ours.errors(seen))
        if ours is not None:
            for way in found.values():
                way.flops += ours.flops
    return list(found.values())


def ways_of(
    world: World, update: Update, method: str, steppers: Sequence[Stepper]
) -> dict[str, list[Step]]:
    """Ours and the peers', of each draw's rows."""
    halves = [stepper.in_two() for stepper in steppers]
    own = {LETHE: steppers, IN_TWO: halves}
    ways: dict[str, list[Step]] = {
        name: [Step(x.step, x.look) for x in each] for name, each in own.items()
    }
    ways[SELECTIVE] = [selective_step(world, x) for x in steppers]
    for name, habits in PEERS.items():
        peer = peer_of(world, update, method, steppers[0], habits)
        ways[name] = [step_of(world, peer, x) for x in steppers]
    return ways


def selective_step(world: World, ours: Stepper) -> Step:
    """Our step with activations computed again, those that are cheap."""
    module = world.model.module

    @contextmanager
    def selectively() -> Iterator[None]:
        recompute(module, "selective")
        try:
            yield
        finally:
            module.activation_checkpointing_disable()

    return Step(selectively()(ours.step), selectively()(ours.look))


def peer_of(world: World, update: Update, method: str, ours: Stepper, habits: Habits) -> PeerStyle:
    """The peers' way of our step."""
    return PeerStyle(
        recipe_of(method, ours.trainer),
        habits,
        module=world.model.module,
        reference=None if world.before is None else world.before.module,
        update=update,
        batch=world.config.peer_rows,
    )


def step_of(world: World, peer: PeerStyle, ours: Stepper) -> Step:
    """The peer's, of the rows of ours."""

    def work() -> dict[str, Tensor]:
        with attending(world):
            return peer.step(ours.rows["forget"], ours.rows["retain"])

    def losses() -> Losses:
        return {name: float(loss) for name, loss in work().items()}

    update = peer.update
    return Step(work, lambda: look(world.engine, update.config, update.torch, losses))


@contextmanager
def attending(world: World) -> Iterator[None]:
    """The models read padded batches inside, as transformers has them read."""
    models = [x for x in (world.model, world.before) if x is not None]
    for model in models:
        model.attend("sdpa")
        gated.as_published(model.module)
    try:
        yield
    finally:
        for model in models:
            model.attend(attention.NAME)
            gated.keep_less(model.module)
