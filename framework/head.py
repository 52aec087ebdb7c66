"""The output head: numbers per token from what it is given, without all logits being there at once.

While a model is read its head computes something else than logits (`computing`): a function of its
input, at a place where its weights are whole under ZeRO-3, forward and backward. Where the table of
logits would be large the function sees it in chunks, and the backward pass computes them again.

Shapes: `S` scored tokens, `C` of a chunk, `V` vocabulary, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from .errors import ModelError
from .memory import storage_of

PerToken = Callable[[Tensor, slice], Tensor]
"""From logits [C, V] fp32 and the place of the chunk among the scored tokens, [C] or [C, ...]."""

WHOLE = 2**24
"""Logits, S x V, up to which all are there at once: computing them twice costs more than it saves.

On a CPU, a step of a 1B's proportions was 2 % longer in chunks at 3 million logits (and held 2 %
less); of the head alone, 1.32 times as long at 3 million, 1.07 to 1.13 from 8 to 17 million.
"""
CHUNK = 2**21
"""Logits that are there at once where there are more: of those from 2**18 to 2**23 the fastest,
for 12,032 words."""
TOKENS = {"cpu": 64}
"""Tokens of a chunk at least, whatever the vocabulary; elsewhere 512 (of 128,256 words 0.26 GB).

Every chunk reads the head's weights, and a function's backward pass reads and writes their gradient
as well. On a CPU chunks of 16 tokens of 128,256 words took 1.2 times as long as 64 (2.88 s, 2.34 s;
with 261: 2.82 s). A GPU needs hundreds for its products to outweigh that traffic; not measured."""


@dataclass(frozen=True)
class Head:
    """The output head in the middle of a forward pass, or after one."""

    states: Tensor | None = None
    """[S, D], what it is given; None: the logits are not of one head."""
    layer: nn.Linear | None = None
    """What it is, where its product is all: logits are computed where they are asked for."""
    table: Tensor | None = None
    """[S, V] the logits, where they are there already."""
    shared: tuple[Tensor, _Sum] | None = None
    """Where several readings' gradients of the weight add up, and what waits for them all."""

    def adding_up(self) -> Head:
        """The head for several readings: they make one gradient of its weight, not one each.

        Of a weight in half precision `of_logits` in chunks makes its own in fp32 beside it. The
        readings can be differentiated once, not twice.
        """
        if self.layer is None:
            return self
        gathered = _Sum()
        edge: Tensor = _HandsOver.apply(self.layer.weight, gathered)  # type: ignore[no-untyped-call]
        return replace(self, shared=(edge, gathered)) if edge.requires_grad else self

    def given(self) -> Tensor:
        """[S, D] what it is given."""
        if self.states is None:
            raise ModelError("a model without one output head has no states that go into it")
        return self.states

    def logits(self) -> Tensor:
        """[S, V] fp32, all at once."""
        if self.table is not None:
            return self.table.float()
        assert self.layer is not None
        if self.shared is None:
            return nn.Linear.forward(self.layer, self.given()).float()
        return self._apply(_Product).float()

    def of_logits(self, function: PerToken) -> Tensor:
        """[S, ...] what the function gives, chunk by chunk."""
        if not torch.is_grad_enabled():
            return torch.cat([function(self.at(c).logits(), c) for c in self._chunks()])
        if self._whole():
            return function(self.logits(), slice(0, self._size()[0]))
        return self._apply(_OfLogits, function)

    def token_log_probs(self, targets: Tensor) -> Tensor:
        """[S] log-probability of each target, in nats."""
        if self._whole():
            return -cross_entropy(self.logits(), targets, reduction="none")
        return self._apply(_TokenLogProbs, targets)

    def at(self, place: slice) -> Head:
        """The head at some of the scored tokens."""
        states, table = (None if t is None else t[place] for t in (self.states, self.table))
        return replace(self, states=states, table=table)

    def _size(self) -> tuple[int, int]:
        """(S, V)."""
        if self.table is not None:
            return self.table.shape[0], self.table.shape[1]
        assert self.layer is not None
        return len(self.given()), self.layer.out_features

    def _chunks(self) -> Iterator[slice]:
        """The places of the scored tokens, chunk by chunk."""
        return _tokens(self.given() if self.table is None else self.table, self._size()[1])

    def _whole(self) -> bool:
        """Whether all logits are to be there at once, or are."""
        tokens, vocabulary = self._size()
        if self.table is not None or tokens * vocabulary <= WHOLE:
            return True
        return tokens <= _least(self.given().device)

    def _apply(self, kind: type[torch.autograd.Function], *what: PerToken | Tensor) -> Tensor:
        assert self.layer is not None
        shared = (None, None) if self.shared is None else self.shared
        of = self.given(), self.layer.weight, self.layer.bias
        values: Tensor = kind.apply(*of, *shared, *what)
        return values


class _Sum:
    """A gradient to which several nodes of one backward pass add."""

    total: Tensor | None = None
    _of: int | None = None
    """The backward pass that adds to it: one that asks for other gradients leaves its sum here."""

    def begun(self, weight: Tensor) -> tuple[Tensor, int]:
        """What to add to, and how often what is there counts: not at all as long as it is new."""
        now = torch._C._current_graph_task_id()  # noqa: SLF001 - told nowhere else
        new = self.total is None or self._of != now
        self._of = now
        if self.total is None:
            self.total = torch.empty_like(weight)
        return self.total, int(not new)

    def added_up(self, weight: Tensor) -> Tensor:
        """What to add to: zeros as long as it is new."""
        total, begun = self.begun(weight)
        return total if begun else total.zero_()


class _HandsOver(torch.autograd.Function):
    """Of a weight, what those are given who add to its gradient elsewhere: it is last backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gathered: _Sum) -> Tensor:
        """A tensor of no use but to be waited for."""
        ctx.gathered = gathered
        ctx.set_materialize_grads(False)
        return weight.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _upstream: None) -> tuple[Tensor | None, None]:
        """Hand over the sum."""
        total, ctx.gathered.total = ctx.gathered.total, None
        return total, None


@contextmanager
def computing(layer: nn.Linear, function: Callable[[Head], Tensor]) -> Iterator[None]:
    """Inside, a model's head computes the function of itself, which the model gives as logits."""

    def forward(states: Tensor) -> Tensor:
        return function(Head(states.flatten(0, -2), layer))

    layer.forward = forward  # type: ignore[method-assign, assignment] # of the instance alone
    try:
        yield
    finally:
        del layer.forward


def watched(head: nn.Module | None, read: Callable[[], Tensor]) -> tuple[Head, bool]:
    """The head in a forward pass that gives all logits, and whether they are its product alone.

    Soft caps and scales are found by what they do: the logits of the model are not the head's own.
    `head`: None where transformers knows none.
    """
    if head is None:
        return Head(table=read().flatten(0, -2)), False
    seen: list[tuple[Tensor, Tensor, int]] = []

    def note(_head: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        seen.append((given[0], logits, logits._version))  # noqa: SLF001 - a change in place counts

    hook = head.register_forward_hook(note)
    try:
        table = read()
    finally:
        hook.remove()
    ((states, logits, version),) = seen
    same = storage_of(table) == storage_of(logits) and table._version == version  # noqa: SLF001 - as in `note`
    alone = type(head) is nn.Linear and same
    return Head(states.flatten(0, -2), table=table.flatten(0, -2)), alone


def unchanged(head: nn.Module, read: Callable[[], Tensor]) -> bool:
    """Whether a forward pass that gives all logits gives its head's own, to the bit."""
    made: list[Tensor] = []

    def note(_head: nn.Module, _given: object, logits: Tensor) -> None:
        made.append(logits.clone())  # which may be changed in place

    hook = head.register_forward_hook(note)
    try:
        table = read()
    finally:
        hook.remove()
    (logits,) = made
    return torch.equal(table.nan_to_num(), logits.nan_to_num())


def _tokens(states: Tensor, vocabulary: int) -> Iterator[slice]:
    """The places of tokens, chunk by chunk."""
    return _pieces(len(states), vocabulary, least=_least(states.device))


def _least(device: torch.device) -> int:
    """Tokens of a chunk at least."""
    return TOKENS.get(device.type, 512)


def _pieces(length: int, width: int, *, least: int = 1) -> Iterator[slice]:
    """Slices of `length`, one at least: of `least`, or of as many times `width` as CHUNK allows."""
    step = max(least, CHUNK // width)
    return (slice(start, min(start + step, length)) for start in range(0, max(length, 1), step))


class _Product(torch.autograd.Function):
    """All logits at once, one of several readings of a head."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        edge: Tensor,
        gathered: _Sum,
    ) -> Tensor:
        """[S, V]; `gathered`: what the weight's gradient is added to, which `edge` hands over."""
        del edge
        ctx.save_for_backward(states, weight)
        ctx.gathered = gathered
        return linear(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Of states and bias."""
        states, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            total, begun = ctx.gathered.begun(weight)
            torch.addmm(total, upstream.t(), states, beta=begun, out=total)
        of_bias = upstream.sum(0) if ctx.needs_input_grad[2] else None
        return upstream @ weight, None, of_bias, None, None


class _OfLogits(torch.autograd.Function):
    """A function of logits, a number of tokens at a time.

    The weight's gradient adds up in fp32: in bf16 every chunk would round it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        edge: Tensor | None,
        gathered: _Sum | None,
        function: PerToken,
    ) -> Tensor:
        """[S, ...]; `gathered`: what the weight's gradient is added to, which `edge` hands over."""
        del edge
        ctx.save_for_backward(states, weight, bias)
        ctx.function, ctx.gathered = function, gathered
        places = _tokens(states, len(weight))
        return torch.cat([function(linear(states[c], weight, bias).float(), c) for c in places])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Of states, weight and bias."""
        states, weight, bias = ctx.saved_tensors
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        gathered = _Sum() if ctx.gathered is None else ctx.gathered
        in_fp32 = weight.dtype == torch.float32
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = gathered.added_up(weight) if in_fp32 else _zeros_like(weight)
        of_bias = _zeros_like(bias) if ctx.needs_input_grad[2] else None
        for chunk in _tokens(states, len(weight)):
            logits = linear(states[chunk], weight, bias).float().requires_grad_()
            with torch.enable_grad():
                values = ctx.function(logits, chunk)
            (slope,) = torch.autograd.grad(values, logits, upstream[chunk])
            slope = slope.to(states.dtype)
            if of_states is not None:
                of_states[chunk] = slope @ weight
            if of_weight is not None:
                _add_product(of_weight, slope.t(), states[chunk])
            if of_bias is not None:
                of_bias += slope.sum(0)
        if of_weight is not None and not in_fp32:
            of_weight = gathered.added_up(weight).add_(of_weight)
        own = of_weight if ctx.gathered is None else None
        return of_states, own, None if of_bias is None else of_bias.to(bias.dtype), None, None, None


class _TokenLogProbs(torch.autograd.Function):
    """Log-probabilities: backward a part of the vocabulary at a time.

    So each part of the weight's gradient is one product over all tokens, rounded once, as if the
    table of logits were there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        edge: Tensor | None,
        gathered: _Sum | None,
        targets: Tensor,
    ) -> Tensor:
        """[S]; `gathered`: what the weight's gradient is added to, which `edge` hands over."""
        del edge
        ctx.gathered = gathered
        sums, taken = [], []
        for chunk in _tokens(states, len(weight)):
            logits = linear(states[chunk], weight, bias).float()
            sums.append(logits.logsumexp(-1))
            taken.append(logits.gather(-1, targets[chunk, None])[:, 0])
        all_sums = torch.cat(sums)
        ctx.save_for_backward(states, weight, bias, targets, all_sums)
        return torch.cat(taken) - all_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Of states, weight and bias."""
        states, weight, bias, targets, sums = ctx.saved_tensors
        of_states = torch.zeros_like(states, dtype=torch.float32)
        gathered = _Sum() if ctx.gathered is None else ctx.gathered
        of_weight, begun = gathered.begun(weight) if ctx.needs_input_grad[1] else (None, 0)
        of_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        for part in _pieces(len(weight), len(states)):
            logits = linear(states, weight[part], None if bias is None else bias[part]).float()
            slope = logits.sub_(sums[:, None]).exp_().mul_(-upstream[:, None])
            place = targets - part.start
            inside = (place >= 0) & (place < slope.shape[1])
            place = place.clamp(0, slope.shape[1] - 1)
            slope.scatter_add_(1, place[:, None], (upstream * inside)[:, None])
            slope = slope.to(states.dtype)
            of_states += slope @ weight[part]
            if of_weight is not None:
                of_part = of_weight[part]
                torch.addmm(of_part, slope.t(), states, beta=begun, out=of_part)
            if of_bias is not None:
                of_bias[part] = slope.sum(0)
        own = of_weight if ctx.gathered is None else None
        return of_states.to(states.dtype), own, of_bias, None, None, None


def _zeros_like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total` fp32 += a @ b of any one type."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
