"""ZeRO without DeepSpeed: an engine that makes what DeepSpeed would, of tensors without memory.

What DeepSpeed 0.19.8 allocates was read in its source and measured on two processes, storage by
storage (`tests/launch/test_rehearsal.py` holds the estimate to it):

- stages 1 and 2: weights flat and whole; a bucket of `zero.bucket` elements (two with overlap)
  from the first gradient of a backward pass to its end; this rank's share of the gradient in a
  tensor of its own beside the bucket; where a bucket is reduced, one rank's share of it once more,
  in bf16 at stage 2 twice more
- stage 1: whole gradients until the end of the backward pass, in fp32
- stage 3: a share of everything, one fp32 bucket for good; weights are gathered for a pass, at most
  a billion elements at a time, and lie there twice while up to 50 million of them arrive: before
  the forward pass and, where a gradient is of several passes, before the backward pass as well
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from framework.engine import PIECE, Engine, Loss, Shift, measure_shift, trained
from framework.language_model import LanguageModel
from framework.modules import trainable_parameters
from framework.optimizers import Optimizer, skips_on_device, step_along
from framework.vectors import Vector

from .ledger import ACTIVATIONS, BUFFERS, GRADIENTS, ON_HOST, VECTORS, Ledger

PREFETCHED, LIVE, PERSISTENT, REDUCED = 50_000_000, 1_000_000_000, 100_000, 500_000_000
"""Elements, DeepSpeed's defaults: of weights gathered at once and in all, of a parameter that stays
gathered, of one collective where `bucket` is not asked."""


@dataclass(frozen=True)
class Spread:
    """How ZeRO spreads a run."""

    stage: int
    ranks: int
    bucket: int
    overlap: bool
    offload: bool


class RehearsedZero(Engine):
    """See the module."""

    def __init__(
        self,
        spread: Spread,
        *,
        model: LanguageModel,
        optimizer: Optimizer,
        dtype: torch.dtype,
        ledger: Ledger,
    ) -> None:
        """`model`: its parameters in `dtype`, not counted yet."""
        self.spread, self.model, self.ledger, self.dtype = spread, model, ledger, dtype
        self._parameters = [p for _, p in trainable_parameters(model.module)]
        self._size = min(spread.bucket, sum(p.numel() for p in self._parameters))
        everything = list(model.module.parameters())
        ledger.assign(list(model.module.buffers()), "weights")
        self._kept: list[Tensor] = []
        if spread.stage == 3:
            with ledger.making("weights"):
                self._kept = [self._empty(self._share(p.numel()), dtype) for p in everything]
                small = sum(p.numel() for p in everything if p.numel() <= PERSISTENT)
                self._kept.append(self._empty(small, dtype))
        else:
            ledger.assign(everything, "weights")
        self._large = sum(p.numel() for p in everything if p.numel() > PERSISTENT)
        groups = optimizer.groups(trained(model.module))
        with ledger.making(ON_HOST if spread.offload else "masters"):
            self.masters = [
                nn.Parameter(self._empty(self._share(sum(p.numel() for p in group)), torch.float32))
                for group in (_tensors(g) for g in groups)
            ]
        self.optimizer = optimizer.build(
            [{**g, "params": [m]} for g, m in zip(groups, self.masters, strict=True)]
        )
        self.skips_on_device = skips_on_device(self.optimizer)
        self._lasting_buffers()
        self._bucket: list[Tensor] = []
        self._filled = 0
        self._own: list[Tensor] = []
        self._saved: list[Tensor] = []
        self._whole: dict[Tensor, Tensor] = {}
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _lasting_buffers(self) -> None:
        own = sum(m.numel() for m in self.masters)
        with self.ledger.making(ON_HOST if self.spread.offload else GRADIENTS):
            if self.spread.stage == 3 or self.spread.offload:
                self._kept.append(self._empty(own, torch.float32))
        if self.spread.stage == 3:
            with self.ledger.making(BUFFERS):
                self._kept.append(self._empty(self._size, torch.float32))

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """See `Engine.gradient`."""
        with self.ledger.phase("backward"):
            for k, loss in enumerate(losses):
                last = k == len(losses) - 1
                gathered = self._gathered(min(self._large, LIVE))
                self._gathered(min(self._large, PREFETCHED))
                with self.ledger.making(ACTIVATIONS):
                    value = loss()
                    if len(losses) > 1:
                        self._gathered(min(self._large, PREFETCHED))
                    value.backward()
                del value, gathered
                self._passed(last=last)
            with self.ledger.making(self._vectors):
                found = [torch.empty_like(m) for m in self.masters]
            self._own.clear()
            for parameter in self._parameters:
                parameter.grad = None
        return self.vector(found)

    def _gathered(self, elements: int) -> Tensor | None:
        if self.spread.stage != 3:
            return None
        with self.ledger.making("weights gathered by ZeRO-3"):
            return self._empty(elements, self.dtype)

    def _arrived(self, parameter: Tensor) -> None:
        """A parameter's gradient is there: what DeepSpeed does with it at once."""
        assert parameter.grad is not None
        self.ledger.assign([parameter.grad], GRADIENTS)
        if self.spread.stage < 3 and not self._bucket:
            low = self.spread.stage == 2 and self.dtype == torch.bfloat16
            with self.ledger.making(BUFFERS):
                for _ in range(2 if self.spread.overlap else 1):
                    kind = self.dtype if low else torch.float32
                    self._bucket.append(self._empty(self._size, kind))
        if self.spread.stage > 1:
            self._into_bucket(parameter)
        elif self.dtype == torch.bfloat16:
            if parameter not in self._whole:
                with self.ledger.making(GRADIENTS):
                    self._whole[parameter] = self._empty(parameter.numel(), torch.float32)
            parameter.grad = None

    def _into_bucket(self, parameter: Tensor) -> None:
        size = parameter.numel()
        if self._filled and self._filled + size > self._size:
            self._reduce()
        if size <= self._size:
            parameter.grad = None
            self._whole.pop(parameter, None)
        self._filled += size
        if size > self._size:
            self._reduce()
            parameter.grad = None
            self._whole.pop(parameter, None)

    def _reduce(self) -> None:
        """One collective over what the bucket holds."""
        with self.ledger.making(BUFFERS):
            if self.spread.stage < 3 and not self._own and not self.spread.offload:
                self._own = [self._empty(sum(m.numel() for m in self.masters), torch.float32)]
            low = self.dtype == torch.bfloat16 and self.spread.stage > 1
            sent = self._filled if self.spread.stage == 3 else self._share(self._filled)
            flat = self._empty(sent, torch.float32)
            again = self._empty(sent, self.dtype) if low else None
        del flat, again
        self._filled = 0

    def _passed(self, *, last: bool) -> None:
        """After a backward pass."""
        if self.spread.stage == 1 and last:
            for parameter in self._parameters:
                if parameter.grad is not None or parameter in self._whole:
                    self._into_bucket(parameter)
        if self._filled:
            self._reduce()
        self._bucket.clear()

    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """See `Engine.step`."""
        first = not self.optimizer.state
        with self.ledger.phase("step"), self.ledger.making("the step's own"):
            step_along(self.optimizer, self.masters, direction.shards, learning_rate, skip)
        if first:
            part = ON_HOST if self.spread.offload else "optimizer"
            self.ledger.assign(states_of(self.optimizer), part)

    @torch.no_grad()
    def shift(self, delta: Vector) -> Shift:
        """See `Engine.shift`, as ZeroEngine has it."""
        with self.ledger.phase("update"):
            if self.dtype == torch.float32 and self.spread.stage == 3:
                self._saved = [m.clone() for m in self.masters]

            def moves() -> Iterator[tuple[Tensor, Tensor]]:
                for each in zip(self.masters, delta.shards, strict=True):
                    for origin, d in zip(*(x.view(-1).split(PIECE) for x in each), strict=True):
                        start = origin.to(self.dtype).float()
                        end = (start + d).to(self.dtype)
                        yield d, end.float() - start

            return measure_shift(moves(), replicated=True)

    def unshift(self, *, alone: bool = False) -> None:
        """See `Engine.unshift`."""
        del alone
        self._saved = []

    def noise(self, seed: int) -> Vector:
        """See `Engine.noise`."""
        del seed
        return self.weights()

    def vector(self, shards: Sequence[Tensor]) -> Vector:
        """See `Engine.vector`."""
        return Vector([s.view(-1) for s in shards], replicated=True)

    @torch.no_grad()
    def weights(self) -> Vector:
        """See `Engine.weights`."""
        with self.ledger.making(self._vectors):
            return self.vector([m.clone() for m in self.masters])

    def set_weights(self, weights: Vector) -> None:
        """See `Engine.set_weights`: takes no memory."""

    @property
    def _vectors(self) -> str:
        return ON_HOST if self.spread.offload else VECTORS

    def _share(self, elements: int) -> int:
        return -(-elements // self.spread.ranks)

    def _empty(self, elements: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(elements, dtype=dtype, device=self.model.device)

    def save(self, folder: Path) -> NoReturn:
        """Not of a rehearsal."""
        raise AssertionError(folder)

    def load(self, folder: Path) -> NoReturn:
        """Not of a rehearsal."""
        raise AssertionError(folder)

    def state_dict(self) -> dict[str, Tensor]:
        """Not of a rehearsal."""
        raise AssertionError

    def master_weights(self) -> dict[str, Tensor]:
        """Not of a rehearsal."""
        raise AssertionError


def _tensors(group: Mapping[str, object]) -> list[Tensor]:
    tensors = group["params"]
    assert isinstance(tensors, list)
    return tensors


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that torch's optimizer keeps."""
    states = [held for state in optimizer.state.values() for held in state.values()]
    return [held for held in states if isinstance(held, Tensor)]
