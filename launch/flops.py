"""FLOPs that a step does, and how many a second the device can do: what utilization is made of.

Convention: matrix products as torch counts them (two FLOPs a multiplication), plus attention over
the pairs of tokens that a causal model looks at, twice as much again for its backward pass.
Nothing else is counted, neither norms nor softmax nor the optimizer, nor what a kernel computes
again. Padding, logits that nobody needs and products that are computed again are counted where they
are done. Utilization is made of useful FLOPs: those of a step that pads nothing, without what it
computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.attention.varlen  # its operations are counted below
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


def flops_of(work: Callable[[], object]) -> int:
    """What `work` does, which it does once."""
    return _counted(work, _ATTENTION)


def useful_flops_of(work: Callable[[], object]) -> int:
    """The same without the products that a backward pass computes again: a large head's logits."""
    return _counted(work, {**_ATTENTION, **_ONCE})


def _counted(work: Callable[[], object], mapping: dict[Any, Any]) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment] # has all that is asked of it
    with counter:
        work()
    return int(counter.get_total_flops())


def flops_of_operation(
    operation: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: Any
) -> int:
    """What one operation does, as torch dispatches it; `given`: its result."""
    formula = _FORMULAS.get(operation.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=given))


class _NoModules(nullcontext[None]):
    """No module is told apart: torch's hooks that do hold what a module was given, too long.

    A step that computes all activations again seemed to hold 240 MiB, and holds 70.
    """

    parents = frozenset({"Global"})


class Multiplication:
    """A square matrix product as large as keeps the device busy: what its best rate is taken by."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """On a CPU it takes tens of milliseconds, on a GPU one."""
        self._size = 8192 if device.type == "cuda" else 1024
        draw = torch.Generator(device=device).manual_seed(0)
        self._a, self._b = (
            torch.randn(self._size, self._size, generator=draw, device=device).to(dtype)
            for _ in range(2)
        )
        self._times = 20 if device.type == "cuda" else 5

    @property
    def flops(self) -> int:
        """Of one call."""
        return self._times * 2 * self._size**3

    def __call__(self) -> None:
        """Multiply."""
        for _ in range(self._times):
            torch.mm(self._a, self._b)


def _pairs(queries: int, keys: int) -> int:
    """How many keys all queries look at together: they are the last of the keys."""
    return queries * (keys - queries) + queries * (queries + 1) // 2


def _forward(query: Shape, key: Shape, *_: object, **__: object) -> int:
    """Of [B, heads, tokens, width] each."""
    rows, heads, queries, width = query
    return 4 * rows * heads * width * _pairs(queries, key[2])


def _backward(_: object, query: Shape, key: Shape, *__: object, **___: object) -> int:
    return 2 * _forward(query, key)


def _packed_forward(
    query: Tensor, _k: Tensor, _v: Tensor, ends: Tensor, key_ends: Tensor, *_: Any, **__: Any
) -> int:
    """Of [tokens, heads, width], row after row."""
    heads, width = query.shape[1:]
    lengths = zip(ends.diff().tolist(), key_ends.diff().tolist(), strict=True)
    return 4 * heads * width * sum(_pairs(own, read) for own, read in lengths)


def _packed_backward(
    _g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _o: Tensor,
    _l: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _packed_forward(query, key, value, ends, key_ends)


def _product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """0 of one that is computed again: a backward pass has no other by a transposed matrix."""
    again = torch._C._current_graph_task_id() >= 0  # noqa: SLF001 - told nowhere else
    if again and b.stride(0) == 1 < b.stride(1):
        return 0
    return 2 * a.shape[0] * b.numel()


def _product_and_sum(_: Tensor, a: Tensor, b: Tensor, *__: Any, **___: Any) -> int:
    return _product(a, b)


_DENSE = [
    f"_scaled_dot_product_{kind}_attention{where}"
    for kind, where in (("flash", ""), ("flash", "_for_cpu"), ("efficient", ""), ("cudnn", ""))
]
_ATTENTION: dict[Any, Any] = {
    **{getattr(torch.ops.aten, name): _forward for name in _DENSE},
    **{getattr(torch.ops.aten, f"{name}_backward"): _backward for name in _DENSE},
    **{
        getattr(torch.ops.torch_attn, name): formula
        for name, formula in (
            ("_varlen_attn", _packed_forward),
            ("_varlen_attn_backward", _packed_backward),
        )
    },
}
_ONCE: dict[Any, Any] = {
    torch.ops.aten.mm: _product,
    torch.ops.aten.addmm: _product_and_sum,
    torch.ops.aten.addmm_: _product_and_sum,
}
for _formula in (_packed_forward, _packed_backward, _product, _product_and_sum):
    vars(_formula)["_get_raw"] = True  # how torch is told to hand over tensors, not their shapes
_FORMULAS: dict[Any, Any] = FlopCounterMode(display=False, custom_mapping=_ATTENTION).flop_registry
