"""Random smoothing of the forget gradient (Unlearn-Smooth, Fan et al., 2025, arXiv:2502.05374)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from framework import Perturbation, Shift, Vector
from framework.errors import require


class RandomSmoothing(Perturbation):
    """The mean forget gradient over random parameters around the present ones.

    (1/n) sum_i grad L(theta + sigma xi_i) with xi_i ~ N(0, I), fresh for every draw and step, over
    the same rows with the same dropout. The loss on record is the first draw's.
    """

    @dataclass
    class Config:
        """Random smoothing's own settings."""

        sigma: float = 1e-4
        """Standard deviation of each parameter, >= 0; 0 is the unperturbed method, bit for bit."""
        draws: int = 3
        """Gradients that are averaged, >= 1; each costs a forward and a backward pass."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for settings outside their ranges."""
        require("perturbation.sigma", config.sigma, at_least=0)
        require("perturbation.draws", config.draws, at_least=1)
        self.config = config

    def gradient(
        self,
        gradient: Callable[[], Vector],
        shifted: Callable[[Vector], AbstractContextManager[Shift]],
        noise: Callable[[int], Vector],
    ) -> Vector:
        """See `Perturbation.gradient`."""

        def drawn(draw: int) -> Vector:
            with shifted(noise(draw).scale_(self.config.sigma)):
                return gradient()

        if self.config.sigma == 0:
            return gradient()
        total = drawn(0)
        for draw in range(1, self.config.draws):
            total.add_(drawn(draw))
        return total.scale_(1 / self.config.draws)
