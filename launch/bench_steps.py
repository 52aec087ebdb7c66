"""A method's step beside that of gradient difference, and what a token costs as rows grow."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from framework import distributed

from .bench_result import Answer, Table
from .flops import Multiplication, flops_of
from .settings import is_sharded
from .shapes import Lengths, rows_of
from .step_looks import MIB, TOO_LARGE, held_and_done, where_it_fits
from .timing import Timed, Way, cost, in_all, in_rounds, in_turns, ratios, with_spread
from .training_world import METHODS, RATE, Stepper, World

PLAIN = "grad_diff"
"""What methods are set beside."""
AIMS = {**dict.fromkeys(("npo", "simnpo", "pdu", "su"), 1.03), "sam": 1.55, "rmu": 0.6}
"""How many times the cost of `PLAIN` a method's step is to be at most, wherever it is taken."""
COUNTS, LENGTHS = (1, 4, 16, 64), (256, 1024, 4096)
"""Rows of a step, and tokens of a step's one row, that growth is measured over."""

# ---- methods -------------------------------------------------------------------------------------


def methods(world: World) -> Iterator[Answer]:
    """Each method's step beside gradient difference's, on the same rows."""
    named = [PLAIN, *(x for x in world.config.methods or METHODS if x != PLAIN)]
    for lengths in world.config.lengths:
        draws = world.draws(lengths)
        steppers = {method: world.steppers(method, draws) for method in named}
        seen = {method: _seen(world, each) for method, each in steppers.items()}
        timed_ones = {method: steppers[method] for method in named if seen[method]}
        product = Multiplication(world.model.device, world.model.module.dtype)
        turns = [
            [Way("product", product), *(Way(name, x[i].step) for name, x in timed_ones.items())]
            for i in (0, *range(len(draws)))
        ]
        timed = {x.name: x for x in in_rounds(turns, description=lengths)}
        rate = product.flops / statistics.median(cost(timed["product"]))
        lines, numbers = [], []
        for method in named:
            line, told = _told(seen[method], timed.get(method), timed.get(PLAIN), rate)
            aim = aim_of(
                method,
                sharded=is_sharded(world.config),
                shares=world.model.shares_beginnings(),
            )
            lines.append([method, *line, "" if aim is None else f"{aim:.2f}"])
            numbers.append({"lengths": lengths, "method": method, "aim": aim, **told})
        title = f"{lengths}: {about(world)}, beside gradient difference"
        held = "MiB + gradient" if is_sharded(world.config) else "MiB"
        columns = ["method", "ms", "tokens/s", "MFU", held, "times grad_diff", "in all", "aim"]
        yield [Table(title, columns, lines)], numbers


class Seen(NamedTuple):
    """What a method's steps do, of all draws."""

    tokens: int
    flops: int
    memory: int
    """Bytes at most, beside weights, gradient (not under ZeRO) and optimizer, of any draw."""


def _seen(world: World, steppers: Sequence[Stepper]) -> Seen | None:
    """None: a step does not fit."""

    def looks() -> list[tuple[int, int]]:
        return [held_and_done(world.engine, x.step) for x in steppers]

    found = where_it_fits(world.engine, looks)
    if found is None:
        return None
    memory, flops = zip(*found, strict=True)
    return Seen(sum(x.tokens for x in steppers), sum(flops), max(memory))


def _told(
    seen: Seen | None, way: Timed | None, plain: Timed | None, rate: float
) -> tuple[list[str], dict[str, object]]:
    """The cells of a method's line but its aim, and what the JSON holds."""
    if seen is None or way is None:
        return [TOO_LARGE, *[""] * 5], {"fits": False}
    seconds = cost(way)
    cells = [
        f"{1e3 * statistics.median(seconds):.0f}",
        f"{seen.tokens / sum(seconds):.0f}",
        f"{100 * seen.flops / sum(seconds) / rate:.0f} %",
        f"{seen.memory / MIB:.0f}",
    ]
    numbers = {
        "fits": True,
        "tokens": seen.tokens,
        "useful_flops": seen.flops,
        "device_flops_per_second": rate,
        "memory_bytes": seen.memory,
        **times_of(way),
    }
    if plain is None:
        return [*cells, "", ""], numbers
    times, together = ratios(way, plain), in_all(way, plain)
    beside = {"times_grad_diff": statistics.median(times), "times_grad_diff_in_all": together}
    return [*cells, with_spread(times), f"{together:.2f}"], numbers | beside


def aim_of(method: str, *, sharded: bool, shares: bool) -> float | None:
    """How many times the cost of `PLAIN` the method's step is to be at most.

    `shares`: whether what rows begin with alike is read once.
    """
    if method in ("blur", "ngdiff"):
        return 1.10 if sharded else 1.05
    if method == "dpo":  # two answers to each question
        return 1.30 if shares else 1.55
    return AIMS.get(method)


# ---- growth --------------------------------------------------------------------------------------


def growth(world: World) -> Iterator[Answer]:
    """What a token costs in steps of more rows, and in longer rows: gradient ascent's step."""
    name = "uniform"  # of which no row begins as another does
    vocabulary = int(world.model.module.config.vocab_size)
    batches = {f"{n} of {name}": world.batch(name, rows=n)["forget"] for n in COUNTS}
    for length in LENGTHS:
        answer = round(0.385 * length)
        shape = Lengths(((length - answer, answer),))
        batches[f"1 of {length:,} tokens"] = rows_of(shape, 1, vocabulary=vocabulary, name="forget")
    steppers = {what: world.stepper("ga", {"forget": rows}) for what, rows in batches.items()}
    direction = world.engine.noise(0)
    update = Way("update", lambda: world.engine.step(direction.scale_(1.0), RATE))
    ways = [update, *(Way(what, stepper.step) for what, stepper in steppers.items())]
    flops = {what: flops_of(stepper.step) for what, stepper in steppers.items()}
    timed = {x.name: x for x in in_turns(ways, world.config.rounds, description="growth")}
    first = f"16 of {name}"
    beside = flops[first] / steppers[first].tokens
    lines, numbers = [], []
    paces = {
        what: [
            (step - alone) / steppers[what].tokens
            for step, alone in zip(cost(timed[what]), cost(timed["update"]), strict=True)
        ]
        for what in steppers
    }
    for what, stepper in steppers.items():
        own = flops[what] / stepper.tokens / beside
        times = [a / b for a, b in zip(paces[what], paces[first], strict=True)]
        micros = 1e6 * statistics.median(paces[what])
        tokens = f"{stepper.tokens:,}"
        lines.append([what, tokens, f"{micros:.0f}", with_spread(times), f"{own:.2f}"])
        numbers.append(
            {
                "what": what,
                "tokens": stepper.tokens,
                "flops": flops[what],
                "seconds_a_token": statistics.median(paces[what]),
                "times": statistics.median(times),
                **times_of(timed[what]),
            }
        )
    columns = ["rows", "tokens", "us a token", "beside 16 rows", "its FLOPs beside"]
    title = f"growth: {world.config.shape}, gradient ascent without its update"
    yield [Table(title, columns, lines)], numbers


def about(world: World) -> str:
    """The step in a title."""
    rows, ranks = world.config.rows, distributed.world_size()
    about = f"{rows} + {rows} rows a step, {world.config.shape}"
    return (
        about
        if ranks == 1 and world.config.zero.name == "none"
        else (f"{about}, zero={world.config.zero.name}, {ranks} rank{'s' * (ranks > 1)}")
    )


def times_of(way: Timed) -> dict[str, object]:
    """What was measured."""
    return {"seconds": list(way.seconds), "cpu_seconds": list(way.cpu_seconds)}
