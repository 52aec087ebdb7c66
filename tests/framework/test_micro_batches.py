"""How a step is cut: each row once, ranks in step, within the budget, what is shared once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework import Row, Rows
from framework.micro_batches import micro_batches, partition


def cut(rows: Sequence[Row], *, tokens: int, world_size: int) -> list[list[list[Row]]]:
    """The rows of one objective, what they share counted for each."""
    parts = partition({"rows": rows}, tokens=tokens, world_size=world_size, shares=False)
    return [[part["rows"] for part in rank] for rank in parts]


@given(n=st.integers(1, 12), tokens=st.integers(1, 200), world_size=st.integers(1, 5))
def test_a_pair_is_never_parted_and_fills_its_micro_batch_as_two(n, tokens, world_size):
    rows = tiny.pairs(n, name="together")
    parts = cut(rows, tokens=tokens, world_size=world_size)
    read = [row for rank in parts for part in rank for row in part]
    assert all(row.preferred is not None for row in read)
    assert sorted((r for r in read if r.weight > 0), key=rows.index) == rows
    budget = max(tokens, *(len(row) + len(row.preferred) for row in rows))
    for rank in parts:
        assert all(len(Rows.pack(part).input_ids) <= budget for part in rank)


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=40)
budgets = st.integers(1, 200)
worlds = st.integers(1, 9)


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(f"r{i}", (7,) * n, (0.0,) + (1.0,) * (n - 1)) for i, n in enumerate(lengths)]


@given(lengths=lengths, tokens=budgets, world_size=worlds)
def test_every_row_travels_once(lengths, tokens, world_size):
    rows = rows_of(lengths)
    parts = cut(rows, tokens=tokens, world_size=world_size)
    counted = [row for rank in parts for part in rank for row in part if row.weight > 0]
    assert sorted(counted, key=rows.index) == rows


@given(lengths=lengths, tokens=budgets, world_size=worlds)
def test_every_rank_reads_equally_many_micro_batches_none_empty(lengths, tokens, world_size):
    parts = cut(rows_of(lengths), tokens=tokens, world_size=world_size)
    assert len(parts) == world_size
    assert len({len(rank) for rank in parts}) == 1
    assert all(part for rank in parts for part in rank)


@given(lengths=lengths, tokens=budgets, world_size=worlds)
def test_a_micro_batch_holds_its_budget_unless_it_is_one_long_row(lengths, tokens, world_size):
    parts = cut(rows_of(lengths), tokens=tokens, world_size=world_size)
    budget = max(tokens, *lengths)
    sizes = [[len(row) for row in part] for rank in parts for part in rank]
    assert all(sum(size) <= budget for size in sizes)


@given(lengths=lengths, tokens=budgets, world_size=worlds)
def test_an_idle_row_stands_alone_where_there_was_no_work(lengths, tokens, world_size):
    parts = cut(rows_of(lengths), tokens=tokens, world_size=world_size)
    for rank in parts:
        for part in rank:
            assert len(part) == 1 or all(row.weight > 0 for row in part)
    idle_parts = sum(part[0].weight == 0 for rank in parts for part in rank)
    assert idle_parts == 0 or idle_parts + len(lengths) >= len(parts) * len(parts[0])


@given(lengths=lengths, tokens=budgets, world_size=worlds)
def test_the_same_rows_are_cut_the_same(lengths, tokens, world_size):
    twice = [cut(rows_of(lengths), tokens=tokens, world_size=world_size) for _ in range(2)]
    assert twice[0] == twice[1]


def test_the_tokens_are_spread_evenly():
    # 8 rows, 40 tokens: two micro-batches of 10 tokens on each of two ranks
    rows = rows_of([9, 8, 6, 5, 5, 4, 2, 1 + 1])
    parts = cut(rows, tokens=12, world_size=2)
    sizes = [[sum(len(row) for row in part) for part in rank] for rank in parts]
    flat = [size for rank in sizes for size in rank]
    assert max(flat) - min(flat) <= 2
    assert len(sizes[0]) == len(sizes[1]) == 2


def test_a_long_row_does_not_travel_with_others():
    parts = cut(rows_of([50, 4, 4]), tokens=10, world_size=1)
    assert [50] in [[len(row) for row in part] for part in parts[0]]


def test_a_step_has_a_loss_on_every_rank_even_of_one_row():
    (row,) = tiny.rows(1, name="one")
    parts = cut([row], tokens=100, world_size=3)
    assert [rank[0][0].weight > 0 for rank in parts] == [True, False, False]


# ---- several objectives, and what their rows share -----------------------------------------------

HEAD = (1, 7, 8, 9)


def alike(lengths: Sequence[int], name: str) -> list[Row]:
    """Rows of one head, after which no two are alike for long."""
    made = []
    for i, length in enumerate(lengths):
        ids = (*HEAD, *((3 + (i * 7 + t * (len(name) + 1)) % 60) for t in range(length)))
        made.append(Row(f"{name}{i}", ids, (0.0,) * 4 + (1.0,) * length))
    return made


@given(forget=lengths, retain=lengths, tokens=budgets, world_size=worlds)
def test_rows_of_all_objectives_travel_once_and_fill_packs_with_what_they_do_not_share(
    forget, retain, tokens, world_size
):
    step = {"forget": alike(forget, "f"), "retain": alike(retain, "retain")}
    parts = partition(step, tokens=tokens, world_size=world_size, shares=True)
    assert len({len(rank) for rank in parts}) == 1
    for name, rows in step.items():
        read = [row for rank in parts for part in rank for row in part.get(name, [])]
        assert sorted((row for row in read if row.weight > 0), key=rows.index) == rows
    budget = max(tokens, *(len(row) for rows in step.values() for row in rows))
    for rank in range(world_size):
        batches = micro_batches(
            step,
            tokens=tokens,
            rank=rank,
            world_size=world_size,
            shares=True,
            device=torch.device("cpu"),
        )
        for batch, part in zip(batches, parts[rank], strict=True):
            assert [list(member.ids) for member in batch.values()] == [
                [row.id for row in rows] for rows in part.values()
            ]
            assert all(len(member.input_ids) <= budget for member in batch.values())


@pytest.mark.parametrize(("tokens", "shared", "plain"), [(16, 1, 2), (15, 2, 2), (30, 1, 1)])
def test_what_rows_share_counts_once_against_the_budget(tokens, shared, plain):
    # heads of 4 tokens, then 3, 4, 3 and 4: 30 in all; two begin with a 3, two with a 10: 16
    step = {"forget": alike([3, 4], "f"), "retain": alike([3, 4], "retain")}
    for shares, expected in ((True, shared), (False, plain)):
        (cut,) = partition(step, tokens=tokens, world_size=1, shares=shares)
        assert len(cut) == expected


def test_members_lie_in_one_pack_and_score_their_own_tokens():
    forget = [
        Row(
            "f",
            (1, 11, 12, 20, 21),
            (0.0, 0.0, 0.0, 1.0, 1.0),
            Row("f/preferred", (1, 11, 12, 30), (0.0, 0.0, 0.0, 1.0)),
        )
    ]
    retain = [
        Row("r", (1, 11, 40, 41), (0.0, 0.0, 0.5, 1.0)),
        Row("s", (1, 11, 12), (0.0, 1.0, 1.0)),
    ]
    (batch,) = micro_batches(
        {"forget": forget, "retain": retain},
        tokens=100,
        rank=0,
        world_size=1,
        shares=True,
        device=torch.device("cpu"),
    )
    one, other = batch["forget"], batch["retain"]
    assert one.input_ids.tolist() == [1, 11, 12, 20, 21, 30, 40, 41]
    assert one.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 2, 3]
    assert one.keys is not None
    for name in ("input_ids", "position_ids", "boundaries", "lengths", "keys"):
        assert getattr(one, name) is getattr(other, name)
    assert (one.ids, one.paired, one.given) == (("f", "f/preferred"), True, 1)
    # both answers are predicted at the end of the question, where "s" ends too
    assert one.scored.tolist() == [2, 3, 2]
    assert one.targets.tolist() == [20, 21, 30]
    assert one.row_of.tolist() == [0, 0, 1]
    assert (other.ids, other.paired) == (("r", "s"), False)
    assert other.scored.tolist() == [1, 6, 0, 1]
    assert other.targets.tolist() == [40, 41, 11, 12]
    assert other.weights.tolist() == [0.5, 1, 1, 1]
    assert other.row_of.tolist() == [0, 0, 1, 1]
    assert (one.totals.rows, other.totals.rows) == (1, 2)


def test_what_is_sent_to_a_device_arrives_in_one_piece_as_it_was():
    batches = [
        micro_batches(
            {"forget": tiny.rows(3, name="f")},
            tokens=100,
            rank=0,
            world_size=1,
            shares=True,
            device=torch.device(device),
        )[0]["forget"]
        for device in ("cpu", "meta")
    ]
    for field in ("input_ids", "boundaries", "scored", "targets", "weights", "row_of"):
        here, there = (getattr(batch, field) for batch in batches)
        assert (here.dtype, here.shape) == (there.dtype, there.shape)
