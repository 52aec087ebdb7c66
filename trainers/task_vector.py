"""Task vector: negated task arithmetic (Ilharco et al., 2023, arXiv:2212.04089)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from framework import ConfigError, LanguageModel
from framework.combined import Derived
from framework.errors import ModelError


class TaskVector(Derived):
    """Go from the model away from the one fine-tuned on the forget rows: theta - scale tau.

    tau = theta_finetuned - theta. Computed in fp32 tensor by tensor; while it is, both models are
    held in host memory in fp32, by every rank. MUSE's code (jaechan-repo/muse_bench) computes in
    bf16, which rounds a small tau away.
    """

    others: ClassVar[tuple[str, ...]] = ("finetuned",)

    @dataclass
    class Config(Derived.Config):
        """The task vector's own settings."""

        finetuned: str = ""
        """The model fine-tuned on the forget rows: a run, a folder, or a name on the hub."""
        scale: float = 5.0
        """How far to go; 0 is the model itself, -1 the fine-tuned one."""

        def __post_init__(self) -> None:
            """Raise ConfigError for what is no number."""
            if not math.isfinite(self.scale):
                raise ConfigError(f"model.scale must be a number, got {self.scale:g}")

    config: Config

    def load(self, path: str, *, dtype: torch.dtype, revision: str | None = None) -> LanguageModel:
        """See `ModelSource.load`."""
        model, tuned = self.members(path, dtype=torch.float32, revision=revision)
        mine, theirs = (dict(each.module.named_parameters()) for each in (model, tuned))
        shapes = [{name: p.shape for name, p in each.items()} for each in (mine, theirs)]
        if shapes[0] != shapes[1]:
            differing = next(n for n in (mine | theirs) if shapes[0].get(n) != shapes[1].get(n))
            raise ModelError(
                f"{path} and model.finetuned={self.config.finetuned} are not of one architecture "
                f"(see {differing}); a task vector needs the model and its own fine-tuning"
            )
        for name, parameter in mine.items():  # lerp is exact at both ends
            moved = parameter.data.lerp(theirs.pop(name).data, -self.config.scale)
            parameter.data = moved.to(dtype)
        return model
