"""Rows padded to the longest of their batch, as released programs read them.

Shapes: `B` rows, `L` tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from framework import Row

IGNORED = -100
"""The label of a token that does not count."""


class Padded(NamedTuple):
    """Rows as a batch, padded on the right."""

    input_ids: Tensor
    """[B, L]"""
    attention_mask: Tensor | None
    """[B, L], 0 on padding; None: nothing is padded. transformers lets go of a mask of ones."""
    labels: Tensor
    """[B, L] the tokens that count, elsewhere -100."""

    @property
    def targets(self) -> Tensor:
        """[B, L - 1] what each position but the last is to predict, or -100."""
        return self.labels[:, 1:].contiguous()

    @property
    def all_targets(self) -> Tensor:
        """[B, L] what each position is to predict, the last one nothing: -100."""
        return pad(self.labels, (0, 1), value=IGNORED)[:, 1:]


def padded(rows: Sequence[Row], device: torch.device) -> Padded:
    """The rows as one batch."""
    longest = max(map(len, rows))
    ids, mask, labels = [], [], []
    for row in rows:
        empty = longest - len(row)
        counted = [t if w > 0 else IGNORED for t, w in zip(row.input_ids, row.weights, strict=True)]
        ids.append([*row.input_ids, *[0] * empty])
        mask.append([1] * len(row) + [0] * empty)
        labels.append(counted + [IGNORED] * empty)
    input_ids, attention_mask, targets = (torch.tensor(x).to(device) for x in (ids, mask, labels))
    even = all(len(row) == longest for row in rows)
    return Padded(input_ids, None if even else attention_mask, targets)
