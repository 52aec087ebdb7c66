"""A method's step beside that of gradient difference, and what a token costs as rows grow."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from framework import distributed

from .bench_peers import MIB, held_and_done
from .bench_result import Table
from .flops import Multiplication, flops_of
from .settings import is_sharded
from .shapes import Lengths, rows_of
from .timing import Timed, Way, cost, in_turns, ratios, with_spread
from .training_world import METHODS, RATE, World

AIMS = {
    **dict.fromkeys(("npo", "simnpo", "pdu", "su"), 1.03),
    **dict.fromkeys(("blur", "ngdiff"), 1.05),  # 1.10 under ZeRO
    "sam": 1.55,
    "dpo": 1.3,
    "rmu": 0.6,
}
"""How many times the cost of gradient difference a method's step is to be at most."""
COUNTS, LENGTHS = (1, 4, 16, 64), (256, 1024, 4096)
"""Rows of a step, and tokens of a step's one row, that growth is measured over."""

Answer = tuple[list[Table], list[dict[str, object]]]
"""To a part of a question: tables, and every number for the JSON."""


# ---- methods -------------------------------------------------------------------------------------


def methods(world: World) -> Iterator[Answer]:
    """Each method's step beside gradient difference's, on the same rows."""
    named = ["grad_diff", *(x for x in world.config.methods or METHODS if x != "grad_diff")]
    for lengths in world.config.lengths:
        rows = world.batch(lengths)
        steppers = {method: world.stepper(method, rows) for method in named}
        before = {method: held_and_done(world, x.step) for method, x in steppers.items()}
        product = Multiplication(world.model.device, world.model.module.dtype)
        ways = [Way("product", product), *(Way(name, x.step) for name, x in steppers.items())]
        timed = {x.name: x for x in in_turns(ways, world.config.rounds, description=lengths)}
        rate = product.flops / statistics.median(cost(timed["product"]))
        lines, numbers = [], []
        for method, stepper in steppers.items():
            seconds = statistics.median(cost(timed[method]))
            times = ratios(timed[method], timed["grad_diff"])
            memory, flops = before[method]
            lines.append(
                [
                    method,
                    f"{1e3 * seconds:.0f}",
                    f"{stepper.tokens / seconds:.0f}",
                    f"{100 * flops / seconds / rate:.0f} %",
                    f"{memory / MIB:.0f}",
                    with_spread(times),
                    _aim(method, sharded=is_sharded(world.config)),
                ]
            )
            numbers.append(
                {
                    "lengths": lengths,
                    "method": method,
                    "tokens": stepper.tokens,
                    "useful_flops": flops,
                    "device_flops_per_second": rate,
                    "memory_bytes": memory,
                    "times_grad_diff": statistics.median(times),
                    **times_of(timed[method]),
                }
            )
        title = f"{lengths}: {about(world)}, beside gradient difference"
        columns = ["method", "ms", "tokens/s", "MFU", "MiB", "times grad_diff", "aim"]
        yield [Table(title, columns, lines)], numbers


def _aim(method: str, *, sharded: bool) -> str:
    if method not in AIMS:
        return ""
    return f"{1.10 if sharded and AIMS[method] == 1.05 else AIMS[method]:.2f}"


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
