"""Whole matrices out of shards: for updates that cannot be computed element by element.

Under ZeRO a matrix lies in pieces on several ranks. Each is put together on one rank, its owner,
changed there, and its pieces go back to where they were: two collectives for as many matrices as
there are ranks. Matrices of similar size go together, so that the owners work equally long, and no
rank ever holds more than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .distributed import all_gather_objects, rank, world_size


class Place(NamedTuple):
    """Where a run of one parameter's elements lies in a shard."""

    name: str
    """Of the parameter."""
    start: int
    """Of the run, in the parameter."""
    offset: int
    """Of the run, in the shard."""
    length: int


class Matrices:
    """Which ranks hold which pieces of some matrices, and the way to the whole and back."""

    def __init__(
        self,
        places: Sequence[Sequence[Place]],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        device: torch.device,
        together: bool,
        replicated: bool = False,
    ) -> None:
        """`places`: what each of this rank's shards holds; `shapes`: the matrices, by name.

        `together`: the shards are spread over all processes; else this one has all. `replicated`:
        each process has all, and an owner's result goes to everybody.
        """
        self.shapes = dict(shapes)
        self._device = device
        self._replicated = replicated
        self._rank, self._world = (rank(), world_size()) if together else (0, 1)
        self._mine: dict[str, list[tuple[int, Place]]] = {name: [] for name in shapes}
        for index, held in enumerate(places):
            for place in held:
                if place.name in shapes:
                    self._mine[place.name].append((index, place))
        self.shards = sorted({index for held in self._mine.values() for index, _ in held})
        """Which of the shards hold a piece of a matrix."""
        runs = {n: [(p.start, p.length) for _, p in held] for n, held in self._mine.items()}
        self._runs = all_gather_objects(runs) if together else [runs]
        for name, shape in shapes.items():
            held_in_all = sum(length for held in self._runs for _, length in held[name])
            copies = self._world if replicated else 1
            assert held_in_all == math.prod(shape) * copies, f"pieces of {name} are missing"
        by_size = sorted(shapes, key=lambda name: (-math.prod(shapes[name]), name))
        self._rounds = [by_size[i : i + self._world] for i in range(0, len(by_size), self._world)]

    def replace_(self, shards: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> None:
        """Put `change(matrix)` in the place of every matrix; each is changed by one rank."""
        for names in self._rounds:
            matrix = self._gathered(shards, names)
            if matrix is not None:
                matrix = change(matrix)
            self._scatter(shards, names, matrix)

    def _own(self, names: Sequence[str]) -> str | None:
        """The matrix of a round that this rank owns."""
        return names[self._rank] if self._rank < len(names) else None

    def _gathered(self, shards: Sequence[Tensor], names: Sequence[str]) -> Tensor | None:
        """The matrix of a round that this rank owns, whole; every rank takes part."""
        given = [
            [shards[i][p.offset : p.offset + p.length] for i, p in self._mine[name]]
            if not self._replicated or owner == self._rank
            else []
            for owner, name in enumerate(names)
        ]
        own = self._own(names)
        runs = [
            held[own] if own is not None and (not self._replicated or source == self._rank) else []
            for source, held in enumerate(self._runs)
        ]
        received = self._exchanged(given, [sum(length for _, length in held) for held in runs])
        if own is None:
            return None
        flat = torch.empty_like(received)
        at = 0
        for start, length in (run for held in runs for run in held):
            flat[start : start + length] = received[at : at + length]
            at += length
        return flat.view(self.shapes[own])

    def _scatter(
        self, shards: Sequence[Tensor], names: Sequence[str], matrix: Tensor | None
    ) -> None:
        """Each piece of a round's matrices back to where it came from."""
        own = self._own(names)
        given: list[list[Tensor]] = []
        if own is not None:
            assert matrix is not None
            flat = matrix.reshape(-1)
            given = [[flat[s : s + length] for s, length in held[own]] for held in self._runs]
        sizes = [sum(place.length for _, place in self._mine[name]) for name in names]
        received = self._exchanged(given, sizes)
        at = 0
        for index, place in (held for name in names for held in self._mine[name]):
            shard = shards[index][place.offset : place.offset + place.length]
            shard.copy_(received[at : at + place.length])
            at += place.length

    def _exchanged(self, given: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> Tensor:
        """What every rank gives this one, `sizes` elements each, for what this one gives them."""
        parts = [part.to(self._device) for row in given for part in row]
        sent = torch.cat(parts) if parts else torch.empty(0, device=self._device)
        if self._world == 1:
            return sent
        missing = self._world - len(sizes)
        received = torch.empty(sum(sizes), device=self._device)
        counts = [sum(part.numel() for part in row) for row in given]
        counts += [0] * (self._world - len(counts))
        dist.all_to_all_single(received, sent, [*sizes, *[0] * missing], counts)
        return received
