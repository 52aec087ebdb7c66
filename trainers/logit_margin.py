"""Logit-margin flattening, the forget loss of PDU (arXiv:2506.05314)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from framework import Rows, UnlearningTrainer


class LogitMargin(UnlearningTrainer):
    """Flatten the logits of each answer token, without a softmax: zero when all are equal.

    open-unlearning's src/trainer/unlearn/pdu.py masks positions by their own label rather than by
    the next one: it skips what predicts an answer's first token and takes what follows its last.
    That is `mask_parity`; its first version had no mask at all, which is not repeated.
    """

    @dataclass
    class Config(UnlearningTrainer.Config):
        """Logit-margin flattening's own setting."""

        mask_parity: bool = False
        """Whether the logits after each answer token are flattened, not those that predict it."""

    config: Config

    @classmethod
    def reads_scored(cls, config: UnlearningTrainer.Config) -> bool:
        """See `Method.reads_scored`: `mask_parity` reads other positions."""
        shifted = isinstance(config, cls.Config) and config.mask_parity
        return super().reads_scored(config) and not shifted

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of (max_v z_v - mean_v z_v)^2."""
        read = replace(rows, scored=rows.scored + 1) if self.config.mask_parity else rows
        margin = self.model.of_logits(read, lambda logits, _: logits.amax(-1) - logits.mean(-1))
        return rows.token_mean(margin**2)
