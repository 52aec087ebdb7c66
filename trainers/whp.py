"""WHP: the logits of Who's Harry Potter (Eldan and Russinovich, 2023, arXiv:2310.02238)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import relu

from framework import Combination, ConfigError


class WHP(Combination):
    """Lower what a model reinforced on the forget rows finds likelier than the model does.

    The reinforced model is `path` fine-tuned further on the forget rows. The paper goes on to
    fine-tune on the answers of this combination, with anchored terms translated to generic ones
    first; MUSE (jaechan-repo/muse_bench) answers with the combination itself, as here.
    """

    others: ClassVar[tuple[str, ...]] = ("reinforced",)

    @dataclass
    class Config(Combination.Config):
        """WHP's own settings."""

        reinforced: str = ""
        """The model fine-tuned on the forget rows: a run, a folder, or a name on the hub."""
        scale: float = 1.0
        """How much of the reinforcement is taken off, >= 0; 0 is the model itself."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a negative scale, which would reinforce."""
            if not self.scale >= 0:
                raise ConfigError(f"model.scale must be >= 0, got {self.scale:g}")

    config: Config

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """[S, V] z - scale ReLU(z_reinforced - z)."""
        original, reinforced = logits
        return original - self.config.scale * relu(reinforced - original)
