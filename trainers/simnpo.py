"""SimNPO: negative preference optimization without a reference (Fan et al., arXiv:2410.07163)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from framework import ConfigError, Rows, UnlearningTrainer


class SimNPO(UnlearningTrainer):
    """Push the length-normalized likelihood of each answer below a margin, with a bounded loss."""

    @dataclass
    class Config(UnlearningTrainer.Config):
        """SimNPO's own settings."""

        beta: float = 4.5
        """Inverse temperature, > 0."""
        delta: float = 0.0
        """Margin on the mean negative log-likelihood per token, in nats."""

        def __post_init__(self) -> None:
            """Raise ConfigError for beta <= 0."""
            if self.beta <= 0:
                raise ConfigError(f"trainer.beta must be > 0, got {self.beta:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of -2/beta log sigmoid(beta (nll/n - delta)), n the row's tokens."""
        beta, delta = self.config.beta, self.config.delta
        mean_nll = -rows.within_rows(self.model.token_log_probs(rows))
        return rows.row_mean(-2 / beta * logsigmoid(beta * (mean_nll - delta)))
