"""Gradient ascent, gradient difference (Liu et al., arXiv:2203.12817; TOFU, arXiv:2401.06121)."""

from __future__ import annotations

from torch import Tensor

from framework import Rows, UnlearningTrainer


class GradAscent(UnlearningTrainer):
    """Make the forget answers less likely, and nothing else. Collapses unless stopped early."""

    objectives: tuple[str, ...] = ("forget",)

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of log p: minus the negative log-likelihood; unbounded below."""
        return rows.token_mean(self.model.token_log_probs(rows))


class GradDiff(GradAscent):
    """Gradient ascent on the forget rows, descent on the retain rows."""

    objectives = ("forget", "retain")
