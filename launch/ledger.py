"""A ledger: what tensors without memory would hold, by what they are for, and when it was most."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Held = Counter[str]
"""Bytes by part."""
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


class Ledger(TorchDispatchMode):
    """Adds up the storages that operations make while it is on; numbers read off tensors are 1."""

    def __init__(self, *, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = VECTORS
        """What is made next is for."""
        self.held: Held = Counter()
        self.peaks: dict[str, Held] = {}
        """How it stood when it was most, by phase."""
        self._phase = ""
        self._vocabulary = vocabulary
        self._places: dict[int, tuple[int, str]] = {}

    @property
    def most(self) -> int:
        """Bytes on the device in the phase that needs most."""
        return max(map(on_device, self.peaks.values()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is made inside belongs to a phase of that name; phases do not nest."""
        before, self._phase = self._phase, name
        self._look()
        try:
            yield
        finally:
            self._look()
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
        for place, storage in _storages(tensors):
            if place in self._places:
                size, before = self._places[place]
                self.held[before] -= size
                self._places[place] = size, part
                self.held[part] += size
            else:
                self._add(place, storage, part)
        self._look()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation; what it gives that did not come with its arguments is new."""
        if func is DEVICE:
            return CPU
        if func is READ:
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 1)
        if func is torch.ops.aten.split.Tensor and args[1] >= 1 << 16:
            # pieces of inner products, a hundred thousand of a large model's: none takes memory
            args = (args[0], args[0].numel(), *args[2:])
        result = func(*args, **(kwargs or {}))
        unknown = [x for x in _storages(result) if x[0] not in self._places]
        if unknown:
            given = {place for place, _ in _storages((args, kwargs))}
            wide = self.part == ACTIVATIONS and _width(result) == self._vocabulary
            for place, storage in unknown:
                if place not in given and place not in self._places:
                    self._add(place, storage, LOGITS if wide else self.part)
            self._look()
        return result

    def _add(self, place: int, storage: torch.UntypedStorage, part: str) -> None:
        self._places[place] = storage.nbytes(), part
        self.held[part] += storage.nbytes()
        weakref.finalize(storage, self._freed, place)

    def _freed(self, place: int) -> None:
        size, part = self._places.pop(place)
        self.held[part] -= size

    def _look(self) -> None:
        most = self.peaks.get(self._phase)
        if self._phase and (most is None or on_device(self.held) > on_device(most)):
            self.peaks[self._phase] = self.held.copy()


def on_device(held: Held) -> int:
    """Bytes in all but what lies on the host."""
    return sum(held.values()) - held[ON_HOST]


def _storages(tree: Any) -> list[tuple[int, torch.UntypedStorage]]:
    """The memory below a nested structure's tensors, each with what names it while it lives."""
    leaves = [tree] if isinstance(tree, Tensor) else tree_leaves(tree)
    storages = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]
    return [(storage._cdata, storage) for storage in storages]  # noqa: SLF001 - its only name


def _width(result: Any) -> int:
    return int(result.shape[-1]) if isinstance(result, Tensor) and result.dim() > 1 else 0
