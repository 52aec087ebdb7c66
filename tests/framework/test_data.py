"""Rows: packing, the means that no cut changes, and how a step is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from framework import Row, Rows
from framework.data import StepTotals, idle

A = Row("a", (5, 6, 7, 8), (0.0, 0.0, 1.0, 1.0))
B = Row("b", (9, 10, 11), (0.0, 1.0, 0.5))
SILENT = Row("silent", (12, 13), (0.0, 0.0))


def test_rows_are_laid_end_to_end():
    rows = Rows.pack([A, B])
    assert rows.ids == ("a", "b")
    assert len(rows) == 2
    assert rows.lengths == (4, 3)
    assert rows.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert rows.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert rows.boundaries.tolist() == [0, 4, 7]
    assert rows.boundaries.dtype == torch.int32


def test_a_position_is_scored_where_its_next_token_counts():
    rows = Rows.pack([A, B])
    assert rows.scored.tolist() == [1, 2, 4, 5]
    assert rows.targets.tolist() == [7, 8, 10, 11]
    assert rows.weights.tolist() == [1, 1, 1, 0.5]
    assert rows.row_of.tolist() == [0, 0, 1, 1]
    assert all(rows.input_ids[p + 1] == t for p, t in zip(rows.scored, rows.targets, strict=True))


def test_a_row_without_counted_tokens_keeps_a_graph_and_counts_nothing():
    rows = Rows.pack([SILENT])
    assert rows.scored.tolist() == [0]
    assert rows.weights.tolist() == [0]
    loss = torch.tensor([3.0], requires_grad=True)
    assert rows.token_mean(loss).item() == 0
    assert rows.row_mean(loss).item() == 0
    rows.token_mean(loss).backward()
    assert loss.grad.tolist() == [0]


def test_means_and_sums_by_hand():
    rows = Rows.pack([A, B, SILENT])
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert rows.row_sum(losses).tolist() == [3, 8, 0]  # 1 + 2; 4 + 8/2; nothing
    assert rows.token_mean(losses).item() == pytest.approx(11 / 3.5)
    assert rows.row_mean(torch.tensor([3.0, 8.0, 100.0])).item() == pytest.approx(5.5)
    assert rows.totals == StepTotals(rows=2, weight=3.5, tokens=7)


def test_the_shares_of_micro_batches_add_up_to_the_mean_of_the_step():
    step = [A, B, SILENT]
    totals = StepTotals.of(step)
    losses = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0, 8.0]), "silent": torch.ones(1)}
    shares = [Rows.pack([row], totals=totals).token_mean(losses[row.id]).item() for row in step]
    assert sum(shares) == pytest.approx(11 / 3.5)
    of_rows = [Rows.pack([row], totals=totals).row_mean(torch.tensor([6.0])).item() for row in step]
    assert of_rows == [3, 3, 0]


def test_everywhere_is_every_position_of_every_counted_row():
    every = Rows.pack([A, SILENT, B]).everywhere()
    assert every.scored.tolist() == list(range(9))
    assert every.weights.tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1]  # B's half token counts as one
    assert every.row_of.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert every.targets[[0, 1, 2, 6, 7]].tolist() == [6, 7, 8, 10, 11]
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0, 100.0, 5.0, 6.0, 7.0])
    assert every.token_mean(losses).item() == pytest.approx(4)  # 28 / 7
    assert every.row_sum(losses).tolist() == [10, 0, 18]
    assert every.row_mean(every.row_sum(losses)).item() == pytest.approx(14)


def test_everywhere_the_shares_of_micro_batches_add_up_too():
    step = [A, B, SILENT]
    totals = StepTotals.of(step)
    batches = [Rows.pack([row], totals=totals).everywhere() for row in step]
    shares = [batch.token_mean(batch.position_ids.float()).item() for batch in batches]
    assert shares == pytest.approx([6 / 7, 3 / 7, 0])  # 0 + 1 + 2 + 3, 0 + 1 + 2


def test_losses_of_the_wrong_shape_are_our_own_mistake():
    rows = Rows.pack([A, B])
    with pytest.raises(AssertionError):
        rows.token_mean(torch.ones(2))
    with pytest.raises(AssertionError):
        rows.row_mean(torch.ones(4))
    with pytest.raises(AssertionError):
        rows.row_sum(torch.ones(2))


@pytest.mark.parametrize(
    ("ids", "weights"), [((1,), (0.0,)), ((1, 2), (0.0,)), ((1, 2), (1.0, 1.0))]
)
def test_a_row_that_could_not_be_scored_is_our_own_mistake(ids, weights):
    with pytest.raises(AssertionError, match="bad"):
        Row("bad", ids, weights)


def test_an_idle_row_is_read_but_not_counted():
    assert idle(A) == Row("a", A.input_ids, (0.0,) * 4)


# ---- preferred answers ---------------------------------------------------------------------------

C = replace(A, preferred=Row("a/preferred", (5, 6, 20), (0.0, 0.0, 1.0)))
D = replace(B, preferred=Row("b/preferred", (9, 21, 22, 23), (0.0, 1.0, 1.0, 1.0)))


def test_preferred_answers_lie_behind_all_given_rows():
    rows = Rows.pack([C, D])
    assert rows.ids == ("a", "b", "a/preferred", "b/preferred")
    assert rows.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 5, 6, 20, 9, 21, 22, 23]
    assert rows.boundaries.tolist() == [0, 4, 7, 10, 14]
    assert rows.row_of.tolist() == [0, 0, 1, 1, 2, 3, 3, 3]
    assert (len(rows), rows.given) == (4, 2)


def test_a_number_per_row_is_taken_apart():
    given, preferred = Rows.pack([C, D]).split(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert given.tolist() == [1, 2]
    assert preferred.tolist() == [3, 4]


def test_means_are_over_the_given_rows_and_their_tokens():
    plain, pairs = Rows.pack([A, B]), Rows.pack([C, D])
    assert pairs.totals == plain.totals == StepTotals(rows=2, weight=3.5, tokens=7)
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    with_preferred = torch.cat([losses, torch.full((4,), 100.0)])
    assert pairs.token_mean(with_preferred) == plain.token_mean(losses)
    assert pairs.row_sum(with_preferred).tolist() == [3, 8, 100, 300]
    assert pairs.row_mean(torch.tensor([3.0, 8.0])).item() == pytest.approx(5.5)


def test_everywhere_is_of_the_given_rows_alone_too():
    every = Rows.pack([C, D]).everywhere()
    assert every.scored.tolist() == list(range(14))
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] + [100.0] * 7)
    assert every.token_mean(losses).item() == pytest.approx(4)  # 28 / 7


def test_a_pair_whose_given_answer_a_selection_silenced_counts_nothing():
    silent = replace(C, weights=(0.0,) * 4)
    rows = Rows.pack([silent, D])
    assert rows.totals == StepTotals(rows=1, weight=1.5, tokens=3)
    assert rows.row_mean(torch.tensor([100.0, 8.0])).item() == 8
    assert rows.token_mean(torch.ones(6)).item() == 1


def test_an_idle_pair_is_read_but_not_counted():
    rows = Rows.pack([idle(C)], totals=StepTotals.of([C, D]))
    assert rows.input_ids.tolist() == [5, 6, 7, 8, 5, 6, 20]
    loss = torch.tensor([3.0], requires_grad=True)
    assert rows.row_mean(loss).item() == rows.token_mean(loss).item() == 0


def test_rows_with_and_without_preferred_answers_do_not_mix():
    with pytest.raises(AssertionError, match="some rows have a preferred answer"):
        Rows.pack([C, B])
    with pytest.raises(AssertionError, match="without preferred answers"):
        Rows.pack([A, B]).split(torch.zeros(2))
