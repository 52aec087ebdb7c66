"""A language model that is one table: after token t come the logits of row t, whatever came before.

Losses of it, and their gradients, are worked out by hand. The hidden states are the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from framework import FrozenReference, LanguageModel, LocalEngine, Row, UnlearningTrainer
from framework.data import Rows, StepTotals
from framework.method import reference_needed
from framework.prompt_format import PromptFormat


class Table(PreTrainedModel):
    """Logits and hidden states [V, V]."""

    config_class = LlamaConfig

    def __init__(self, values: Tensor) -> None:
        super().__init__(LlamaConfig(num_hidden_layers=1))
        self.weight = nn.Parameter(values.clone())
        self.blocks = nn.ModuleList([nn.Identity()])
        self.lm_head = nn.Identity()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, logits_to_keep: Any, **_: Any) -> CausalLMOutput:
        states = self.weight[input_ids]
        for block in self.blocks:
            states = block(states)
        return CausalLMOutput(logits=self.lm_head(states[:, logits_to_keep]))


def language_model(values: Tensor) -> LanguageModel:
    model = LanguageModel(
        Table(values), tiny.tokenizer(), prompt_format=PromptFormat(), max_length=64
    )
    model.linear_head = False  # found out otherwise on tokens that a small table does not have
    return model


def trainer(
    kind: type[UnlearningTrainer],
    values: Sequence[Sequence[float]] | Tensor,
    *,
    before: Tensor | None = None,
    **settings: object,
) -> UnlearningTrainer:
    """`kind` on a table of `values`; its reference, where it has one, is `before` or the same."""
    table = torch.as_tensor(values, dtype=torch.float32)
    optimizer = tiny.optimizer("sgd", clip=None)
    engine = LocalEngine(
        LocalEngine.Config(),
        model=language_model(table),
        optimizer=optimizer,
        precision="fp32",
    )
    config = kind.Config(**settings)  # type: ignore[arg-type]
    reference = None
    if reference_needed(kind, config) is not None:
        reference = FrozenReference(language_model(table if before is None else before))
    return kind(config, engine=engine, optimizer=optimizer, reference=reference)


def row(*tokens: int) -> Row:
    """A row of these tokens; all but the first count."""
    return Row("-".join(map(str, tokens)), tokens, (0.0,) + (1.0,) * (len(tokens) - 1))


def loss(trainer: UnlearningTrainer, *rows: Row, micro_batches: int = 1) -> float:
    """The forget loss of a step on `rows`."""
    totals = StepTotals.of(rows)
    batches = [
        Rows.pack(rows[start::micro_batches], totals=totals) for start in range(micro_batches)
    ]
    return sum(trainer.forget_loss(batch).item() for batch in batches)


def gradient(trainer: UnlearningTrainer, *rows: Row) -> list[list[float]]:
    """The forget loss's gradient on the table."""
    batch = Rows.pack(rows)
    (shard,) = trainer.engine.gradient([lambda: trainer.forget_loss(batch)]).shards
    module = trainer.model.module
    assert isinstance(module, Table)
    return shard.view_as(module.weight).tolist()


def chain(*nlls: float) -> Tensor:
    """A table in which token t + 1 follows token t with negative log-likelihood `nlls[t]`."""
    n = len(nlls) + 1
    table = torch.zeros(n, n)
    for t, nll in enumerate(nlls):
        p = torch.tensor(-nll, dtype=torch.float64).exp()
        table[t] = ((1 - p) / (n - 1)).log()
        table[t, t + 1] = -nll
    return table
