"""Peak bytes: the most memory that the tensors made inside a block held at once.

On a GPU as its allocator counts it. On a CPU, and of tensors that are fake or on `meta`, by
watching every operation: what tensors hold from when they are made until they are freed. What a
kernel takes for itself meanwhile is then not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Held = Counter[str]
"""Bytes by part."""
SUM = torch.ops.aten.add.Tensor


@dataclass
class Peak:
    """What was found; whole once the block is left."""

    bytes: int = 0


@contextmanager
def peak_bytes(device: torch.device) -> Iterator[Peak]:
    """Count inside the block; tensors from before it are not counted, nor when they grow."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _Highest(peak, device) as storages:
            yield peak
            storages.look()


class Storages(TorchDispatchMode):
    """Follows the memory that operations take while it is on, from when it is made to when freed.

    Where operations are watched autograd does not add gradients up in place, as it does elsewhere:
    the sum takes memory of its own. It is looked at when the gradient that it takes the place of
    may be gone.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: Held = Counter()
        self._places: dict[int, tuple[int, str]] = {}
        self._late = False

    def look(self) -> None:
        """Take note of what is held now."""
        raise NotImplementedError

    def part_of(self, result: Any) -> str:
        """What the new memory below the result of an operation is for."""
        raise NotImplementedError

    def storages(self, tree: Any) -> list[tuple[int, torch.UntypedStorage]]:
        """The memory below a nested structure's tensors, each with what names it while it lives."""
        leaves = [tree] if isinstance(tree, Tensor) else tree_leaves(tree)
        storages = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]
        return [(storage._cdata, storage) for storage in storages]  # noqa: SLF001 - its only name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch for every operation."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the operation; what it gives that did not come with its arguments is new."""
        if self._late:
            self._late = False
            self.look()
        result = func(*args, **kwargs)
        unknown = [x for x in self.storages(result) if x[0] not in self._places]
        if unknown:
            given = {place for place, _ in self.storages((args, kwargs))}
            part = self.part_of(result)
            for place, storage in unknown:
                if place not in given and place not in self._places:
                    self.add(place, storage, part)
            self._late = func is SUM and in_backward()
            if not self._late:
                self.look()
        return result

    def add(self, place: int, storage: torch.UntypedStorage, part: str) -> None:
        """From now on count it, until it is freed."""
        self._places[place] = storage.nbytes(), part
        self.held[part] += storage.nbytes()
        weakref.finalize(storage, self._freed, place)

    def _freed(self, place: int) -> None:
        size, part = self._places.pop(place)
        self.held[part] -= size


class _Highest(Storages):
    """Keeps the most that is held, of tensors on one kind of device.

    A library may keep shapes as tensors on `meta`.
    """

    def __init__(self, peak: Peak, device: torch.device) -> None:
        super().__init__()
        self._peak, self._device = peak, device.type

    def look(self) -> None:
        """See `Storages.look`."""
        self._peak.bytes = max(self._peak.bytes, self.held[""])

    def part_of(self, _result: Any) -> str:
        """See `Storages.part_of`."""
        return ""

    def storages(self, tree: Any) -> list[tuple[int, torch.UntypedStorage]]:
        """See `Storages.storages`."""
        leaves = tree_leaves(tree)
        tensors = [x for x in leaves if isinstance(x, Tensor) and x.layout == torch.strided]
        return super().storages([x for x in tensors if x.device.type == self._device])


def in_backward() -> bool:
    """Whether this is in a backward pass, of which no gradient is taken."""
    inside: bool = torch._C._current_graph_task_id() >= 0  # noqa: SLF001 - told nowhere else
    return inside and not torch.is_grad_enabled()
