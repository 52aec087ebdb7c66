"""The output head in chunks against all logits at once: values, gradients, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from families import family, language_model
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from framework import LanguageModel, Rows
from framework import head as head_file
from framework.head import Head

ROWS = Rows.pack(tiny.rows(9, name="head"))
SCORED, VOCABULARY = len(ROWS.scored), tiny.VOCABULARY


@pytest.fixture(params=[1, 7 * VOCABULARY, 10 * SCORED])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Everything in chunks: one token or one entry of the vocabulary at a time, or a few."""
    monkeypatch.setattr(head_file, "WHOLE", 0)
    monkeypatch.setattr(head_file, "CHUNK", request.param)
    return int(request.param)


def layer(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor]:
    """A head with states to give it."""
    torch.manual_seed(0)
    head = nn.Linear(32, VOCABULARY, bias=bias, dtype=dtype)
    return head, torch.randn(SCORED, 32, dtype=dtype, requires_grad=True)


def entropy(logits: Tensor, _chunk: slice) -> Tensor:
    log_probs = log_softmax(logits, -1)
    return -(log_probs.exp() * log_probs).sum(-1)


def log_probs_with_weights(logits: Tensor, chunk: slice) -> Tensor:
    own = log_softmax(logits, -1).gather(-1, ROWS.targets[chunk, None])[:, 0]
    return own * torch.arange(SCORED)[chunk]


def plain_log_probs(logits: Tensor, _chunk: slice) -> Tensor:
    return log_softmax(logits, -1).gather(-1, ROWS.targets[:, None])[:, 0]


def fused(head: Head) -> Tensor:
    return head.token_log_probs(ROWS.targets)


CASES: dict[str, tuple[Callable[[Head], Tensor], Callable[[Tensor, slice], Tensor]]] = {
    "log-probabilities": (fused, plain_log_probs),
    "entropy": (lambda head: head.of_logits(entropy), entropy),
    "its own place": (lambda h: h.of_logits(log_probs_with_weights), log_probs_with_weights),
}


def gradients(values: Tensor, of: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    found = torch.autograd.grad(values, of, torch.randn(SCORED))
    return [values.detach(), *found]


def apart(found: list[Tensor], right: list[Tensor]) -> float:
    """The largest relative difference."""
    pairs = zip(found, right, strict=True)
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_give_the_values_and_gradients_of_all_logits_at_once(chunks, name, bias):
    in_chunks, plain = CASES[name]
    head, states = layer(bias=bias)
    of = [states, *head.parameters()]
    right = gradients(plain(head(states), slice(0, SCORED)), of)
    assert apart(gradients(in_chunks(Head(states, head)), of), right) <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_head_gets_no_gradient_and_gives_one_to_its_states(chunks, name):
    in_chunks, plain = CASES[name]
    head, states = layer()
    head.requires_grad_(False)
    right = gradients(plain(head(states), slice(0, SCORED)), [states])
    values = in_chunks(Head(states, head))
    assert apart(gradients(values, [states]), right) <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_in_half_precision_the_gradients_are_rounded_once(chunks, name):
    in_chunks, plain = CASES[name]
    head, states = layer(dtype=torch.bfloat16)
    of = [states, *head.parameters()]
    right = gradients(plain(head(states).float(), slice(0, SCORED)), of)
    found = gradients(in_chunks(Head(states, head)), of)
    assert [x.dtype for x in found] == [x.dtype for x in right]
    assert apart(found[:1], right[:1]) <= 1e-6
    assert apart(found, right) <= 6e-3


def of_model(model: LanguageModel, function: Callable[[LanguageModel], Tensor]) -> list[Tensor]:
    """Values, and the gradient of every parameter that is trained."""
    trained = [p for p in model.module.parameters() if p.requires_grad]
    return gradients(function(model), trained)


MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "untied": {},
    "adapters": {"tuning": "lora"},
    "only a layer": {"tuning": "layers"},
}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("chunks", [7 * VOCABULARY], indirect=True)
def test_a_model_that_is_read_in_chunks_has_the_gradient_of_one_read_whole(chunks, settings):
    model = tiny.language_model(**settings)
    model.check_packing()
    right = of_model(model, lambda m: plain_log_probs(m.logits(ROWS), slice(0, SCORED)))
    found = of_model(model, lambda m: m.token_log_probs(ROWS))
    again = of_model(model, lambda m: m.of_logits(ROWS, plain_part))
    assert apart(found, right) <= 1e-6
    assert apart(again, right) <= 1e-6


def plain_part(logits: Tensor, chunk: slice) -> Tensor:
    return log_softmax(logits, -1).gather(-1, ROWS.targets[chunk, None])[:, 0]


CAPPED: dict[str, dict[str, Any]] = {
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
}


@pytest.mark.parametrize("name", CAPPED)
@pytest.mark.parametrize("chunks", [7 * VOCABULARY], indirect=True)
def test_logits_that_a_model_changes_after_its_head_are_read_whole(chunks, name):
    module = family(name, **CAPPED[name])
    rows = tiny.rows(6, name="packed")
    tables = [module(input_ids=torch.tensor([row.input_ids])).logits[0] for row in rows]
    scored = [[t - 1 for t, w in enumerate(row.weights) if w > 0] for row in rows]
    right = torch.cat([table[own] for table, own in zip(tables, scored, strict=True)])
    batch = Rows.pack(rows)
    right = right.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    model = language_model(module)
    model.check_packing()
    assert (model.token_log_probs(batch) - right).abs().max() <= 1e-5


def test_final_states_are_what_the_head_makes_its_logits_of():
    for model in (tiny.language_model(), tiny.language_model(tuning="lora")):
        for _ in range(2):  # before and after it is known that nothing is done to its logits
            states = model.final_states(ROWS)
            made = states @ model.module.get_output_embeddings().weight.T
            assert (made - model.logits(ROWS)).abs().max() <= 1e-5
