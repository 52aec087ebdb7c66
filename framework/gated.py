"""Gated feed-forward layers that keep two tables for the backward pass where three are kept.

    down(act(gate(x)) * up(x))

The product keeps both its factors, and the activation function its input: `gate(x)`, `up(x)` and
`act(gate(x))`, [T, inner] each. Here the last is let go, and taken again from `gate(x)` where the
backward pass needs it: the same numbers, bit for bit.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .memory import storage_of

PARTS = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
"""As Llama, Mistral, Qwen, Gemma, OLMo and most others in transformers name them."""


def keep_less(module: nn.Module) -> None:
    """Have the gated layers in it keep less, but for those that somebody else has changed."""
    for part in module.modules():
        if "forward" not in vars(part) and is_gated(part) and not _is_watched(part.act_fn):
            part.forward = partial(_forward, part)  # of the instance alone


def as_published(module: nn.Module) -> None:
    """Take `keep_less` back."""
    for part in module.modules():
        own = vars(part).get("forward")
        if isinstance(own, partial) and own.func is _forward:
            del part.forward


def is_gated(part: nn.Module) -> bool:
    """Whether it computes what stands above, found out on numbers, of parts that keep no more."""
    if {name for name, _ in part.named_children()} != PARTS:
        return False
    numbers = SimpleNamespace(
        gate_proj=lambda x: 2 * x + 1,
        up_proj=lambda x: 7 - x,
        down_proj=lambda x: 3 * x + 2,
        act_fn=lambda x: x * x,
    )
    try:
        found: object = type(part).forward(numbers, 3)
        return found == 3 * (7 * 7 * 4) + 2 and _keeps_its_input(part.act_fn)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # it is more than these four, or its function takes other tables


def _is_watched(act: Any) -> bool:
    """Whether somebody's hooks are called with it, past which it would be computed."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(vars(act)[kind] for kind in kinds)


def _keeps_its_input(act: Any) -> bool:
    """Whether the function keeps its input alone and unchanged, as SiLU and GELU do."""
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(storage_of(tensor))
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        given = torch.ones(1, 2, 2, device="cpu", requires_grad=True) * 1.0
        result = act.forward(given)
    return set(kept) == {storage_of(given)} and storage_of(result) != storage_of(given)


def _forward(self: Any, states: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        result: Tensor = type(self).forward(self, states)
        return result
    gate, up = self.gate_proj(states), self.up_proj(states)
    product: Tensor = _Gated.apply(gate, up, self.act_fn)  # type: ignore[no-untyped-call]
    down: Tensor = self.down_proj(product)
    return down


class _Gated(torch.autograd.Function):
    """act(gate) * up, from which all that is kept is these two."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Any) -> Tensor:
        """Of any shape."""
        ctx.save_for_backward(gate, up)
        ctx.act = act
        product: Tensor = act.forward(gate) * up  # past the hooks of ZeRO-3, which holds none of it
        return product

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """It may be differentiated again."""
        gate, up = ctx.saved_tensors
        of_gate: Tensor | None = None
        with torch.enable_grad():
            active = ctx.act.forward(gate)
        of_up = upstream * active if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:
            (of_gate,) = torch.autograd.grad(
                active, gate, upstream * up, create_graph=torch.is_grad_enabled()
            )
        return of_gate, of_up, None
