"""BLUR: bi-level unlearning (arXiv:2506.08164, section 4; released code, MUSE and WMDP parts)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from framework import ConfigError, Gram, Weighting
from framework.parts import Weights


class BLUR(Weighting):
    """Forget first; retain only along what does not undo the forgetting.

    Lower level forget (the paper): u = gamma g_f + alpha (g_r - c g_f), c = <g_r, g_f> / |g_f|^2,
    so <u, g_f> = gamma |g_f|^2 whatever g_r is. The projection is applied whatever the sign of the
    product, unlike PCGrad's. alpha = 800, gamma = 1 is the released WMDP scaling. Where the lower
    gradient vanishes, u is alpha times the upper one.

    The released TOFU code ignores its gamma and projects one rank's last micro-batch only; this is
    the paper's formula over the whole step.
    """

    needs_gram: ClassVar[bool] = True

    @dataclass
    class Config:
        """BLUR's own settings."""

        gamma: float = 1.0
        """How fast the lower objective falls, > 0."""
        alpha: float = 1.0
        """How much of the projected upper gradient is added, >= 0."""
        lower: Literal["forget", "retain"] = "forget"
        """Which objective is solved first; retain is the released variant with roles swapped."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for settings that are not positive."""
        if not config.gamma > 0:
            raise ConfigError(
                f"weighting.gamma must be > 0, got {config.gamma:g}: at 0 nothing is forgotten"
            )
        if not config.alpha >= 0:
            raise ConfigError(f"weighting.alpha must be >= 0, got {config.alpha:g}")
        self.config = config

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        assert gram is not None
        lower = self.config.lower
        upper = "retain" if lower == "forget" else "forget"
        squared = gram.dot(lower, lower)
        projection = gram.dot(upper, lower) / squared.clamp_min(1e-300)
        along = self.config.gamma - self.config.alpha * projection
        return {
            lower: torch.where(squared > 0, along, torch.zeros_like(along)),
            upper: self.config.alpha,
        }
