"""Muon: the direction's hidden matrices are orthogonalized, so that every singular value counts.

    M <- mu M + (1 - mu) D                      D: the combined direction, after the weighting
    U  = (1 - mu) D + mu M  (Nesterov), or M
    O  = five steps X <- a X + (b XX' + c (XX')^2) X from X = U / |U|
    W <- (1 - rate * decay) W - rate * scale * O

Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; `torch.optim.Muon` is the same step.
DeepSpeed's own Muon is not used: it orthogonalizes inside the backward pass. The gradients of two
objectives would each come out orthogonal, there would be no norms and cosines for a weighting to
read, every further backward pass would advance the momentum, and at stage 3 so does every
micro-batch. Here the direction is whole and weighted before it is touched, once per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import ConfigError
from .matrices import Matrices
from .optimizers import Optimizer, Shaper, Trained
from .vectors import Vector

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
VANISHING = 1e-7
"""A matrix shorter than this is not blown up to a whole step; torch.optim.Muon's `eps`."""

Scale = Literal["rms", "original", "nuclear"]


class Muon(Optimizer):
    """Muon for hidden matrices, AdamW for embeddings, output head, biases and norms.

    The size of a step does not depend on that of the direction (but for `scale=nuclear`): a loss
    whose gradient fades out does not slow it down, a decaying rate does. Adapters' factors are
    hidden matrices; matrices stacked in one parameter (experts) are AdamW's.
    """

    @dataclass
    class Config(Optimizer.Config):
        """Muon's own settings, and those of the AdamW beside it."""

        max_gradient_norm: float | None = None
        """Must be null: a common factor of all matrices does not outlive orthogonalization."""
        momentum: float = 0.95
        """Share of the average of earlier directions that goes on, in [0, 1)."""
        nesterov: bool = True
        """Whether the direction is averaged with the momentum once more."""
        scale: Scale = "rms"
        """Of an A x B matrix: rms: 0.2 sqrt(max(A, B)), entries as large as AdamW's, whose rates
        carry over; original: sqrt(max(1, A/B)); nuclear: the matrix's nuclear norm, steepest
        descent in the spectral norm, which comes to rest at a minimum."""
        arithmetic: Literal["auto", "fp32", "bf16"] = "auto"
        """What the five steps are computed in; auto: bf16 on a GPU, fp32 on a CPU."""
        adamw_learning_rate: float | None = None
        """Peak learning rate of AdamW's parameters, > 0; null: `learning_rate`."""
        betas: tuple[float, float] = (0.9, 0.999)
        """AdamW's: decay of the two moments, each in [0, 1)."""
        eps: float = 1e-8
        """AdamW's: added to the root of the second moment, > 0."""

        def __post_init__(self) -> None:
            """Raise ConfigError for values out of range."""
            if self.max_gradient_norm is not None:
                raise ConfigError(
                    "optimizer=muon takes the direction's orientation and not its length, so "
                    "clipping it would change nothing that was meant; type "
                    "optimizer.max_gradient_norm=null"
                )
            if not 0 <= self.momentum < 1:
                raise ConfigError(f"optimizer.momentum must be in [0, 1), got {self.momentum:g}")
            rate = self.adamw_learning_rate
            if rate is not None and rate <= 0:
                raise ConfigError(
                    "optimizer.adamw_learning_rate must be > 0, or null for that of the matrices, "
                    f"got {rate:g}"
                )
            if not all(0 <= beta < 1 for beta in self.betas):
                raise ConfigError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}")
            if self.eps <= 0:
                raise ConfigError(f"optimizer.eps must be > 0, got {self.eps:g}")

    config: Config

    def groups(self, parameters: Sequence[Trained]) -> list[dict[str, object]]:
        """See `Optimizer.groups`. Raises ConfigError where there is no hidden matrix."""
        hidden = [p for p in parameters if is_hidden_matrix(p)]
        if not hidden:
            raise ConfigError(
                f"optimizer=muon is for hidden matrices, and none of the {len(parameters)} trained "
                f"parameters is one (such as {parameters[0].name}); type optimizer=adamw, or "
                "another tuning"
            )
        rest = super().groups([p for p in parameters if not is_hidden_matrix(p)])
        return [{"params": [p.tensor for p in hidden], "orthogonal": True}, *rest]

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        rate = self.config.adamw_learning_rate
        return _Steps(groups, self.config, self.peak, 1.0 if rate is None else rate / self.peak)

    def shaper(self, parameters: Sequence[Trained]) -> Shaper:
        """See `Optimizer.shaper`."""
        return Orthogonalized(
            self.config, {p.name: p.shape for p in parameters if is_hidden_matrix(p)}
        )

    def state_bytes(self, parameters: Sequence[Trained]) -> float:
        """See `Optimizer.state_bytes`: a momentum for the matrices, two moments for the rest."""
        return 8.0 - 4.0 * share(parameters)

    def about(self, parameters: Sequence[Trained]) -> str:
        """See `Optimizer.about`."""
        taken = sum(map(is_hidden_matrix, parameters))
        rest = "" if taken == len(parameters) else "; AdamW takes the rest"
        return (
            f"Muon takes {taken} hidden matrices, {share(parameters):.0%} of the trained weights"
            f"{rest}"
        )


def is_hidden_matrix(parameter: Trained) -> bool:
    """Whether Muon takes it: a matrix that is neither an embedding nor the output head."""
    return len(parameter.shape) == 2 and not parameter.table


def share(parameters: Sequence[Trained]) -> float:
    """Of the parameters' elements, those in hidden matrices."""
    sizes = [(math.prod(p.shape), is_hidden_matrix(p)) for p in parameters]
    return sum(n for n, hidden in sizes if hidden) / sum(n for n, _ in sizes)


class _Steps(torch.optim.AdamW):
    """AdamW, but a group marked `orthogonal` moves along its gradient as it is."""

    def __init__(
        self, groups: list[dict[str, object]], config: Muon.Config, rate: float, factor: float
    ) -> None:
        """`factor`: AdamW's rate over Muon's."""
        self._factor = factor
        super().__init__(
            groups,
            lr=rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._step_supports_amp_scaling = False  # AdamW's part alone could be called off

    @torch.no_grad()
    # torch declares two overloads of `step`, one for a closure; nobody calls this one with any
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; DeepSpeed calls it for one group at a time, or with the others empty."""
        assert closure is None, "gradients are there already"
        everything = self.param_groups
        for group in everything:
            if "orthogonal" in group:
                for p in group["params"]:
                    if p.grad is not None:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                        p.add_(p.grad, alpha=-group["lr"])
        self.param_groups = [
            {**group, "lr": group["lr"] * self._factor}
            for group in everything
            if "orthogonal" not in group
        ]
        try:
            super().step()
        finally:
            self.param_groups = everything


class Orthogonalized(Shaper):
    """Momentum over the direction's hidden matrices, and the orthogonalized, scaled result.

    The momentum is sharded as the direction is. A matrix is put together on one rank, computed
    once and its pieces sent back, so all ranks move along the same numbers.
    """

    def __init__(self, config: Muon.Config, matrices: dict[str, tuple[int, ...]]) -> None:
        """`matrices`: shapes by name."""
        self.config = config
        self.matrices = matrices
        self._momentum: list[Tensor] = []

    def shaped(self, direction: Vector, matrices: Matrices) -> Vector:
        """See `Shaper.shaped`."""
        mu = self.config.momentum
        shards = list(direction.shards)
        if not self._momentum:
            self._momentum = [torch.zeros_like(shards[i]) for i in matrices.shards]
        for i, momentum in zip(matrices.shards, self._momentum, strict=True):
            momentum.lerp_(shards[i], 1 - mu)
            if self.config.nesterov:
                shards[i].lerp_(momentum, mu)
            else:
                shards[i].copy_(momentum)
        matrices.replace_(shards, self._update)
        return Vector(shards, replicated=direction.replicated)

    def _update(self, matrix: Tensor) -> Tensor:
        """Of a whole matrix, fp32."""
        named = {"fp32": torch.float32, "bf16": torch.bfloat16}
        named["auto"] = named["bf16" if matrix.is_cuda else "fp32"]
        update = orthogonalized(matrix, named[self.config.arithmetic])
        return update.mul_(step_scale(self.config.scale, matrix, update))

    def state_dict(self) -> dict[str, Any]:
        """See `Shaper.state_dict`."""
        return {"momentum": self._momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Shaper.load_state_dict`."""
        self._momentum = list(state["momentum"])


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearly U V' of the matrix U S V': singular values of 0.7 to 1.2; fp32.

    In bf16 the rounding of the last bit depends on where a sum was cut; in fp32 results agree to
    1e-6 however the model is sharded, which is why it is the choice where there is no tensor core.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(dtype)
    x = x / x.norm().clamp_min(VANISHING)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(torch.float32, copy=True)


def step_scale(scale: Scale, matrix: Tensor, update: Tensor) -> float | Tensor:
    """What an orthogonalized matrix is multiplied by; `nuclear` without a decomposition.

    <U S V', U V'> is the sum of the singular values; with `update` for U V' it is that sum to
    within the third by which the update's own singular values differ from 1.
    """
    rows, columns = matrix.shape
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    return (matrix * update).sum()
