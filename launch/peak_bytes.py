"""Peak bytes: the most memory that the tensors made inside a block held at once.

On a GPU as its allocator counts it. On a CPU, and of tensors that are fake or on `meta`, by
watching every operation: what tensors hold from when they are made until they are freed. What a
kernel takes for itself meanwhile is then not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
        with _Storages(peak, device):
            yield peak


class _Storages(TorchDispatchMode):
    """Adds up the storages of what operations return that did not come with their arguments.

    Of tensors on one kind of device: a library may keep shapes as tensors on `meta`.
    """

    def __init__(self, peak: Peak, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._peak = peak
        self._device = device.type
        self._held: dict[int, int] = {}
        self._bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {place for place, _ in storages_of((args, kwargs), self._device)}
        result = func(*args, **(kwargs or {}))
        for place, storage in storages_of(result, self._device):
            if place in given or place in self._held:
                continue
            self._held[place] = storage.nbytes()
            self._bytes += storage.nbytes()
            weakref.finalize(storage, self._freed, place)
        self._peak.bytes = max(self._peak.bytes, self._bytes)
        return result

    def _freed(self, place: int) -> None:
        self._bytes -= self._held.pop(place)


def storages_of(tree: Any, device: str) -> list[tuple[int, torch.UntypedStorage]]:
    """The memory below the tensors of a nested structure, each with what names it while it lives.

    Of those on that kind of device.
    """
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    strided = [t for t in tensors if t.layout == torch.strided and t.device.type == device]
    storages = [t.untyped_storage() for t in strided]
    return [(storage._cdata, storage) for storage in storages]  # noqa: SLF001 - its only name
