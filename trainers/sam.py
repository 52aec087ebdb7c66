"""SAM on the forget gradient (Foret et al., arXiv:2010.01412; Unlearn-Smooth, arXiv:2502.05374)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from framework import Perturbation, Shift, Vector
from framework.errors import require


class SAM(Perturbation):
    """The forget gradient at the worst parameters within `rho` of the present ones.

    delta = rho v / |v| with v the gradient here, |v| its global norm; then the gradient at
    theta + delta over the same rows with the same dropout. In bf16 most of a small delta is rounded
    away: the realized norm and cosine are on record as `train/perturbation/*`.
    """

    @dataclass
    class Config:
        """SAM's own setting."""

        rho: float = 0.01
        """Radius in parameter space, >= 0; 0 is the unperturbed method, bit for bit."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for a negative radius."""
        require("perturbation.rho", config.rho, at_least=0)
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
        if self.config.rho == 0:
            return here
        with shifted(here.stretch_(self.config.rho)):
            del here  # the model has moved: room for the second gradient
            return gradient()
