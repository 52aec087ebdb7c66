"""Which rows each step reads: a pure function of the seed and the step number.

Anchor rule: the forget set is the epoch, and each forget row brings one retain row. Every epoch is
a new permutation of the forget set. Retain rows come from seeded permutations of the retain set
walked one after another, so each is read once before any is read twice, across epochs. That is
neither open-unlearning's uniform draws with replacement (which leave about 1/e of the retain set
unread by the time as many rows were drawn as it has) nor MUSE's `retain[i mod n]` (which pairs the
same rows forever and, with a retain set larger than the forget set, never reads its tail).

Nothing is remembered from step to step: resuming needs the step number alone, and the number of
processes enters nowhere (they share out the rows of a step afterwards).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .data import Row
from .errors import ConfigError, DataError


class ForgetRetainSampler:
    """Step number -> the rows of that step by objective, over all processes together."""

    def __init__(
        self,
        forget: Sequence[Row],
        retain: Sequence[Row],
        *,
        batch_size: int,
        seed: int,
        objectives: tuple[str, ...] = ("forget", "retain"),
    ) -> None:
        """`batch_size`: rows of each objective in a step, > 0.

        With `objectives == ("retain",)`, which is fine-tuning, the retain set is the epoch. Raises
        DataError when a set that the objectives need is empty.
        """
        assert objectives, "a sampler without objectives reads nothing"
        assert set(objectives) <= {"forget", "retain"}, objectives
        if batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1 row, got {batch_size}")
        self._sets = {"forget": forget, "retain": retain}
        for name in objectives:
            if not self._sets[name]:
                raise DataError(
                    f"the {name} set is empty: the {name} objective has nothing to learn from; "
                    "check the benchmark's data and row limits"
                )
        self.batch_size = batch_size
        self.seed = seed
        self.objectives = objectives
        self.epoch_set = "forget" if "forget" in objectives else "retain"
        self._current: dict[str, tuple[int, list[int]]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps that read the epoch's set once; the last may be smaller."""
        return -(-len(self._sets[self.epoch_set]) // self.batch_size)

    def epoch(self, step: int) -> float:
        """Epochs that are complete once `step` steps are done."""
        size = len(self._sets[self.epoch_set])
        return self._rows_before(step) / size

    def __getitem__(self, step: int) -> dict[str, list[Row]]:
        """The rows of step `step`, counted from 0, by objective."""
        if step < 0:
            raise IndexError(f"steps count from 0, got {step}")
        start, end = self._rows_before(step), self._rows_before(step + 1)
        return {
            name: [self._row(name, position) for position in range(start, end)]
            for name in self.objectives
        }

    def _rows_before(self, step: int) -> int:
        """Rows of the epoch's set read before `step`: the position in every walk."""
        size = len(self._sets[self.epoch_set])
        epochs, within = divmod(step, self.steps_per_epoch)
        return epochs * size + within * self.batch_size

    def _row(self, name: str, position: int) -> Row:
        """The row at `position` of the endless walk through permutations of a set."""
        rows = self._sets[name]
        cycle, index = divmod(position, len(rows))
        if self._current.get(name, (-1, []))[0] != cycle:
            self._current[name] = (cycle, _permutation(len(rows), f"{self.seed}:{name}:{cycle}"))
        return rows[self._current[name][1][index]]


def _permutation(size: int, seed: str) -> list[int]:
    """A permutation of 0 ... size - 1 that is the same on every machine and Python version.

    Sorting by random keys, because Python keeps the sequence of `random()` for a seed but reserves
    the right to change `shuffle`.
    """
    generator = random.Random(seed)
    keys = [generator.random() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)
