"""Attention confined to each row of a packed sequence: no padding, no mask, exact.

Registered with transformers under the name `packed`. On a GPU in half precision it is torch's
variable-length flash attention; elsewhere one causal attention per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from .errors import ModelError

NAME = "packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...] | None = None,
    boundaries: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention output [1, T, H, D] of query [1, H, T, D] and key, value [1, H_kv, T, D].

    Raises ModelError for models whose attention has a soft cap or sinks, or is not told the rows.
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
    window = sliding_window if sliding_window and sliding_window < max(row_lengths) else None
    if _flash_serves(query) and not dropout:
        return _variable_length(query, key, value, row_lengths, boundaries, scaling, window), None
    grouped = query.shape[1] != key.shape[1]
    outputs, start = [], 0
    for length in row_lengths:
        part = slice(start, start + length)
        start += length
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                attn_mask=None if window is None else _band(length, window, query.device),
                is_causal=window is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _flash_serves(query: Tensor) -> bool:
    """Flash attention needs half precision and an Ampere GPU or newer."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _variable_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: tuple[int, ...],
    boundaries: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    longest = max(row_lengths)
    output = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)
    return output[None]


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """[length, length], true where a query may look: itself and the window - 1 tokens before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


AttentionInterface.register(NAME, packed_attention)
