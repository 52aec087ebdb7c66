"""DPO: direct preference optimization, as unlearning (Rafailov et al., arXiv:2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from framework import ConfigError, Preferred, Rows, UnlearningTrainer


class DPO(UnlearningTrainer):
    """Prefer another answer, a refusal by default, to the one to forget, within a bounded loss.

    TOFU and open-unlearning (IdkDPO) draw another refusal every time a row is read; here a row
    keeps its own, so that the model before unlearning is read once. With answers that the model
    makes up itself it is AltPO (arXiv:2409.13474): `trainer=altpo`. Choose it over NPO where the
    model shall answer with something sensible and not merely with anything else. A model to which
    refusals were very unlikely satisfies the loss by raising them alone, while the answer stays
    where it was: then beta must be smaller.
    """

    asks_reference_for: ClassVar[Literal["log_probs"]] = "log_probs"
    prefers: ClassVar[bool] = True

    @dataclass
    class Config(UnlearningTrainer.Config):
        """DPO's own settings."""

        beta: float = 0.1
        """Inverse temperature, > 0: the larger, the sooner a pair that is told apart is left."""
        preferred: Preferred = field(default_factory=Preferred)
        """Where the preferred answers come from."""

        def __post_init__(self) -> None:
            """Raise ConfigError for beta <= 0."""
            if self.beta <= 0:
                raise ConfigError(f"trainer.beta must be > 0, got {self.beta:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of -2/beta log sigmoid(beta (r_preferred - r_given)), r = log(p/p_ref).

        p is the probability of the whole answer. 2/beta is NPO's factor, as in open-unlearning.
        """
        beta = self.config.beta
        given, preferred = rows.split(self.log_ratios(rows))
        return rows.row_mean(-2 / beta * logsigmoid(beta * (preferred - given)))
