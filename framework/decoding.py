"""Decoding: which prompts are answered together, and what is asked of a model token after token.

Shapes: `B` rows of the batch, `n` new tokens, `T` tokens so far, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor

from . import watchdog
from .sampling import Choice

PROMPT_TOKENS = 65_536
"""Tokens, padding too, of the one pass that reads a batch's prompts."""


class Decoding:
    """The forward passes of decoding over one batch; keeps its keys and values."""

    def __init__(self, module: transformers.PreTrainedModel) -> None:
        """Nothing read yet."""
        self._module = module
        self._cache = transformers.DynamicCache()

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, V] after `ids` [B, n], the tokens not read yet; `mask` [B, T] is of all so far."""
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = self._module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: Tensor = output.logits[:, -1]
        return last

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only, by number."""
        self._cache.batch_select_indices(rows)


def decode(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    choose: Choice,
    *,
    ends: Sequence[int],
    padding: int,
    device: torch.device,
    anyone: Callable[[int], bool],
) -> Tensor:
    """[B, max_new_tokens] the answers of one batch, padded on the right; prompts are on the left.

    Finished rows leave the batch once they are a quarter of it. `anyone` says of the number of
    rows that go on whether another step is taken.
    """
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[padding] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    ending = torch.tensor(ends, device=device)
    answers = torch.full((len(prompts), max_new_tokens), padding, device=device)
    rows = torch.arange(len(prompts), device=device)
    going = torch.ones_like(rows, dtype=torch.bool)
    for t in range(max_new_tokens):
        watchdog.alive()  # on a slow machine a batch may take an hour
        ids = choose(decoding.logits(ids, mask), rows, t)[:, None]
        answers[rows, t] = torch.where(going, ids[:, 0], padding)
        going &= ~torch.isin(ids[:, 0], ending)
        left = int(going.sum())
        if not anyone(left):
            break
        if 0 < left <= 0.75 * len(rows):
            kept = going.nonzero().squeeze(1)
            decoding.keep(kept)
            ids, mask, rows, going = ids[kept], mask[kept], rows[kept], going[kept]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return answers


def batches_of_prompts(
    lengths: Sequence[int], max_new_tokens: int, *, tokens: int
) -> list[list[int]]:
    """The prompts by number, shortest first, in batches to be answered together.

    With their answers they hold at most `tokens` tokens, without them PROMPT_TOKENS. Every batch
    takes as many steps as its longest answer, whatever its size: few large ones are fast.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = len(batches[-1]) + 1 if batches else 0
        whole, prompts = rows * (lengths[i] + max_new_tokens), rows * lengths[i]
        if batches and whole <= tokens and prompts <= PROMPT_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def bytes_per_token(module: transformers.PreTrainedModel) -> int:
    """The keys and values of one token in all layers, as the config tells them."""
    config = module.config.get_text_config()
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return int(2 * config.num_hidden_layers * heads * width * module.dtype.itemsize)
