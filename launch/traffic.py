"""Traffic: the collectives of one step under ZeRO, from its passes and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal[1, 2, 3]
STAGES: tuple[Stage, ...] = (1, 2, 3)
WEIGHTS, REDUCED = 2, 4
"""Bytes of a number: weights are gathered in bf16, gradients are reduced in fp32."""


@dataclass(frozen=True)
class Traffic:
    """How often the whole model goes over the wire, in however many messages."""

    all_gathers: int
    """Of the weights."""
    reduce_scatters: int
    """Of a gradient; in stage 0 an all-reduce, which is as much as both."""

    def bytes_per_rank(self, parameters: int, ranks: int) -> float:
        """What each rank sends, which is what it receives."""
        numbers = WEIGHTS * self.all_gathers + REDUCED * self.reduce_scatters
        return parameters * numbers * (ranks - 1) / ranks


def traffic(
    stage: Stage, *, forwards: int, backwards: int, gradients: int, shifts: int = 0
) -> Traffic:
    """Of one step with so many forward passes (a frozen reference's too) and backward passes.

    Stages 1 and 2 gather the weights once they are stepped, and when they are shifted and put back;
    stage 3 gathers them for every pass. Stage 1 reduces a gradient when it is whole, the others
    after each backward pass.
    """
    reduced = gradients if stage == 1 else backwards
    if stage == 3:
        return Traffic(forwards + backwards, reduced)
    return Traffic(1 + 2 * shifts, reduced)
