"""DeepSpeed's own plain step, as its documentation has one write it, to measure our engine against.

The same settings as our engine's, but that DeepSpeed clips; forward, backward and step are its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import deepspeed
from omegaconf import DictConfig
from torch import Tensor

from framework import LanguageModel
from framework.config import part_of
from framework.engine import trained
from framework.optimizers import Optimizer
from framework.zero import deepspeed_config


class PlainDeepSpeed:
    """A model that DeepSpeed trains."""

    def __init__(self, config: DictConfig, model: LanguageModel, optimizer: Optimizer) -> None:
        """`model`: of its own, on this rank's device."""
        settings = deepspeed_config(part_of(config.zero)[1], config.precision)
        settings["gradient_clipping"] = optimizer.config.max_gradient_norm or 0.0
        with redirect_stdout(io.StringIO()):  # it prints its memory and its compiler's success
            self.engine = deepspeed.initialize(
                model=model.module,
                optimizer=optimizer.build(optimizer.groups(trained(model.module))),
                config=settings,
            )[0]
        self.model = model
        model.forward = self.engine
        model.module.train()

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        """One update by the gradient of the sum of `losses`, means over ranks."""
        for k, loss in enumerate(losses):
            self.engine.set_gradient_accumulation_boundary(k == len(losses) - 1)
            self.engine.backward(loss())
        self.engine.step()
