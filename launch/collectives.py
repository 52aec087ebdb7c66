"""Counts the collectives of a block on this rank, and the elements that they move.

Seen where torch hands them to the backend, whoever calls them: DeepSpeed, `framework`, torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "allreduce_": "all-reduce",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "alltoall_base_": "all-to-all",
    "barrier": "barrier",
}


class Collective(NamedTuple):
    """One collective as this rank calls it."""

    name: str
    """Such as `all-gather`."""
    elements: int
    """Of the whole that it is about: an all-gather's result, a reduce-scatter's argument."""


@contextmanager
def collectives() -> Iterator[list[Collective]]:
    """Inside, note every collective, in order."""
    noting = _Noting()
    with noting:
        yield noting.found


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.found: list[Collective] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every operation."""
        space, _, name = func.name().partition(".")[0].partition("::")
        if space == "c10d":
            sizes = [_elements(argument) for argument in args[:2]]
            self.found.append(Collective(NAMES.get(name, name), max(sizes, default=0)))
        return func(*args, **(kwargs or {}))


def _elements(argument: object) -> int:
    if isinstance(argument, Tensor):
        return argument.numel()
    if isinstance(argument, list | tuple):
        return sum(map(_elements, argument))
    return 0
