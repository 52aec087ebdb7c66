"""CE-U: cross-entropy to the model's own answer without the true token (Yang, arXiv:2503.01224)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from framework import Rows, UnlearningTrainer


class CEU(UnlearningTrainer):
    """Move each token's probability to what the model would say if the token did not exist.

    The gradient on the logits is p_y (e_y - q): it fades as the token is forgotten. The target q
    moves with the model, so the loss itself need not fall. open-unlearning's code, after a footnote
    of the paper, leaves out each answer's first token: `skip_first_token`.
    """

    surrogate: ClassVar[bool] = True

    @dataclass
    class Config(UnlearningTrainer.Config):
        """CE-U's own setting."""

        skip_first_token: bool = False
        """Whether each row's first counted token is left out, and out of the mean."""

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of -sum_v q_v log p_v, q = softmax(z with z_y = -inf), no gradient."""

        def cross_entropy(logits: Tensor, chunk: slice) -> Tensor:
            without = logits.detach().scatter(1, rows.targets[chunk, None], float("-inf"))
            return -(softmax(without, -1) * log_softmax(logits, -1)).sum(-1)

        losses = self.model.of_logits(rows, cross_entropy)
        if self.config.skip_first_token:
            losses = losses * _later(rows) * _all_over_later(rows)
        return rows.token_mean(losses)


def _later(rows: Rows) -> Tensor:
    """[S] whether the scored token is not its row's first."""
    later = torch.zeros_like(rows.row_of, dtype=torch.bool)
    later[1:] = rows.row_of[1:] == rows.row_of[:-1]
    return later


def _all_over_later(rows: Rows) -> float:
    """The step's tokens over those that are not their row's first, each of weight 1."""
    totals = rows.totals
    return totals.weight / max(totals.weight - totals.rows, 1e-9)
