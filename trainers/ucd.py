"""UCD: unlearning via contrastive decoding (Suriyakumar et al., 2025, arXiv:2506.12097)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from framework import Combination


class UCD(Combination):
    """Move the model as two small models differ: one with the forget rows, one without.

    With scale 1 and small models whose difference is the large models', this is the model retrained
    without the forget rows.
    """

    others: ClassVar[tuple[str, ...]] = ("small_gold", "small_target")

    @dataclass
    class Config(Combination.Config):
        """UCD's own settings."""

        small_gold: str = ""
        """A small model that never saw the forget rows: a run, a folder, or a name on the hub."""
        small_target: str = ""
        """The same with the forget rows."""
        scale: float = 1.0
        """How far to go along their difference; 0 is the model itself."""

    config: Config

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """[S, V] log p + scale (log p_small_gold - log p_small_target), but for a constant."""
        original, gold, target = logits
        return original + self.config.scale * (gold - target)
