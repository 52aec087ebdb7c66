"""Models made of other models, without training: of their weights, or of their logits.

A `Derived` source names further models beside `path` in its settings (`others`). A `Combination` is
one whose logits are a function of theirs, stated by `combine`; `CombinedModel` computes them, each
member with a cache of its own, wherever a `LanguageModel` is measured.

Shapes: `S` scored tokens or rows being answered, `V` vocabulary.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .data import Rows
from .decoding import Decoding
from .errors import ConfigError, ModelError
from .head import Head
from .language_model import LanguageModel
from .loading import ModelSource

Combine = Callable[[Sequence[Tensor]], Tensor]
EXCLUDED = -1e3
"""How far below the likeliest an excluded token lies, in nats: never chosen, and yet no infinity,
so that every measured value stays defined."""


class Derived(ModelSource):
    """A model made of the one at `path` and of others."""

    others: ClassVar[tuple[str, ...]]
    """The settings that name the other models, in the order in which the formula takes them."""

    @dataclass
    class Config(ModelSource.Config):
        """Which models."""

        path: str = ""
        """The model before unlearning: a folder, a run, or a name on the hub."""
        revision: str | None = None

    def __init__(self, config: Config) -> None:
        """Raise ConfigError where a model is not named."""
        super().__init__(config)
        for name in ("path", *self.others):
            if not getattr(config, name):
                raise ConfigError(f"model.{name} is empty; type model.{name}=<run, folder or name>")

    def members(
        self, path: str, *, dtype: torch.dtype, revision: str | None = None
    ) -> list[LanguageModel]:
        """The model at `path` and the others; raises ModelError where their tokens differ."""
        first = ModelSource.load(self, path, dtype=dtype, revision=revision)
        found = [first]
        for name in self.others:
            other = str(getattr(self.config, name))
            member = ModelSource.load(self, other, dtype=dtype)
            check_tokens(first, member, path, f"model.{name}={other}")
            found.append(member)
        return found

    def skeleton(self) -> NoReturn:
        """Not for training: raises ConfigError."""
        raise ConfigError(
            f"{type(self).__name__} makes a model without training; measure it: "
            "python -m launch.eval model=..., or train another: model=pretrained model.path=..."
        )


class Combination(Derived):
    """A model whose logits are a function of its members' logits."""

    @abstractmethod
    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """[S, V] from the fp32 logits [S, V] of the model at `path` and of each other."""

    def load(self, path: str, *, dtype: torch.dtype, revision: str | None = None) -> LanguageModel:
        """See `ModelSource.load`."""
        return CombinedModel(self.members(path, dtype=dtype, revision=revision), self.combine)


class CombinedModel(LanguageModel):
    """Several models that answer as one; the first lends its tokenizer and end tokens."""

    def __init__(self, members: Sequence[LanguageModel], combine: Combine) -> None:
        """`members`: of one tokenizer; `combine`: see `Combination.combine`."""
        self.members = members
        self.combine = combine
        first = members[0]
        super().__init__(
            first.module,
            first.tokenizer,
            prompt_format=first.prompt_format,
            max_length=min(member.max_length for member in members),
            tokens_per_micro_batch=first.tokens_per_micro_batch,
            generation_memory=first.generation_memory,
        )

    def at_head(self, rows: Rows, function: Callable[[Head], Tensor]) -> Tensor:
        """See `LanguageModel.at_head`."""
        logits = [member.logits(rows) for member in self.members]
        return function(Head(table=combined(logits, self.combine)))

    def _states(self, rows: Rows, layer: int) -> Tensor:
        """Not one model's: raises ModelError."""
        raise ModelError("a model made of several models' logits has no hidden states of its own")

    def gradient_norms(self, pairs: object, description: str = "") -> NoReturn:
        """Not one model's: raises ModelError."""
        raise ModelError(
            "a model made of several models' logits has no gradient of its own; set "
            "benchmark.gradient_norm=false"
        )

    def cache_bytes(self) -> int:
        """See `LanguageModel.cache_bytes`: every member keeps its own."""
        return sum(member.cache_bytes() for member in self.members)

    def decoding(self) -> Decoding:
        """See `LanguageModel.decoding`."""
        return _CombinedDecoding(self.members, self.combine)

    def attend(self, implementation: str) -> None:
        """See `LanguageModel.attend`."""
        for member in self.members:
            member.attend(implementation)

    def shares_beginnings(self) -> bool:
        """See `LanguageModel.shares_beginnings`: where every member can."""
        return all(member.shares_beginnings() for member in self.members)

    def positions(self) -> int:
        """See `LanguageModel.positions`: as many as every member knows."""
        return min(member.positions() for member in self.members)

    def cast(self, dtype: torch.dtype) -> None:
        """See `LanguageModel.cast`."""
        for member in self.members:
            member.cast(dtype)

    def move(self, device: torch.device) -> None:
        """See `LanguageModel.move`."""
        for member in self.members:
            member.move(device)

    def check_packing(self) -> None:
        """See `LanguageModel.check_packing`."""
        for member in self.members:
            member.check_packing()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """See `LanguageModel.evaluating`."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.evaluating())
            yield

    def save(
        self, folder: Path, weights: Mapping[str, Tensor], *, module: object = None
    ) -> NoReturn:
        """No one model's weights: raises ModelError."""
        raise ModelError(
            "a model made of several models' logits has no weights to save; keep the models"
        )


class _CombinedDecoding(Decoding):
    """Every member's forward passes, over the same tokens."""

    def __init__(self, members: Sequence[LanguageModel], combine: Combine) -> None:
        self._each = [member.decoding() for member in members]
        self._combine = combine

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `Decoding.logits`."""
        return combined([one.logits(ids, mask).float() for one in self._each], self._combine)

    def keep(self, rows: Tensor) -> None:
        """See `Decoding.keep`."""
        for one in self._each:
            one.keep(rows)


def combined(logits: Sequence[Tensor], combine: Combine) -> Tensor:
    """The combination, over the entries that all members have.

    Sizes of one family pad their heads to different widths behind the same tokens (Qwen 2.5).
    """
    width = min(each.shape[-1] for each in logits)
    return combine([each[..., :width] for each in logits])


def check_tokens(first: LanguageModel, other: LanguageModel, *names: str) -> None:
    """Raise ModelError where the two models, called `names`, do not have the same tokens."""
    if other.tokenizer.get_vocab() != first.tokenizer.get_vocab():
        sizes = len(first.tokenizer), len(other.tokenizer)
        raise ModelError(
            f"{names[0]} and {names[1]} have different tokenizers (of {sizes[0]} and {sizes[1]} "
            "tokens), so that their logits cannot meet; use models of one family, or made for one "
            "benchmark"
        )


def extrapolated(logits: Sequence[Tensor], *, weight: float, share: float) -> Tensor:
    """[S, V] from one model's log-probabilities towards another's, and beyond it past 1.

    Of the tokens that `keep_likely` finds likely by the other; `share` is its.
    """
    one, other = (log_softmax(each, -1) for each in logits)
    return keep_likely(one.lerp(other, weight), other, share=share)


def keep_likely(
    logits: Tensor, judge: Tensor, *, share: float, fewest: int = 1, outside: Tensor | None = None
) -> Tensor:
    """`logits` [S, V], of the tokens that are likely by `judge` [S, V]; the rest is excluded.

    A token is likely whose probability by `judge` is at least `share` of the likeliest token's, or
    that is among the `fewest` likeliest. `outside`: what the others get instead of being excluded.
    """
    if share <= 0:
        return logits
    likeliest = judge.max(-1, keepdim=True).values + math.log(share)
    enough = judge.topk(max(1, fewest), dim=-1).values[..., -1:]
    stays = judge >= torch.minimum(likeliest, enough)
    if outside is None:
        outside = logits.where(stays, -torch.inf).max(-1, keepdim=True).values + EXCLUDED
    return logits.where(stays, outside)
