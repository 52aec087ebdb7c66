"""Gated feed-forward layers that keep less: the same gradient, bit for bit, and who they are."""

from __future__ import annotations

import copy
import io
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from families import EXACT, family, language_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from framework import LanguageModel, Rows
from framework.gated import _Gated, as_published, is_gated, keep_less
from framework.memory import storage_of

ROWS = Rows.pack(tiny.rows(3, name="gated"))
KNOWN = {
    *("llama", "qwen2", "qwen3", "mistral", "olmo", "olmo2", "olmo3"),
    *("gemma", "gemma3_text"),
}


def kept_and_found(model: LanguageModel) -> tuple[int, list[Tensor]]:
    """How many tables [T, inner] a forward pass keeps, and the gradient."""
    tables: set[int] = set()
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (64,) and tensor.numel() == 64 * len(ROWS.input_ids):
            tables.add(storage_of(tensor))
            alive.append(tensor)  # lest another takes its place
        return tensor

    model._narrows = False  # all blocks alike
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model.token_log_probs(ROWS).sum()
    parameters = list(model.module.parameters())
    return len(tables), list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("name", EXACT)
def test_a_known_family_keeps_a_table_less_in_each_block_and_finds_the_same(name: str) -> None:
    model = language_model(family(name, **EXACT[name]))
    kept, found = kept_and_found(model)
    as_published(model.module)
    published, right = kept_and_found(model)

    assert published - kept == (2 if name in KNOWN else 0)
    assert all(map(torch.equal, found, right))


def test_it_may_be_differentiated_twice() -> None:
    draws = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    assert torch.autograd.gradgradcheck(lambda *of: _Gated.apply(*of, nn.SiLU()), tuple(draws))


def test_only_what_is_asked_for_is_differentiated() -> None:
    gate, up = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (found,) = torch.autograd.grad(_Gated.apply(gate, up, nn.SiLU()).sum(), gate)
    (right,) = torch.autograd.grad((nn.SiLU()(gate) * up).sum(), gate)

    assert torch.equal(found, right)


def layer(act: nn.Module, **formula: Any) -> nn.Module:
    """Llama's feed-forward layers with another function, or another formula."""
    mlp = tiny.module().model.layers[0].mlp
    mlp.act_fn = act
    if formula:
        mlp.__class__ = type("Other", (type(mlp),), formula)
    return mlp


def test_a_function_that_keeps_more_than_its_input_or_changes_it_is_left_alone() -> None:
    assert all(map(is_gated, map(layer, (nn.SiLU(), nn.GELU(), nn.GELU("tanh")))))
    assert not any(map(is_gated, map(layer, (nn.ReLU(), nn.Sigmoid(), nn.SiLU(inplace=True)))))
    assert not is_gated(layer(nn.Sequential(nn.SiLU(), nn.SiLU())))


def test_a_layer_that_computes_something_else_is_left_alone() -> None:
    def sums(self: Any, x: Any) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))

    def more(self: Any, x: Any) -> Any:
        return self.scale * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    assert not is_gated(layer(nn.SiLU(), forward=sums))
    assert not is_gated(layer(nn.SiLU(), forward=more, scale=SimpleNamespace()))


def test_a_copy_of_a_model_has_its_own_weights() -> None:
    model = tiny.language_model()
    twin = tiny.wrapped(copy.deepcopy(model.module))
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()
    assert twin.logits(ROWS).abs().max() > 0


def test_a_copy_of_a_model_computes_with_its_own_parts_alone() -> None:
    model = tiny.language_model()
    twin = copy.deepcopy(model.module)
    mine = {id(part) for part in twin.modules()}
    held = [vars(part)["forward"].args[0] for part in twin.modules() if is_gated(part)]
    assert len(held) == 2
    assert all(id(part) in mine for part in held)


def test_a_model_that_has_been_read_is_written_and_read_whole() -> None:
    model, file = tiny.language_model(), io.BytesIO()
    torch.save(model.module, file)
    file.seek(0)
    found = tiny.wrapped(torch.load(file, weights_only=False))
    assert torch.equal(found.logits(ROWS), model.logits(ROWS))


def test_a_forward_that_somebody_gave_one_layer_stays_its_own() -> None:
    module = tiny.module()
    mlp = module.model.layers[0].mlp
    mlp.forward = own = lambda states: 0 * states
    keep_less(module)
    assert mlp.forward is own
    as_published(module)
    assert mlp.forward is own


def test_a_function_whose_calls_somebody_watches_is_called() -> None:
    module, calls = tiny.module(), Counter[str]()
    first, second = (block.mlp.act_fn for block in module.model.layers)
    first.register_forward_hook(lambda *_: calls.update(["after"]))
    second.register_forward_pre_hook(lambda *_: calls.update(["before"]))
    tiny.wrapped(module).logits(ROWS)
    assert calls == {"after": 1, "before": 1}


def test_a_function_whose_gradients_somebody_watches_hands_them_on() -> None:
    module, calls = tiny.module(), Counter[str]()
    first, second = (block.mlp.act_fn for block in module.model.layers)
    first.register_full_backward_hook(lambda *_: calls.update(["after"]))
    second.register_full_backward_pre_hook(lambda *_: calls.update(["before"]))
    tiny.wrapped(module).logits(ROWS).sum().backward()
    assert calls == {"after": 1, "before": 1}


class OfTokens(nn.Module):
    """A function of tables [1, T, inner], or of others than the first we try."""

    def __init__(self, error: type[Exception] | None) -> None:
        super().__init__()
        self.error = error

    def forward(self, states: Tensor) -> Tensor:
        if self.error is not None and states.numel() == 4:
            raise self.error
        return nn.functional.silu(states) * states.mean((1, 2), keepdim=True)


@pytest.mark.parametrize("error", [None, IndexError, RuntimeError, ValueError])
def test_a_function_of_other_tables_than_those_it_is_tried_on_is_left_alone(
    error: type[Exception] | None,
) -> None:
    assert not is_gated(layer(OfTokens(error)))


def test_no_layer_is_left_behind() -> None:
    module = tiny.module()
    seen = Counter[bool]()
    for change in (keep_less, keep_less, as_published, as_published):
        change(module)
        seen.update("forward" in vars(part) for part in module.modules() if is_gated(part))
    assert seen == {True: 4, False: 4}
