"""Weight averaging: the result is the mean of the weights of several steps (arXiv:2502.05374).

Each rank averages its own fp32 shard, so it costs memory and no communication. Training goes on
from the weights themselves; the mean takes their place once, after the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .engine import Engine
from .errors import ConfigError
from .parts import Plan
from .vectors import Vector


class WeightAveraging:
    """The uniform mean of the weights after every so many steps of the end of a run.

    m <- m + (w - m) / k on the fp32 masters; Unlearn-Smooth's released code averages bf16 state
    dicts in bf16. An evaluation during training measures the weights, not their mean.
    """

    @dataclass
    class Config:
        """Which steps count."""

        start: float = 0.8
        """Share of the run, in [0, 1), from which on steps count."""
        every: int = 5
        """Steps between two that count, > 0; the last step always does."""

        def __post_init__(self) -> None:
            """Raise ConfigError for values out of range."""
            if not 0 <= self.start < 1:
                raise ConfigError(f"averaging.start must be in [0, 1), got {self.start:g}")
            if self.every < 1:
                raise ConfigError(f"averaging.every must be at least 1 step, got {self.every}")

    def __init__(self, config: Config) -> None:
        """Nothing is averaged yet."""
        self.config = config
        self.mean: Vector | None = None
        self.count = 0

    def observe(self, engine: Engine, *, done: int, plan: Plan) -> None:
        """Take in the weights after `done` steps, if that step counts."""
        first = round(self.config.start * plan.steps, 6)
        counts = done >= first and done % self.config.every == 0
        if not counts and done != plan.steps:
            return
        self.count += 1
        weights = engine.weights()
        if self.mean is None:
            self.mean = weights
        else:
            self.mean.add_(weights.add_(self.mean, -1.0), 1 / self.count)

    def metrics(self) -> dict[str, float]:
        """What to log, by name without the leading `train/`."""
        return {"averaged_steps": float(self.count)}

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside the mean."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.count = state["count"]
