"""What one step leaves to be logged: losses, weights, norms, the cosine between the objectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .distributed import sum_over_ranks
from .engine import Shift
from .memory import peak_memory_gib
from .parts import Weights
from .vectors import Gram


class StepRecord:
    """What one step leaves to be logged, on the device until somebody asks."""

    def __init__(
        self, learning_rate: float, objectives: Sequence[str], device: torch.device
    ) -> None:
        self.learning_rate = learning_rate
        # of all, in one order: a rank may hold no row of some objective
        self.losses = {name: torch.zeros((), device=device) for name in objectives}
        self.weights: Weights = {}
        self.gram: Gram | None = None
        self.norm: Tensor | None = None
        self.shift: Shift | None = None
        self._sums: Tensor | None = None

    def add(self, name: str, share: Tensor) -> None:
        """Add a micro-batch's share to the objective's loss."""
        assert self._sums is None, "the step's losses were read already"
        self.losses[name] = self.losses[name] + share

    def mean_losses(self) -> dict[str, float]:
        """Each objective's mean over the whole step, the same bits on every rank."""
        return dict(zip(self.losses, self._reduced().tolist(), strict=True))

    def local_losses(self) -> Tensor:
        """[losses] this rank's shares, once all are in."""
        return torch.stack(list(self.losses.values())).double()

    def _reduced(self) -> Tensor:
        """[losses] once all are in; reduced over the ranks the first time that somebody asks."""
        if self._sums is None:
            self._sums = sum_over_ranks(self.local_losses())
        return self._sums

    def metrics(self) -> dict[str, float]:
        """All numbers by their public names."""
        losses = self._reduced()
        means = zip(self.losses, losses, strict=True)
        named: dict[str, float | Tensor] = {f"train/{name}/loss": mean for name, mean in means}
        named["train/gradient_norm"] = _known(self.norm)
        named |= {f"train/{name}/weight": w for name, w in self.weights.items()}
        if self.gram is not None:
            for name in self.gram.names:
                named[f"train/{name}/gradient_norm"] = self.gram.norm(name)
            for name in self.gram.names if "forget" in self.gram.names else ():
                if name != "forget":
                    where = "train/cosine" if name == "retain" else f"train/{name}/cosine"
                    named[where] = self.gram.cosine("forget", name)
        if self.shift is not None:
            named["train/perturbation/norm"] = self.shift.norm
            named["train/perturbation/ratio"] = self.shift.ratio
            named["train/perturbation/cosine"] = self.shift.cosine
        on_device = [v.to(losses) for v in named.values() if isinstance(v, Tensor)]
        copied = iter(torch.stack(on_device).tolist())  # the one copy to the host
        return {
            **{n: next(copied) if isinstance(v, Tensor) else float(v) for n, v in named.items()},
            "train/learning_rate": self.learning_rate,
            "train/peak_memory_gib": peak_memory_gib(),
        }


def _known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
