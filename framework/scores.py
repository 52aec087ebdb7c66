"""How a model reads an answer: numbers of every token, teacher-forced.

Shapes: `S` scored tokens of a batch, `C` of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Rows
from .head import PerToken

SMALLEST_VARIANCE = 1e-6
"""In nats squared: a model that is sure of a token would be divided by nothing."""


@dataclass(frozen=True)
class TokenScores:
    """How a model reads one answer, teacher-forced; the last token is the end of the text."""

    log_probs: np.ndarray
    """[n] fp64, log-probability of each token of the answer, in nats."""
    correct: np.ndarray
    """[n] bool, whether the token is the model's first choice."""
    surprise: np.ndarray
    """[n] fp64, how far the token's log-probability lies above the mean of all tokens', in their
    standard deviation, both under the model's own distribution: what Min-K%++ sorts by
    (arXiv:2404.02936)."""

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per token, in nats."""
        return float(-self.log_probs.mean())

    @property
    def probability(self) -> float:
        """exp(-nll): what unlearning benchmarks call the probability of an answer."""
        return float(np.exp(-self.nll))


def scores_of(numbers: Tensor, rows: Rows) -> list[TokenScores]:
    """The scores of each row, of the [S, 3] that `numbers_of(rows)` gives of the logits."""
    values, owner = numbers.T.double().cpu().numpy(), rows.row_of.cpu().numpy()
    found = []
    for i in range(len(rows)):
        own = values[:, owner == i]
        found.append(TokenScores(own[0], own[1] > 0, own[2]))
    return found


def numbers_of(rows: Rows) -> PerToken:
    """Of logits, [C, 3]: log-probability, whether it is the first choice, surprise."""

    def numbers(logits: Tensor, chunk: slice) -> Tensor:
        targets = rows.targets[chunk]
        correct = logits.argmax(-1) == targets
        every = logits.log_softmax(-1)
        log_probs = every.gather(-1, targets[:, None])[:, 0]
        probs = every.exp()
        every = every.masked_fill_(probs == 0, 0.0)  # 0 log 0 is 0, and -inf times 0 is not
        mean = (probs * every).sum(-1)
        # around the mean: the difference of two large numbers would keep no digit of a small one
        variance = every.sub_(mean[:, None]).square_().mul_(probs).sum(-1)
        deviation = variance.clamp_min(SMALLEST_VARIANCE).sqrt()
        return torch.stack([log_probs, correct.float(), (log_probs - mean) / deviation], dim=1)

    return numbers
