"""The sampler: each forget row once per epoch, each retain row once per cycle, no memory."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data import Row
from framework.errors import ConfigError, DataError
from framework.sampler import ForgetRetainSampler

sizes = st.integers(1, 30)
seeds = st.integers(-5, 2**40)


def rows(name: str, count: int) -> list[Row]:
    return [Row(f"{name}{i}", (i, i + 1), (0.0, 1.0)) for i in range(count)]


def ids(step: dict[str, list[Row]]) -> dict[str, list[str]]:
    return {name: [row.id for row in part] for name, part in step.items()}


def sampler(forget: int, retain: int, batch_size: int, seed: int) -> ForgetRetainSampler:
    sets = {"forget": rows("f", forget), "retain": rows("r", retain)}
    return ForgetRetainSampler(sets, batch_size=batch_size, seed=seed)


@given(forget=sizes, retain=sizes, batch_size=sizes, seed=seeds, sources=st.integers(1, 5))
def test_of_several_retain_sources_a_step_reads_equally_many_rows(
    forget: int, retain: int, batch_size: int, seed: int, sources: int
) -> None:
    names = [f"retain/{i}" for i in range(sources)]
    sets = {"forget": rows("f", forget), **{name: rows(name, retain) for name in names}}
    draws = ForgetRetainSampler(sets, batch_size=batch_size, seed=seed)
    read: dict[str, list[str]] = {name: [] for name in names}
    for step in range(3 * draws.steps_per_epoch):
        seen = ids(draws[step])
        for name in names:
            assert len(seen[name]) == -(-len(seen["forget"]) // sources)
            read[name] += seen[name]
    for walked in read.values():  # through whole permutations, one after another
        for start in range(0, len(walked), retain):
            part = walked[start : start + retain]
            assert len(set(part)) == len(part)


@given(forget=sizes, retain=sizes, batch_size=sizes, seed=seeds)
def test_an_epoch_reads_each_forget_row_once_with_one_retain_row(
    forget: int, retain: int, batch_size: int, seed: int
) -> None:
    draws = sampler(forget, retain, batch_size, seed)
    for epoch in range(3):
        steps = [draws[epoch * draws.steps_per_epoch + i] for i in range(draws.steps_per_epoch)]
        seen = [row.id for step in steps for row in step["forget"]]
        assert sorted(seen) == sorted(f"f{i}" for i in range(forget))
        assert all(len(step["forget"]) == len(step["retain"]) for step in steps)
        assert all(len(step["forget"]) == batch_size for step in steps[:-1])
        assert 1 <= len(steps[-1]["forget"]) <= batch_size


@given(forget=sizes, retain=sizes, batch_size=sizes, seed=seeds)
def test_each_retain_row_is_read_once_before_any_is_read_twice(
    forget: int, retain: int, batch_size: int, seed: int
) -> None:
    draws = sampler(forget, retain, batch_size, seed)
    seen: Counter[str] = Counter({f"r{i}": 0 for i in range(retain)})
    for step in range(3 * draws.steps_per_epoch + 1):
        for row in draws[step]["retain"]:
            seen[row.id] += 1
            assert max(seen.values()) - min(seen.values()) <= 1


@given(forget=sizes, retain=sizes, batch_size=sizes, seed=seeds, order=st.randoms())
def test_a_step_depends_on_seed_and_number_alone(
    forget: int, retain: int, batch_size: int, seed: int, order: random.Random
) -> None:
    walked = sampler(forget, retain, batch_size, seed)
    in_order = [ids(walked[step]) for step in range(12)]
    jumped = sampler(forget, retain, batch_size, seed)
    for step in order.sample(range(12), 12):
        assert ids(jumped[step]) == in_order[step]


def test_the_draw_is_the_same_on_every_machine() -> None:
    # Recorded once; Python promises the sequence of random() for a seed. A change here means that
    # resumed runs would read other rows than before.
    draws = sampler(5, 3, 2, seed=0)
    assert [ids(draws[step]) for step in range(3)] == [
        {"forget": ["f1", "f4"], "retain": ["r1", "r2"]},
        {"forget": ["f0", "f2"], "retain": ["r0", "r0"]},
        {"forget": ["f3"], "retain": ["r2"]},
    ]


def test_epochs_and_seeds_differ() -> None:
    draws = sampler(20, 20, 20, seed=0)
    assert ids(draws[0]) != ids(draws[1])
    assert ids(draws[0]) != ids(sampler(20, 20, 20, seed=1)[0])


def test_forget_and_retain_are_not_paired_by_position() -> None:
    first = ids(sampler(20, 20, 20, seed=0)[0])
    assert [i[1:] for i in first["forget"]] != [i[1:] for i in first["retain"]]


def test_epochs_are_counted_by_forget_rows() -> None:
    draws = sampler(5, 100, 2, seed=0)
    assert draws.steps_per_epoch == 3  # 2 + 2 + 1
    assert [draws.epoch(step) for step in range(5)] == [0, 0.4, 0.8, 1.0, 1.4]


def test_fine_tuning_reads_the_retain_set_as_its_epoch() -> None:
    draws = ForgetRetainSampler({"retain": rows("r", 5)}, batch_size=2, seed=0)
    seen = [row.id for step in range(3) for row in draws[step]["retain"]]
    assert sorted(seen) == ["r0", "r1", "r2", "r3", "r4"]
    assert draws.steps_per_epoch == 3
    assert list(draws[0]) == ["retain"]


def test_forgetting_alone_needs_no_retain_set() -> None:
    draws = ForgetRetainSampler({"forget": rows("f", 2)}, batch_size=4, seed=0)
    assert list(draws[0]) == ["forget"]
    assert len(draws[0]["forget"]) == 2


def test_an_empty_set_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="the forget set is empty: "):
        sampler(0, 3, 2, seed=0)
    with pytest.raises(DataError, match="the retain set is empty: "):
        sampler(3, 0, 2, seed=0)


def test_impossible_sizes_and_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 row, got 0"):
        sampler(3, 3, 0, seed=0)
    with pytest.raises(IndexError, match="got -1"):
        sampler(3, 3, 2, seed=0)[-1]
