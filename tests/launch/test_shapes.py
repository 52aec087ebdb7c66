"""Shapes, rows of true lengths, and the most bytes that tensors held at once."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from launch.peak_bytes import peak_bytes
from launch.shapes import LENGTHS, SHAPES, rows_of


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-1b", 1_235_814_400),
        ("llama-8b", 8_030_261_248),
        ("olmo-7b", 6_888_095_744),
    ],
)
def test_a_shape_has_the_parameters_of_the_published_model(name: str, parameters: int) -> None:
    with torch.device("meta"):
        module = SHAPES[name].module()
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_the_small_shape_has_the_head_share_of_a_1b() -> None:
    shares = []
    for name in ("small", "llama-1b"):
        with torch.device("meta"):
            module = SHAPES[name].module()
        matrices = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        shares.append(module.lm_head.weight.numel() / matrices)
    assert shares == pytest.approx([0.213, 0.213], abs=0.005)


def test_rows_are_as_long_as_the_data_says_and_begin_alike() -> None:
    rows = rows_of(LENGTHS["tofu"], 100, vocabulary=50, seed=3, name="f", paired=True)
    assert len({row.id for row in rows}) == 100
    assert (
        len({row.input_ids[:34] for row in rows}) == 1 < len({row.input_ids[:38] for row in rows})
    )
    for row in rows:
        prompt = row.weights.index(1.0)
        assert (prompt, len(row) - prompt) in LENGTHS["tofu"].pairs
        assert row.preferred is not None
        assert row.preferred.input_ids[:prompt] == row.input_ids[:prompt]
        assert row.preferred.weight == len(row.preferred) - prompt >= 1
    again = rows_of(LENGTHS["tofu"], 100, vocabulary=50, seed=3, name="f", paired=True)
    assert (
        again == rows != rows_of(LENGTHS["tofu"], 100, vocabulary=50, seed=4, name="f", paired=True)
    )


@pytest.mark.parametrize(
    ("name", "mean", "counted"),
    [
        ("tofu", 86.2, 0.374),
        ("lume", 79.4, 0.291),
        ("muse", 2048, 2047 / 2048),
        ("uniform", 148, 0.385),
    ],
)
def test_as_many_tokens_are_counted_as_of_the_data(name: str, mean: float, counted: float) -> None:
    rows = rows_of(LENGTHS[name], 64, vocabulary=50)
    tokens = sum(map(len, rows))
    assert tokens / 64 == pytest.approx(mean, abs=0.5)
    assert sum(row.weight for row in rows) / tokens == pytest.approx(counted, abs=0.002)


@pytest.mark.parametrize("made", ["real", "fake", "meta"])
def test_the_peak_is_what_tensors_held_at_once(made: str) -> None:
    context = {"real": torch.device("cpu"), "fake": FakeTensorMode(), "meta": torch.device("meta")}
    with context[made]:
        weight = torch.ones(100, 100, requires_grad=True)
        with peak_bytes(weight.device) as peak:
            first = torch.ones(1000)
            view = first.view(10, 100)
            grown = view + 1
            first.add_(1)
            del first, view, grown
            torch.ones(1500)
        assert peak.bytes == 2 * 4000
        with peak_bytes(weight.device) as peak:
            states = weight * 3  # kept for the backward pass of the square
            squared = states.square()
            total = squared.sum()
            del states, squared
            total.backward()
        # states, their first power, twice that, that times the gradient; two scalars
        assert peak.bytes == 4 * 40_000 + 8
        with peak_bytes(weight.device) as peak, torch.no_grad():
            weight.add_(1).t()
            torch._foreach_mul_([weight], 2.0)
        assert peak.bytes == 0
