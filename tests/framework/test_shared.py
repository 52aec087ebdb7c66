"""Rows that begin alike, read once: the layout by hand, the numbers against each row alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from families import EXACT, family, language_model
from transformers import PreTrainedModel

from framework import Row, Rows, packing_check
from framework import language_model as language_model_file
from framework.shared import pack, packs_of


def row(name: str, ids: tuple[int, ...], prompt: int) -> Row:
    return Row(name, ids, (0.0,) * prompt + (1.0,) * (len(ids) - prompt))


QUESTION = (1, 11, 12)
ANSWERS = [
    row("a", (*QUESTION, 20, 21), 3),
    row("b", (*QUESTION, 20, 30), 3),
    row("c", (*QUESTION, 5), 3),
]


def test_what_rows_share_is_laid_out_once_and_read_by_each():
    packs = packs_of(ANSWERS, tokens=100)
    assert [[r.id for r in one] for one in packs] == [["c", "a", "b"]]
    batch = pack(packs[0])
    assert batch.input_ids.tolist() == [1, 11, 12, 5, 20, 21, 30]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 3, 4, 4]
    assert batch.lengths == (4, 2, 1)
    assert batch.boundaries.tolist() == [0, 4, 6, 7]
    assert batch.keys is not None
    assert batch.keys.lengths == (4, 5, 5)
    assert batch.keys.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5, 0, 1, 2, 4, 6]
    assert batch.keys.boundaries.tolist() == [0, 4, 9, 14]
    # the end of the question predicts all three first tokens
    assert batch.scored.tolist() == [2, 2, 4, 2, 4]
    assert batch.targets.tolist() == [5, 20, 21, 20, 30]
    assert batch.row_of.tolist() == [0, 1, 1, 2, 2]


def test_rows_that_share_nothing_are_packed_as_any():
    rows = [row("a", (3, 4, 5), 1), row("b", (6, 7), 1)]
    found, right = pack(rows), Rows.pack(rows)
    assert found.keys is None
    for name in ("input_ids", "position_ids", "boundaries", "scored", "targets", "row_of"):
        assert torch.equal(getattr(found, name), getattr(right, name)), name


def test_a_pack_reads_no_more_tokens_than_allowed_and_a_longer_row_travels_alone():
    long = row("long", tuple(range(3, 40)), 2)
    packs = packs_of([*ANSWERS, long, row("d", (60, 61, 62, 63), 1)], tokens=7)
    assert [[r.id for r in one] for one in packs] == [["c", "a", "b"], ["long"], ["d"]]
    assert [len(pack(one).input_ids) for one in packs] == [7, 37, 4]
    assert packs_of([], tokens=7) == []


def shared_rows() -> list[Row]:
    """Three questions under one head, several answers to each; equal rows; one row within another.

    Longer than the window of those families that have one.
    """
    head = (1, 7, 8, 9)
    questions = [(10, 11, 12, 13), (10, 11, 14), (15,)]
    rows = [
        row(
            f"{q}-{a}",
            (*head, *question, *(20 + 3 * a + i for i in range(2 + a))),
            4 + len(question),
        )
        for q, question in enumerate(questions)
        for a in range(3)
    ]
    again = row("again", rows[0].input_ids, 5)
    within = row("within", rows[5].input_ids[:-1], 7)
    return [*rows, again, within, row("other", (30, 31, 32), 1)]


@pytest.mark.parametrize("name", EXACT)
def test_shared_rows_are_read_as_if_alone(name):
    module, rows = family(name, **EXACT[name]), shared_rows()
    right = [alone(module, one) for one in rows]
    model = language_model(module)
    assert model.shares_beginnings() == (name != "gptj")
    assert pack(packs_of(rows, tokens=1000)[0]).keys is not None
    for one, found, expected in zip(rows, model.score_rows(rows), right, strict=True):
        assert found.log_probs.tolist() == pytest.approx(expected, abs=1e-5), one.id


def alone(module: PreTrainedModel, one: Row) -> list[float]:
    """The log-probabilities of a row's counted tokens, by transformers alone."""
    with torch.no_grad():
        table = module(input_ids=torch.tensor([one.input_ids])).logits[0].log_softmax(-1)
    counted = [t for t, weight in enumerate(one.weights) if weight > 0]
    return [float(table[t - 1, one.input_ids[t]]) for t in counted]


def test_in_how_few_packs_they_are_read_does_not_matter():
    model, rows = tiny.language_model(), shared_rows()
    right = model.score_rows(rows)
    for tokens in (2, 20, 40):
        model.tokens_per_micro_batch = tokens
        for one, other in zip(model.score_rows(rows), right, strict=True):
            assert np.abs(one.log_probs - other.log_probs).max() <= 1e-5


def test_a_kernel_that_misses_what_rows_share_is_not_asked_to(monkeypatch):
    model, rows = tiny.language_model(), shared_rows()
    right = model.score_rows(rows)
    model.check_packing()
    assert model.shares_beginnings()
    for file in (language_model_file, packing_check):
        monkeypatch.setattr(file, "pack", lambda *rows, **on: replace(pack(*rows, **on), keys=None))
    model.check_packing()
    assert not model.shares_beginnings()
    for one, other in zip(model.score_rows(rows), right, strict=True):
        assert np.abs(one.log_probs - other.log_probs).max() <= 1e-5
