"""PCGrad: gradient surgery (Yu et al., arXiv:2001.06782)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framework import Gram, Weighting
from framework.parts import Weights


class PCGrad(Weighting):
    """On conflict each gradient loses its part along the other; then they are added up.

    Where <g_f, g_r> < 0: u = (g_f - c_r g_r) + (g_r - c_f g_f), c_i = <g_f, g_r> / |g_i|^2, both
    projections of the gradients as they were, so u hurts neither objective. Else u = g_f + g_r.
    With two objectives there is no order to draw at random. BLUR projects one gradient alone, and
    always.
    """

    needs_gram: ClassVar[bool] = True

    @dataclass
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        """Nothing to check."""
        self.config = config

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        assert gram is not None
        conflict = gram.dot("forget", "retain").clamp_max(0)
        return {n: 1 - conflict / gram.dot(n, n).clamp_min(1e-300) for n in ("forget", "retain")}
