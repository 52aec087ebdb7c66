"""Optimizers: their rate over time, and the settings they refuse."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch.testing import assert_close

from framework import ConfigError, LocalEngine, Vector
from framework.optimizers import SGD, AdamW


def rates(steps: int, **settings: object) -> list[float]:
    part = SGD(SGD.Config(learning_rate=8.0, **settings))
    return [part.learning_rate(step, steps) for step in range(steps)]


def test_a_constant_rate_is_constant():
    assert rates(4) == [8, 8, 8, 8]


def test_a_linear_rate_falls_towards_zero_at_the_end():
    assert rates(4, schedule="linear") == [8, 6, 4, 2]


def test_a_cosine_rate_is_half_in_the_middle():
    found = rates(4, schedule="cosine")
    assert found[0] == 8
    assert found[2] == pytest.approx(4)
    assert found[3] == pytest.approx(4 * (1 + math.cos(0.75 * math.pi)))


def test_warm_up_climbs_linearly_and_its_first_step_does_move():
    # 3 of 6 steps: 1/4, 2/4, 3/4 of the peak, then the peak
    assert rates(6, warmup=0.5) == [2, 4, 6, 8, 8, 8]
    assert rates(6, warmup=0.5, schedule="linear")[3:] == pytest.approx([8, 16 / 3, 8 / 3])


def test_one_step_is_taken_at_the_peak():
    assert rates(1, schedule="cosine") == [8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer\.learning_rate must be > 0, got 0"),
        ({"learning_rate": None}, r"optimizer\.learning_rate must be > 0, got None"),
        ({"learning_rate": 1.0, "warmup": 1.0}, r"optimizer\.warmup must be in \[0, 1\), got 1"),
        (
            {"learning_rate": 1.0, "max_gradient_norm": 0.0},
            r"max_gradient_norm must be > 0 or null",
        ),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AdamW(AdamW.Config(**settings))


def test_adamw_is_torchs_with_these_settings():
    settings = AdamW.Config(learning_rate=0.1, betas=[0.5, 0.25], eps=1e-3, weight_decay=0.2)
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = AdamW(settings).build([{"params": [parameter]}])
    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    # the first step: w (1 - lr wd) - lr g / (|g| + eps), both moments free of bias
    assert parameter.item() == pytest.approx(1 - 0.1 * 0.2 - 0.1 * 3 / (3 + 1e-3), rel=1e-6)


def test_sgd_with_momentum_adds_up_what_came_before():
    optimizer = tiny.optimizer("sgd", clip=None)
    parameter = torch.nn.Parameter(torch.tensor([0.0]))
    built = SGD(SGD.Config(learning_rate=1.0, momentum=0.5)).build([{"params": [parameter]}])
    for _ in range(2):
        parameter.grad = torch.tensor([1.0])
        built.step()
    assert parameter.item() == -2.5  # 1, then 1 + 1/2
    assert optimizer.peak == 0.1


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_matrices_decay(name):
    # weight decay 0.1 of a step with a zero gradient: matrices shrink, norms and biases stay
    kind = {"adamw": AdamW, "sgd": SGD}[name]
    optimizer = kind(kind.Config(learning_rate=0.5, weight_decay=0.1))
    engine = tiny.local_engine(optimizer)
    before = engine.master_weights()
    batch = tiny.packed(tiny.rows(1, name="zero"))
    engine.step(engine.gradient([lambda: engine.model.logits(batch).sum() * 0]), 0.5)
    after = engine.master_weights()
    matrices = {n for n, w in before.items() if w.dim() > 1}
    assert matrices
    assert all(torch.allclose(after[n], before[n] * 0.95, atol=1e-7) for n in matrices)
    assert all(torch.equal(after[n], before[n]) for n in before.keys() - matrices)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(AdamW.Config(learning_rate=0.1, weight_decay=0.1)),
        SGD(SGD.Config(learning_rate=0.1, momentum=0.5)),
        SGD(SGD.Config(learning_rate=0.1)),
    ],
    ids=["adamw", "momentum", "sgd"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_that_is_skipped_on_the_device_leaves_nothing_behind(optimizer, precision, kept):
    # a NaN before the first step, or after it: the next steps are those of a run without it
    skipping, plain = (tiny.local_engine(optimizer, precision=precision) for _ in range(2))
    batch = tiny.packed(tiny.rows(2, name="skip"))

    def direction(engine: LocalEngine) -> Vector:
        return engine.gradient([lambda: -engine.model.token_log_probs(batch).mean()])

    nothing, everything = torch.tensor(False), torch.tensor(True)
    for bad in (False, True, False, True) if kept else (True, False, False):
        found = direction(skipping)
        if bad:
            skipping.step(found * math.nan, 0.1, skip=everything)
        else:
            skipping.step(found, 0.1, skip=nothing)
            plain.step(direction(plain), 0.1)
    mine, theirs = skipping.master_weights(), plain.master_weights()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    states = [engine.optimizer.state_dict()["state"] for engine in (skipping, plain)]
    assert_close(*states, rtol=0, atol=0)
