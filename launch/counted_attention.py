"""Attention as a GPU computes it in half precision, on tensors that are not there.

Known to transformers under `PACKED`, for our packed rows: one operation for all rows, no mask. And
under `PADDED`, for batches: torch's memory-efficient kernel where there is a mask, which it chooses
then, and flash attention where nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from framework.attention import variable_length
from framework.data import Keys

PACKED, PADDED = "packed_on_gpu", "padded_on_gpu"


def _packed(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...],
    boundaries: Tensor,
    keys: Keys | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As `framework.attention.packed_attention`."""
    ends = _ends(row_lengths)
    if keys is None:
        keys = Keys(row_lengths, boundaries, ends)
    else:
        key, value = key[:, :, keys.positions], value[:, :, keys.positions]
        keys = replace(keys, boundaries=_ends(keys.lengths))
    return variable_length(query, key, value, row_lengths, ends, keys, scaling, window=None), None


def _ends(lengths: Sequence[int]) -> Tensor:
    """Where rows begin and end, which is there: FLOPs depend on it."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")


def _padded(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers has it for batches; with a mask it gives each head keys of its own."""
    output: Tensor
    if mask is None:
        output = torch.ops.aten._scaled_dot_product_flash_attention(  # noqa: SLF001 - torch.nn's would choose for meta
            query, key, value, is_causal=True, scale=scaling
        )[0]
        return output.transpose(1, 2).contiguous(), None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, 0.0)
    bias = bias.expand(-1, query.shape[1], -1, -1)
    output = torch.ops.aten._scaled_dot_product_efficient_attention(  # noqa: SLF001 - torch.nn's would choose for meta
        query, key, value, bias, compute_log_sumexp=True, scale=scaling
    )[0]
    return output.transpose(1, 2).contiguous(), None


def _mask_of_padded(*, attention_mask: Tensor | None, **given: Any) -> Tensor | None:
    """None where nothing is padded, which transformers cannot tell by positions on `meta`."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **given)


for _name, _function in ((PACKED, _packed), (PADDED, _padded)):
    AttentionInterface.register(_name, _function)
AttentionMaskInterface.register(PADDED, _mask_of_padded)
