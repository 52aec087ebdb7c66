"""Linear algebra on vectors the size of the model, of which each rank holds a shard.

A `Vector` is this rank's share of one number per trainable parameter: a gradient, a perturbation,
a direction. Sums and multiples need no communication; inner products need one small collective,
done for all pairs at once by `gram`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import sum_over_ranks

_CHUNK = {"cpu": 1 << 16}
"""Elements of an inner product that are added up in fp32, and of a length that are copied to fp64;
elsewhere 2**22. Chunks are added up in fp64, without an fp64 copy of a shard. A CPU adds one after
another and would lose the fourth digit of a long chunk; a GPU adds in a tree."""


class Vector:
    """This rank's flat fp32 shards of a model-sized vector.

    `replicated` means that every rank holds the whole vector (no sharding), so inner products are
    not summed over ranks.
    """

    __slots__ = ("replicated", "shards")

    def __init__(self, shards: Sequence[Tensor], *, replicated: bool = False) -> None:
        """`shards` are kept, not copied."""
        self.shards = list(shards)
        self.replicated = replicated

    def __add__(self, other: Vector) -> Vector:
        """The sum, a new vector."""
        return self._like(torch._foreach_add(self.shards, other.shards))

    def __sub__(self, other: Vector) -> Vector:
        """The difference, a new vector."""
        return self._like(torch._foreach_sub(self.shards, other.shards))

    def __mul__(self, scale: float | Tensor) -> Vector:
        """A multiple, a new vector; `scale` may be a scalar on the device (no host sync)."""
        return self.clone().scale_(scale)

    __rmul__ = __mul__

    def scale_(self, scale: float | Tensor) -> Vector:
        """Multiply in place."""
        if not isinstance(scale, Tensor):
            torch._foreach_mul_(self.shards, float(scale))
        elif self.shards:
            torch._foreach_mul_(self.shards, scale.to(self.shards[0].device, self.shards[0].dtype))
        return self

    def stretch_(self, length: float) -> Vector:
        """Scale to the global length `length` in place; a vanishing vector stays zero."""
        # 1e-30 is below every norm that fp32 can measure, and its inverse still fits into fp32
        return self.scale_(length / self.norm().clamp_min(1e-30))

    def add_(self, other: Vector, scale: float | Tensor = 1.0) -> Vector:
        """Add a multiple of `other` in place."""
        if not isinstance(scale, Tensor):
            torch._foreach_add_(self.shards, other.shards, alpha=float(scale))
        else:
            for shard, theirs in zip(self.shards, other.shards, strict=True):
                shard.addcmul_(theirs, scale.to(shard.device, shard.dtype))
        return self

    def clone(self) -> Vector:
        """A copy with memory of its own."""
        return self._like([shard.clone() for shard in self.shards])

    def _like(self, shards: Sequence[Tensor]) -> Vector:
        return Vector(shards, replicated=self.replicated)

    def dot(self, other: Vector) -> Tensor:
        """The global inner product, an fp64 scalar on the device; one collective."""
        return inner_products([(self, other)])[0]

    def norm(self) -> Tensor:
        """The global Euclidean length, an fp64 scalar on the device; one collective."""
        return self.dot(self).sqrt()


def inner_products(pairs: Sequence[tuple[Vector, Vector]]) -> Tensor:
    """[len(pairs)] fp64 global inner products, same bits on every rank, in one collective."""
    local = torch.stack([_local_dot(a, b) for a, b in pairs])
    return local if pairs[0][0].replicated else sum_over_ranks(local)


def _local_dot(a: Vector, b: Vector) -> Tensor:
    mine = _chunks(a)
    if not mine:
        device = a.shards[0].device if a.shards else None
        return torch.zeros((), dtype=torch.float64, device=device)
    if a is b:  # a few kernels for all of them; added up in fp32 they are further off than `dot`
        lengths = torch._foreach_norm(mine, dtype=torch.float64)  # noqa: SLF001 - as its siblings
        return torch.stack(lengths).square().sum()
    parts = [torch.dot(x, y) for x, y in zip(mine, _chunks(b), strict=True)]
    return torch.stack(parts).double().sum()


def _chunks(vector: Vector) -> list[Tensor]:
    """Pieces of the shards that are short enough to be added up in fp32."""
    pieces: list[Tensor] = []
    for shard in vector.shards:
        most = _CHUNK.get(shard.device.type, 1 << 22)
        if shard.numel() > most:
            pieces += shard.split(most)
        elif shard.numel():
            pieces.append(shard)
    return pieces


@dataclass(frozen=True)
class Gram:
    """The inner products of the objectives' gradients: all a weighting may know of them."""

    names: tuple[str, ...]
    products: Tensor
    """[K, K] fp64 on the device, symmetric, same bits on every rank."""

    def dot(self, a: str, b: str) -> Tensor:
        """Inner product of two objectives' gradients, a scalar on the device."""
        return self.products[self.names.index(a), self.names.index(b)]

    def norm(self, a: str) -> Tensor:
        """Length of an objective's gradient, a scalar on the device."""
        return self.dot(a, a).sqrt()

    def cosine(self, a: str, b: str) -> Tensor:
        """Cosine of the angle between two objectives' gradients; 0 where one of them vanishes."""
        lengths = self.norm(a) * self.norm(b)
        cosine = self.dot(a, b) / lengths.clamp_min(1e-300)
        return torch.where(lengths > 0, cosine, torch.zeros_like(cosine))


def gram(vectors: Mapping[str, Vector]) -> Gram:
    """The Gram matrix of named vectors, in one collective of K(K+1)/2 fp64 numbers."""
    names = tuple(vectors)
    pairs = [(i, j) for i in range(len(names)) for j in range(i, len(names))]
    values = inner_products([(vectors[names[i]], vectors[names[j]]) for i, j in pairs])
    found = dict(zip(pairs, values, strict=True))
    k = range(len(names))
    products = torch.stack([found[min(i, j), max(i, j)] for i in k for j in k])
    return Gram(names, products.view(len(names), len(names)))
