"""Weightings of a constrained problem: forget as well as the retain loss stays below a level."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from framework import ConfigError, Gram, Weighting
from framework.parts import Weights


class Constrained(Weighting):
    """gamma for the forget objective, the constraint's dual variable for the retain objective.

    min gamma L_f subject to L_r <= level. L_r is the mean over all rows of the step, over ranks and
    micro-batches, so the dual has the same bits on every rank.
    """

    needs_losses: ClassVar[bool] = True

    @dataclass
    class Config:
        """What is asked of the retain loss."""

        gamma: float = 1.0
        """Weight of the forget objective, > 0."""
        level: float = 0.3
        """What the retain loss may be, in nats, > 0; by default as a number."""
        relative: bool = False
        """Whether `level` is the share by which the retain loss may exceed that of the first step,
        which is before unlearning: (1 + level) times it."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers that are not positive."""
            require("gamma", self.gamma, above=0)
            require("level", self.level, above=0)

    def __init__(self, config: Config) -> None:
        """Before the first step the level is unknown if it is relative."""
        self.config = config
        self.level: float | None = None if config.relative else config.level
        self.dual = 0.0
        self.steps = 0
        self._slack: float | None = None

    @abstractmethod
    def next_dual(self, excess: float) -> float:
        """The dual, from the retain loss minus the level; `self.steps` counts earlier calls."""

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        return {"forget": self.config.gamma, "retain": self.dual}

    def update(self, losses: Mapping[str, float]) -> None:
        """See `Weighting.update`."""
        loss = losses["retain"]
        if not math.isfinite(loss):  # the step will be refused, or skipped as if it had not been
            return
        if self.level is None:
            self.level = self._relative_to(loss)
        self._slack = self.level - loss
        self.dual = self.next_dual(loss - self.level)
        self.steps += 1

    def _relative_to(self, loss: float) -> float:
        """The level, where the retain loss was `loss` before unlearning."""
        if loss < 1e-5:
            raise ConfigError(
                f"weighting.relative=true needs a retain loss above 0 before unlearning, it is "
                f"{loss:g} (as KL to the model itself is); set weighting.relative=false and "
                "weighting.level in nats"
            )
        return (1 + self.config.level) * loss

    def metrics(self) -> dict[str, float]:
        """The level, and how far below it the last step's retain loss was (negative: above)."""
        if self.level is None or self._slack is None:
            return {}
        return {"retain/level": self.level, "retain/slack": self._slack}

    def state_dict(self) -> dict[str, Any]:
        """See `Weighting.state_dict`."""
        return {"dual": self.dual, "level": self.level, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Weighting.load_state_dict`."""
        self.dual, self.level, self.steps = state["dual"], state["level"], state["steps"]


def require(
    name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf
) -> None:
    """Raise ConfigError for a setting of the weighting that is out of its range or not finite."""
    if value > above and value >= at_least and math.isfinite(value):
        return
    least = f"> {above:g}" if above > -math.inf else f">= {at_least:g}"
    finite = " and finite" if value == math.inf else ""
    raise ConfigError(f"weighting.{name} must be {least}{finite}, got {value:g}")
