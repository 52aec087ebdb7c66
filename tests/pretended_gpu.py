"""A GPU that is pretended: tensors that say they are on `cuda:0`, and refuse what a GPU would.

Their numbers lie in host memory and are computed there, so that a step on this GPU can be held to
the same step on a CPU. What it finds:

    operations of tensors of the GPU and of the host, which torch refuses, and indices of the host,
    for which it waits
    copies to the host that nobody waits for, of which whoever reads them reads too early
    numpy of a tensor of the GPU; gradients elsewhere than their parameters
    what flash attention does not take

It is a mark on the memory of tensors, so that views, parameters and gradients carry it. What
kernels do, streams and NCCL are not pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.attention.varlen  # whose operations are pretended
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import _allowed_determinism_checks_to_fns

CARD = torch.device("cuda", 0)
HOST = torch.device("cpu")
CAPABILITY = (9, 0)
MEMORY = 80 * 2**30

READS_DEVICE = Tensor.device.__get__
MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda}
COPIES = {"copy_", "_to_copy"}
"""Operations that may cross from one memory to the other."""
PACKED = torch.ops.torch_attn._varlen_attn.default
PACKED_BACKWARD = torch.ops.torch_attn._varlen_attn_backward.default


def on_card(tensor: Tensor) -> bool:
    """Whether the tensor is on the pretended GPU."""
    return getattr(tensor.untyped_storage(), "on_card", False)


def _mark(tree: Any, *, there: bool = True) -> None:
    for tensor in _tensors(tree):
        tensor.untyped_storage().on_card = there


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree] if tree.layout == torch.strided else []
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for x in tree for tensor in _tensors(x)]


class _Below(TorchDispatchMode):
    """Looks at every operation: where its tensors are, and where its results will be."""

    def __init__(self) -> None:
        super().__init__()
        self.made_on_card = False
        """Whether what is made of no tensor is on the GPU."""
        self.target: bool | None = None
        """Whether a copy is to end on the GPU; None: where it is."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        card = [x for x in given if on_card(x)]
        name = func.name().partition("::")[2].partition(".")[0]
        if card and len(card) < len(given) and name not in COPIES:
            self._check(func, given)
        if func in (PACKED, PACKED_BACKWARD):
            assert len(card) == len(given), "flash attention is the GPU's"
            function = _packed if func is PACKED else _packed_backward
            result = function(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        there = bool(card) if given else self.made_on_card
        if name == "_to_copy" and self.target is not None:
            there = self.target
        if name == "copy_":
            there = on_card(args[0])
        known = {id(x.untyped_storage()) for x in given}
        _mark([x for x in _tensors(result) if id(x.untyped_storage()) not in known], there=there)
        return result

    @staticmethod
    def _check(func: Any, given: Sequence[Tensor]) -> None:
        """A number of the host may take part where each element is for itself, no other tensor."""
        pointwise = torch.Tag.pointwise in func.tags or "index_put" in func.name()
        host = [tuple(x.shape) for x in given if not on_card(x) and (x.dim() or not pointwise)]
        if host:
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found at least two "
                f"devices, {CARD} and cpu ({host})"
            )


class _Above(TorchFunctionMode):
    """Says where tensors are, and puts them where they are asked to be."""

    def __init__(self, below: _Below) -> None:
        super().__init__()
        self._below = below

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        told = _ATTRIBUTES.get(func)
        if told is not None:
            return told(args[0])
        given = args[1] if func is Tensor.grad.__set__ else None
        if given is not None and on_card(args[0]) != on_card(given):
            raise RuntimeError("assigned grad has data located on a different device")
        if func is Tensor.numpy and on_card(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
        if func is Tensor.pin_memory:
            assert not on_card(args[0]), "only memory of the host is pinned"
            copy = args[0].clone()
            copy.untyped_storage().pinned = True
            return copy
        if func is torch._C._nn._parse_to:  # of which modules ask where they are to go
            return func(*args, **kwargs)
        if func in MOVES:
            return self._moved(func, args, kwargs)
        return self._made(func, args, kwargs)

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        if func is Tensor.cuda or func is Tensor.cpu:
            device, dtype, wait = (CARD if func is Tensor.cuda else HOST), None, True
            copy = False
        elif (rest and isinstance(rest[0], Tensor)) or "other" in kwargs:
            other = rest[0] if rest else kwargs["other"]
            device, dtype, copy = _where(other), other.dtype, kwargs.get("copy", False)
            wait = not kwargs.get("non_blocking", False)
        else:
            copy = kwargs.pop("copy", False)
            device, dtype, later, _ = torch._C._nn._parse_to(*rest, **kwargs)
            wait = not later
        there = on_card(tensor) if device is None else device.type == "cuda"
        crosses = there != on_card(tensor)
        if crosses and not there and not wait:
            raise RuntimeError("a copy to the host that nobody waits for")
        before, self._below.target = self._below.target, there
        try:
            return tensor.to(tensor.dtype if dtype is None else dtype, copy=copy or crosses)
        finally:
            self._below.target = before

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked = kwargs.get("device")
        if asked is not None:
            device = torch.device(asked)
            made = device.type == "cuda"
            if made:
                kwargs["device"] = HOST
        else:
            made = any(map(on_card, _tensors((args, kwargs))))
        before, self._below.made_on_card = self._below.made_on_card, made
        try:
            result = func(*args, **kwargs)
        finally:
            self._below.made_on_card = before
        if asked is not None and made:
            _mark(result)
        return result


def _where(tensor: Tensor) -> torch.device:
    return CARD if on_card(tensor) else READS_DEVICE(tensor)


_ATTRIBUTES: Mapping[Any, Callable[[Tensor], Any]] = {
    Tensor.device.__get__: _where,
    Tensor.is_cuda.__get__: on_card,
    Tensor.is_cpu.__get__: lambda tensor: not on_card(tensor),
    Tensor.get_device: lambda tensor: 0 if on_card(tensor) else -1,
    Tensor.is_pinned: lambda tensor: getattr(tensor.untyped_storage(), "pinned", False),
}


# ---- flash attention -----------------------------------------------------------------------------


def _checked(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor) -> None:
    """What torch's flash attention asks of what it is given."""
    for x in (query, key, value):
        assert x.dtype in (torch.float16, torch.bfloat16), x.dtype
        assert x.stride(-1) == 1
    assert query.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert query.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    assert query.shape[2] == key.shape[2] == value.shape[2], "one width of all heads"
    assert key.shape == value.shape
    for x in (ends, key_ends):
        assert x.dtype == torch.int32
        assert x.is_contiguous()


def _rows(
    ends: Tensor, key_ends: Tensor, window: Sequence[int]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of each row its queries, its keys, and which of these each query sees."""
    q, k = (x.tolist() for x in (ends, key_ends))
    for a, b, c, d in zip(q, q[1:], k, k[1:], strict=False):
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril_(d - c - (b - a))
        if window[0] >= 0:
            seen = seen.triu_(d - c - (b - a) - window[0])
        yield slice(a, b), slice(c, d), seen


def _weights(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    """[H, Q, K] how much each query looks at each key."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


def _heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values in fp32, each as often as there are heads of queries that share them."""
    groups = query.shape[1] // key.shape[1]
    k, v = (x.float().repeat_interleave(groups, 1) for x in (key, value))
    return k, v


def _packed(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch_attn::_varlen_attn` has its arguments and results."""
    longest, longest_read, _, scale, window = rest[:5]
    _checked(query, key, value, ends, key_ends)
    assert [int(x.diff().max()) for x in (ends, key_ends)] == [longest, longest_read]
    assert window[1] == 0, "a token looks ahead"
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    k, v = _heads(query, key, value)
    out = torch.empty_like(query)
    for own, read, seen in _rows(ends, key_ends, window):
        weights = _weights(query[own].float(), k[read], seen, scale)
        out[own] = torch.einsum("hqk,khd->qhd", weights, v[read]).to(out.dtype)
    return out, query.new_empty(query.shape[1], query.shape[0]), torch.zeros(2)


def _packed_backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch_attn::_varlen_attn_backward` has its arguments and results."""
    _, _, ends, key_ends, _, _, _, _, scale, window = rest
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    k, v = _heads(query, key, value)
    of_q, of_k, of_v = (torch.zeros(x.shape) for x in (query, k, v))
    for own, read, seen in _rows(ends, key_ends, window):
        q, up = query[own].float(), upstream[own].float()
        weights = _weights(q, k[read], seen, scale)
        of_v[read] += torch.einsum("hqk,qhd->khd", weights, up)
        slope = torch.einsum("qhd,khd->hqk", up, v[read])
        slope = weights * (slope - (weights * slope).sum(-1, keepdim=True)) * scale
        of_q[own] = torch.einsum("hqk,khd->qhd", slope, k[read])
        of_k[read] += torch.einsum("hqk,qhd->khd", slope, q)
    of_k, of_v = (x.unflatten(1, (key.shape[1], -1)).sum(2) for x in (of_k, of_v))
    return of_q.to(query.dtype), of_k.to(key.dtype), of_v.to(value.dtype)


# ---- the card itself -----------------------------------------------------------------------------


def _grouped(lists: Sequence[Sequence[Any]], with_indices: object = None) -> dict[Any, Any]:
    """torch's optimizers' way to treat each device and type by itself."""
    found: dict[Any, tuple[list[list[Any]], list[int]]] = {}
    for index, first in enumerate(lists[0]):
        place = (_where(first), first.dtype)
        groups, indices = found.setdefault(place, ([[] for _ in lists], []))
        for group, given in zip(groups, lists, strict=True):
            if given:
                group.append(given[index])
        if with_indices:
            indices.append(index)
    return found


def _loaded(load: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.load` that knows the pretended GPU."""

    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        there = isinstance(map_location, torch.device) and map_location.type == "cuda"
        found = load(file, map_location=HOST if there else map_location, **kwargs)
        if there:
            _mark(found)
        return found

    return loaded


def _alike(tensor: Tensor) -> dict[str, Any]:
    """What a recomputed tensor has in common with the first, but for its device."""
    return {"shape": tensor.shape, "dtype": tensor.dtype}


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, this machine has a GPU."""
    below = _Below()
    above = _Above(below)
    engine = torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        with above:  # also where the backward pass was asked for inside a function of torch's
            return engine(*args, **kwargs)

    card = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: "pretended",
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "default_generators": (torch.Generator(),),
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
    }
    with ExitStack() as stack:
        for name, value in card.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch, "load", _loaded(torch.load)))
        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", backward))
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped))
        stack.enter_context(patch.dict(_allowed_determinism_checks_to_fns, {"default": _alike}))
        stack.enter_context(below)
        stack.enter_context(above)
        yield CARD
