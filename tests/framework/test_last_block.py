"""The last block at some positions: the same numbers, of fewer tokens.

That all families are read as transformers reads them is in test_attention.py, activations that are
computed again in test_recomputation.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from families import EXACT, family, language_model
from torch import Tensor, nn

from framework import LanguageModel, Rows, last_block
from framework.modules import final_block
from framework.packing_check import few_as_all
from framework.shared import pack

KNOWN = {
    *("llama", "qwen2", "qwen3", "mistral", "olmo", "olmo2", "olmo3", "phi3"),
    *("gemma", "gemma3_text", "mixtral", "starcoder2"),
}
ROWS = tiny.rows(6, name="few")
MORE = {
    "gemma3n_text": {
        "head_dim": 8,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 2,
        "laurel_rank": 4,
        "activation_sparsity_pattern": None,
    },
    "gemma4_text": {},
}


@contextmanager
def tokens_fed(model: LanguageModel) -> Iterator[list[int]]:
    """How many tokens the feed-forward layers of each block read."""
    found: list[int] = []
    layers = [part for name, part in model.module.named_modules() if name.endswith(".mlp")]
    hooks = [
        part.register_forward_pre_hook(lambda _, given: found.append(given[0].shape[1]))
        for part in layers
    ]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", EXACT)
def test_a_known_familys_last_block_feeds_forward_what_is_scored_alone(name: str) -> None:
    model, rows = language_model(family(name, **EXACT[name])), Rows.pack(ROWS)
    every, some = len(rows.input_ids), len(rows.scored)
    assert some < every
    with model.evaluating(), tokens_fed(model) as found:
        model.check_packing()
        found.clear()
        model.logits(rows)
        model.states(rows, layer=2)

    if found:  # elsewhere it has another name
        assert found == [every, some if name in KNOWN else every, every, every]
    assert name not in KNOWN or found


@pytest.mark.parametrize("name", MORE)
def test_a_block_with_parts_that_nobody_knows_is_not_asked_for_some_positions(name: str) -> None:
    assert not last_block.narrow(final_block(family(name, **MORE[name])))


def gradients(model: LanguageModel, rows: Rows) -> list[Tensor]:
    parameters = list(model.module.parameters())
    return list(torch.autograd.grad(model.token_log_probs(rows).sum(), parameters))


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_gradients_are_those_of_all_positions_where_rows_share_their_beginnings(name: str) -> None:
    module = family(name, **EXACT[name])
    model, wide = language_model(module), language_model(module)
    wide._narrows = False
    rows = pack([pair for row in tiny.pairs(3, name="few") for pair in (row.given, row.preferred)])
    assert len(set(rows.scored.tolist())) < len(rows.scored)  # a prompt's last token counts twice

    for found, right in zip(gradients(model, rows), gradients(wide, rows), strict=True):
        assert (found - right).norm() <= 1e-5 * right.norm().clamp_min(1e-6)


def test_a_second_reader_of_a_module_leaves_its_last_block_as_the_first_left_it() -> None:
    first = tiny.language_model()
    rows = Rows.pack(ROWS)
    with first.evaluating():
        right = first.logits(rows)
        assert torch.equal(tiny.wrapped(first.module).logits(rows), right)


class Named(nn.Module):
    """Hands its tokens on by their name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor, **given: Any) -> Any:
        return self.inner(hidden_states=states, **given)


def test_a_block_that_is_given_its_tokens_by_name_reads_the_same() -> None:
    model, rows = tiny.language_model(), Rows.pack(ROWS)
    right, blocks = model.logits(rows), model.module.model.layers
    blocks[-1] = Named(blocks[-1])
    with tokens_fed(model) as found:
        assert torch.equal(model.logits(rows), right)
    assert found == [len(rows.input_ids), len(rows.scored)]


class Placed(nn.Module):
    """Feed-forward layers that look at where in the pack a token lies."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def places(self, states: Tensor) -> Tensor:
        return torch.arange(states.shape[1], device=states.device)

    def forward(self, states: Tensor) -> Any:
        return self.inner(states) + self.places(states)[:, None]


class PlacedAsRead(Placed):
    """That look at it in a table of all tokens that the model reads, made for them."""

    def __init__(self, inner: nn.Module, model: nn.Module) -> None:
        super().__init__(inner)
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _model: nn.Module, _args: object, given: dict[str, Any]) -> None:
        self.read = given["input_ids"][0]

    def places(self, states: Tensor) -> Tensor:
        return torch.arange(len(self.read), device=states.device)


@pytest.mark.parametrize("kind", [Placed, PlacedAsRead])
def test_a_block_that_reads_fewer_tokens_otherwise_or_cannot_reads_them_all(
    kind: type[Placed],
) -> None:
    model, rows = tiny.language_model(), Rows.pack(ROWS)
    block = model.module.model.layers[-1]
    given = (block.mlp,) if kind is Placed else (block.mlp, model.module.model)
    block.mlp = kind(*given)
    model.check_packing()
    with model.evaluating(), tokens_fed(model) as found:
        model.logits(rows)
    assert found == [len(rows.input_ids)] * 2


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.distributed.DistBackendError])
def test_too_little_memory_or_another_ranks_end_is_not_taken_for_a_block_that_cannot(
    kind: type[Exception],
) -> None:
    model = tiny.language_model()

    def ends(_rows: Rows) -> Tensor:
        raise kind("at its end")

    with pytest.raises(kind, match="at its end"):
        few_as_all(ends, model.logits, model.device)


@pytest.mark.parametrize("first", [math.nan, math.inf, 1.0])
def test_what_is_no_number_is_not_what_reading_all_positions_gives(first: float) -> None:
    found, right = torch.ones(5), torch.ones(5)
    found[0] = first
    found[1] = right[1] = math.nan
    alike = few_as_all(lambda _: found, lambda _: right, torch.device("cpu"))
    assert alike == math.isfinite(first)
