"""Muon: known answers on single matrices, which parameters it takes, what it refuses.

That ZeRO gives the same is in tests/distributed, as are interrupted runs.
"""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from framework import ConfigError, Vector
from framework.engine import trained
from framework.matrices import Matrices, Place
from framework.muon import Muon, is_hidden_matrix, orthogonalized
from framework.optimizers import Trained
from framework.tuning import LoRA


def gradient(rows: int = 24, columns: int = 16, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


class Alone:
    """One matrix under Muon, in one process: its weight, and how it steps."""

    def __init__(self, rows: int, columns: int, **settings: object) -> None:
        settings = {"learning_rate": 1.0, **settings}
        self.part = Muon(Muon.Config(**settings))  # type: ignore[arg-type]
        self.weight = torch.nn.Parameter(torch.zeros(rows, columns))
        shapes = {"w": (rows, columns)}
        places = [[Place("w", 0, 0, rows * columns)]]
        self.matrices = Matrices(places, shapes, device=torch.device("cpu"), together=False)
        self.steps = self.part.build([{"params": [self.weight], "orthogonal": True}])
        self.shaper = self.part.shaper([Trained("w", self.weight, (rows, columns), table=False)])

    @torch.no_grad()
    def step(self, direction: Tensor) -> Tensor:
        """How far the weight moved."""
        before = self.weight.detach().clone()
        shaped = self.shaper.shaped(Vector([direction.flatten().clone()]), self.matrices)
        self.weight.grad = shaped.shards[0].view_as(self.weight)
        self.steps.step()
        return before - self.weight.detach()


# ---- one matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_singular_values_come_near_one_and_the_singular_vectors_stay(shape, dtype):
    matrix = gradient(*shape)
    found = orthogonalized(matrix, dtype)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.98


def test_each_singular_value_goes_through_the_five_polynomials():
    values = torch.tensor([3.0, 1.0, 0.2])
    found = orthogonalized(torch.diag(values), torch.float32)
    x = values / values.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert torch.allclose(found, torch.diag(x), atol=1e-5)


def test_a_matrix_that_vanishes_is_not_blown_up():
    assert torch.equal(orthogonalized(torch.zeros(3, 2), torch.float32), torch.zeros(3, 2))
    assert orthogonalized(gradient() * 1e-20, torch.float32).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("scale", "theirs"), [("original", "original"), ("rms", "match_rms_adamw")]
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torchs_muon(scale, theirs, nesterov):
    # torch computes in bf16, so we do as well
    settings = {"learning_rate": 0.02, "weight_decay": 0.1, "nesterov": nesterov}
    ours = Alone(64, 32, scale=scale, arithmetic="bf16", **settings)
    weight = torch.nn.Parameter(torch.zeros(64, 32))
    theirs = {"original": "original", "rms": "match_rms_adamw"}[scale]
    optimizer = torch.optim.Muon(
        [weight], lr=0.02, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=theirs
    )
    for seed in range(3):
        weight.grad = gradient(64, 32, seed=seed)
        optimizer.step()
        ours.step(gradient(64, 32, seed=seed))
        assert torch.allclose(ours.weight, weight, rtol=0, atol=1e-6)
    assert weight.abs().max() > 0.01


@pytest.mark.parametrize(("scale", "factor"), [("original", math.sqrt(2)), ("rms", 1.6)])
def test_a_step_on_64_x_32_is_the_orthogonal_matrix_times_rate_and_scale(scale, factor):
    # sqrt(64 / 32); 0.2 sqrt(64)
    moved = Alone(64, 32, scale=scale, learning_rate=0.01).step(gradient(64, 32))
    right = orthogonalized(gradient(64, 32), torch.float32) * 0.01 * factor
    assert torch.allclose(moved, right, rtol=1e-4, atol=1e-6)


def test_an_rms_step_has_entries_about_as_large_as_adamws():
    # an orthogonal A x B matrix has entries of 1 / sqrt(max(A, B)); AdamW's run at 0.2 to 0.4 rates
    for shape in ((64, 32), (32, 256)):
        moved = Alone(*shape, learning_rate=0.01).step(gradient(*shape))
        assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.15)


def test_a_nuclear_step_is_scaled_by_the_sum_of_the_singular_values():
    # without momentum the direction is the gradient itself
    moved = Alone(24, 16, scale="nuclear", momentum=0.0, learning_rate=0.01).step(gradient())
    update = orthogonalized(gradient(), torch.float32)
    scale = (moved.norm() / update.norm()).item() / 0.01
    # the update's singular values are 0.69 to 1.14, so the sum is met to within a third
    assert scale == pytest.approx(torch.linalg.svdvals(gradient()).sum().item(), rel=0.3)
    assert scale == pytest.approx((gradient() * update).sum().item(), rel=1e-4)


def test_the_size_of_the_gradient_changes_nothing_unless_the_scale_is_nuclear():
    large, small = (Alone(24, 16).step(gradient() * size) for size in (1.0, 1e-4))
    assert torch.allclose(large, small, atol=1e-5)
    large, small = (Alone(24, 16, scale="nuclear").step(gradient() * g) for g in (1.0, 1e-4))
    assert torch.allclose(large, small * 1e4, atol=1e-4)


def test_at_a_constant_rate_a_unit_step_stalls_and_a_nuclear_one_converges():
    # 1/2 |W - C|^2, without momentum, which would swing by itself
    target = gradient(24, 16)
    left = {}
    for scale in ("original", "nuclear"):
        alone = Alone(24, 16, scale=scale, learning_rate=0.05, momentum=0.0)
        for _ in range(300):
            alone.step(alone.weight.detach() - target)
        left[scale] = (alone.weight - target).norm().item()
    assert left["original"] > 0.05
    assert left["nuclear"] < 1e-4


def test_weight_decay_keeps_the_weight_in_a_ball_of_one_over_the_decay():
    # towards a matrix of singular values of 10, with decay 0.5: |W| settles at O / 0.5
    alone = Alone(8, 8, scale="original", learning_rate=0.1, weight_decay=0.5)
    for _ in range(200):
        alone.step(alone.weight.detach() - 10 * torch.eye(8))
    settled = 2 * orthogonalized(torch.eye(8), torch.float32)[0, 0].item()
    assert torch.allclose(alone.weight, settled * torch.eye(8), atol=1e-3)
    assert settled == pytest.approx(2, rel=0.1)


def test_momentum_is_the_average_of_the_directions():
    # D1, then D2: M = 0.25 D1 + 0.5 D2, and with Nesterov 0.5 D2 + 0.5 M
    first, second = gradient(seed=1), gradient(seed=2)
    for nesterov, right in (
        (False, 0.25 * first + 0.5 * second),
        (True, first / 8 + 0.75 * second),
    ):
        alone = Alone(24, 16, momentum=0.5, nesterov=nesterov, scale="original")
        alone.step(first)
        moved = alone.step(second)
        scale = math.sqrt(24 / 16)
        assert torch.allclose(moved / scale, orthogonalized(right, torch.float32), atol=1e-5)


# ---- which parameters ----------------------------------------------------------------------------


def taken(module: torch.nn.Module) -> set[str]:
    return {p.name for p in trained(module) if is_hidden_matrix(p)}


@pytest.mark.parametrize("tied", [False, True])
def test_of_a_llama_it_takes_the_seven_matrices_of_each_layer(tied):
    found = taken(tiny.module(tied=tied))
    assert {name.split(".", 3)[3] for name in found} == {
        *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
        *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    }
    assert len(found) == 14


def test_of_a_gpt2_it_takes_neither_positions_nor_biases():
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    assert taken(GPT2LMHeadModel(config)) == {
        f"transformer.h.0.{name}.weight"
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_of_adapters_it_takes_the_factors_but_not_those_of_embeddings_and_head():
    found = taken(tiny.TUNINGS["lora"].apply(tiny.module()))
    assert len(found) == 28
    assert all("lora_A" in name or "lora_B" in name for name in found)
    everywhere = LoRA(LoRA.Config(rank=2, targets=["embed_tokens", "lm_head", "q_proj"]))
    assert {name.split(".")[-3] for name in taken(everywhere.apply(tiny.module()))} == {
        "lora_A",
        "lora_B",
    }
    assert all("q_proj" in name for name in taken(everywhere.apply(tiny.module())))


def test_a_run_without_a_hidden_matrix_is_refused():
    module = tiny.module()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("norm" in name or "embed" in name)
    optimizer = tiny.optimizer("muon", clip=None)
    with pytest.raises(ConfigError, match=r"none of the 6 .*embed_tokens.*type optimizer=adamw"):
        optimizer.groups(trained(module))


def test_it_says_which_share_of_the_weights_it_takes():
    # 2 layers of 2 x 32^2 + 2 x 32 x 16 + 3 x 32 x 64 = 9216; tables 2 x 64 x 32; norms 5 x 32
    about = tiny.optimizer("muon", clip=None).about(trained(tiny.module()))
    share = round(100 * 18432 / (18432 + 4096 + 160))
    assert about == (
        f"Muon takes 14 hidden matrices, {share}% of the trained weights; AdamW takes the rest"
    )


def test_it_names_no_rest_where_there_is_none():
    module = tiny.module()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("proj" in name)
    about = tiny.optimizer("muon", clip=None).about(trained(module))
    assert about == "Muon takes 14 hidden matrices, 100% of the trained weights"


# ---- a whole model -------------------------------------------------------------------------------


def one_step(**settings: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after a step."""
    optimizer = Muon(Muon.Config(learning_rate=0.01, **settings))  # type: ignore[arg-type]
    engine = tiny.local_engine(optimizer)
    batch = tiny.packed(tiny.rows(3, name="step"))
    before = engine.master_weights()
    direction = engine.gradient([lambda: -engine.model.token_log_probs(batch).mean()])
    engine.step(direction, 0.01)
    return before, engine.master_weights()


def test_the_other_parameters_are_stepped_as_adamw_would():
    before, after = one_step()
    engine = tiny.local_engine(tiny.optimizer("adamw", clip=None))
    engine.optimizer.param_groups[0]["weight_decay"] = 0.0
    batch = tiny.packed(tiny.rows(3, name="step"))
    engine.step(engine.gradient([lambda: -engine.model.token_log_probs(batch).mean()]), 0.01)
    adamw = engine.master_weights()
    same = {name for name in after if torch.allclose(after[name], adamw[name], atol=1e-7)}
    assert same == {name for name in after if "proj" not in name}
    assert all(not torch.equal(after[name], before[name]) for name in after)


def test_adamws_parameters_may_have_a_rate_of_their_own():
    before, after = one_step()
    _, slower = one_step(adamw_learning_rate=0.001)
    for name in after:
        moved, half = after[name] - before[name], slower[name] - before[name]
        assert torch.allclose(moved, half * (1 if "proj" in name else 10), atol=1e-6)


def test_only_what_is_accumulated_counts_not_how_often():
    plan = tiny.step_rows(3)
    weights = []
    for tokens in (1000, 30):
        optimizer = tiny.optimizer("muon", clip=None)
        engine = tiny.local_engine(optimizer)
        trainer = tiny.trainer(
            engine, tiny.language_model(), plan, method="npo", optimizer=optimizer
        )
        tiny.train(trainer, plan, tokens=tokens)
        weights.append(engine.master_weights())
    assert all(torch.allclose(weights[0][n], weights[1][n], atol=1e-6) for n in weights[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gradient_norm": 1.0}, r"clipping.*type optimizer\.max_gradient_norm=null"),
        ({"momentum": 1.0}, r"optimizer\.momentum must be in \[0, 1\), got 1"),
        ({"adamw_learning_rate": 0.0}, r"adamw_learning_rate must be > 0, or null.*got 0"),
        ({"betas": (0.9, 1.0)}, r"optimizer\.betas must be in \[0, 1\)"),
        ({"eps": 0.0}, r"optimizer\.eps must be > 0, got 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Muon.Config(learning_rate=1.0, **settings)
