"""NPO as MUSE's code has it: logit by logit (MUSE, arXiv:2407.06460; muse_bench)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from framework import ConfigError, Rows, UnlearningTrainer


class NPOMuse(UnlearningTrainer):
    """Push every logit at every position below the model's before unlearning.

    What muse_bench (baselines/baselines/iterative.py) runs under the name NPO, and after it BLUR's
    and Unlearn-Smooth's code for MUSE: z in place of log p of the answer. It does not know which
    token is the answer, reads prompts like answers, and begins by lowering all logits alike, which
    changes no probability. To compare with numbers published so; `npo` is the paper's. Its padding
    is not repeated: packed rows have none.
    """

    asks_reference_for: ClassVar[Literal["logits"]] = "logits"

    @dataclass
    class Config(UnlearningTrainer.Config):
        """Its own setting."""

        beta: float = 0.1
        """Inverse temperature, > 0."""

        def __post_init__(self) -> None:
            """Raise ConfigError for beta <= 0."""
            if self.beta <= 0:
                raise ConfigError(f"trainer.beta must be > 0, got {self.beta:g}")

    config: Config

    @classmethod
    def reads_everywhere(cls, config: UnlearningTrainer.Config) -> bool:
        """See `Method.reads_everywhere`."""
        del config
        return True

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over positions and vocabulary of -2/beta log sigmoid(beta (z_ref - z))."""
        beta, every = self.config.beta, rows.everywhere()
        before = self.reference.logits_of(every)

        def losses(logits: Tensor, chunk: slice) -> Tensor:
            return -2 / beta * logsigmoid(beta * (before(chunk) - logits)).mean(-1)

        return every.token_mean(self.model.of_logits(every, losses))
