"""Activations that the backward pass computes again: all of a decoder block's, or the cheap ones.

Selectively, a block keeps what its matrix products and its attention gave and computes the rest
again from these: norms, activation functions, rotations, sums. That is torch's selective activation
checkpointing (`torch.utils.checkpoint.create_selective_checkpoint_contexts`) for one fixed policy:
torch's own spends some 7 us more on every operation, 2.5 % of a step of short rows, and ends the
run where a result is changed in place, which is here computed again.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any, Literal

import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .memory import storage_of

Recomputed = bool | Literal["selective"]
"""What is: nothing, all but a block's input, or what is cheap."""

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear"})
ATTENTION = frozenset(
    {
        *(f"_scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient", "cudnn")),
        "_scaled_dot_product_flash_attention_for_cpu",
        "_varlen_attn",  # torch.nn.attention.varlen
    }
)


def recompute(module: transformers.PreTrainedModel, how: Literal[True, "selective"]) -> None:
    """Have the decoder blocks, not the head, computed again in the backward pass, same dropout."""
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = _forward_and_again
    module.activation_checkpointing_enable(options)


def _forward_and_again() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """What a block's forward pass and its second one run in."""
    kept: deque[Any] = deque()
    return _Keeping(kept), _Giving(kept)


class _Keeping(TorchDispatchMode):
    """Keeps the results that are dear, in order; None where one was changed in place."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept
        self._places: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if is_kept(func, args, kwargs):
            for tensor in _tensors(result):
                self._places[storage_of(tensor)] = len(self._kept)
            # what autograd makes of the result itself must not be kept: the graph
            self._kept.append(_apply(Tensor.detach, result))
        elif _changes(func):
            for tensor in _tensors((*args, *kwargs.values())):
                place = self._places.get(storage_of(tensor))
                if place is not None:
                    self._kept[place] = None
        return result


class _Giving(TorchDispatchMode):
    """Hands out what was kept in the place of computing it; each result once.

    One backward pass is served: what a second one asks for, or one after a look at some gradients,
    is computed, as nothing is left.
    """

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = is_kept(func, args, kwargs) and self._kept
        result = self._kept.popleft() if given else None
        return func(*args, **kwargs) if result is None else result

    def __exit__(self, *error: object) -> None:
        """It may end before the last product, which nobody needs."""
        self._kept.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]


def is_kept(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation's result is kept: never of one that drops out, or fills a given tensor.

    What is not computed again draws nothing, and later dropout would draw other numbers; it fills
    nothing either, and what is read there would be something else.
    """
    dear, place = _dear(func)
    if not dear or place is None:
        return dear
    given = args[place] if place < len(args) else kwargs.get("dropout_p", 0.0)
    return not given


@cache
def _dear(func: Any) -> tuple[bool, int | None]:
    """Whether it is a product or attention, and which argument is its dropout."""
    name = func.name().partition("::")[2].partition(".")[0]
    arguments = [argument.name for argument in func._schema.arguments]  # noqa: SLF001 - told nowhere else
    place = arguments.index("dropout_p") if "dropout_p" in arguments else None
    return name in PRODUCTS | ATTENTION and not _changes(func), place


@cache
def _changes(func: Any) -> bool:
    """Whether it changes an argument."""
    return bool(func._schema.is_mutable)  # noqa: SLF001 - told nowhere else


def _tensors(found: Any) -> list[Tensor]:
    return [x for x in (found if isinstance(found, tuple) else (found,)) if isinstance(x, Tensor)]


def _apply(function: Any, found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(function(x) if isinstance(x, Tensor) else x for x in found)
    return function(found)
