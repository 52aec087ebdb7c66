"""What is watched while a step is taken on tensors without memory: its work, logits and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .flops import flops_of_operation
from .ledger import CPU, DEVICE, READ, Ledger
from .peak_bytes import in_backward

COPY = torch.ops.aten._to_copy.default  # noqa: SLF001 - the operation's name
CLAMP = torch.ops.aten.clamp.default
PRODUCT = torch.ops.aten.mm.default


def let_go(parameters: Sequence[Tensor]) -> None:
    """Gradients are let go as soon as they are there."""

    def arrived(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(arrived)


class Passes:
    """The forward passes of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.forwards = self.reads = self.tokens = 0
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module, args
        self.tokens += kwargs["input_ids"].numel()
        if torch.is_grad_enabled():
            self.forwards += 1
        else:
            self.reads += 1


class Watch(Ledger):
    """Counts FLOPs, logits, numbers that the host asks for, and bytes.

    Bytes by stretches: a new one begins with every tensor as wide or long as the vocabulary. Those
    are made outside of the blocks, as often in a deep model as in a shallow one, and within a
    stretch what is held grows or shrinks from block to block. So the most in each of a deep model's
    stretches can be told, and the most of all may be in another one than a shallow model's.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary=vocabulary)
        self._words = vocabulary
        self.flops = self.logits = self.syncs = 0
        self.stretches: list[int] = []
        self._most = self._before = 0
        self._holding = self._ending = False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What is made inside is counted by bytes, in stretches of its own."""
        self._before, self._most, self._holding = self._bytes(), 0, True
        yield
        self._next()
        self._holding = self._ending = False

    def look(self) -> None:
        """See `Storages.look`."""
        self._most = max(self._most, self._bytes() - self._before)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `Ledger.run`; what the host is told of tensors is 0."""
        if func is READ:
            self.syncs += 1
            return 0.0 if args[0].is_floating_point() else 0
        if func is COPY and args[0].is_meta and kwargs.get("device") == CPU:
            self.syncs += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is CLAMP:  # on `meta` it is thirty operations of Python's; of one size and type
            func, args, kwargs = torch.ops.aten.clone.default, args[:1], {}
        if func is DEVICE:
            return super().run(func, args, kwargs)
        if self._ending:  # of a sum's two terms one may be gone by now
            self._late = self._ending = False
            self._next()
        result = super().run(func, args, kwargs)
        self.flops += flops_of_operation(func, args, kwargs, result)
        if isinstance(result, Tensor):
            shape = result.shape
            if func is PRODUCT and shape[1] == self._words and not in_backward():
                self.logits += shape[0]
            if self._holding and self._words in (*shape[:1], *shape[-1:]):
                self._ending = self._late
                if not self._ending:
                    self._next()
        return result

    def _next(self) -> None:
        """A stretch ends."""
        self.look()
        self.stretches.append(self._most)
        self._most = 0

    def _bytes(self) -> int:
        return sum(self.held.values())
