"""Optimizers: what turns a direction into a change of the weights, and how far it goes when.

An optimizer part holds the settings, and says which parameters go together; the engine builds
torch's optimizer from it over the shards it owns. Clipping acts on the direction, after the
weighting, by its global norm.
"""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import ConfigError
from .matrices import Matrices
from .vectors import Vector


@dataclass(frozen=True)
class Trained:
    """A parameter as an optimizer sees it."""

    name: str
    tensor: Tensor
    """What torch's optimizer steps: the parameter, its fp32 master, or, under ZeRO-3, nothing."""
    shape: tuple[int, ...]
    """The whole parameter's."""
    table: bool
    """Whether it is an embedding or the output head, tied or not, or an adapter of one."""


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it can be called off by a flag on the device, which nobody waits for.

    Torch's fused optimizers can: gradient scaling of fp16 rests on the same.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def step_along(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    learning_rate: float,
    skip: Tensor | None,
) -> None:
    """Step `parameters`, those in the optimizer's groups, along flat shards of a direction.

    Nothing changes where `skip`, a bool on the device, is true. An optimizer that cannot skip there
    is asked for a step only where none is to be skipped.
    """
    before = [p.grad for p in parameters]
    for p, shard in zip(parameters, direction, strict=True):
        p.grad = shard.view_as(p)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if skip is not None:  # as torch.amp.GradScaler says it
        assert skips_on_device(optimizer), "look at the flag first"
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()
    if skip is not None:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    for p, gradient in zip(parameters, before, strict=True):
        p.grad = gradient


class Shaper(ABC):
    """Changes a direction before it is stepped along, where that takes whole matrices."""

    matrices: Mapping[str, tuple[int, ...]]
    """The matrices that it changes: shapes by name."""

    @abstractmethod
    def shaped(self, direction: Vector, matrices: Matrices) -> Vector:
        """What to step along; consumes `direction`. Every rank takes part."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, this rank's share."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class Optimizer(ABC):
    """Settings every optimizer has: the learning rate over time, and clipping."""

    @dataclass
    class Config:
        """The learning rate and how it changes."""

        learning_rate: float | None = None
        """Peak learning rate, > 0; null: 1e-5, or 5e-4 for a tiny model."""
        schedule: Literal["constant", "linear", "cosine"] = "constant"
        """What follows warm-up: constant, or decay to 0 at the last step."""
        warmup: float = 0.0
        """Share of the steps, in [0, 1), over which the rate climbs linearly from 0."""
        max_gradient_norm: float | None = 1.0
        """The direction is scaled down to this global norm; null: never."""
        weight_decay: float = 0.0
        """Decoupled weight decay of matrices, >= 0 (biases and norms are not decayed)."""
        automatic_every: int = 0
        """Every so many steps the rate is fitted to the retain loss along the step (GeN,
        `framework/automatic.py`) and the schedule scaled by what was found; 0: never."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for values out of range."""
        if config.learning_rate is None or config.learning_rate <= 0:
            raise ConfigError(f"optimizer.learning_rate must be > 0, got {config.learning_rate}")
        if not 0 <= config.warmup < 1:
            raise ConfigError(f"optimizer.warmup must be in [0, 1), got {config.warmup:g}")
        if config.max_gradient_norm is not None and config.max_gradient_norm <= 0:
            raise ConfigError(
                "optimizer.max_gradient_norm must be > 0 or null (no clipping), got "
                f"{config.max_gradient_norm:g}"
            )
        if config.weight_decay < 0:
            raise ConfigError(f"optimizer.weight_decay must be >= 0, got {config.weight_decay:g}")
        if config.automatic_every < 0:
            raise ConfigError(
                "optimizer.automatic_every must be a number of steps, or 0 for never, got "
                f"{config.automatic_every}"
            )
        self.config = config
        self.peak = config.learning_rate

    def groups(self, parameters: Sequence[Trained]) -> list[dict[str, object]]:
        """Torch's parameter groups: matrices, then vectors (biases, norms), never decayed.

        Where nothing decays they are one group, and travel together between the ranks.
        """
        if not self.config.weight_decay:
            return [{"params": [p.tensor for p in parameters]}]
        matrices = [p.tensor for p in parameters if len(p.shape) > 1]
        vectors = [p.tensor for p in parameters if len(p.shape) <= 1]
        groups: list[dict[str, object]] = [{"params": matrices}] if matrices else []
        return [*groups, {"params": vectors, "weight_decay": 0.0}] if vectors else groups

    @abstractmethod
    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """Torch's optimizer over parameter groups."""

    @abstractmethod
    def state_bytes(self, parameters: Sequence[Trained]) -> float:
        """Bytes of its own state per trained parameter, the mean over all of them."""

    def shaper(self, parameters: Sequence[Trained]) -> Shaper | None:
        """What the direction goes through before each step; None: it is taken as it is."""
        del parameters
        return None

    def about(self, parameters: Sequence[Trained]) -> str:
        """What to say once before the first step; empty: nothing."""
        del parameters
        return ""

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) of `steps`."""
        warmup = self.config.warmup * steps
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1.0, steps - warmup)
        factor = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }[self.config.schedule]
        return self.peak * max(0.0, factor)


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), torch's fused kernel."""

    @dataclass
    class Config(Optimizer.Config):
        """AdamW's own settings."""

        betas: tuple[float, float] = (0.9, 0.999)
        """Decay of the two moments, each in [0, 1)."""
        eps: float = 1e-8
        """Added to the root of the second moment, > 0."""

        def __post_init__(self) -> None:
            """Raise ConfigError for values out of range."""
            if not all(0 <= beta < 1 for beta in self.betas):
                raise ConfigError(f"optimizer.betas must be in [0, 1), got {list(self.betas)}")
            if self.eps <= 0:
                raise ConfigError(f"optimizer.eps must be > 0, got {self.eps:g}")

    config: Config

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        return torch.optim.AdamW(
            groups,
            lr=self.peak,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def state_bytes(self, parameters: Sequence[Trained]) -> float:
        """See `Optimizer.state_bytes`: two fp32 moments."""
        del parameters
        return 8.0


class AdamW8bit(AdamW):
    """AdamW with moments of 8 bits each (Dettmers et al., 2022, arXiv:2110.02861): bitsandbytes'.

    A quarter of the moments' memory; every 256 of them in a row share a scale, and tensors of fewer
    than 4096 elements keep 32 bits. Both depend on how the model is sharded, so ZeRO's weights and
    plain torch's agree to one or two hundredths of the way they went, not to the last bits.
    bitsandbytes rather than torchao: its moments are plain tensors, which DeepSpeed's checkpoints
    and `torch.load(weights_only=True)` take as they are, and it needs no compiler. It runs on CPUs
    too, in plain torch.
    """

    def __init__(self, config: AdamW.Config) -> None:
        """Raise ConfigError where bitsandbytes is not installed."""
        super().__init__(config)
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "optimizer=adamw_8bit needs bitsandbytes, which is not installed; type "
                "pip install -c constraints.txt -e '.[8bit]', or optimizer=adamw"
            )

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        import bitsandbytes  # takes seconds

        built: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            groups,
            lr=self.peak,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
        )
        return built

    def state_bytes(self, parameters: Sequence[Trained]) -> float:
        """See `Optimizer.state_bytes`: two moments of a byte, and two fp32 scales for 256."""
        del parameters
        return 2 + 8 / 256


class SGD(Optimizer):
    """Plain gradient descent with optional momentum: for tests and theory."""

    @dataclass
    class Config(Optimizer.Config):
        """SGD's own settings."""

        momentum: float = 0.0
        """Share of the last direction that goes on, in [0, 1)."""

        def __post_init__(self) -> None:
            """Raise ConfigError for a momentum out of range."""
            if not 0 <= self.momentum < 1:
                raise ConfigError(f"optimizer.momentum must be in [0, 1), got {self.momentum:g}")

    config: Config

    def build(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """See `Optimizer.build`."""
        built = torch.optim.SGD(
            groups,
            lr=self.peak,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        if self.config.momentum:
            built.register_step_pre_hook(_begin_at_rest)
        return built

    def state_bytes(self, parameters: Sequence[Trained]) -> float:
        """See `Optimizer.state_bytes`."""
        del parameters
        return 4.0 if self.config.momentum else 0.0


def _begin_at_rest(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """A momentum of zero before the first step: torch's would be unset if that step is skipped."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and not optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
