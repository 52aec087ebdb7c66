"""SU: the tokens that it selects, worked by hand; what it refuses."""

from __future__ import annotations

import pytest
import tiny

from framework import ConfigError, Row
from framework.loading import train_tokenizer
from trainers.selective import SelectiveUnlearning

SCORES = [0.8, 0.0, 0.1, 0.0]
"""|0.9 - 0.1|, |0.5 - 0.5|, |0.9 - 0.8|, |0.2 - 0.2|."""


def selected(scores: list[float], *, prompt: int = 2, tokenizer=None, ids=None, **settings) -> str:
    """`x` for each selected token of an answer behind `prompt` tokens, `.` for the others."""
    answer = tuple(ids or range(5, 5 + len(scores)))
    row = Row("row", (1,) * prompt + answer, (0.0,) * prompt + (1.0,) * len(scores))
    selection = SelectiveUnlearning(SelectiveUnlearning.Config(**settings))
    # what a prompt token scores must not matter
    weights = selection.token_weights(row, [0.9] * prompt + scores, tokenizer or tiny.tokenizer())
    assert set(weights) <= {0.0, 1.0}
    assert list(weights[:prompt]) == [0.0] * prompt
    return "".join("x" if w else "." for w in weights[prompt:])


def test_a_token_over_the_threshold_is_selected():
    alone = {"left": 0, "right": 0}
    assert selected(SCORES, threshold=0.3, **alone) == "x..."
    assert selected(SCORES, threshold=0.05, **alone) == "x.x."
    assert selected(SCORES, threshold=0.8, **alone) == "...."


def test_without_a_threshold_it_is_the_mean_of_the_row_and_kappa_deviations():
    # mean 0.225, deviation 0.334
    alone = {"left": 0, "right": 0}
    assert selected(SCORES, **alone) == "x..."
    assert selected(SCORES, kappa=1.7, **alone) == "x..."
    assert selected(SCORES, kappa=1.75, **alone) == "...."
    assert selected(SCORES, kappa=-0.5, **alone) == "x.x."
    assert selected([0.5, 0.5, 0.5], **alone) == "..."


def test_its_neighbors_come_with_it_and_the_prompt_does_not():
    assert selected(SCORES, left=1, right=1) == "xx.."
    assert selected(SCORES) == "xxx."
    assert selected([0, 0, 0, 1, 0, 0, 0], left=1, right=2) == "..xxxx."


def test_parity_with_the_third_party_drops_the_neighbors_to_the_right():
    scores = [0.0, 0, 0, 1, 0, 0, 0]
    assert selected(scores) == ".xxxxx."
    assert selected(scores, context_parity=True) == ".xxx..."
    assert selected(SCORES, left=1, right=1, context_parity=True) == "x..."


def test_at_word_level_a_word_is_selected_whole_and_the_end_is_not_joined_to_it():
    tokenizer = train_tokenizer(["a b"], vocabulary=259)
    ids = [*tokenizer(" ab cd", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    scores = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]  # of " ", a, b, " ", c, d, the end
    asked = {"tokenizer": tokenizer, "ids": ids, "left": 0, "right": 0}
    assert len(ids) == len(scores)
    assert selected(scores, **asked) == "....x.."
    assert selected(scores, word_level=True, **asked) == "...xxx."
    assert selected([0.0] * 6 + [1.0], word_level=True, **asked) == "......x"
    assert selected(scores, word_level=True, **(asked | {"left": 2})) == "xxxxxx."


def test_a_row_without_an_answer_is_left_as_it_is():
    row = Row("row", (1, 2), (0.0, 0.0))
    selection = SelectiveUnlearning(SelectiveUnlearning.Config())
    assert list(selection.token_weights(row, [0.0, 0.0], tiny.tokenizer())) == [0.0, 0.0]


def test_counts_need_no_model():
    forget, retain = tiny.rows(2, name="f"), tiny.rows(2, name="r")
    selection = SelectiveUnlearning(SelectiveUnlearning.Config(scorer="ngram", n=1))
    scores = selection.scores([*forget, forget[0]], forget[1:] + retain, None, seed=0)  # type: ignore[arg-type]
    assert scores[0] == scores[2]
    assert max(scores[0]) > 0
    assert [len(s) for s in scores] == [len(forget[0]), len(forget[1]), len(forget[0])]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "selection.n must be at least 1, got 0"),
        ({"left": -1}, "selection.left must be at least 0, got -1"),
        ({"right": -2}, "selection.right must be at least 0, got -2"),
        ({"threshold": 1.0}, r"selection.threshold must be in \[0, 1\) or null, got 1"),
        ({"threshold": -0.1}, r"selection.threshold must be in \[0, 1\) or null, got -0.1"),
        ({"knowing": "a"}, "selection.knowing=a has nothing to be compared with; give selection"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=said) as refused:
        SelectiveUnlearning.Config(**settings)
    assert "\n" not in str(refused.value)
