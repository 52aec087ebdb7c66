"""NGDiff: normalized gradient difference (Bu et al., 2024, arXiv:2410.22086)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from framework import Gram, Weighting
from framework.parts import Weights


class NormalizedGradients(Weighting):
    """Each objective's gradient counts one over its global norm.

    With the forget objective to be minimized this is the paper's g_R/|g_R| - g_F/|g_F|. Norms are
    of the whole model, after all micro-batches and ranks; a vanishing gradient counts 0.
    """

    needs_gram: ClassVar[bool] = True
    takes_sources: ClassVar[bool] = True

    @dataclass
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        """Nothing to check."""
        self.config = config

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        assert gram is not None
        return {name: _inverse(gram.norm(name)) for name in gram.names}


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
