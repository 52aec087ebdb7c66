"""Vectors of model size: sums and multiples by shard, inner products over all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework import Vector, gram
from framework.vectors import inner_products

numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)


def vector(*shards: list[float]) -> Vector:
    return Vector([torch.tensor(shard) for shard in shards])


def whole(v: Vector) -> list[float]:
    return torch.cat(v.shards).tolist()


def test_sums_and_multiples_are_new_vectors():
    a, b = vector([1.0, 2.0], [3.0]), vector([10.0, 20.0], [30.0])
    assert whole(a + b) == [11, 22, 33]
    assert whole(b - a) == [9, 18, 27]
    assert whole(a * 2) == whole(2 * a) == [2, 4, 6]
    assert whole(a * torch.tensor(2.0, dtype=torch.float64)) == [2, 4, 6]
    assert whole(a) == [1, 2, 3]


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0, dtype=torch.float64)])
def test_in_place_sums_and_multiples_change_the_vector_itself(scale):
    a = vector([1.0, 2.0], [3.0])
    assert a.add_(vector([10.0, 20.0], [30.0]), scale) is a
    assert whole(a) == [21, 42, 63]
    assert a.scale_(scale) is a
    assert whole(a) == [42, 84, 126]


def test_a_clone_has_memory_of_its_own():
    a = vector([1.0])
    a.clone().scale_(5)
    assert whole(a) == [1]


def test_all_that_is_made_of_a_replicated_vector_is_replicated():
    a = Vector([torch.ones(2)], replicated=True)
    assert all(v.replicated for v in (a + a, a - a, a * 2, a.clone()))
    assert not vector([1.0]).clone().replicated


def test_products_are_of_the_whole_vector():
    a, b = vector([3.0], [4.0]), vector([1.0], [2.0])
    assert float(a.dot(b)) == 11
    assert float(a.norm()) == 5
    assert a.norm().dtype == torch.float64


def test_an_empty_shard_counts_nothing():
    # under ZeRO-3 a rank may hold nothing of a small group
    empty = torch.zeros(0)
    assert float(Vector([empty, torch.tensor([2.0])]).norm()) == 2
    assert float(Vector([empty]).norm()) == 0


@given(a=numbers, cut=st.integers(0, 12))
def test_where_a_vector_is_cut_does_not_matter(a, cut):
    tensor = torch.tensor(a)
    shards = Vector([tensor[:cut], tensor[cut:]])
    right = float(tensor.double() @ tensor.double())
    assert float(shards.dot(shards)) == pytest.approx(right, rel=1e-5)


def test_a_long_product_keeps_its_digits():
    # 10 million products of 0.1 * 0.1: a running sum in fp32 would be percents off
    long = Vector([torch.full((10_000_000,), 0.1)])
    right = 10_000_000 * float(torch.tensor(0.1)) ** 2
    assert float(long.dot(long.clone())) == pytest.approx(right, rel=5e-5)


def test_a_length_is_exact_wherever_a_vector_is_cut():
    long = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    right = float(long.double().norm())
    for cut in (0, 1, 50_000):
        assert float(Vector([long[:cut], long[cut:]]).norm()) == pytest.approx(right, rel=1e-12)


def test_gram_holds_every_pair_once_named():
    a, b, c = vector([1.0], [0.0]), vector([1.0], [1.0]), vector([0.0], [-2.0])
    products = gram({"forget": a, "retain": b, "third": c})
    assert products.names == ("forget", "retain", "third")
    assert products.products.tolist() == [[1, 1, 0], [1, 2, -2], [0, -2, 4]]
    assert float(products.dot("third", "retain")) == -2
    assert float(products.norm("third")) == 2
    assert float(products.cosine("forget", "retain")) == pytest.approx(0.5**0.5)
    assert inner_products([(a, b), (c, c)]).tolist() == [1, 4]


def test_the_cosine_with_a_vanishing_gradient_is_zero():
    products = gram({"forget": vector([0.0]), "retain": vector([2.0])})
    assert float(products.cosine("forget", "retain")) == 0
