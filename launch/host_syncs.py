"""Counts the operations of a block that make the host wait for the device.

A step that only queues work runs ahead of the GPU; each of these operations drains the queue:

    a number read (`item`, `float`, `bool`, `tolist`), two tensors compared as a whole
    a result whose shape is its content: `nonzero`, an index by a mask, `repeat_interleave`
    a copy to the host, or from host memory that is not pinned

Counted as torch dispatches them, so on the CPU and on meta tensors too, where nothing waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READ = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
SHAPED = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
COPIED = {"aten::_to_copy", "aten::copy_"}
MASKS = (torch.bool, torch.uint8)


@contextmanager
def host_syncs() -> Iterator[Counter[str]]:
    """Inside, count; `.total()` of what is given is the number, its keys are the operations."""
    counting = _Counting()
    with counting, _Lists(counting.found):
        yield counting.found


class _Counting(TorchDispatchMode):
    """Looks at every operation, and lets it go on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every operation."""
        named = kwargs or {}
        name: str = func.name().partition(".")[0]
        waits = name in READ | SHAPED or (name in INDEXED and _by_mask(args[1]))
        waits |= name == "aten::repeat_interleave" and named.get("output_size") is None
        if waits:
            self.found[name] += 1
        result = func(*args, **named)
        if name in COPIED and _crosses(args, result):
            self.found[name] += 1
        return result


class _Lists(TorchFunctionMode):
    """Looks at what becomes a list, or was one: of host memory, torch dispatches nothing."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every function."""
        if func in (Tensor.tolist, Tensor.numpy) and args[0].device.type == "cpu":
            self._found[func.__name__] += 1
        result = func(*args, **(kwargs or {}))
        if func is torch.tensor and result.device.type != "cpu":  # from a list, by pageable memory
            self._found["tensor"] += 1
        return result


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in MASKS for index in indices)


def _crosses(args: Sequence[Any], result: Tensor) -> bool:
    """Whether a copy goes from one memory to another in a way that the host waits for."""
    source = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
    if source.device.type == result.device.type:
        return False
    return result.device.type == "cpu" or (source.device.type == "cpu" and not source.is_pinned())
