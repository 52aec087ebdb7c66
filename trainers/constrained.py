"""Weightings of a constrained problem: forget as well as the retain loss stays below a level."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from framework import ConfigError, Gram, Weighting
from framework.errors import require
from framework.parts import Weights


class Constrained(Weighting):
    """gamma for the forget objective, its constraint's dual variable for each retain objective.

    min gamma L_f subject to L_r <= level for every retain source r. L_r is the mean over all rows
    of the step, over ranks and micro-batches, so a dual has the same bits on every rank.
    """

    needs_losses: ClassVar[bool] = True
    takes_sources: ClassVar[bool] = True

    @dataclass
    class Config:
        """What is asked of the retain losses."""

        gamma: float = 1.0
        """Weight of the forget objective, > 0."""
        level: float | dict[str, float] = 0.3
        """What the retain loss may be, in nats, > 0; by default as a number. With retain_by=task
        one number for all tasks, or a number for each: {author: 0.2, story: 0.5}."""
        relative: bool = False
        """Whether `level` is the share by which the retain loss may exceed that of the first step,
        which is before unlearning: (1 + level) times it."""

        def __post_init__(self) -> None:
            """Raise ConfigError for numbers that are not positive."""
            require("weighting.gamma", self.gamma, above=0)
            if isinstance(self.level, dict):
                for source, level in self.level.items():
                    require(f"weighting.level.{source}", level, above=0)
            else:
                require("weighting.level", self.level, above=0)

    def __init__(self, config: Config) -> None:
        """Before the first step a relative level is unknown."""
        self.config = config
        self.steps = 0
        self.duals: dict[str, float] = {}
        self.levels: dict[str, float] = {}
        self._slack: dict[str, float] = {}
        self.balance(self.objectives if isinstance(config.level, float) else ("forget",))

    def balance(self, objectives: tuple[str, ...]) -> None:
        """See `Weighting.balance`."""
        super().balance(objectives)
        self.duals = {name: self.first_dual() for name in objectives if name != "forget"}
        asked = {name: self._asked(name) for name in self.duals}
        self.levels = {} if self.config.relative else asked

    def _asked(self, objective: str) -> float:
        """What the config says of an objective's level."""
        level, source = self.config.level, objective.partition("/")[2]
        if not isinstance(level, dict):
            return level
        if level.keys() != {name.partition("/")[2] for name in self.duals} or not source:
            tasks = [name.partition("/")[2] for name in self.duals]
            each = ", ".join(f"{task}: 0.3" for task in tasks)
            said = f" or one for each task, 'weighting.level={{{each}}}'" if all(tasks) else ""
            raise ConfigError(
                f"weighting.level has a number for {', '.join(level)}; this run's retain "
                f"objectives are {', '.join(self.duals)}: type one number, weighting.level=0.3,"
                f"{said or ' or set retain_by=task too'}"
            )
        return level[source]

    def first_dual(self) -> float:
        """A dual before the first step."""
        return 0.0

    @abstractmethod
    def next_dual(self, objective: str, excess: float) -> float:
        """A dual, from its retain loss minus its level; `self.steps` counts earlier calls."""

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        return {"forget": self.config.gamma, **self.duals}

    def update(self, losses: Mapping[str, float]) -> None:
        """See `Weighting.update`."""
        if not all(math.isfinite(loss) for loss in losses.values()):
            return  # the step will be refused, or skipped as if it had not been
        for name in self.duals:
            if name not in self.levels:
                self.levels[name] = self._relative_to(losses[name], self._asked(name))
            self._slack[name] = self.levels[name] - losses[name]
            self.duals[name] = self.next_dual(name, losses[name] - self.levels[name])
        self.steps += 1

    @staticmethod
    def _relative_to(loss: float, share: float) -> float:
        """The level, where the retain loss was `loss` before unlearning."""
        if loss < 1e-5:
            raise ConfigError(
                f"weighting.relative=true needs a retain loss above 0 before unlearning, it is "
                f"{loss:g} (as KL to the model itself is); set weighting.relative=false and "
                "weighting.level in nats"
            )
        return (1 + share) * loss

    def metrics(self) -> dict[str, float]:
        """Each level, and how far below it the last step's loss was (negative: above)."""
        found = {f"{name}/level": self.levels[name] for name in self._slack}
        return found | {f"{name}/slack": slack for name, slack in self._slack.items()}

    def state_dict(self) -> dict[str, Any]:
        """See `Weighting.state_dict`; plain numbers by name."""
        duals = {f"{name}/dual": dual for name, dual in self.duals.items()}
        levels = {f"{name}/level": level for name, level in self.levels.items()}
        return {**duals, **levels, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Weighting.load_state_dict`."""
        self.steps = state["steps"]
        self.duals = named(state, "/dual")
        self.levels = named(state, "/level")


def named(state: Mapping[str, Any], ending: str) -> dict[str, float]:
    """The numbers of a state whose names end so, by the rest of their names."""
    return {k.removesuffix(ending): v for k, v in state.items() if k.endswith(ending)}
