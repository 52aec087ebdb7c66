"""Maximum entropy: answers as uncertain as they can be (Yuan et al., arXiv:2410.08109, ME)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import log_softmax

from framework import Rows, UnlearningTrainer


class MaxEntropy(UnlearningTrainer):
    """Pull the distribution at each answer token to the uniform one.

    The authors' code (sail-sg/closer-look-LLM-unlearning) calls `kl_div(log p, uniform)`, which is
    the divergence the other way round: `divergence: uniform`.
    """

    @dataclass
    class Config(UnlearningTrainer.Config):
        """Which divergence."""

        divergence: Literal["model", "uniform"] = "model"
        """model: KL(p || uniform), which is log V minus the entropy; uniform: KL(uniform || p)."""

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of the divergence between p and 1/V, in nats, >= 0."""

        def divergence(logits: Tensor, _chunk: slice) -> Tensor:
            log_probs = log_softmax(logits, -1)
            uniform = -math.log(log_probs.shape[-1])
            if self.config.divergence == "model":
                return (log_probs.exp() * log_probs).sum(-1) - uniform
            return uniform - log_probs.mean(-1)

        return rows.token_mean(self.model.of_logits(rows, divergence))
