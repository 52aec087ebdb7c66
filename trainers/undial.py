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

    open-unlearning's loss (src/trainer/utils.py) averages over prompts and padding too, where its
    label -100 lowers the vocabulary's hundredth entry from the end: `prompt_parity`, but for the
    padding, which packed rows have not. It also runs the retain pass where it counts nothing.
    """

    asks_reference_for: ClassVar[Literal["logits"]] = "logits"

    @dataclass
    class Config(UnlearningTrainer.Config):
        """UNDIAL's own settings."""

        beta: float = 10.0
        """How far the true token's logit is lowered, >= 0."""
        prompt_parity: bool = False
        """Whether prompts are distilled too, as in open-unlearning; computes logits everywhere."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a negative beta, which would teach the answer."""
            if self.beta < 0:
                raise ConfigError(f"trainer.beta must be >= 0, got {self.beta:g}")

    config: Config

    @classmethod
    def reads_everywhere(cls, config: UnlearningTrainer.Config) -> bool:
        """See `Method.reads_everywhere`."""
        return isinstance(config, cls.Config) and config.prompt_parity

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of the cross-entropy to softmax(z_ref - beta onehot(y))."""
        if self.config.prompt_parity:
            return self._with_prompts(rows)
        return rows.token_mean(self._cross_entropy(rows, rows.targets))

    def _cross_entropy(self, rows: Rows, labels: Tensor) -> Tensor:
        """[S] to the model before unlearning; a negative label counts from the vocabulary's end."""
        before = self.reference.logits_of(rows)

        def losses(logits: Tensor, chunk: slice) -> Tensor:
            teacher = before(chunk)
            true = labels[chunk].remainder(teacher.shape[-1])[:, None]
            teacher = teacher.scatter_add(1, true, teacher.new_full(true.shape, -self.config.beta))
            return -(softmax(teacher, -1) * log_softmax(logits, -1)).sum(-1)

        return self.model.of_logits(rows, losses)

    def _with_prompts(self, rows: Rows) -> Tensor:
        every, totals = rows.everywhere(), rows.totals
        labels = torch.full_like(every.targets, -100)
        labels[rows.scored] = torch.where(rows.weights > 0, rows.targets, -100)
        ends = rows.boundaries[1:].long() - 1  # nothing follows: no label, and not in the mean
        losses = self._cross_entropy(every, labels).index_fill(0, ends, 0)
        return every.token_mean(losses) * (totals.tokens / max(totals.tokens - totals.rows, 1))
