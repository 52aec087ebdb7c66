"""Memory: what a process used."""

from __future__ import annotations

import torch

from framework.memory import peak_memory_gib


def test_the_peak_is_no_less_than_what_is_held():
    before = peak_memory_gib()
    held = torch.ones(64 << 20)  # 256 MiB
    assert peak_memory_gib() >= 0.25
    assert peak_memory_gib() >= before
    assert held.sum() > 0
