"""Logit-margin flattening, the forget loss of PDU (arXiv:2506.05314)."""

from __future__ import annotations

from torch import Tensor

from framework import Rows, UnlearningTrainer


class LogitMargin(UnlearningTrainer):
    """Flatten the logits of each answer token, without a softmax: zero when all are equal.

    open-unlearning masks positions by their own label rather than by the next one: it skips what
    predicts an answer's first token and takes what follows its last. Here logits exist only where
    the next token counts, so that this cannot be repeated, and need not be.
    """

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of (max_v z_v - mean_v z_v)^2."""
        logits = self.model.logits(rows)
        return rows.token_mean((logits.amax(-1) - logits.mean(-1)) ** 2)
