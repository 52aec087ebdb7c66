"""Optimizers: what turns a direction into a change of the weights, and how far it goes when.

An optimizer part holds the settings; the engine builds torch's optimizer from it over the shards
it owns. Clipping acts on the direction, after the weighting, by its global norm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch

from .errors import ConfigError


class Optimizer(ABC):
    """Settings every optimizer has: the learning rate over time, and clipping."""

    @dataclass
    class Config:
        """The learning rate and how it changes."""

        learning_rate: float | None = None
        """Peak learning rate, > 0; null: 1e-5, or 5e-4 for a tiny model."""
        schedule: Literal["constant", "linear", "cosine"] = "constant"
        """What follows warm-up: constant, or decay to 0 at the last step."""
        warmup: float = 0.0
        """Share of the steps, in [0, 1), over which the rate climbs linearly from 0."""
        max_gradient_norm: float | None = 1.0
        """The direction is scaled down to this global norm; null: never."""
        weight_decay: float = 0.0
        """Decoupled weight decay of matrices, >= 0 (biases and norms are not decayed)."""
        automatic_every: int = 0
        """Every so many steps the rate is fitted to the retain loss along the step (GeN,
        `framework/automatic.py`) and the schedule scaled by what was found; 0: never."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for values out of range."""
        if config.learning_rate is None or config.learning_rate <= 0:
            raise ConfigError(f"optimizer.learning_rate must be > 0, got {config.learning_rate}")
        if not 0 <= config.warmup < 1:
            raise ConfigError(f"optimizer.warmup must be in [0, 1), got {config.warmup:g}")
        if config.max_gradient_norm is not None and config.max_gradient_norm <= 0:
            raise ConfigError(
                "optimizer.max_gradient_norm must be > 0 or null (no clipping), got "
                f"{config.max_gradient_norm:g}"
            )
        if config.weight_decay < 0:
            raise ConfigError(f"optimizer.weight_decay must be >= 0, got {config.weight_decay:g}")
        if config.automatic_every < 0:
            raise ConfigError(
                "optimizer.automatic_every must be a number of steps, or 0 for never, got "
                f"{config.automatic_every}"
            )
        self.config = config
        self.peak = config.learning_rate

    @abstractmethod
    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """Torch's optimizer over parameter groups."""

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) of `steps`."""
        warmup = self.config.warmup * steps
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1.0, steps - warmup)
        factor = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[self.config.schedule]
        return self.peak * max(0.0, factor)


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), torch's fused kernel."""

    @dataclass
    class Config(Optimizer.Config):
        """AdamW's own settings."""

        betas: tuple[float, float] = (0.9, 0.999)
        """Decay of the two moments, each in [0, 1)."""
        eps: float = 1e-8
        """Added to the root of the second moment, > 0."""

        def __post_init__(self) -> None:
            """Raise ConfigError for values out of range."""
            if not all(0 <= beta < 1 for beta in self.betas):
                raise ConfigError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}")
            if self.eps <= 0:
                raise ConfigError(f"optimizer.eps must be > 0, got {self.eps:g}")

    config: Config

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        return torch.optim.AdamW(
            groups,
            lr=self.peak,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            fused=True,
        )


class SGD(Optimizer):
    """Plain gradient descent with optional momentum: for tests and theory."""

    @dataclass
    class Config(Optimizer.Config):
        """SGD's own settings."""

        momentum: float = 0.0
        """Share of the last direction that goes on, in [0, 1)."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a momentum out of range."""
            if not 0 <= self.momentum < 1:
                raise ConfigError(f"optimizer.momentum must be in [0, 1), got {self.momentum:g}")

    config: Config

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        return torch.optim.SGD(
            groups,
            lr=self.peak,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )
