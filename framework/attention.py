"""Attention confined to each row of a packed sequence: no padding, no mask, exact.

Rows that share their beginning read its keys where they are (`data.Keys`).
Known to transformers under the name `packed`. On a GPU in half precision it is torch's
variable-length flash attention; elsewhere one causal attention per row.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .data import Keys
from .errors import ModelError

NAME = "packed"
UNTOLD = -1
"""The window of a model that does not tell its attention whether there is one, but masks it."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...] | None = None,
    boundaries: Tensor | None = None,
    keys: Keys | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = UNTOLD,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention output [1, T, H, D] of query [1, H, T, D] and key, value [1, H_kv, T, D].

    Raises ModelError for models whose attention has a soft cap or sinks, is not told the rows, or
    is not told a window that rows exceed.
    """
    if row_lengths is None or boundaries is None:
        raise ModelError(
            f"{type(module).__name__} is not told where packed rows end: its model passes no "
            "arguments on to its attention; use another family (Llama, OLMo, Qwen, Mistral, Phi)"
        )
    if softcap is not None or s_aux is not None:
        raise ModelError(
            f"{type(module).__name__} caps its attention scores or has attention sinks, which "
            "packed attention does not support; use a model without them (Llama, OLMo, Qwen, "
            "Mistral, Phi)"
        )
    if keys is None:
        keys = Keys(row_lengths, boundaries, boundaries)
    else:
        key, value = key[:, :, keys.positions], value[:, :, keys.positions]
    longest = max(keys.lengths)
    if sliding_window == UNTOLD:
        _check_untold(module, longest)
        sliding_window = None
    window = sliding_window if sliding_window and sliding_window < longest else None
    if _flash_serves(query, value) and not dropout:
        output = variable_length(query, key, value, row_lengths, boundaries, keys, scaling, window)
        return output, None
    grouped = query.shape[1] != key.shape[1]
    own = query.split(row_lengths, dim=2)
    read = zip(key.split(keys.lengths, dim=2), value.split(keys.lengths, dim=2), strict=True)
    outputs = []
    for q, (k, v) in zip(own, read, strict=True):
        alone = window is None and q.shape[2] == k.shape[2]
        outputs.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if alone else _band(q.shape[2], k.shape[2], window, query.device),
                is_causal=alone,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _check_untold(module: nn.Module, longest: int) -> None:
    """Raise ModelError where a mask, which packed rows have none, would keep rows in a window."""
    config = getattr(module, "config", None)
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(config, name, None)
        if window and window < longest:
            raise ModelError(
                f"{type(module).__name__} looks back {window} tokens at most ({name}), which its "
                f"model tells a mask and not its attention, and a row has {longest}; set "
                f"model.max_length={window}, or use another family (Llama, OLMo, Qwen, Mistral, "
                "Phi)"
            )


def _flash_serves(query: Tensor, value: Tensor) -> bool:
    """Flash attention needs half precision, an Ampere GPU or newer, heads of 8, 16 ... 256."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    width = query.shape[-1]  # torch's other attention pads, this one refuses
    if width % 8 or width > 256 or width != value.shape[-1]:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def variable_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: tuple[int, ...],
    boundaries: Tensor,
    keys: Keys,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention output as `packed_attention` gives it, of all rows at once; `keys`: of each row."""
    from torch.nn.attention.varlen import varlen_attn  # which imports torch's compiler

    output = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        boundaries,
        keys.boundaries,
        max(row_lengths),
        max(keys.lengths),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None]


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys], true where a query may look: itself and the tokens before, `window` in all.

    The queries are the last of the keys.
    """
    earlier = keys - queries
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(earlier)
    return seen if window is None else seen.triu_(earlier - window + 1)


def register() -> None:
    """Make it known to transformers under NAME, before a model is to attend by it."""
    transformers.AttentionInterface.register(NAME, packed_attention)
