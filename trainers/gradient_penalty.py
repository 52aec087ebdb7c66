"""Gradient penalty on the forget loss (Unlearn-Smooth, Fan et al., 2025, arXiv:2502.05374)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from framework import Perturbation, Shift, Vector
from framework.errors import require


class GradientPenalty(Perturbation):
    """The gradient of L + lambda |grad L|, L the forget loss.

    That of the norm is H v with v = grad L / |grad L| and H the Hessian; here by a finite
    difference, (grad L(theta + r v) - grad L(theta)) / r, right to first order in r. It needs no
    second derivatives of attention kernels, and works under every ZeRO stage.
    """

    @dataclass
    class Config:
        """The gradient penalty's own settings."""

        penalty: float = 0.01
        """lambda, >= 0; 0 is the unperturbed method, bit for bit."""
        step: float = 0.01
        """r, the length of the finite difference in parameter space, > 0."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for settings outside their ranges."""
        require("perturbation.penalty", config.penalty, at_least=0)
        require("perturbation.step", config.step, above=0)
        self.config = config

    def gradient(
        self,
        gradient: Callable[[], Vector],
        shifted: Callable[[Vector], AbstractContextManager[Shift]],
        noise: Callable[[int], Vector],
    ) -> Vector:
        """See `Perturbation.gradient`."""
        del noise
        here = gradient()
        if self.config.penalty == 0:
            return here
        with shifted(here.clone().stretch_(self.config.step)):
            difference = gradient().add_(here, -1.0)
        return here.add_(difference, self.config.penalty / self.config.step)
