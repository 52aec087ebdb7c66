"""The engine: where the model lives, is differentiated and is stepped.

A step asks four things of it: `gradient` (one sharded vector per objective), `shifted` (the same
model at other parameters, restored exactly), `noise` (a random vector) and `step` (one optimizer
update along a direction). A run asks for `save`, `load` and the `weights` themselves.
`LocalEngine`, plain torch in one process, defines what is right; every other engine must equal it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .distributed import sum_over_ranks
from .errors import CheckpointError
from .kept import read
from .language_model import LanguageModel
from .matrices import Matrices, Place
from .modules import embeddings_and_head, trainable_parameters
from .noise import standard_normal
from .optimizers import Optimizer, Trained, skips_on_device, step_along
from .vectors import Vector, inner_products

Precision = Literal["fp32", "bf16"]
PIECE = 1 << 26
"""Elements of a shift that are written and measured at once."""
Loss = Callable[[], Tensor]
"""A micro-batch's share of the step's loss, a scalar with a graph."""


@dataclass(frozen=True)
class Shift:
    """What became of a perturbation once the parameters were rounded to their precision.

    In bf16 most of a small perturbation is rounded away: watch `ratio` and `cosine`.
    """

    norm: Tensor
    """Length of the realised shift."""
    ratio: Tensor
    """Realised over asked length; 1 in fp32."""
    cosine: Tensor
    """Cosine of the angle between the realised and the asked shift; 1 in fp32."""


class Engine(ABC):
    """What a trainer needs of the machinery below it."""

    model: LanguageModel
    skips_on_device: bool
    """Whether `step` takes `skip`: then nobody waits for the device to learn what to skip."""

    @abstractmethod
    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """Gradient of the sum of `losses` over micro-batches and ranks.

        One forward and one backward pass each, in order, the same number on every rank.
        """

    @abstractmethod
    def shift(self, delta: Vector) -> Shift:
        """Move the parameters by `delta` from where they are unshifted, whatever came before."""

    @abstractmethod
    def unshift(self, *, alone: bool = False) -> None:
        """Put the parameters back, bit for bit, also where a shift got only part of the way.

        `alone`: only this rank's share of them, waiting for no other rank; the rest comes with the
        next call without it, on every rank.
        """

    @contextmanager
    def shifted(self, delta: Vector) -> Iterator[Shift]:
        """Parameters + `delta` inside; restored bit for bit on the way out.

        After an error only `alone`: one that this rank alone met would have it wait for ranks that
        never come here, and nobody would be told. Of several processes such an error ends the run.
        """
        try:
            shift = self.shift(delta)
            del delta  # its memory serves the gradients inside, unless the caller keeps it
            yield shift
        except BaseException:
            self.unshift(alone=True)
            raise
        self.unshift()

    @abstractmethod
    def noise(self, seed: int) -> Vector:
        """Standard normal numbers, each a function of `seed`, its parameter's name and its place.

        However the parameters are spread, it is the same vector (see `noise.py`).
        """

    @abstractmethod
    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """One optimizer update along `direction` (to be minimised); nothing is clipped here.

        Where `skip`, a bool on the device, is true, nothing changes: no weight, no moment, no count
        of steps. Only of an engine that `skips_on_device`.
        """

    @abstractmethod
    def vector(self, shards: Sequence[Tensor]) -> Vector:
        """A vector of this rank's shards, laid out and placed as those of `weights` are."""

    @abstractmethod
    def weights(self) -> Vector:
        """A copy of the trained parameters in fp32."""

    @abstractmethod
    def set_weights(self, weights: Vector) -> None:
        """Make `weights` the trained parameters; the optimizer's state stays as it is."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write this rank's parameters and optimizer state into `folder`, which exists."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, bit for bit.

        Raises CheckpointError for a checkpoint of another model or another number of processes.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The whole model's weights by name, on the CPU of rank 0; empty on the other ranks."""

    @abstractmethod
    def master_weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole and fp32, on every rank: for tests and averages."""

    def close(self) -> None:  # noqa: B027 (most engines leave nothing behind)
        """Free what outlives the object."""


def trained(module: nn.Module, tensors: Sequence[Tensor] | None = None) -> list[Trained]:
    """The trained parameters as an optimizer sees them; it steps `tensors`, or they themselves."""
    named = trainable_parameters(module)
    tables = embeddings_and_head(module)
    stepped = [p for _, p in named] if tensors is None else tensors
    return [
        Trained(name, tensor, full_shape(p), name in tables)
        for (name, p), tensor in zip(named, stepped, strict=True)
    ]


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's shape; ZeRO-3 keeps it in `ds_shape` and leaves an empty tensor behind."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def measure_shift(moves: Iterable[tuple[Tensor, Tensor]], *, replicated: bool) -> Shift:
    """Compare the shift that was realised with the one that was asked for, in one collective.

    `moves`: flat fp32 pieces of what was asked for and what was realised, made as they are read, so
    that not all of them are there at once; `replicated` as a `Vector` has it.
    """
    sums: list[Tensor] = []
    asked: list[Tensor] = []
    realised: list[Tensor] = []
    for wanted, became in moves:
        asked.append(wanted)
        realised.append(became)
        if sum(map(Tensor.numel, realised)) >= PIECE:
            sums.append(_products(asked, realised))
            asked, realised = [], []
    if asked or not sums:
        sums.append(_products(asked, realised))
    local = torch.stack(sums).sum(0)
    rr, aa, ra = local if replicated else sum_over_ranks(local)
    lengths = (rr * aa).sqrt().clamp_min(1e-300)
    ratio, cosine = (rr / aa.clamp_min(1e-300)).sqrt(), ra / lengths
    whole = torch.ones_like(aa)  # of nothing, nothing was lost
    return Shift(rr.sqrt(), torch.where(aa > 0, ratio, whole), torch.where(aa > 0, cosine, whole))


def move(shares: Sequence[Tensor], origins: Sequence[Tensor], delta: Vector) -> Shift:
    """Make `shares` of the forward's parameters `origins` + `delta`, a piece at a time.

    It starts from origins as `shares` would round them, and ends as they round it.
    """

    def moves() -> Iterator[tuple[Tensor, Tensor]]:
        for each in zip(shares, origins, delta.shards, strict=True):
            for share, origin, d in zip(*(x.view(-1).split(PIECE) for x in each), strict=True):
                start = origin.to(share.dtype).float()
                end = (start + d.to(start.device)).to(share.dtype)
                share.copy_(end)
                yield d, (end.float() - start).to(d.device)

    return measure_shift(moves(), replicated=delta.replicated)


def _products(asked: Sequence[Tensor], realised: Sequence[Tensor]) -> Tensor:
    """[3] of this rank's pieces: realised with itself, asked with itself, one with the other."""
    a, r = Vector(asked, replicated=True), Vector(realised, replicated=True)
    return inner_products([(r, r), (a, a), (r, a)])


def fingerprint(model: LanguageModel) -> str:
    """A name for the architecture: the trainable parameters' names and shapes, hashed."""
    named = [(n, full_shape(p)) for n, p in trainable_parameters(model.module)]
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


class LocalEngine(Engine):
    """Plain torch in one process: the definition of right.

    bf16 keeps fp32 master weights and accumulates gradients in fp32.
    """

    @dataclass
    class Config:
        """Nothing to choose."""

    def __init__(
        self,
        config: Config,
        *,
        model: LanguageModel,
        optimizer: Optimizer,
        precision: Precision,
    ) -> None:
        """Take over `model`, whose module holds its weights already."""
        self.config = config
        self.model = model
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model.cast(dtype)
        self._named = trainable_parameters(model.module)
        self._parameters: list[Tensor] = [p for _, p in self._named]
        self._has_masters = dtype != torch.float32
        self._masters: list[Tensor] = [
            torch.nn.Parameter(p.detach().float()) if self._has_masters else p
            for p in self._parameters
        ]
        parameters = trained(model.module, self._masters)
        self.optimizer = optimizer.build(optimizer.groups(parameters))
        self._shaper = optimizer.shaper(parameters)
        self.skips_on_device = self._shaper is None and skips_on_device(self.optimizer)
        places = [[Place(name, 0, 0, p.numel())] for name, p in self._named]
        shapes = {} if self._shaper is None else self._shaper.matrices
        self._matrices = Matrices(places, shapes, device=model.device, together=False)
        self._unshifted: list[Tensor] | None = None

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """See `Engine.gradient`."""
        assert losses, "at least one micro-batch"
        total: list[Tensor] | None = None
        for k, loss in enumerate(losses):
            loss().backward()
            if not self._has_masters and k < len(losses) - 1:
                continue  # fp32 gradients add up where they are
            if total is None:
                total = [_taken(p) for p in self._parameters]
            else:
                _add_taken(total, self._parameters)
        assert total is not None
        return Vector(total, replicated=True)

    @torch.no_grad()
    def shift(self, delta: Vector) -> Shift:
        """See `Engine.shift`."""
        if self._unshifted is None:  # the parameters are what the masters round to
            kept = self._masters if self._has_masters else [p.clone() for p in self._parameters]
            self._unshifted = kept
        return move(self._parameters, self._unshifted, delta)

    @torch.no_grad()
    def unshift(self, *, alone: bool = False) -> None:
        """See `Engine.unshift`."""
        del alone
        if self._unshifted is not None:
            torch._foreach_copy_(self._parameters, self._unshifted)
        self._unshifted = None

    def noise(self, seed: int) -> Vector:
        """See `Engine.noise`."""
        shards = [
            standard_normal(seed, name, start=0, length=p.numel(), device=p.device)
            for name, p in self._named
        ]
        return Vector(shards, replicated=True)

    @torch.no_grad()
    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """See `Engine.step`."""
        if self._shaper is not None:
            direction = self._shaper.shaped(direction, self._matrices)
        step_along(self.optimizer, self._masters, direction.shards, learning_rate, skip)
        if self._has_masters:
            torch._foreach_copy_(self._parameters, self._masters)

    def vector(self, shards: Sequence[Tensor]) -> Vector:
        """See `Engine.vector`."""
        device = self.model.device
        return Vector([shard.to(device) for shard in shards], replicated=True)

    def weights(self) -> Vector:
        """See `Engine.weights`."""
        return self.vector([m.detach().reshape(-1).clone() for m in self._masters])

    @torch.no_grad()
    def set_weights(self, weights: Vector) -> None:
        """See `Engine.set_weights`."""
        for p, master, shard in zip(self._parameters, self._masters, weights.shards, strict=True):
            master.copy_(shard.view_as(master))
            p.copy_(master)

    def save(self, folder: Path) -> None:
        """See `Engine.save`."""
        weights = {n: m.detach() for (n, _), m in zip(self._named, self._masters, strict=True)}
        state = {
            "fingerprint": fingerprint(self.model),
            "weights": weights,
            "optimizer": self.optimizer.state_dict(),
            "shaper": {} if self._shaper is None else self._shaper.state_dict(),
        }
        torch.save(state, folder / "engine.pt")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        path = folder / "engine.pt"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} was written by another engine (no engine.pt); resume with the `zero` "
                "setting in its config.yaml"
            )
        state = read(path, device=self.model.device)
        check_fingerprint(state["fingerprint"], self.model, folder)
        for (name, p), master in zip(self._named, self._masters, strict=True):
            master.copy_(state["weights"][name])
            p.copy_(master)
        self.optimizer.load_state_dict(state["optimizer"])
        if self._shaper is not None:
            self._shaper.load_state_dict(state["shaper"])

    def state_dict(self) -> dict[str, Tensor]:
        """See `Engine.state_dict`."""
        return {n: t.detach().cpu() for n, t in self.model.module.state_dict().items()}

    def master_weights(self) -> dict[str, Tensor]:
        """See `Engine.master_weights`."""
        pairs = zip(self._named, self._masters, strict=True)
        return {n: m.detach().float().clone() for (n, _), m in pairs}


def check_fingerprint(found: str, model: LanguageModel, folder: Path) -> None:
    """Raise CheckpointError unless the checkpoint in `folder` is of this architecture."""
    if found != fingerprint(model):
        raise CheckpointError(
            f"{folder} is a checkpoint of another model (other trainable parameters or shapes); "
            "resume with the `model` and `tuning` settings in its config.yaml"
        )


def _taken(parameter: Tensor) -> Tensor:
    """The parameter's gradient, flat and fp32, handed over: the parameter starts clean."""
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        return torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
    return gradient.reshape(-1).float()


def _add_taken(total: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Add the parameters' gradients to fp32 `total`, without an fp32 copy; they start clean."""
    for held, parameter in zip(total, parameters, strict=True):
        if parameter.grad is not None:
            held.add_(parameter.grad.view(-1))
            parameter.grad = None
