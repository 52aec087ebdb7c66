"""Which steps were not finite: noted on the device, step after step, and looked at now and then.

A step of a NaN changes nothing (`Engine.step`'s `skip`). Where such a step is to end the run, every
step after it changes nothing either, until somebody looks: then the weights are those of the step
before it, bit for bit, however late the host finds out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import sum_over_ranks
from .step_record import StepRecord


@dataclass(frozen=True)
class Found:
    """What the host learns when it looks."""

    skipped: int
    """Steps since the last look that changed nothing."""
    losses: dict[str, float]
    """Of the first of them, means over the whole step; empty: none was skipped."""


class NonFinite:
    """Which steps since the last look were skipped."""

    def __init__(self, *, sticky: bool) -> None:
        """`sticky`: after one step that is skipped, all others are."""
        self._sticky = sticky
        self._skip: Tensor | None = None
        self._count: Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._losses: Tensor | None = None

    def note(self, norm: Tensor, record: StepRecord) -> Tensor:
        """Whether the step of this gradient norm is to be skipped, a bool on the device."""
        bad = norm.isfinite().logical_not_()
        losses = record.local_losses()
        if self._skip is None or self._count is None or self._losses is None:
            self._skip, self._count, self._losses = bad, bad.long(), losses
            self._names = tuple(record.losses)
            return bad
        # of the first step that was skipped; of the last one, where none was
        self._losses = torch.where(self._count > 0, self._losses, losses)
        self._skip = self._skip | bad if self._sticky else bad
        self._count = self._count + self._skip
        return self._skip

    def look(self) -> Found:
        """Wait for the device and begin anew; every rank looks, and finds the same."""
        if self._count is None or self._losses is None:
            return Found(0, {})
        skipped = int(self._count)
        losses = sum_over_ranks(self._losses).tolist() if skipped else []
        self._skip = self._count = self._losses = None
        return Found(skipped, dict(zip(self._names, losses, strict=False)))
