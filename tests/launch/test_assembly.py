"""What a run is made of: the frozen copy of its model."""

from __future__ import annotations

import tiny
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from framework import FrozenReference, Rows
from framework.loading import Tiny
from launch.assembly import _frozen


class Placed(nn.Module):
    """Feed-forward layers that look at where in the pack a token lies."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states) + torch.arange(states.shape[1])[:, None]


def test_a_last_block_that_cannot_be_read_in_part_is_read_whole_in_the_frozen_copy_too() -> None:
    model, rows = tiny.language_model(), Rows.pack(tiny.rows(4, name="frozen"))
    block = model.module.model.layers[-1]
    block.mlp = Placed(block.mlp)
    model.check_packing()
    config = OmegaConf.create({"tuning": {"name": "full"}, "zero": {"name": "none"}})
    source = Tiny(Tiny.Config(max_length=64))
    twin = _frozen(config, source, None, model, torch.float32)
    assert twin is not None
    with model.evaluating():
        right = model.token_log_probs(rows)
    assert torch.equal(FrozenReference(twin).token_log_probs(rows), right)
