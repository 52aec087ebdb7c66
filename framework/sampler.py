"""Which rows each step reads: a pure function of the seed and the step number.

Anchor rule: the forget set is the epoch, and each forget row brings one retain row. Every epoch is
a new permutation of the forget set. Retain rows come from seeded permutations of the retain set
walked one after another, so each is read once before any is read twice, across epochs. That is
neither open-unlearning's uniform draws with replacement (which leave about 1/e of the retain set
unread by the time as many rows were drawn as it has) nor MUSE's `retain[i mod n]` (which pairs the
same rows forever and, with a retain set larger than the forget set, never reads its tail).

Where each source of retain rows counts by itself, a step reads equally many rows of each.

Nothing is remembered from step to step: resuming needs the step number alone, and the number of
processes enters nowhere (they share out the rows of a step afterwards).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from .data import Row
from .errors import ConfigError, DataError


class ForgetRetainSampler:
    """Step number -> the rows of that step by objective, over all processes together."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Row]],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """`sets`: the rows of each objective; `batch_size`: forget rows of a step, > 0.

        A step reads as many retain rows; of several retain sources the same number each, and at
        least as many together. Without a forget objective, which is fine-tuning, the retain set is
        the epoch. Raises DataError when a set is empty.
        """
        assert sets, "a sampler without objectives reads nothing"
        if batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1 row, got {batch_size}")
        self._sets = dict(sets)
        for name in sets:
            if not self._sets[name]:
                raise DataError(
                    f"the {name} set is empty: the {name} objective has nothing to learn from; "
                    "check the benchmark's data and row limits"
                )
        self.batch_size = batch_size
        self.seed = seed
        self.objectives = tuple(sets)
        self.epoch_set = "forget" if "forget" in sets else self.objectives[0]
        self._sources = len([name for name in sets if name != "forget"])
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
        return {
            name: [
                self._row(name, position)
                for position in range(self._before(name, step), self._before(name, step + 1))
            ]
            for name in self.objectives
        }

    def drawn(self, steps: int) -> dict[str, list[Row]]:
        """The rows of each objective that the first `steps` steps read, each once, in order."""
        found = {}
        for name, rows in self._sets.items():
            places = range(min(self._before(name, steps), len(rows)))  # each permutation has all
            ids = {self._row(name, place).id for place in places}
            found[name] = [row for row in rows if row.id in ids]
        return found

    def _before(self, name: str, step: int) -> int:
        """Rows of a set read before `step`: the position in its walk."""
        return self._rows_before(step, 1 if name == self.epoch_set else self._sources)

    def _rows_before(self, step: int, sources: int = 1) -> int:
        """Rows read before `step` of a set that shares a step's rows with `sources - 1` others."""
        size = len(self._sets[self.epoch_set])
        epochs, within = divmod(step, self.steps_per_epoch)
        whole = -(-self.batch_size // sources)
        last = -(-(size - (self.steps_per_epoch - 1) * self.batch_size) // sources)
        return epochs * ((self.steps_per_epoch - 1) * whole + last) + within * whole

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
