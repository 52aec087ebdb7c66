"""MGDA for two objectives (Désidéri, 2012; Sener and Koltun, arXiv:1810.04650, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from framework import Gram, Weighting
from framework.parts import Weights


class MinNorm(Weighting):
    """The shortest of all mixtures of the two gradients; the weights add up to 1.

    u = a g_f + (1 - a) g_r with a = <g_r - g_f, g_r> / |g_f - g_r|^2 clipped to [0, 1]. Both losses
    fall at the rate |u|^2 or faster; where no direction lowers both, u is 0 and nothing moves. So a
    retain loss that is at its minimum stops the forgetting.
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
        product, retain = gram.dot("forget", "retain"), gram.dot("retain", "retain")
        squared = gram.dot("forget", "forget") - 2 * product + retain
        share = ((retain - product) / squared.clamp_min(1e-300)).clamp(0, 1)
        # two equal gradients: every mixture is the same one
        share = torch.where(squared > 0, share, torch.full_like(share, 0.5))
        return {"forget": share, "retain": 1 - share}
