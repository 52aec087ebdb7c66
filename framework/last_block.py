"""The last decoder block, of which only some tokens are read: what follows its attention.

    x [T]  ->  h = x + attention(norm(x))  [S]  ->  h + mlp(norm(h))  [S]  ->  final norm, head

Behind the last attention no token looks at another. So its output is taken at the `S` positions
that are asked for, and residual, feed-forward layers and final norm are computed there alone; the
norm before attention and all of attention, its output projection too, at all `T`. Hooks do it, in a
forward pass that is told the positions (`ASKED`), and leave all others as they are: a block stays
transformers' own. Somebody's own hooks on the last block see [1, S, D] in such a pass, and those on
its first norm two calls, of `T` tokens and of `S`.

Known by the names of its parts: `self_attn`, `post_attention_layernorm` and `mlp` one after the
other, as in Llama, Mistral, Mixtral, Qwen, Gemma, OLMo and Phi-3. Where both read the same norm
(Phi, Cohere) there is no second one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

ASKED = "asked_positions"
"""The argument of a forward pass, [S]; every block hands it on to its attention."""
STATES = "hidden_states"
_WHOLE = "all_states"
PARTS = frozenset({"self_attn", "post_attention_layernorm", "mlp"})
BESIDE = frozenset(
    {
        *("input_layernorm", "post_self_attn_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm", "post_mlp_layernorm"),
        *("dropout", "resid_attn_dropout", "resid_mlp_dropout"),
    }
)
"""What a block may have beside them; of others (Gemma 3n, Gemma 4) some read tables of all `T`."""


def narrow(last: nn.Module | None) -> bool:
    """Have a model's last block heed `ASKED`; False where it is not known how."""
    block: Any = last
    if block is None or not PARTS <= {name for name, _ in block.named_children()} <= PARTS | BESIDE:
        return False
    if _take not in block._forward_pre_hooks.values():  # noqa: SLF001 - told nowhere else
        block.register_forward_pre_hook(_take, with_kwargs=True)
        block.self_attn.register_forward_pre_hook(_give, with_kwargs=True)
        block.self_attn.register_forward_hook(_cut, with_kwargs=True)
    return True


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _take(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The block is given the tokens asked for, and its attention will be given all."""
    places = kwargs.get(ASKED)
    if places is None:
        return None
    states = args[0] if args else kwargs[STATES]
    norm = dict(block.named_children()).get("input_layernorm")  # OLMo 2 has none
    whole = states if norm is None else norm(states)
    return _call(states[:, places], args, {**kwargs, _WHOLE: whole})


def _give(_attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    if _WHOLE not in kwargs:
        return None
    left = {name: given for name, given in kwargs.items() if name != _WHOLE}
    return _call(kwargs[_WHOLE], args, left)


def _call(states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The same call with these states, which come first or by their name."""
    return ((states, *args[1:]), kwargs) if args else ((), {**kwargs, STATES: states})


def _cut(
    _attention: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[Tensor, ...] | None:
    places = kwargs.get(ASKED)
    return None if places is None else (output[0][:, places], *output[1:])
