"""Curvature regularization of the forget loss (Unlearn-Smooth, Fan et al., arXiv:2502.05374)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from framework import Perturbation, Shift, Vector
from framework.errors import require


class Curvature(Perturbation):
    """The gradient of L + lambda |grad L(theta + mu v) - grad L(theta)|, L the forget loss.

    v = grad L / |grad L| is held constant. With d the difference of the two gradients, the norm's
    gradient is the difference of H d / |d| at theta + mu v and at theta; here each by a finite
    difference of length r along d: four gradients in all.
    """

    @dataclass
    class Config:
        """The curvature regularization's own settings."""

        penalty: float = 10.0
        """lambda, >= 0; 0 is the unperturbed method, bit for bit."""
        radius: float = 0.01
        """mu, the distance over which the gradient should not change, > 0."""
        step: float = 0.01
        """r, the length of the finite differences in parameter space, > 0."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for settings outside their ranges."""
        require("perturbation.penalty", config.penalty, at_least=0)
        require("perturbation.radius", config.radius, above=0)
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
        away = here.clone().stretch_(self.config.radius)
        with shifted(away):
            change = gradient().add_(here, -1.0)
        turn = change.clone().stretch_(self.config.step)
        with shifted(away.add_(turn)):
            twice = gradient().add_(here, -1.0)
        with shifted(turn):
            once = gradient().add_(here, -1.0)
        # each is a difference to the gradient here, so that the large part is gone before the sum
        twice.add_(change, -1.0).add_(once, -1.0)
        return here.add_(twice, self.config.penalty / self.config.step)
