"""GRU: gradient rectified unlearning (Wang et al., 2025, arXiv:2503.09117)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from framework import ConfigError, Gram, Weighting
from framework.parts import Weights


class GRU(Weighting):
    """The forget gradient without what works against retention, on a running mean's word.

    Where <g_f, m> < 0: u = g_f - <g_f, m> / |m|^2 m, else u = g_f, with m the running mean of the
    retain gradients: m <- rate g_r + (1 - rate) m, the first g_r at the first step. One noisy
    retain batch then no longer decides. Unlike PCGrad, the retain gradient itself is not followed
    unless `retain` says so. `train/retain/gradient_norm` and `train/cosine` are of m.

    tmlr-group/GRU begins its mean at 0, so that its first gradient counts only `rate` in the second
    mean; its variant with a retain term adds the step's own retain gradient, not the mean.
    """

    needs_gram: ClassVar[bool] = True

    @dataclass
    class Config:
        """GRU's own settings."""

        rate: float = 0.8
        """Share of the step's own gradient in the running mean, in (0, 1]."""
        retain: float = 0.0
        """How much of the running mean is added besides, >= 0; the paper's is 0."""

        def __post_init__(self) -> None:
            """Raise ConfigError for values out of range."""
            if not 0 < self.rate <= 1:
                raise ConfigError(f"weighting.rate must be in (0, 1], got {self.rate:g}")
            if not self.retain >= 0:
                raise ConfigError(f"weighting.retain must be >= 0, got {self.retain:g}")

    def __init__(self, config: Config) -> None:
        """The mean itself is the trainer's to keep."""
        self.config = config

    @property
    def running_means(self) -> Mapping[str, float]:
        """See `Weighting.running_means`."""
        return {"retain": self.config.rate}

    def weights(self, gram: Gram | None) -> Weights:
        """See `Weighting.weights`."""
        assert gram is not None
        conflict = gram.dot("forget", "retain").clamp_max(0)
        squared = gram.dot("retain", "retain").clamp_min(1e-300)
        return {"forget": 1.0, "retain": self.config.retain - conflict / squared}
