"""Assistants: a model that knows the forget rows and one that does not, to be compared.

Given as folders or hub names, or trained here: two small fresh models with the tokenizer of the
model to unlearn, alike but for the forget rows. Rank 0 does the work by itself and the others get
what it found, so that a result does not depend on how many there are. Nothing of an assistant is
left when its scores are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .data import Row, Rows
from .distributed import device
from .engine import LocalEngine
from .errors import ConfigError, ModelError
from .language_model import LanguageModel
from .loading import ModelSource, Tiny
from .loop import Loop, train
from .optimizers import AdamW
from .sampler import ForgetRetainSampler
from .trainer import UnlearningTrainer

T = TypeVar("T")

HEADS = 4


@dataclass
class Recipe:
    """How the two assistants are made where none are given."""

    steps: int = 300
    """Optimizer steps of each, >= 1: enough that the knowing one has the forget rows by heart."""
    learning_rate: float = 5e-3
    """Peak of AdamW's rate, > 0; it warms up and decays as a cosine."""
    batch_size: int = 32
    """Rows of a step, >= 1; the knowing one reads so many forget and so many retain rows."""
    hidden_size: int = 96
    """Width, a multiple of 8."""
    layers: int = 2
    """Decoder blocks, >= 1."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that make no model."""
        for name in ("steps", "batch_size", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"selection.assistants.{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.learning_rate <= 0:
            raise ConfigError(
                f"selection.assistants.learning_rate must be > 0, got {self.learning_rate:g}"
            )
        if self.hidden_size < 1 or self.hidden_size % (2 * HEADS):
            raise ConfigError(
                f"selection.assistants.hidden_size must be a multiple of {2 * HEADS}, got "
                f"{self.hidden_size}"
            )


class _Ignorant(UnlearningTrainer):
    """Learns the retain rows."""

    objectives = ("retain",)


class _Knowing(UnlearningTrainer):
    """Learns the forget rows and the retain rows, one of these for each of those."""

    def forget_loss(self, rows: Rows) -> Tensor:
        """Mean over tokens of the negative log-likelihood."""
        return rows.token_mean(-self.model.token_log_probs(rows))


def trained_pair(
    forget: Sequence[Row], retain: Sequence[Row], like: LanguageModel, recipe: Recipe, *, seed: int
) -> tuple[LanguageModel, LanguageModel]:
    """The knowing and the ignorant assistant, from the same fresh weights; in this process alone.

    They have the tokenizer of `like` and nothing else of it. The same for the same arguments, on
    the same machine with as many threads.
    """
    knowing = _learned(_Knowing, forget, retain, like, recipe, seed=seed)
    return knowing, _learned(_Ignorant, [], retain, like, recipe, seed=seed)


def _learned(
    kind: type[UnlearningTrainer],
    forget: Sequence[Row],
    retain: Sequence[Row],
    like: LanguageModel,
    recipe: Recipe,
    *,
    seed: int,
) -> LanguageModel:
    settings = Tiny.Config(
        max_length=like.max_length,
        tokens_per_micro_batch=like.tokens_per_micro_batch,
        prompt_format=like.prompt_format,
        hidden_size=recipe.hidden_size,
        layers=recipe.layers,
        heads=HEADS,
        intermediate_size=4 * recipe.hidden_size,
    )
    optimizer = AdamW(
        AdamW.Config(
            learning_rate=recipe.learning_rate, schedule="cosine", warmup=0.05, betas=(0.9, 0.98)
        )
    )
    here = device()
    with torch.random.fork_rng(devices=[here] if here.type == "cuda" else []):
        model = Tiny(settings).fresh(like.tokenizer, seed=seed)
        model.move(here)
        engine = LocalEngine(
            LocalEngine.Config(), model=model, optimizer=optimizer, precision="fp32"
        )
        trainer = kind(kind.Config(compare_every=0), engine=engine, optimizer=optimizer, seed=seed)
        rows = {"forget": forget, "retain": retain}
        sampler = ForgetRetainSampler(
            {name: rows[name] for name in trainer.objectives},
            batch_size=recipe.batch_size,
            seed=seed,
        )
        name = kind.__name__.strip("_").lower()
        train(engine, trainer, sampler, Loop(recipe.steps), description=f"{name} assistant")
    return model


def given(path: str, like: LanguageModel) -> LanguageModel:
    """The assistant at `path`, a folder or a hub name; it must have the vocabulary of `like`."""
    source = ModelSource(
        ModelSource.Config(
            max_length=like.max_length,
            tokens_per_micro_batch=like.tokens_per_micro_batch,
            prompt_format=like.prompt_format,
        )
    )
    model = source.load(path, dtype=like.module.dtype)
    if model.tokenizer.get_vocab() != like.tokenizer.get_vocab():
        raise ModelError(
            f"the assistant {path!r} has another vocabulary than the model to unlearn, so their "
            "tokens cannot be compared; choose one of the same family, or leave "
            "selection.ignorant=null to have assistants trained"
        )
    model.module.requires_grad_(False)
    model.move(device())
    model.check_packing()
    return model


def probabilities(model: LanguageModel, rows: Sequence[Row]) -> list[list[float]]:
    """The probability that the model gives each token of each row; 0 where none counts."""
    counted = [row for row in rows if row.weight > 0]
    scores = model.score_rows(counted, description="assistant")
    found = {
        row.id: iter(np.exp(score.log_probs)) for row, score in zip(counted, scores, strict=True)
    }
    return [[float(next(found[row.id])) if w > 0 else 0.0 for w in row.weights] for row in rows]
