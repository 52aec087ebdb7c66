"""The three exchangeable parts of a step, one question each.

**Selection**: which target tokens of the forget rows count? Asked once, before training: first for
a score per token, of the forget rows, the retain rows and the model before unlearning, then row by
row for a weight per token. `selection.py` puts the question and keeps the answer.

**Perturbation**: at which parameters is an objective's gradient taken? Asked per step; may take the
gradient several times, at shifted parameters.

**Weighting**: how much does each objective count? Asked per step, of the Gram matrix of the
objectives' gradients and of their losses; answers with one number per objective. The update's
direction is the weighted sum.

Parts are abstract or final: to change one, wrap it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .data import Row
from .engine import Shift
from .errors import ConfigError
from .language_model import LanguageModel
from .token_choice import Decoder
from .vectors import Gram, Vector

Weights = dict[str, float | Tensor]
"""One number per objective; device scalars keep the step free of host syncs."""


@dataclass(frozen=True)
class Plan:
    """How long a run is."""

    steps: int
    """Optimizer steps in all."""
    steps_per_epoch: int
    """Optimizer steps that read the forget set once."""


class Selection(ABC):
    """Which target tokens of the forget rows count."""

    def scores(
        self, forget: Sequence[Row], retain: Sequence[Row], model: LanguageModel, *, seed: int
    ) -> list[list[float]]:
        """What it goes by: a number for each token of each forget row; by default 0.

        `model` is as it is before unlearning, with its tokenizer. Every rank calls this, and goes
        on with what rank 0 was given.
        """
        del retain, model, seed
        return [[0.0] * len(row.input_ids) for row in forget]

    @abstractmethod
    def token_weights(
        self, row: Row, scores: Sequence[float], tokenizer: Decoder
    ) -> Sequence[float]:
        """A weight in [0, 1] for each token of `row`; it multiplies the row's own."""


class Perturbation(ABC):
    """At which parameters an objective's gradient is taken."""

    objectives: ClassVar[tuple[str, ...]] = ("forget",)

    @abstractmethod
    def gradient(
        self,
        gradient: Callable[[], Vector],
        shifted: Callable[[Vector], AbstractContextManager[Shift]],
        noise: Callable[[int], Vector],
    ) -> Vector:
        """The objective's gradient, from `gradient()` at the current parameters.

        Inside `with shifted(delta):` the current parameters are moved by `delta`; `gradient()`
        always reads the same batch with the same dropout. `noise(draw)` is standard normal, another
        vector for every draw and step, the same on any number of ranks.
        """


class Weighting(ABC):
    """How much each objective counts."""

    needs_gram: ClassVar[bool] = False
    """Whether `weights` reads the Gram matrix: then each objective gets a backward of its own."""
    needs_losses: ClassVar[bool] = False
    """Whether `update` reads the losses: then they are reduced over the ranks every step."""
    losses_first: ClassVar[bool] = False
    """Whether `update` comes before the step's `weights` rather than after the step: then each
    objective gets a backward of its own, for a loss is known once it has been differentiated."""
    takes_sources: ClassVar[bool] = False
    """Whether it can balance several retain objectives, `retain/<source>` each."""
    objectives: tuple[str, ...] = ("forget", "retain")
    """What it balances."""
    plan: Plan | None = None
    """How long the run is; None where nobody has said."""

    @property
    def running_means(self) -> Mapping[str, float]:
        """Objectives (not the first) whose gradient is replaced by its running mean.

        The number, in (0, 1], is the share of the step's own gradient in the mean. Needs the Gram
        matrix.
        """
        return {}

    def balance(self, objectives: tuple[str, ...]) -> None:
        """Take on a run's objectives. Raises ConfigError for what it cannot balance."""
        if len(objectives) > 2 and not self.takes_sources:
            raise ConfigError(
                f"the weighting {type(self).__name__} balances one retain objective, this run has "
                f"{len(objectives) - 1} ({', '.join(objectives[1:])}); set retain_by=all, or a "
                "weighting that balances several, such as none or primal_dual"
            )
        self.objectives = objectives

    @abstractmethod
    def weights(self, gram: Gram | None) -> Weights:
        """The weight of each objective in this step's direction."""

    def update(self, losses: Mapping[str, float]) -> None:
        """Learn from the step's losses, means over the whole step, the same bits on all ranks."""
        del losses

    def metrics(self) -> dict[str, float]:
        """What to log of its own beside the weights, by name without the leading `train/`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        assert not state, f"{type(self).__name__} keeps no state, found {sorted(state)}"


class FixedWeights(Weighting):
    """The same weights at every step."""

    takes_sources: ClassVar[bool] = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        """One number per objective."""
        self._weights = dict(weights)

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        del gram
        return {**self._weights}
