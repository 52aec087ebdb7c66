"""Preferred answers: refusals, fields, and texts that the model makes up once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from framework import ConfigError, Example, Preferred
from framework.errors import CheckpointError, DataError
from framework.preferred import (
    REFUSALS,
    RepeatedAnswerWarning,
    known_answers,
    made_up_answers,
    refusal,
)
from framework.sampling import Sampling

EXAMPLES = [
    Example(f"row{i}", f"t{i + 3} t{i + 9}", f"t{i + 20} t{i + 30}", fields={"other": f"t{i + 40}"})
    for i in range(4)
]
MADE_UP = Preferred(source="model", count=3, max_new_tokens=6)


# ---- refusals and fields -------------------------------------------------------------------------


def test_a_refusal_is_chosen_by_the_rows_id_and_the_seed():
    many = [Example(f"row{i}", "t3", "t4") for i in range(200)]
    chosen = [refusal(example, 0) for example in many]
    assert set(chosen) == set(REFUSALS)
    assert len(set(REFUSALS)) == len(REFUSALS) == 20
    assert [refusal(example, 0) for example in many[::-1]] == chosen[::-1]
    assert [refusal(example, 1) for example in many] != chosen
    answers = known_answers(Preferred(), many, 0)
    assert answers == {example.id: [text] for example, text in zip(many, chosen, strict=True)}


def test_a_field_holds_a_text_or_several():
    chosen = Preferred(source="field", field="other")
    several = replace(EXAMPLES[1], fields={"other": ["t5", "t6"]})
    answers = known_answers(chosen, [EXAMPLES[0], several], 0)
    assert answers == {"row0": ["t40"], "row1": ["t5", "t6"]}


def test_a_row_without_the_field_is_named_with_the_fields_that_it_has():
    chosen = Preferred(source="field", field="refusal")
    with pytest.raises(DataError) as refused:
        known_answers(chosen, EXAMPLES, 0)
    assert str(refused.value) == (
        "forget row 'row0' has no field 'refusal' (its fields: other); type "
        "trainer.preferred.field=<one that every forget row has>, or "
        "trainer.preferred.source=refusal"
    )


@pytest.mark.parametrize("value", ["", " ", [], ["t5", ""], 7, None, {"a": "t5"}])
def test_a_field_without_text_is_refused(value):
    example = replace(EXAMPLES[0], fields={"other": value})
    with pytest.raises(DataError, match="'other' of forget row 'row0' must hold a text or a list"):
        known_answers(Preferred(source="field", field="other"), [example], 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "field"}, "field names the field of trainer.preferred.source=field"),
        ({"field": "other"}, "field names the field of trainer.preferred.source=field"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"tries": 0}, "tries must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"prompt": "Say something else."}, r"prompt must contain '\{prompt\}', got 'Say"),
    ],
)
def test_settings_that_could_not_be_meant_are_one_line(settings, said):
    with pytest.raises(ConfigError, match=r"trainer\.preferred\." + said):
        Preferred(**settings)


# ---- made up by the model ------------------------------------------------------------------------


def draws(example: Example, k: int, attempt: int, prompt: str) -> str:
    """What the model says to `prompt` when it makes up one answer of the row."""
    chosen = Sampling(1.0, 0, (f"{example.id}#{k}.{attempt}",))
    (text,) = tiny.language_model().generate([prompt], 6, sampling=chosen)
    return text


def test_each_row_has_several_answers_that_no_other_row_changes():
    model = tiny.language_model()
    answers = made_up_answers(MADE_UP, EXAMPLES, model=model, seed=0)
    assert [len(set(texts)) for texts in answers.values()] == [3] * 4
    assert answers["row2"] == [draws(EXAMPLES[2], k, 0, EXAMPLES[2].prompt) for k in range(3)]
    assert made_up_answers(MADE_UP, EXAMPLES[3:1:-1], model=model, seed=0) == {
        name: answers[name] for name in ("row3", "row2")
    }
    assert made_up_answers(MADE_UP, EXAMPLES, model=model, seed=1) != answers


def test_the_model_is_asked_in_the_words_of_the_setting():
    wording = replace(MADE_UP, prompt="t60 {prompt} t61 {answer}", count=1)
    example = replace(EXAMPLES[0], prompt="t3 {answer}")  # its own text stays as it is
    answers = made_up_answers(wording, [example], model=tiny.language_model(), seed=0)
    assert answers["row0"] == [draws(example, 0, 0, "t60 t3 {answer} t61 t20 t30")]


def test_an_answer_that_is_the_true_one_is_drawn_again():
    truth = draws(EXAMPLES[0], 0, 0, EXAMPLES[0].prompt)
    example = replace(EXAMPLES[0], answer=truth.upper() + " .")  # the same words
    once = replace(MADE_UP, count=1)
    answers = made_up_answers(once, [example], model=tiny.language_model(), seed=0)
    assert answers["row0"] == [draws(example, 0, 1, example.prompt)] != [truth]


def test_what_could_not_be_made_different_is_warned_of_and_refused_instead():
    stuck = replace(EXAMPLES[0], answer=draws(EXAMPLES[0], 0, 0, EXAMPLES[0].prompt))
    once = replace(MADE_UP, count=1, tries=1)
    with pytest.warns(RepeatedAnswerWarning) as warned:
        answers = made_up_answers(once, [stuck, EXAMPLES[2]], model=tiny.language_model(), seed=0)
    assert str(warned[0].message) == (
        "1 of 2 made-up answers were empty or the true one in every draw; rows without any are "
        "paired with a refusal (1: 'row0'); raise trainer.preferred.temperature, or change "
        "trainer.preferred.prompt"
    )
    assert answers["row0"] == [refusal(stuck, 0)]
    with pytest.raises(DataError, match="made up no answer that differs from the true one"):
        made_up_answers(once, [stuck], model=tiny.language_model(), seed=0)


# ---- on disk -------------------------------------------------------------------------------------


def test_a_resumed_run_finds_the_texts_of_its_first_start(tmp_path):
    file = tmp_path / "preferred.json"
    first = made_up_answers(MADE_UP, EXAMPLES, model=tiny.language_model(), seed=0, file=file)
    # the model has been trained since, and is not asked again
    later = tiny.language_model(seed=1)
    assert made_up_answers(MADE_UP, EXAMPLES, model=later, seed=0, file=file) == first
    assert made_up_answers(MADE_UP, EXAMPLES, model=later, seed=0) != first
    assert [path.name for path in tmp_path.iterdir()] == ["preferred.json"]


@pytest.mark.parametrize(
    ("chosen", "examples", "seed"),
    [
        (MADE_UP, EXAMPLES[1:], 0),
        (MADE_UP, [replace(EXAMPLES[0], answer="t5"), *EXAMPLES[1:]], 0),
        (replace(MADE_UP, temperature=2.0), EXAMPLES, 0),
        (MADE_UP, EXAMPLES, 1),
    ],
)
def test_the_texts_of_other_rows_or_settings_are_refused(tmp_path, chosen, examples, seed):
    file, model = tmp_path / "preferred.json", tiny.language_model()
    made_up_answers(MADE_UP, EXAMPLES, model=model, seed=0, file=file)
    with pytest.raises(CheckpointError, match="made up for other rows or settings; resume with"):
        made_up_answers(chosen, examples, model=model, seed=seed, file=file)
