"""FLAT: unlearning by loss adjustment with only forget data (Wang et al., arXiv:2410.11143)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import softplus

from framework import Preferred, Rows, UnlearningTrainer

Bound = Callable[[Tensor, Tensor], Tensor]
"""(p of the preferred answers [B], p of the given answers [B]) -> loss [B]."""

BOUNDS: dict[str, Bound] = {
    "total_variation": lambda preferred, given: (given.tanh() - preferred.tanh()) / 2,
    "kl": lambda preferred, given: (given - 1).exp() - preferred,
    "jensen_shannon": lambda preferred, given: (
        softplus(-preferred) + softplus(given) - 2 * math.log(2)
    ),
    "pearson": lambda preferred, given: given.square() / 4 + given - preferred,
}


class FLAT(UnlearningTrainer):
    """Raise the probability of a template answer and lower the forget answer's, as weighed by f.

    The loss is minus the variational bound f*(g(p_given)) - g(p_preferred) of an f-divergence
    between template and forget answers, p the mean probability of an answer's tokens. It needs
    neither retain rows nor a reference. The released code averages p over padding too, where it is
    0, and over the micro-batch before the divergence; here a row's tokens are averaged, then the
    divergences of the rows, so that the micro-batch does not matter. Choose it where rows to keep
    are not at hand.
    """

    prefers: ClassVar[bool] = True

    @dataclass
    class Config(UnlearningTrainer.Config):
        """FLAT's own settings."""

        divergence: Literal["total_variation", "kl", "jensen_shannon", "pearson"] = (
            "total_variation"
        )
        """total_variation: tanh(p_given)/2 - tanh(p_preferred)/2; kl: exp(p_given - 1) -
        p_preferred; jensen_shannon: log(1 + exp(-p_preferred)) + log(1 + exp(p_given)) - 2 log 2;
        pearson (chi-squared): p_given^2/4 + p_given - p_preferred."""
        preferred: Preferred = field(default_factory=Preferred)
        """Where the template answers come from."""

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of the divergence's bound, of each answer's mean token probability."""
        probabilities = rows.within_rows(self.model.token_log_probs(rows).exp())
        given, preferred = rows.split(probabilities)
        return rows.row_mean(BOUNDS[self.config.divergence](preferred, given))
