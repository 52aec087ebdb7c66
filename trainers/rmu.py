"""RMU: representation misdirection for unlearning (Li et al., WMDP, arXiv:2403.03218)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from framework import ConfigError, Rows, UnlearningTrainer
from framework.losses import state_distance


class RMU(UnlearningTrainer):
    """Steer the hidden states of forget answers to one random direction, keep those of the rest.

    States are compared at the positions whose next token counts; a row's tokens are averaged, then
    the rows, as in the paper. The released WMDP code takes every position, padding included, and
    alternates between topics with a direction each; open-unlearning shifts the positions by one and
    divides every row's sum by every row's length: `reduction_parity`.
    """

    @dataclass
    class Config(UnlearningTrainer.Config):
        """RMU's own settings; `layer` is the block whose output is steered."""

        retain_loss: Literal["nll", "kl", "states", "none"] = "states"
        """states: squared distance to the reference's hidden states; the others as everywhere."""
        steering: float = 2.0
        """Length of the target, > 0."""
        reduction_parity: bool = False
        """Whether to reduce as open-unlearning does; the result then depends on the micro-batch."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a target of no length."""
            if self.steering <= 0:
                raise ConfigError(f"trainer.steering must be > 0, got {self.steering:g}")

    config: Config
    _direction: Tensor | None = None

    @classmethod
    def reads_once(cls, config: UnlearningTrainer.Config) -> bool:
        """See `Method.reads_once`: it reads hidden states."""
        del config
        return False

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of their tokens' mean of |h - c u|^2 / D, u of length 1 in [0, 1)^D."""
        states = self.states(rows)
        if self._direction is None:
            self._direction = direction(self.seed, states.shape[-1], states.device)
        return self.distance(rows, states, self.config.steering * self._direction)

    def distance(self, rows: Rows, states: Tensor, target: Tensor) -> Tensor:
        """See `UnlearningTrainer.distance`; under `reduction_parity` lengths meet other rows."""
        if not self.config.reduction_parity:
            return super().distance(rows, states, target)
        sums = rows.row_sum(state_distance(states, target))
        tokens = rows.row_weights
        inverse = torch.where(tokens > 0, 1 / tokens, 0).sum() / (tokens > 0).sum().clamp_min(1)
        return rows.row_mean(sums * inverse)


def direction(seed: int, width: int, device: torch.device) -> Tensor:
    """[D] a vector of length 1 with no negative entry: the same wherever and whenever drawn."""
    draw = torch.Generator().manual_seed(seed)
    vector = torch.rand(width, generator=draw)
    unit: Tensor = vector / vector.norm()
    return unit.to(device)
