"""Fine-tuning: makes the target model, the gold model, and relearning attacks."""

from __future__ import annotations

from framework import UnlearningTrainer


class Finetune(UnlearningTrainer):
    """Negative log-likelihood of the retain rows only."""

    objectives = ("retain",)
