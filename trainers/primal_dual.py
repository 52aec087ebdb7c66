"""PDU's primal-dual weighting (arXiv:2506.05314): the retain weight is a dual variable."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from framework import ConfigError
from framework.distributed import is_main
from framework.errors import require
from framework.parts import Plan

from .constrained import Constrained, named


class DualCapWarning(UserWarning):
    """The retain loss stays above its level although the retain weight is at its cap."""


class PrimalDual(Constrained):
    """Dual ascent: lambda <- clip(lambda + rate (L_r - level), 0, cap) after each step.

    open-unlearning's src/trainer/unlearn/pdu.py updates lambda once per micro-batch, from one
    rank's loss, and does not save it; here once per optimizer step, from the loss over all ranks,
    and it is in checkpoints. There is no switch for the former, by which ranks minimize different
    objectives: to have lambda move as far in a step, set `rate` to that of there times the
    micro-batches that one rank reads there before it steps. Its updates by the epoch read all
    retain rows once more; here the epoch's steps are the reading.
    """

    @dataclass
    class Config(Constrained.Config):
        """How the dual starts and moves."""

        dual: float = 1.0
        """lambda before the first step, >= 0."""
        rate: float = 0.1
        """How much lambda climbs per nat of excess and update, > 0."""
        every: Literal["step", "epoch"] = "step"
        """When lambda is updated: after each step, from its loss, or after each epoch, from the
        mean of its steps' losses."""
        warmup: float = 0.0
        """Share of the run, in [0, 1), in which lambda is not yet moved."""
        cap: float = 1000.0
        """What lambda never exceeds, > 0; a level that cannot be reached drives it there."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers out of their range."""
            super().__post_init__()
            require("weighting.dual", self.dual, at_least=0)
            require("weighting.rate", self.rate, above=0)
            require("weighting.warmup", self.warmup, at_least=0, below=1)
            require("weighting.cap", self.cap, above=0)
            if self.cap < self.dual:
                raise ConfigError(
                    f"weighting.cap must be >= weighting.dual={self.dual:g}, got {self.cap:g}"
                )

    config: Config

    def __init__(self, config: Config) -> None:
        """Every dual is `config.dual` until the warm-up is over."""
        super().__init__(config)
        self._excess: dict[str, float] = {}
        self._warned = False

    def first_dual(self) -> float:
        """See `Constrained.first_dual`."""
        return self.config.dual

    def next_dual(self, objective: str, excess: float) -> float:
        """See `Constrained.next_dual`."""
        share = 1
        if self.config.every == "epoch":
            share = self._known_plan().steps_per_epoch
            excess += self._excess.pop(objective, 0.0)
            if (self.steps + 1) % share:
                self._excess[objective] = excess
                return self.duals[objective]
        warm = self.config.warmup and round(self.config.warmup * self._known_plan().steps, 6)
        if self.steps < warm:
            return self.duals[objective]
        dual = max(0.0, self.duals[objective] + self.config.rate * excess / share)
        if dual >= self.config.cap and excess > 0:
            self._warn(objective)
        return min(dual, self.config.cap)

    def _known_plan(self) -> Plan:
        assert self.plan is not None, "the trainer's begin() tells how long the run is"
        return self.plan

    def _warn(self, objective: str) -> None:
        if not self._warned and is_main():
            warnings.warn(
                f"the dual reached weighting.cap={self.config.cap:g} after {self.steps + 1} steps: "
                f"the {objective} loss stays above its level of {self.levels[objective]:g} nats; "
                "raise weighting.level, or weighting.cap",
                DualCapWarning,
                stacklevel=2,
            )
        self._warned = True

    def state_dict(self) -> dict[str, Any]:
        """See `Weighting.state_dict`."""
        epoch = {f"{name}/excess": excess for name, excess in self._excess.items()}
        return super().state_dict() | epoch

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Weighting.load_state_dict`."""
        super().load_state_dict(state)
        self._excess = named(state, "/excess")
