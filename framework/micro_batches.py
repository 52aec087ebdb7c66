"""Micro-batches: how the rows of a step are cut, shared out to the ranks and packed.

All rows that are read together, of one objective or of several, are cut at once: a micro-batch
holds rows of some or all of the objectives, which are members of one pack (`data.Rows`). Every rank
gets the same number of micro-batches, because collectives inside the model must match.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch

from .data import Row, Rows, StepTotals, idle, laid_out, pack_members
from .shared import by_beginning, pack_shared

Parts = dict[str, list[Row]]
"""The rows of one micro-batch, by objective."""


def micro_batches(
    step: Mapping[str, Sequence[Row]],
    *,
    tokens: int,
    rank: int,
    world_size: int,
    shares: bool,
    device: torch.device,
) -> list[dict[str, Rows]]:
    """A rank's packed share of a step, by objective; every mean divides by the whole step."""
    totals = {name: StepTotals.of(rows) for name, rows in step.items()}
    cut = partition(step, tokens=tokens, world_size=world_size, shares=shares)[rank]
    batches = []
    for parts in cut:
        members = [(rows, totals[name]) for name, rows in parts.items()]
        packed = (pack_shared if shares else pack_members)(members, device=device)
        batches.append(dict(zip(parts, packed, strict=True)))
    return batches


def partition(
    step: Mapping[str, Sequence[Row]], *, tokens: int, world_size: int, shares: bool
) -> list[list[Parts]]:
    """Cut a step's rows into micro-batches of at most `tokens` tokens: [rank][micro-batch].

    `shares`: whether tokens that rows of a micro-batch begin with alike are counted once. Every
    rank gets the same number of micro-batches and nearly the same number of tokens (longest row
    first, into the emptiest micro-batch). A row longer than `tokens` travels alone; a row and its
    preferred answer are never parted. A pure function of its arguments.
    """
    units = [(name, row) for name, rows in step.items() for row in rows]
    assert units, "a step without rows"
    cuts = _Cuts([row for _, row in units], shares=shares)
    budget = max(tokens, *cuts.alone)
    order = sorted(range(len(units)), key=lambda i: (-units[i][1].tokens, i))
    per_rank = max(1, -(-cuts.together // (budget * world_size)))
    while True:
        bins, loads = cuts.into(per_rank * world_size, order)
        if max(loads) <= budget:
            break
        per_rank += 1
    shortest, row = units[order[-1]]
    heaviest_first = sorted(range(len(bins)), key=lambda b: (-loads[b], b))
    filled = [
        _by_objective([units[i] for i in sorted(bins[b])]) or {shortest: [idle(row)]}
        for b in heaviest_first
    ]
    return [filled[rank::world_size] for rank in range(world_size)]


def _by_objective(units: Sequence[tuple[str, Row]]) -> Parts:
    parts: Parts = {}
    for name, row in units:
        parts.setdefault(name, []).append(row)
    return parts


class _Cuts:
    """Rows to be cut, and how many tokens any of them read in one pack."""

    def __init__(self, rows: Sequence[Row], *, shares: bool) -> None:
        """`shares`: whether tokens that rows begin with alike are counted once."""
        read = [(i, one) for i, row in enumerate(rows) for one in laid_out([row])]
        lengths = [len(one) for _, one in read]
        order, alike = by_beginning([one for _, one in read]) if shares else ([], [])
        order = order or list(range(len(read)))
        self._lengths = [lengths[k] for k in order]
        self._alike = alike or [0] * len(read)
        """What each of all rows that are read, sorted, has from the one before it."""
        self._places: list[list[int]] = [[] for _ in rows]
        """Of each row and its preferred answer, where among those they stand."""
        for place, k in enumerate(order):
            self._places[read[k][0]].append(place)
        self.together = sum(lengths) - sum(self._alike)
        """Tokens of all rows in one pack."""
        self.alone = [self._add([], i) for i in range(len(rows))]
        """Tokens of each row in a pack of its own."""

    def into(self, number: int, order: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """So many bins of rows, and the tokens in each."""
        if number == 1:
            return [list(order)], [self.together]
        bins: list[list[int]] = [[] for _ in range(number)]
        packs: list[list[int]] = [[] for _ in range(number)]
        lightest_first = [(0, b) for b in range(number)]
        for i in order:
            load, b = lightest_first[0]
            bins[b].append(i)
            heapq.heapreplace(lightest_first, (load + self._add(packs[b], i), b))
        loads = {b: load for load, b in lightest_first}
        return bins, [loads[b] for b in range(number)]

    def _add(self, pack: list[int], i: int) -> int:
        """Put row i into the sorted pack; how many tokens are read that were not before."""
        new = 0
        for place in self._places[i]:
            at = bisect_left(pack, place)
            before = pack[at - 1] if at else None
            after = pack[at] if at < len(pack) else None
            new += self._own(before, place) + self._own(place, after) - self._own(before, after)
            pack.insert(at, place)
        return new

    def _own(self, before: int | None, place: int | None) -> int:
        """Tokens of the row at `place` that it does not have from the row at `before`."""
        if place is None:
            return 0
        length = self._lengths[place]
        return length if before is None else length - min(self._alike[before + 1 : place + 1])
