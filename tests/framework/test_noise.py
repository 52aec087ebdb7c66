"""Noise by counter: standard normal, a function of seed, name and place."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework import noise
from framework.noise import seed_draws, standard_normal

CPU = torch.device("cpu")
N = 200_000


def drawn(seed: int = 0, name: str = "w", start: int = 0, length: int = N) -> torch.Tensor:
    return standard_normal(seed, name, start=start, length=length, device=CPU)


WHOLE = drawn(length=3000)


def test_it_is_standard_normal():
    x = drawn().double()
    # six standard errors of the first four moments: sqrt((1, 2, 15, 96) / N)
    moments = [float((x**k).mean()) for k in (1, 2, 3, 4)]
    for found, right, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(found - right) <= 6 * (variance / N) ** 0.5
    # and the largest distance of distributions: Kolmogorov's bound, exceeded once in 10,000
    below = torch.special.ndtr(x.sort().values)
    expected = torch.arange(1, N + 1, dtype=torch.float64) / N
    assert float((below - expected).abs().max()) <= 2.3 / N**0.5


@pytest.mark.parametrize(
    "other",
    [drawn(seed=1), drawn(name="v"), drawn(start=1), drawn(start=2), drawn(start=64)],
    ids=["seed", "name", "next", "second next", "64th next"],
)
def test_it_does_not_depend_on_other_noise(other):
    assert abs(float((drawn() * other).mean())) <= 6 / N**0.5


@given(st.integers(0, 2000), st.integers(0, 1000))
def test_any_piece_is_that_of_the_whole(start, length):
    assert torch.equal(drawn(start=start, length=length), WHOLE[start : start + length])


def test_it_is_made_in_chunks_of_which_nothing_is_seen(monkeypatch):
    monkeypatch.setattr(noise, "_CHUNK", 7)
    assert torch.equal(drawn(length=3000), WHOLE)


def test_the_same_place_has_the_same_noise_for_ever():
    # SplitMix64 in plain Python's integers: seed 0, "w", elements 0 and 1
    assert drawn(length=2).tolist() == pytest.approx(
        [0.36454321274874585, -0.902380911429807], rel=1e-6
    )


def test_the_engine_gives_each_parameter_its_own():
    engine = tiny.local_engine(tiny.optimizer("sgd", clip=None))
    named = list(engine.model.module.named_parameters())
    found = engine.noise(5)
    assert found.replicated
    for shard, (name, p) in zip(found.shards, named, strict=True):
        assert torch.equal(shard, drawn(5, name, length=p.numel()))


def test_torchs_own_draws_begin_as_torch_begins_them() -> None:
    seed_draws(7, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert drawn.equal(torch.rand(3))
