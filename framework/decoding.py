"""The forward passes of decoding: what is asked of a model, one token after another.

Shapes: `B` rows of the batch, `n` new tokens, `T` tokens so far, `V` vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class Decoding:
    """The forward passes of decoding over one batch; keeps its keys and values."""

    def __init__(self, module: PreTrainedModel) -> None:
        """Nothing read yet."""
        self._module = module
        self._cache = DynamicCache()

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
