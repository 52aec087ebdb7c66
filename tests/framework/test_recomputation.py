"""Activations that are computed again: the same step, bit for bit; what is computed, and what held.

What memory it takes is in tests/launch/test_rehearsal.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import tiny
import torch
import torch.nn.attention.varlen  # defines an operation
from torch import Tensor, nn

from framework import LocalEngine
from framework.data import Rows
from framework.recomputation import ATTENTION, PRODUCTS, Recomputed, is_kept, recompute
from framework.tuning import LoRA
from framework.vectors import Vector
from launch.flops import flops_of
from launch.host_syncs import host_syncs

HOW: tuple[Recomputed, ...] = (True, "selective")
aten = torch.ops.aten


def one_gradient(how: Recomputed, *, inplace: bool = False, **shape: Any) -> list[Tensor]:
    """Of the parameters, with dropout the same for each call."""
    model = tiny.language_model(**shape)
    for block in model.module.model.layers:
        block.mlp.act_fn = nn.SiLU(inplace=inplace)
    if how:
        recompute(model.module, how)
    model.module.train()
    torch.manual_seed(1)
    model.token_log_probs(Rows.pack(tiny.rows(3, name="row"))).sum().backward()
    return [p.grad for p in model.module.parameters()]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_is_the_same_with_the_same_dropout(how: Recomputed, dropout: float) -> None:
    plain = one_gradient(how=False, attention_dropout=dropout)

    assert all(map(torch.equal, plain, one_gradient(how, attention_dropout=dropout)))
    without = one_gradient(how, attention_dropout=0.0)
    assert all(map(torch.equal, plain, without)) is (dropout == 0)


def looks_and_passes(how: Recomputed, dropout: float) -> list[Tensor]:
    """The gradient of one weight, then twice those of all, in three passes over one graph."""
    model = tiny.language_model(attention_dropout=dropout)
    if how:
        recompute(model.module, how)
    model.module.train()
    torch.manual_seed(1)
    loss = model.token_log_probs(Rows.pack(tiny.rows(3, name="row"))).sum()
    one, of = model.module.model.layers[1].mlp.down_proj.weight, list(model.module.parameters())
    looked = torch.autograd.grad(loss, one, retain_graph=True)
    first = torch.autograd.grad(loss, of, retain_graph=True)
    return [*looked, *first, *torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_backward_pass_may_follow_another_over_the_same_graph(
    how: Recomputed, dropout: float
) -> None:
    plain, found = looks_and_passes(False, dropout), looks_and_passes(how, dropout)

    assert all(map(torch.equal, plain, found))


def test_a_product_that_is_changed_in_place_is_taken_again() -> None:
    plain, found = (one_gradient(how, inplace=True) for how in (False, "selective"))

    assert all(map(torch.equal, plain, found))


def test_a_block_is_read_again_and_the_head_is_not_and_selectively_no_product_is_taken_twice() -> (
    None
):
    passes, flops = {}, {}
    for how in (False, *HOW):
        model = tiny.language_model()
        if how:
            recompute(model.module, how)
        model.module.train()
        seen = passes[how] = Counter[str]()
        parts = {"block": model.module.model.layers[0].mlp, "head": model.module.lm_head}
        for name, part in parts.items():
            part.register_forward_pre_hook(lambda *_, n=name, seen=seen: seen.update([n]))
        rows = Rows.pack(tiny.rows(3, name="row"))
        flops[how] = flops_of(lambda m=model, r=rows: m.token_log_probs(r).sum().backward())

    assert passes == {
        False: {"block": 1, "head": 1},
        "selective": {"block": 2, "head": 1},
        True: {"block": 2, "head": 1},
    }
    assert flops["selective"] == flops[False] < flops[True]


METHODS: dict[str, dict[str, Any]] = {
    "npo": {},
    "npo_kl blur sam": {"method": "npo_kl", "weighting": "blur", "perturbation": "sam"},
    "rmu, which leaves early": {"method": "rmu"},
    "adapters that drop out": {"method": "npo_kl", "lora": 0.3},
    "attention that is kept, rows that share": {"method": "dpo", "dropout": 0.0},
}


def two_steps(how: Recomputed, case: dict[str, Any]) -> tuple[Vector, int]:
    """The weights after them, and how often the second waited for the device."""
    module = tiny.module(attention_dropout=case.get("dropout", 0.1))
    if "lora" in case:
        module = LoRA(LoRA.Config(rank=4, alpha=8.0, dropout=case["lora"])).apply(module)
    model = tiny.wrapped(module)
    if how:
        recompute(model.module, how)
    optimizer = tiny.optimizer("sgd", clip=1.0)
    engine = LocalEngine(LocalEngine.Config(), model=model, optimizer=optimizer, precision="fp32")
    plan = tiny.step_rows(2, prefers=case.get("method") == "dpo")
    trainer = tiny.trainer(
        engine,
        model if "lora" in case else tiny.language_model(),
        plan,
        method=case.get("method", "npo"),
        weighting=tiny.WEIGHTINGS[case.get("weighting", "none")](),
        perturbation=tiny.PERTURBATIONS[case.get("perturbation", "none")](),
        optimizer=optimizer,
    )
    model.module.train()
    waited = 0
    for rows in plan:
        batches = trainer.micro_batches(rows, trainer.steps_done)
        shared = any(part.keys is not None for batch in batches for part in batch.values())
        assert shared == ("dropout" in case)
        with host_syncs() as found:
            trainer.step(batches, learning_rate=0.1)
        waited = found.total()
    return engine.weights(), waited


@pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)
def test_steps_of_every_kind_are_the_same_and_wait_for_nothing(case: dict[str, Any]) -> None:
    plain, waited = two_steps(how=False, case=case)
    found, waited_as_well = two_steps(how="selective", case=case)

    assert all(map(torch.equal, plain.shards, found.shards))
    assert waited == waited_as_well == 0


def test_attention_that_drops_out_is_computed_again_lest_later_draws_differ() -> None:
    query = (None,) * 3
    flash, dense = aten._scaled_dot_product_flash_attention.default, aten.mm.default

    assert is_kept(dense, (None, None), {})
    assert is_kept(flash, query, {})
    assert is_kept(flash, (*query, 0.0, True), {})
    assert not is_kept(flash, (*query, 0.5, True), {})
    assert not is_kept(flash, query, {"dropout_p": 0.5})
    assert not is_kept(aten.silu.default, (None,), {})


def test_every_operation_that_is_kept_is_one_of_torch_and_found_to_drop_out_where_it_can() -> None:
    places = {"flash": 3, "efficient": 5, "cudnn": 5}
    dropouts = {f"_scaled_dot_product_{kind}_attention": at for kind, at in places.items()}
    dropouts["_scaled_dot_product_flash_attention_for_cpu"] = 3
    for name in PRODUCTS:
        assert is_kept(getattr(aten, name).default, (None,) * 3, {})
    for name, place in dropouts.items():
        given = (None,) * place
        assert is_kept(getattr(aten, name).default, given, {})
        assert not is_kept(getattr(aten, name).default, (*given, 0.5), {})
    assert is_kept(torch.ops.torch_attn._varlen_attn.default, (None,) * 3, {})
    assert {*dropouts, "_varlen_attn"} == ATTENTION


def test_a_product_that_fills_a_tensor_it_was_given_is_taken_again() -> None:
    assert is_kept(aten.mm.default, (None, None), {})
    assert not is_kept(aten.mm.out, (None, None), {"out": None})
