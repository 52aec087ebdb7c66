"""The reference: the model before unlearning, as far as a loss needs it.

`CachedReference` keeps what the losses read of it, one number or one vector per answer token, read
off before training; there is no second model. `FrozenReference` keeps the model whole (or, with
LoRA, reads the trained model with its adapters off, which costs no memory).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .data import Row, Rows, laid_out
from .distributed import all_gather_objects, on_all_ranks, on_rank_zero, world_size
from .errors import ConfigError
from .gradient_norms import ADAPTER
from .head import Head
from .language_model import LanguageModel
from .token_table import (
    Pieces,
    TokenTable,
    Values,
    counted_tokens,
    in_memory,
    opened,
    read_off,
    share,
    take,
    write,
)
from .tuning import adapters_off

Asked = Literal["log_probs", "logits", "states"]
"""What a loss reads of the model before unlearning at the scored positions."""
FrozenHead = Callable[[Tensor], Tensor]
"""From what an output head is given [C, D] to fp32 logits [C, V]."""
MORE_THAN_A_HEAD = (
    "this model's logits are more than its output head's product, so the cached reference would "
    "lack the rest; type trainer.reference=frozen to keep the whole model"
)
FORMAT = 2
"""Of what is stored: counted up with every change of what the numbers mean."""
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as a weight."""
MIX = -1640531535
"""An odd number of well mixed bits: 2**32 over the golden ratio, as an int32."""
MIXED = 2**20
"""Weights that are mixed at once."""


class Reference(ABC):
    """What losses may ask of the model before unlearning; never has a gradient."""

    reads_rows: ClassVar[bool] = False
    """Whether it reads the rows that it is asked about, and would those of other objectives too."""

    @abstractmethod
    def token_log_probs(self, rows: Rows) -> Tensor:
        """[S] log-probability of each scored token, in nats."""

    @abstractmethod
    def logits_of(self, rows: Rows) -> Callable[[slice], Tensor]:
        """The fp32 logits [C, V] at a slice of the scored positions: never need all be there."""

    @abstractmethod
    def states(self, rows: Rows, layer: int) -> Tensor:
        """[S, D] output of decoder block `layer` at the scored positions, 1 the first block."""


class CachedReference(Reference):
    """What the losses read at each counted token, computed once before training.

    In place of logits, which are as wide as the vocabulary, it keeps what the output head is given.
    """

    def __init__(
        self,
        tables: Mapping[Asked, TokenTable],
        *,
        layer: int | None = None,
        head: FrozenHead | None = None,
        taken: Sequence[Asked] = (),
    ) -> None:
        """`layer`: the block whose states are kept; `head`: from final states to fp32 logits."""
        self.taken = tuple(taken)
        """What another run had read, and nothing was read for."""
        self._tables = dict(tables)
        self._layer = layer
        self._head = head

    @classmethod
    def build(
        cls,
        model: LanguageModel,
        asked: Mapping[Asked, Sequence[Row]],
        *,
        layer: int | None = None,
        folder: Path | None = None,
        cache: Path | None = None,
    ) -> CachedReference:
        """Read with `model` as it is now what is asked of the rows; preferred answers' too.

        With a `folder`, a restart of the run finds the values of its first start there, to the bit;
        with a `cache`, so does another run with the same weights and rows that are read alike.
        Every rank must call this. Raises CheckpointError when `folder` is of other rows or weights.
        """
        weights = "" if folder is None else weights_key(model)
        head = frozen_head(model) if "logits" in asked else None
        functions: dict[Asked, Callable[[Rows], Tensor]] = {
            "log_probs": model.token_log_probs,
            "logits": lambda rows: model.at_head(rows, Head.given),
            "states": lambda rows: model.states(rows, layer or 0),
        }
        tables = {}
        taken: list[Asked] = []
        for kind, given in asked.items():
            rows = _distinct(given)
            values: Values
            # closed where it is left half way: its bar says so before an error is told
            with (
                adapters_off(model.module),
                closing(read_off(model, rows, functions[kind])) as read,
            ):
                found = _of_product(read, model) if kind == "logits" else read
                if not counted_tokens(rows):
                    width = model.module.config.get_text_config().hidden_size
                    values = torch.zeros(0, *(() if kind == "log_probs" else (width,)))
                elif folder is None:
                    values = in_memory(found, counted_tokens(rows))
                else:
                    of = (weights, layer if kind == "states" else None)
                    like = (model.tokens_per_micro_batch, world_size(), model.device.type)
                    values, shared = _stored(
                        found, rows, kind, of, like, folder=folder, cache=cache
                    )
                    taken += [kind] * shared
            tables[kind] = TokenTable(rows, values, model.device)
        return cls(tables, layer=layer, head=head, taken=taken)

    def token_log_probs(self, rows: Rows) -> Tensor:
        """See `Reference.token_log_probs`."""
        return self._table("log_probs").of(rows)

    def logits_of(self, rows: Rows) -> Callable[[slice], Tensor]:
        """See `Reference.logits_of`."""
        states = self._table("logits").of(rows)
        assert self._head is not None
        return logits_in_chunks(states, self._head)

    def states(self, rows: Rows, layer: int) -> Tensor:
        """See `Reference.states`."""
        table = self._table("states")
        if layer != self._layer:
            raise ConfigError(
                f"a loss of this method reads the states of decoder block {layer} of the model "
                f"before unlearning, of which those of block {self._layer} were kept; type "
                f"trainer.layer={layer}, or trainer.reference=frozen to keep the whole model"
            )
        return table.of(rows)

    def _table(self, asked: Asked) -> TokenTable:
        if asked not in self._tables:
            raise ConfigError(
                f"a loss of this method reads {asked} of the model before unlearning, of which "
                f"{' and '.join(self._tables)} were kept; name what it reads in the method's "
                "`asks_reference_for`, or type trainer.reference=frozen to keep the whole model"
            )
        return self._tables[asked]


class FrozenReference(Reference):
    """The whole model before unlearning, in evaluation mode."""

    reads_rows: ClassVar[bool] = True

    def __init__(self, model: LanguageModel) -> None:
        """`model`: a model of its own, or the trained one if it has LoRA adapters."""
        self._model = model

    def token_log_probs(self, rows: Rows) -> Tensor:
        """See `Reference.token_log_probs`."""
        with self._before():
            return self._model.token_log_probs(rows)

    def logits_of(self, rows: Rows) -> Callable[[slice], Tensor]:
        """See `Reference.logits_of`; here all are there."""
        with self._before():
            logits = self._model.logits(rows)
        return lambda chunk: logits[chunk]

    def states(self, rows: Rows, layer: int) -> Tensor:
        """See `Reference.states`."""
        with self._before():
            return self._model.states(rows, layer)

    @contextmanager
    def _before(self) -> Iterator[None]:
        with self._model.evaluating(), adapters_off(self._model.module):
            yield


def _stored(
    found: Iterator[Pieces],
    rows: Sequence[Row],
    kind: Asked,
    of: tuple[object, ...],
    like: tuple[object, ...],
    *,
    folder: Path,
    cache: Path | None,
) -> tuple[Values, bool]:
    """The values in the run's folder; where they are not yet, of another run, or as they come.

    And whether they were taken from that other run. `of`: what they are of; `like`: what their last
    bits depend on besides, so that another run finds the very bits that it would have read.
    """
    digest = hashlib.sha256(repr((FORMAT, kind, of)).encode())
    for row in rows:
        digest.update(repr((row.id, row.input_ids, row.weights)).encode())
    key = digest.hexdigest()
    file = folder / f"{kind}.safetensors"
    digest.update(repr(like).encode())
    shared = None if cache is None else cache / f"{digest.hexdigest()}.safetensors"

    there = on_rank_zero(file.is_file)
    taken = not there and shared is not None and on_rank_zero(lambda: take(shared, file, key))
    if not there and not taken:
        write(found, counted_tokens(rows), file, key)
        if shared is not None:
            on_rank_zero(lambda: share(file, shared))
    return on_all_ranks(lambda: opened(file, key)), taken


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows and their preferred answers as rows of their own, each once."""
    named: dict[str, Row] = {}
    for row in laid_out(rows):
        same = named.setdefault(row.id, row)
        assert same.input_ids == row.input_ids, f"two rows of the id {row.id}"
    return list(named.values())


def weights_key(model: LanguageModel) -> str:
    """A name for the weights, adapters apart, and for what else the model's numbers depend on.

    Every row of every matrix counts by a sum over its mixed bits, which reads a model about as fast
    as memory can, where it lies. Every rank must call this.
    """
    settings = model.module.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        settings.pop(name, None)
    digest = hashlib.sha256(repr(sorted(settings.items(), key=str)).encode())
    for name, weights in model.module.named_parameters():
        if ADAPTER not in name:
            with model.gathered([weights]):
                digest.update(f"{tuple(weights.shape)} {weights.dtype}".encode())
                digest.update(_row_sums(weights.detach()).cpu().numpy().tobytes())
    return digest.hexdigest()


def _row_sums(weights: Tensor) -> Tensor:
    """Of each row of a matrix, an integer sum that every bit and its place counts in.

    Of a single row, its bits. Odd factors tell the places apart; a plain sum of products would not
    see the signs of an even number of weights, whose highest bits carry out, hence the shift.
    """
    bits = weights.contiguous().view(BITS[weights.element_size()])
    if bits.dim() < 2:
        return bits
    bits = bits.flatten(0, -2)
    factors = (2 * torch.arange(bits.shape[-1], dtype=torch.int32, device=bits.device) + 1) * MIX
    sums = []
    for rows in bits.split(max(1, MIXED // bits.shape[-1])):
        mixed = rows * factors
        mixed ^= mixed >> 15
        sums.append(mixed.sum(-1, dtype=torch.int32))
    return torch.cat(sums)


def _layer_of_head(model: LanguageModel) -> nn.Linear:
    """The output head, adapters apart."""
    head: Any = model.module.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    if not isinstance(head, nn.Linear):
        raise ConfigError(MORE_THAN_A_HEAD)
    return head


def _of_product(found: Iterator[Pieces], model: LanguageModel) -> Iterator[Pieces]:
    """The same, unless logits are more than the head's product: ConfigError, on all ranks alike."""
    if not all(all_gather_objects(model.head_unchanged(_layer_of_head(model)))):
        raise ConfigError(MORE_THAN_A_HEAD)
    yield from found


def frozen_head(model: LanguageModel) -> FrozenHead:
    """The output head as it is now.

    A copy, unless it is not trained and whole on every rank. Every rank must call this.
    """
    head = _layer_of_head(model)
    parameters = list(head.parameters())
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    if model.partitioned or any(p.requires_grad for p in parameters):
        with model.gathered(parameters):
            weight = weight.detach().clone()
            bias = None if bias is None else bias.detach().clone()
    return lambda states: linear(states, weight, bias).float()


def logits_in_chunks(states: Tensor, head: FrozenHead) -> Callable[[slice], Tensor]:
    """The logits that a frozen head makes of a slice of `states` [S, D]."""

    def logits(chunk: slice) -> Tensor:
        with torch.no_grad():
            return head(states[chunk])

    return logits
