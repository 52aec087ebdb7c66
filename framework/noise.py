"""Standard normal numbers by counter: each is a function of the seed and of its place alone.

A generator would have to draw a whole parameter to give one rank its slice. Here any slice is
computed by itself, so that noise depends neither on the sharding nor on the number of ranks.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_CHUNK = 1 << 22
"""Numbers that are made at once: bounds the 64-bit intermediates to some 100 MB."""
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed number, for torch knows no other; so below
_ROUNDS = (
    (30, 0xBF58476D1CE4E5B9 - (1 << 64)),
    (27, 0x94D049BB133111EB - (1 << 64)),
)
"""Of SplitMix64 (Steele et al., OOPSLA 2014): shift, and odd factor modulo 2^64."""


def standard_normal(
    seed: int, name: str, *, start: int, length: int, device: torch.device
) -> Tensor:
    """Elements `start` to `start + length` of the noise of the parameter `name`, [length] fp32."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    key = int.from_bytes(digest[:8], "little", signed=True)
    noise = torch.empty(length, dtype=torch.float32, device=device)
    for first in range(0, length, _CHUNK):
        part = noise[first : first + _CHUNK]
        begin = start + first
        counters = torch.arange(begin, begin + part.numel(), dtype=torch.int64, device=device)
        bits = _mixed(counters.mul_(_GOLDEN).add_(key))
        # Box-Muller on the halves of each 64 bits: (0, 1] from the low, [-pi, pi) from the high
        uniform = (bits & 0xFFFFFFFF).float().add_(0.5).mul_(2.0**-32)
        angle = (bits >> 32).float().mul_(math.pi * 2.0**-31)
        torch.mul(uniform.log_().mul_(-2).sqrt_(), angle.cos_(), out=part)
    return noise


def seed_draws(seed: int, device: torch.device) -> None:
    """Begin torch's own draws, such as dropout's, anew: those on the CPU and on `device`.

    torch.manual_seed does so for every kind of device there is, and for each that this machine
    lacks it notes the stack it was called from, which in a step takes half a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def counter_seed(*place: int) -> int:
    """A seed from counters, in [0, 2^63)."""
    value = 0
    for number in place:
        value = (value * 1_000_003 + number + 1) % (1 << 63)
    return value


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's last stage, in place: 64 bits of which each depends on all that came in."""
    for shift, factor in _ROUNDS:
        bits.bitwise_xor_(_shifted(bits, shift)).mul_(factor)
    return bits.bitwise_xor_(_shifted(bits, 31))


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Right shift that fills with zeros; torch's own keeps the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)
