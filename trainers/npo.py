"""NPO: negative preference optimization (Zhang et al., 2024, arXiv:2404.05868)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from framework import ConfigError, Rows, UnlearningTrainer


class NPO(UnlearningTrainer):
    """Push the answer's log-probability below the reference model's, with a bounded loss.

    Two released codes put a mean over one device's micro-batch inside the sigmoid: BLUR's for TOFU
    that of the rows' log-ratios, Unlearn-Smooth's for WMDP that of the tokens'. All rows then have
    one weight, and a result depends on ranks and micro-batches, so neither is offered; at the beta
    of the latter, 0.05 at most, that weight stays near 1, as under `grad_diff`. For MUSE's code,
    logit by logit, see `npo_muse`.
    """

    asks_reference_for: ClassVar[Literal["log_probs"]] = "log_probs"

    @dataclass
    class Config(UnlearningTrainer.Config):
        """NPO's own setting."""

        beta: float = 0.1
        """Inverse temperature, > 0; beta -> 0 is gradient ascent."""

        def __post_init__(self) -> None:
            """Raise ConfigError for beta <= 0."""
            if self.beta <= 0:
                raise ConfigError(f"trainer.beta must be > 0, got {self.beta:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of -2/beta log sigmoid(-beta log(p/p_ref)), p of the whole answer."""
        beta = self.config.beta
        return rows.row_mean(-2 / beta * logsigmoid(-beta * self.log_ratios(rows)))
