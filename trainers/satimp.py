"""SatImp: saturation- and importance-weighted gradient ascent (Yang et al., arXiv:2505.11953)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from framework import ConfigError, Rows, UnlearningTrainer


class SatImp(UnlearningTrainer):
    """Gradient ascent on tokens that are well known (saturation) but not trivial (importance).

    open-unlearning's code loads a reference model that it never reads; here there is none.
    """

    surrogate: ClassVar[bool] = True

    @dataclass
    class Config(UnlearningTrainer.Config):
        """SatImp's own settings."""

        beta1: float = 5.0
        """Exponent of saturation, p^beta1, >= 0."""
        beta2: float = 1.0
        """Exponent of importance, (1 - p)^beta2, >= 0; both 0 is gradient ascent."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a negative exponent."""
            for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
                if value < 0:
                    raise ConfigError(f"trainer.{name} must be >= 0, got {value:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of p^beta1 (1 - p)^beta2 log p, the weights without a gradient."""
        log_probs = self.model.token_log_probs(rows)
        known = log_probs.detach()
        saturation = (self.config.beta1 * known).exp()
        importance = -torch.expm1(known).clamp_max(0)  # 1 - p without cancellation
        return rows.token_mean(saturation * importance**self.config.beta2 * log_probs)
