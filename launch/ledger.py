"""A ledger: what tensors without memory would hold, by what they are for, and when it was most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .peak_bytes import Held, Storages

ACTIVATIONS, LOGITS, VECTORS, GRADIENTS, BUFFERS = (
    "activations",
    "logits",
    "gradients and vectors of the method",
    "gradients in the backward pass",
    "buffers of ZeRO",
)
ON_HOST = "on the host"
"""The part of what lies in host memory, which no peak counts."""


READ = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - the operation's name
DEVICE = torch.ops.prim.device.default
"""Which device a tensor is on: three of four operations."""
CPU = torch.device("cpu")
"""The device that tensors without memory say they are on."""


class Ledger(Storages):
    """Adds up the storages that operations make while it is on.

    Numbers read off tensors are 1; counts are 0, as that of steps skipped for a NaN.
    """

    def __init__(self, *, vocabulary: int) -> None:
        super().__init__()
        self.part = VECTORS
        """What is made next is for."""
        self.peaks: dict[str, Held] = {}
        """How it stood when it was most, by phase."""
        self._phase = ""
        self._vocabulary = vocabulary

    @property
    def most(self) -> int:
        """Bytes on the device in the phase that needs most."""
        return max(map(on_device, self.peaks.values()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is made inside belongs to a phase of that name; phases do not nest."""
        before, self._phase = self._phase, name
        self.look()
        try:
            yield
        finally:
            self.look()
            self._phase = before

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """What is made inside is for `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def assign(self, tensors: Sequence[Tensor], part: str) -> None:
        """From now on these tensors are for `part`, whether they were counted before or not."""
        for place, storage in self.storages(tensors):
            if place in self._places:
                size, before = self._places[place]
                self.held[before] -= size
                self._places[place] = size, part
                self.held[part] += size
            else:
                self.add(place, storage, part)
        self.look()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `Storages.run`; of some operations the answer is known."""
        if func is DEVICE:
            return CPU
        if func is READ:
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 0)
        if func is torch.ops.aten.split.Tensor and args[1] >= 1 << 16:
            # pieces of inner products, a hundred thousand of a large model's: none takes memory
            args = (args[0], args[0].numel(), *args[2:])
        return super().run(func, args, kwargs)

    def part_of(self, result: Any) -> str:
        """See `Storages.part_of`."""
        wide = self.part == ACTIVATIONS and _width(result) == self._vocabulary
        return LOGITS if wide else self.part

    def look(self) -> None:
        """See `Storages.look`."""
        most = self.peaks.get(self._phase)
        if self._phase and (most is None or on_device(self.held) > on_device(most)):
            self.peaks[self._phase] = self.held.copy()


def on_device(held: Held) -> int:
    """Bytes in all but what lies on the host."""
    return sum(held.values()) - held[ON_HOST]


def _width(result: Any) -> int:
    return int(result.shape[-1]) if isinstance(result, Tensor) and result.dim() > 1 else 0
