"""Packed rows against rows read one by one, for every family of models that is supported."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from families import EXACT, family, language_model
from transformers import PreTrainedModel

from framework import Row, Rows
from framework.errors import ModelError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "does not keep packed rows apart"),
    "falcon": ({}, "does not keep packed rows apart"),
    "mamba": ({"state_size": 4}, "does not keep packed rows apart"),
    "gemma2": ({"head_dim": 8}, "caps its attention scores or has attention sinks"),
    "stablelm": ({}, "is not told where packed rows end"),
}


def one_by_one(module: PreTrainedModel, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits at the scored positions, first block's states) of rows that are read alone."""
    logits, states = [], []
    for row in rows:
        output = module(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        scored = [t - 1 for t, weight in enumerate(row.weights) if weight > 0]
        logits.append(output.logits[0, scored])
        states.append(output.hidden_states[1][0])
    return torch.cat(logits), torch.cat(states)


@pytest.mark.parametrize("name", EXACT)
def test_packed_rows_are_read_as_if_alone(name):
    module, rows = family(name, **EXACT[name]), tiny.rows(6, name="packed")
    assert max(len(row) for row in rows) > 5
    right, states = one_by_one(module, rows)
    flat = [p for p in module.parameters() if p.requires_grad]
    log_probs = right.log_softmax(-1)
    taken = log_probs.gather(-1, Rows.pack(rows).targets[:, None])[:, 0]
    gradient = torch.autograd.grad(taken.sum(), flat, allow_unused=True)

    model = language_model(module)
    batch = Rows.pack(rows)
    assert (model.logits(batch) - right).abs().max() <= 1e-5
    found = model.token_log_probs(batch)
    assert (found - taken).abs().max() <= 1e-5
    assert (model.hidden_states(batch, layer=1) - states).abs().max() <= 1e-5
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), flat, allow_unused=True), gradient, strict=True
    ):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))
    model.check_packing()


@pytest.mark.parametrize("name", EXACT)
def test_hidden_states_are_a_blocks_own_output_and_later_blocks_are_not_computed(name):
    deep = {"num_hidden_layers": 4, **({"n_layer": 4} if "n_layer" in EXACT[name] else {})}
    module, (row,) = family(name, **{**EXACT[name], **deep}), tiny.rows(1, name="deep")
    right = module(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
    (blocks,) = (m for m in module.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    ran: list[int] = []
    for k, block in enumerate(blocks, start=1):
        block.register_forward_hook(lambda *_, k=k: ran.append(k))

    model, batch = language_model(module), Rows.pack([row])
    names = [n for n, _ in module.named_parameters()]
    for layer in (1, 2, 3):
        found = model.hidden_states(batch, layer)
        assert (found - right.hidden_states[layer][0]).abs().max() <= 1e-5
    last = model.hidden_states(batch, 4)
    assert ran == [1, 1, 2, 1, 2, 3, 1, 2, 3, 4]
    assert (last - right.hidden_states[4][0]).abs().max() > 1  # that is after the final norm
    assert [n for n, _ in module.named_parameters()] == names
    assert (model.logits(batch) - right.logits[0, batch.scored]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_would_mix_packed_rows_is_refused(name):
    settings, message = REFUSED[name]
    model = language_model(family(name, **settings))
    with pytest.raises(ModelError, match=message) as refused:
        model.check_packing()
    assert "Llama" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_window_is_of_the_row_not_of_the_pack():
    # with a window of 5 the sixth token of a row does not see its first, and sees its second
    module = family("mistral", sliding_window=5, num_hidden_layers=1)
    model = language_model(module)

    def last(first: int, second: int) -> torch.Tensor:
        row = Row("w", (first, second, 5, 6, 7, 8, 9), (0.0,) * 6 + (1.0,))
        other = Row("o", (20, 21, 22), (0.0, 0.0, 0.0))
        return model.logits(Rows.pack([other, row]))[0]

    with model.evaluating():
        assert torch.equal(last(10, 11), last(30, 11))
        assert not torch.allclose(last(10, 11), last(10, 31))


UNTOLD: dict[str, Any] = {
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "use_sliding_window": True,
    "sliding_window": 6,
    "max_window_layers": 2,
}


def test_a_window_that_only_a_mask_knows_is_refused_where_rows_exceed_it():
    # Qwen2-MoE masks what lies before its window, and packed rows have no mask
    module, ids = family("qwen2_moe", **UNTOLD), (3, 4, 5, 6, 7, 8, 9)
    long, short = (Row("w", ids[:n], (0.0,) + (1.0,) * (n - 1)) for n in (7, 6))
    right, _ = one_by_one(module, [short])
    model = language_model(module)

    assert (model.logits(Rows.pack([short])) - right).abs().max() <= 1e-5
    with pytest.raises(ModelError, match=r"a row has 7; set model.max_length=6,") as refused:
        model.logits(Rows.pack([short, long]))
    assert "\n" not in str(refused.value)


def test_dropout_in_attention_follows_the_seed_and_is_off_in_evaluation():
    model = language_model(family("llama", attention_dropout=0.5))
    batch = Rows.pack(tiny.rows(3, name="dropout"))
    with model.evaluating():
        still = model.logits(batch)
        assert torch.equal(still, model.logits(batch))
    model.module.train()
    readings = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        readings.append(model.logits(batch).detach())
    assert torch.equal(readings[0], readings[1])
    assert not torch.allclose(readings[0], readings[2])
    assert not torch.allclose(readings[0], still)
