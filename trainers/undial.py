"""UNDIAL: self-distillation with adjusted logits (Dong et al., arXiv:2402.10052)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from framework import ConfigError, Rows, UnlearningTrainer


class UNDIAL(UnlearningTrainer):
    """Distill the model before unlearning with the true token's logit lowered.

    open-unlearning's loss averages over prompt and padding too, where its label -100 lowers the
    vocabulary's hundredth entry from the end. Packed rows have no padding and logits exist at
    answer tokens alone, so that this cannot be repeated.
    """

    reference_kind: ClassVar[Literal["frozen"]] = "frozen"

    @dataclass
    class Config(UnlearningTrainer.Config):
        """UNDIAL's own setting."""

        beta: float = 10.0
        """How far the true token's logit is lowered, >= 0."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a negative beta, which would teach the answer."""
            if self.beta < 0:
                raise ConfigError(f"trainer.beta must be >= 0, got {self.beta:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of the cross-entropy to softmax(z_ref - beta onehot(y))."""
        lowered = torch.full_like(rows.weights, -self.config.beta)[:, None]
        teacher = self.reference.logits(rows).scatter_add(1, rows.targets[:, None], lowered)
        student = log_softmax(self.model.logits(rows), -1)
        return rows.token_mean(-(softmax(teacher, -1) * student).sum(-1))
