"""The automatic learning rate: GeN (Bu and Xu, arXiv:2407.02772), as NGDiff uses it (2410.22086).

After a step of rate eta the retain loss is read at three points of the line that the step went:
where it arrived (L_down), where it came from (L_0), and as far the other way (L_up). A parabola
through them has its minimum at

    optimum = eta/2 (L_up - L_down) / (L_up - 2 L_0 + L_down)

and the rate of the coming steps moves there, where the loss falls along the step and the parabola
opens upward: eta <- 0.9 eta + 0.1 clip(optimum, eta/2, 2 eta). Otherwise it stays.

gen-optim 0.1.1 takes an optimizer step to find the line and undoes it in the weights alone, so that
AdamW's moments advance twice; here the line is that of the step itself, and nothing is undone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOISE = 5e-7
"""Of a mean loss in fp32, relative: a smaller bend of the parabola is rounding."""


class AutomaticLearningRate:
    """A factor on the schedule's learning rate, refitted every so many steps."""

    def __init__(self, every: int) -> None:
        """`every`: steps between two fits, > 0."""
        assert every > 0
        self.every = every
        self.factor = 1.0
        self.optimum: float | None = None
        """What the last accepted fit found; None before."""

    def due(self, step: int) -> bool:
        """Whether step `step`, from 0, is followed by a fit."""
        return step % self.every == 0

    def fit(self, rate: float, *, up: float, origin: float, down: float) -> None:
        """Move the factor; `rate` is that of the step that went from `origin` to `down`."""
        bend, slope = up - 2 * origin + down, up - down
        if not (math.isfinite(bend) and rate > 0 and slope > 0 and bend > NOISE * abs(origin)):
            return
        self.optimum = rate / 2 * slope / bend
        self.factor *= 0.9 + 0.1 * min(2.0, max(0.5, self.optimum / rate))

    def metrics(self) -> dict[str, float]:
        """What to log, by name without the leading `train/`."""
        return {} if self.optimum is None else {"learning_rate_optimum": self.optimum}

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {"factor": self.factor, "optimum": self.optimum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.factor, self.optimum = state["factor"], state["optimum"]
