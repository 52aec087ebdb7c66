"""Sampling: drawn answers instead of greedy ones, each the same whatever it is drawn beside.

One uniform number decides one token: where it falls in the running sum of the probabilities. That
number is a function of the seed, the name of the draw and the token's position alone, as in
`noise.py`; no generator is shared, so neither the batch nor the number of ranks enters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Choice = Callable[[Tensor, Tensor, int], Tensor]
"""(logits [B, V], which rows of the batch they are of [B], token number) -> tokens [B]."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    """Divides the logits, > 0: below 1 likely tokens become likelier, above 1 less likely."""
    seed: int
    names: tuple[str, ...]
    """One per prompt: two draws of one name and seed take the same numbers."""


def likeliest(logits: Tensor, rows: Tensor, position: int) -> Tensor:
    """The greedy choice."""
    del rows, position
    return logits.argmax(-1)


def drawn_of(sampling: Sampling, batch: Sequence[int], length: int, device: torch.device) -> Choice:
    """Draws up to `length` tokens for each prompt of `batch`, by their own numbers."""
    each = [uniform(sampling.seed, sampling.names[i], length) for i in batch]
    numbers = torch.stack(each).to(device)

    def choose(logits: Tensor, rows: Tensor, position: int) -> Tensor:
        own = numbers[rows, position]
        return drawn(logits, sampling.temperature, own)

    return choose


def uniform(seed: int, name: str, length: int) -> Tensor:
    """The first `length` numbers of the draw `name`, [length] fp64 in (0, 1), far from both."""
    digests = (hashlib.sha256(f"{seed}:{name}:{i}".encode()).digest() for i in range(length))
    counts = [int.from_bytes(digest[:6], "little") for digest in digests]
    return torch.tensor([(count + 0.5) * 2.0**-48 for count in counts], dtype=torch.float64)


def drawn(logits: Tensor, temperature: float, numbers: Tensor) -> Tensor:
    """[B] a token of each row of `logits` [B, V], where `numbers` [B] fall.

    In fp64, so that logits that differ by the rounding of another batch hardly ever decide.
    """
    running = (logits.double() / temperature).softmax(-1).cumsum(-1)
    passed = running <= (numbers * running[:, -1])[:, None]
    return passed.sum(-1).clamp_max(logits.shape[-1] - 1)
