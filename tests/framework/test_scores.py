"""Scores of tokens on logits made by hand, in pieces as in one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch

from framework import Row, Rows, head
from framework.scores import TokenScores, numbers_of, scores_of

ROWS = Rows.pack([Row("a", (1, 2, 0), (0.0, 1.0, 1.0)), Row("b", (1, 1), (0.0, 1.0))])
PROBABILITIES = [[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]


def scores(logits: torch.Tensor) -> list[TokenScores]:
    return scores_of(numbers_of(ROWS)(logits, slice(0, 3)), ROWS)


def test_surprise_is_the_distance_from_the_mean_log_probability_in_standard_deviations():
    a, b = scores(torch.tensor(PROBABILITIES).log())
    mean = sum(p * math.log(p) for p in PROBABILITIES[0])
    square = sum(p * math.log(p) ** 2 for p in PROBABILITIES[0])
    deviation = math.sqrt(square - mean**2)
    expected = [(math.log(p) - mean) / deviation for p in (0.1, 0.7)]
    assert a.surprise.tolist() == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx([-2.134, 0.633], abs=1e-3)
    assert a.log_probs.tolist() == pytest.approx([math.log(0.1), math.log(0.7)], abs=1e-6)
    assert a.correct.tolist() == [False, True]
    # all tokens alike: the deviation is 0, and what divides is the square root of 1e-6
    assert b.surprise.tolist() == pytest.approx([0.0], abs=1e-3)


def test_an_excluded_token_leaves_every_number_defined():
    logits = torch.tensor(PROBABILITIES).log()
    logits[:, 1] = -torch.inf
    a, _ = scores(logits)
    assert np.isfinite(a.surprise).all()
    assert a.log_probs.tolist() == pytest.approx([math.log(1 / 8), math.log(7 / 8)], abs=1e-6)


def test_a_collapsed_model_is_told_by_nan_and_not_by_a_crash():
    a, _ = scores(torch.full((3, 3), torch.nan))
    assert np.isnan(a.log_probs).all()
    assert np.isnan(a.surprise).all()


@pytest.mark.parametrize("chunk", [1, 200, 2**24])
def test_in_how_many_pieces_the_logits_are_looked_at_does_not_matter(monkeypatch, chunk):
    rows = tiny.rows(6, name="pieces")
    model = tiny.language_model()
    model.check_packing()
    right = model.score_rows(rows)
    monkeypatch.setattr(head, "CHUNK", chunk)
    monkeypatch.setattr(head, "TOKENS", {"cpu": 1})
    for one, other in zip(model.score_rows(rows), right, strict=True):
        assert np.array_equal(one.correct, other.correct)
        for name in ("log_probs", "surprise"):
            assert np.abs(getattr(one, name) - getattr(other, name)).max() <= 1e-5, name
