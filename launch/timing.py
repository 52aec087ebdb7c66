"""Several ways to do one thing, timed in turns: medians, spread, ratios, and whether they agree."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from framework.terminal import progress


@dataclass(frozen=True)
class Way:
    """One way to do the work; `work` gives what it found, for `agreement` to look at."""

    name: str
    work: Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """How long one way took in each round, and what it found."""

    name: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """Of this process: what other processes on the machine do hardly changes them."""
    found: Any


@dataclass(frozen=True)
class Comparison:
    """Ways to do one thing; the first is the one that others are set against."""

    name: str
    unit: str
    """What is counted."""
    count: int
    """How many of them one round holds."""
    ways: tuple[Timed, ...]
    notes: tuple[dict[str, str], ...]
    """Of each way: whether it agrees with the first, and what else was counted."""

    def to_json(self) -> dict[str, Any]:
        """Every number as measured, and the medians."""
        lines = []
        for way, note in zip(self.ways, self.notes, strict=True):
            paces = [self.count / seconds for seconds in way.seconds]
            ratios, cpu = self._ratios(way)
            lines.append(
                {
                    "way": way.name,
                    f"{self.unit}_per_second": statistics.median(paces),
                    "lowest": min(paces),
                    "highest": max(paces),
                    "times_faster": statistics.median(ratios),
                    "times_faster_lowest": min(ratios),
                    "times_faster_highest": max(ratios),
                    "times_less_cpu": statistics.median(cpu),
                    **note,
                    "seconds": list(way.seconds),
                    "cpu_seconds": list(way.cpu_seconds),
                }
            )
        return {"name": self.name, "unit": self.unit, "count": self.count, "ways": lines}

    def columns(self) -> list[str]:
        """The headings of `rows`."""
        return [
            "way",
            f"{self.unit}/s",
            "lowest to highest",
            "times faster",
            "times less CPU",
            *self.notes[0],
        ]

    def rows(self) -> list[list[str]]:
        """The table: a line per way."""
        lines: list[list[str]] = []
        for way, note in zip(self.ways, self.notes, strict=True):
            paces = sorted(self.count / seconds for seconds in way.seconds)
            ratios, cpu = map(sorted, self._ratios(way))
            lines.append(
                [
                    way.name,
                    f"{statistics.median(paces):.1f}",
                    f"{paces[0]:.1f} to {paces[-1]:.1f}",
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    f"{statistics.median(cpu):.2f}",
                    *note.values(),
                ]
            )
        return lines

    def _ratios(self, way: Timed) -> tuple[list[float], list[float]]:
        """How many times less time and CPU time than the first way took, of each round."""
        first = self.ways[0]
        pairs = (first.seconds, way.seconds), (first.cpu_seconds, way.cpu_seconds)
        wall, cpu = ([a / b for a, b in zip(*pair, strict=True)] for pair in pairs)
        return wall, cpu


def cost(way: Timed) -> tuple[float, ...]:
    """What each round cost: CPU seconds, or wall seconds where a GPU does the work."""
    return way.seconds if torch.cuda.is_available() else way.cpu_seconds


def ratios(way: Timed, other: Timed) -> list[float]:
    """How many times the cost of `other` that of `way` is, of each round."""
    return [a / b for a, b in zip(cost(way), cost(other), strict=True)]


def in_all(way: Timed, other: Timed) -> float:
    """How many times the cost of `other` that of `way` is, all rounds together."""
    return sum(cost(way)) / sum(cost(other))


def with_spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and between which two values all lie."""
    low, middle, high = (
        f"{x:.{digits}f}" for x in (min(values), statistics.median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def in_turns(ways: Sequence[Way], rounds: int, *, description: str) -> list[Timed]:
    """Every way in every round, one after another, after a round that is not counted."""
    return in_rounds([ways] * (rounds + 1), description=description)


def in_rounds(rounds: Sequence[Sequence[Way]], *, description: str) -> list[Timed]:
    """The same where the ways of each round, by the same names, have work of their own.

    The first of `rounds` is not counted.
    """
    ways = rounds[0]
    seconds: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    found: dict[str, Any] = {}
    turns = [(i, way) for i, those in enumerate(rounds) for way in those]
    for i, way in progress(turns, description=description):
        _wait()
        started, cpu = time.perf_counter(), time.process_time()
        found[way.name] = way.work()
        _wait()
        if i > 0:
            took = time.perf_counter() - started, time.process_time() - cpu
            seconds[way.name].append(took)
    timed = []
    for way in ways:
        wall, cpus = zip(*seconds[way.name], strict=True)
        timed.append(Timed(way.name, wall, cpus, found[way.name]))
    return timed


def _wait() -> None:
    """Until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
