"""The log-barrier extension as a weighting (Kervadec et al., arXiv:1904.04205)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from framework.errors import require

from .constrained import Constrained


class LogBarrier(Constrained):
    """The retain weight is the slope of a barrier at the step's own retain loss.

    With z = L_r - level and sharpness s, the barrier is -log(-z)/s up to z = -1/s^2 and goes on as
    a straight line of slope s, so that a start above the level is no error. Its slope, the implicit
    dual, is 1/(s (-z)), at most s: the number that `PrimalDual` searches for step by step, here
    without a rate. Where all is convex and the level is kept, the loss at rest is within 1/s of the
    best. Each step's weight is of that step's loss, so each objective has its own backward pass.
    """

    losses_first: ClassVar[bool] = True

    @dataclass
    class Config(Constrained.Config):
        """How steep the barrier is."""

        sharpness: float = 5.0
        """s at the first step, > 0; the largest dual, and the inverse of the gap."""
        growth: float = 1.0
        """Factor on s per step, >= 1."""
        max_sharpness: float = 100.0
        """Where s stops growing, >= sharpness."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers out of their range."""
            super().__post_init__()
            require("weighting.sharpness", self.sharpness, above=0)
            require("weighting.growth", self.growth, at_least=1)
            require("weighting.max_sharpness", self.max_sharpness, at_least=self.sharpness)

    config: Config

    @property
    def sharpness(self) -> float:
        """The s of the coming step."""
        first, last = self.config.sharpness, self.config.max_sharpness
        power = self.steps * math.log(self.config.growth)
        return last if power >= math.log(last / first) else first * math.exp(power)

    def next_dual(self, objective: str, excess: float) -> float:
        """See `Constrained.next_dual`."""
        del objective
        s = self.sharpness
        return 1 / max(-s * excess, 1 / s)

    def metrics(self) -> dict[str, float]:
        """See `Constrained.metrics`; and the sharpness of the coming step."""
        return {**super().metrics(), "retain/sharpness": self.sharpness}
