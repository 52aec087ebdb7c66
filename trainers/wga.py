"""WGA: weighted gradient ascent (Wang et al., arXiv:2502.19301)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from framework import ConfigError, Rows, UnlearningTrainer


class WGA(UnlearningTrainer):
    """Gradient ascent that counts a token by how likely it still is.

    open-unlearning's code loads a reference model that it never reads; here there is none.
    """

    surrogate: ClassVar[bool] = True

    @dataclass
    class Config(UnlearningTrainer.Config):
        """WGA's own setting."""

        beta: float = 1.0
        """Exponent of the weight p^beta, >= 0; 0 is gradient ascent."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a negative exponent."""
            if self.beta < 0:
                raise ConfigError(f"trainer.beta must be >= 0, got {self.beta:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of p^beta log p, the weight p^beta without a gradient."""
        log_probs = self.model.token_log_probs(rows)
        return rows.token_mean((self.config.beta * log_probs.detach()).exp() * log_probs)
