"""PDU's primal-dual weighting (arXiv:2506.05314): the retain weight is a dual variable."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from framework.distributed import is_main

from .constrained import Constrained, require


class DualCapWarning(UserWarning):
    """The retain loss stays above its level although the retain weight is at its cap."""


class PrimalDual(Constrained):
    """Dual ascent: lambda <- clip(lambda + rate (L_r - level), 0, cap) after each step.

    open-unlearning's pdu.py updates lambda once per micro-batch, from one rank's loss, and does not
    save it; here once per optimizer step, from the loss over all ranks, and it is in checkpoints.
    """

    @dataclass
    class Config(Constrained.Config):
        """How the dual starts and moves."""

        dual: float = 1.0
        """lambda before the first step, >= 0."""
        rate: float = 0.1
        """How much lambda climbs per nat of excess and step, > 0."""
        warmup_steps: int = 0
        """Steps after which lambda is not yet moved, >= 0."""
        cap: float = 1000.0
        """What lambda never exceeds, > 0; a level that cannot be reached drives it there."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers out of their range."""
            super().__post_init__()
            require("dual", self.dual, at_least=0)
            require("rate", self.rate, above=0)
            require("warmup_steps", self.warmup_steps, at_least=0)
            require("cap", self.cap, at_least=self.dual)

    config: Config

    def __init__(self, config: Config) -> None:
        """The dual is `config.dual` until the warm-up is over."""
        super().__init__(config)
        self.dual = config.dual
        self._warned = False

    def next_dual(self, excess: float) -> float:
        """See `Constrained.next_dual`."""
        if self.steps < self.config.warmup_steps:
            return self.dual
        dual = max(0.0, self.dual + self.config.rate * excess)
        if dual >= self.config.cap and excess > 0:
            self._warn()
        return min(dual, self.config.cap)

    def _warn(self) -> None:
        if not self._warned and is_main():
            warnings.warn(
                f"the dual reached weighting.cap={self.config.cap:g} after {self.steps + 1} steps: "
                f"the retain loss stays above its level of {self.level:g} nats; raise "
                "weighting.level, or weighting.cap",
                DualCapWarning,
                stacklevel=2,
            )
        self._warned = True
