"""What of a model's settings follows from a GPU's memory: fitted by rehearsals of the run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

from omegaconf import DictConfig

from framework import Benchmark
from framework.loading import TOKENS_PER_MICRO_BATCH
from framework.memory import GIB
from framework.recomputation import Recomputed
from framework.terminal import say

from .settings import FITTED, to_fit, with_model


class Way(NamedTuple):
    """How a step is taken."""

    tokens: int
    """Of a micro-batch."""
    recomputed: Recomputed
    """What of activations is, in the backward pass."""


Peak = Callable[[Way], int]
"""Bytes that a step takes at most."""


def fitted(config: DictConfig, benchmark: Benchmark, there: int | None) -> DictConfig:
    """The config, each `auto` of its model replaced by what fits `there` bytes of a GPU.

    Rehearses the run once to five times, seconds each for a model of billions of parameters.
    """
    if there is None or not to_fit(config):
        return config
    from .fit import planned  # what tensors without memory take is seconds to import
    from .rehearsal import rehearse

    plans = cache(
        lambda recomputed: planned(
            with_model(config, {"gradient_checkpointing": recomputed}), benchmark
        )
    )

    @cache
    def peak(way: Way) -> int:
        plan = plans(way.recomputed)
        plan.run.model.tokens_per_micro_batch = way.tokens
        return rehearse(plan.run, plan.rows).most

    tokens, recomputed = (config.model[name] for name in FITTED)
    most = plans(recomputed if recomputed != "auto" else False).tokens
    way = chosen(peak, there, tokens=tokens, recomputed=recomputed, most=most)
    if way.recomputed and recomputed == "auto":
        needed = peak(Way(min(way.tokens, TOKENS_PER_MICRO_BATCH), recomputed=False))
        sizes = f"{needed / GIB:.1f} of {there / GIB:.1f} GiB"
        told = str(way.recomputed).lower()
        say(f"model.gradient_checkpointing={told}: without it a step needs {sizes}")
    return with_model(config, dict(zip(FITTED, way, strict=True)))


def chosen(
    peak: Peak,
    there: int,
    *,
    tokens: int | Literal["auto"],
    recomputed: Recomputed | Literal["auto"],
    most: int,
) -> Way:
    """What `auto` comes to on a device of `there` bytes.

    First come 4096 tokens, as little recomputed as lets them fit; then twice as many as often as
    that fits, up to the `most` that a rank reads in a step.
    """
    sizes = [TOKENS_PER_MICRO_BATCH if tokens == "auto" else tokens]
    possible: tuple[Recomputed, ...] = (False, "selective", True)
    if recomputed != "auto":
        possible = (recomputed,)
    *less, last = possible
    how = next((how for how in less if peak(Way(sizes[0], how)) <= there), last)
    while tokens == "auto" and sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    ways = [Way(size, how) for size in sizes]
    return ways[bisect_right(ways[1:], there, key=peak)]
