"""RMU: representation misdirection for unlearning (Li et al., WMDP, arXiv:2403.03218)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from framework import ConfigError, Rows, UnlearningTrainer


class RMU(UnlearningTrainer):
    """Steer the hidden states of forget answers to one random direction, keep those of the rest.

    States are compared at the positions whose next token counts; a row's tokens are averaged, then
    the rows, as in the paper. The released WMDP code takes every position, padding included, and
    alternates between topics with a direction each; open-unlearning shifts the positions by one and
    divides every row's sum by every row's length: `reduction_parity`.
    """

    @dataclass
    class Config(UnlearningTrainer.Config):
        """RMU's own settings."""

        retain_loss: Literal["states", "nll", "kl", "none"] = "states"  # type: ignore[assignment]
        """states: squared distance to the reference's hidden states; the others as everywhere."""
        layer: int | None = None
        """The decoder block whose output is steered, 1 the first; null: the middle one. The last
        block's output is read after the final norm."""
        steering: float = 2.0
        """Length of the target, > 0."""
        reduction_parity: bool = False
        """Whether to reduce as open-unlearning does; the result then depends on the micro-batch."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a target of no length."""
            if self.steering <= 0:
                raise ConfigError(f"trainer.steering must be > 0, got {self.steering:g}")

    config: Config

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of their tokens' mean of |h - c u|^2 / D, u of length 1 in [0, 1)^D."""
        states = self._states(rows)
        u = direction(self.seed, states.shape[-1], states.device)
        return self._distance(rows, states, self.config.steering * u)

    def retain_loss(self, rows: Rows) -> Tensor:
        """Mean over rows of their tokens' mean of |h - h_ref|^2 / D."""
        if self.config.retain_loss != "states":
            return super().retain_loss(rows)
        before = self.reference.hidden_states(rows, self.layer)[rows.scored].float()
        return self._distance(rows, self._states(rows), before)

    @property
    def layer(self) -> int:
        """The decoder block that is steered, counted from 1."""
        blocks: int = self.model.module.config.get_text_config().num_hidden_layers
        asked = self.config.layer
        if asked is None:
            return max(1, blocks // 2)
        if not 1 <= asked <= blocks:
            raise ConfigError(
                f"trainer.layer must be from 1 to {blocks}, the model's decoder blocks, got {asked}"
            )
        return asked

    def _states(self, rows: Rows) -> Tensor:
        """[S, D] fp32 hidden states at the scored positions."""
        return self.model.hidden_states(rows, self.layer)[rows.scored].float()

    def _distance(self, rows: Rows, states: Tensor, target: Tensor) -> Tensor:
        sums = rows.row_sum((states - target).square().mean(-1))
        tokens = rows.row_sum(torch.ones_like(rows.weights))
        shares = torch.where(tokens > 0, 1 / tokens, 0)
        if self.config.reduction_parity:
            shares = shares.sum() / (tokens > 0).sum().clamp_min(1)
        return rows.row_mean(sums * shares)


@lru_cache(maxsize=8)
def direction(seed: int, width: int, device: torch.device) -> Tensor:
    """[D] a vector of length 1 with no negative entry: the same wherever and whenever drawn."""
    draw = torch.Generator().manual_seed(seed)
    vector = torch.rand(width, generator=draw)
    unit: Tensor = vector / vector.norm()
    return unit.to(device)
