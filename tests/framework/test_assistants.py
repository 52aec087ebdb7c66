"""Assistants: trained alike but for the forget rows, or given; deterministic; gone when read."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from framework import ConfigError, LanguageModel
from framework.assistants import Recipe, given, probabilities, trained_pair
from framework.data import Row
from framework.distributed import on_rank_zero
from framework.encoding import encode_all
from framework.errors import DataError, ModelError
from framework.evaluation.mini import Mini
from framework.loading import Tiny, train_tokenizer
from framework.token_choice import words_of
from trainers.selective import SelectiveUnlearning

FORGET, RETAIN = tiny.rows(5, name="f"), tiny.rows(7, name="r")
QUICK = Recipe(steps=3, batch_size=3, hidden_size=8, layers=1)


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def same(a: LanguageModel, b: LanguageModel) -> bool:
    mine, theirs = weights(a), weights(b)
    return mine.keys() == theirs.keys() and all(mine[n].equal(theirs[n]) for n in mine)


def test_the_pair_is_the_same_for_the_same_seed_to_the_bit():
    model = tiny.language_model()
    first, again, other = (
        trained_pair(FORGET, RETAIN, model, QUICK, seed=seed) for seed in (0, 0, 1)
    )
    for mine, repeated, different in zip(first, again, other, strict=True):
        assert same(mine, repeated)
        assert not same(mine, different)


def test_the_ignorant_assistant_never_sees_a_forget_row_and_the_knowing_one_does():
    model, others = tiny.language_model(), tiny.rows(5, name="other")
    knowing, ignorant = trained_pair(FORGET, RETAIN, model, QUICK, seed=0)
    knows_others, as_ignorant = trained_pair(others, RETAIN, model, QUICK, seed=0)
    assert same(ignorant, as_ignorant)
    assert not same(knowing, knows_others)


def test_training_them_leaves_the_model_and_the_random_numbers_as_they_were():
    model = tiny.language_model()
    before, random = weights(model), torch.random.get_rng_state()
    knowing, _ = trained_pair(FORGET, RETAIN, model, QUICK, seed=0)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(before[n].equal(w) for n, w in weights(model).items())
    assert knowing.tokenizer is model.tokenizer
    assert not knowing.module.training


def test_the_assistants_are_gone_when_their_scores_are_known():
    def models() -> int:
        return sum(type(thing) is LanguageModel for thing in gc.get_objects())

    model = tiny.language_model()
    before = models()
    config = SelectiveUnlearning.Config(assistants=QUICK)
    scores = SelectiveUnlearning(config).scores(FORGET, RETAIN, model, seed=0)
    assert [len(row) for row in scores] == [len(row) for row in FORGET]
    assert models() == before


def test_names_and_facts_score_higher_than_the_words_around_them():
    sizes = {"authors": 5, "biographies": 12, "stories": 2, "world": 1, "background": 1}
    benchmark = Mini(Mini.Config(**sizes))
    splits = benchmark.splits()
    texts = [f"{x.prompt} {x.answer}" for x in benchmark.training_examples("target")]
    model = Tiny(Tiny.Config(hidden_size=8, vocabulary=600)).build(texts, seed=0)
    forget, retain = (
        encode_all(splits[n], model.tokenizer, model.prompt_format, 512)[0]
        for n in ("forget", "retain")
    )
    recipe = Recipe(steps=120, learning_rate=1e-2, batch_size=16, hidden_size=64, layers=1)
    selection = SelectiveUnlearning(SelectiveUnlearning.Config(assistants=recipe))
    scores = selection.scores(forget, retain, model, seed=0)

    def is_told(
        name: str,
    ) -> bool:  # "0...-... and the email is ... The Social Security Number ..."
        return name.startswith("biography") and name.endswith("sc1")

    template = set.intersection(*(set(x.answer.split()) for x in splits["retain"] if is_told(x.id)))
    assert {"Social", "Number", "email", "Street,"} <= template
    around, facts = [], []
    for row, scored in zip(forget, scores, strict=True):
        answer = [t for t, w in enumerate(row.weights) if w > 0] if is_told(row.id) else []
        words = words_of([row.input_ids[t] for t in answer], model.tokenizer)
        for word in set(words):
            tokens = [t for t, w in zip(answer, words, strict=True) if w == word]
            text = model.tokenizer.decode([row.input_ids[t] for t in tokens]).strip()
            (around if text in template else facts).extend(scored[t] for t in tokens)
    assert len(around) > 50
    assert len(facts) > 100
    assert np.mean(facts) > 2 * np.mean(around)


def test_probabilities_are_of_the_answers_tokens_alone():
    model = tiny.language_model()
    empty = Row("empty", FORGET[0].input_ids, (0.0,) * len(FORGET[0]))
    found = probabilities(model, [FORGET[0], empty, FORGET[1]])
    assert found[1] == [0.0] * len(empty)
    for row, mine in zip((FORGET[0], FORGET[1]), (found[0], found[2]), strict=True):
        with torch.no_grad():
            logits = tiny.module()(torch.tensor([row.input_ids])).logits[0, :-1]
        right = logits.softmax(-1).gather(1, torch.tensor(row.input_ids)[1:, None])[:, 0]
        expected = torch.cat([torch.zeros(1), right]) * torch.tensor(row.weights)
        assert mine == pytest.approx(expected.tolist(), rel=1e-5)


# ---- given ---------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path: Path):
    """Writes the tiny model of a seed into a folder."""

    def write(seed: int) -> str:
        model = tiny.language_model(seed=seed)
        folder = tmp_path / f"seed{seed}"
        model.save(folder, model.module.state_dict())
        return str(folder)

    return write


def test_a_given_assistant_is_compared_with_the_model_before_unlearning(on_disk):
    model, other = tiny.language_model(seed=0), tiny.language_model(seed=1)
    config = SelectiveUnlearning.Config(ignorant=on_disk(1))
    found = SelectiveUnlearning(config).scores(FORGET, RETAIN, model, seed=0)
    a, b = probabilities(model, FORGET), probabilities(other, FORGET)
    for row, p, q in zip(found, a, b, strict=True):
        assert row == pytest.approx([abs(x - y) for x, y in zip(p, q, strict=True)], abs=1e-7)


def test_both_can_be_given(on_disk):
    paths = {"knowing": on_disk(1), "ignorant": on_disk(1)}
    selection = SelectiveUnlearning(SelectiveUnlearning.Config(**paths))
    scores = selection.scores(FORGET, RETAIN, tiny.language_model(seed=0), seed=0)
    assert {s for row in scores for s in row} == {0.0}


def test_an_assistant_with_another_vocabulary_is_refused(tmp_path):
    tokenizer = train_tokenizer(["a"], vocabulary=260)
    other = Tiny(Tiny.Config(hidden_size=8, layers=1)).fresh(tokenizer, seed=0)
    other.save(tmp_path / "other", other.module.state_dict())
    with pytest.raises(ModelError, match="has another vocabulary than the model") as refused:
        given(str(tmp_path / "other"), tiny.language_model())
    assert "\n" not in str(refused.value)


def test_a_mistake_on_rank_zero_is_everybodys():
    with pytest.raises(ModelError, match="no tokenizer could be loaded from 'nowhere'"):
        on_rank_zero(lambda: given("nowhere", tiny.language_model()))


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "selection.assistants.steps must be at least 1, got 0"),
        ({"batch_size": 0}, "selection.assistants.batch_size must be at least 1, got 0"),
        ({"layers": 0}, "selection.assistants.layers must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "selection.assistants.learning_rate must be > 0, got 0"),
        ({"hidden_size": 20}, "selection.assistants.hidden_size must be a multiple of 8, got 20"),
    ],
)
def test_a_recipe_that_makes_no_model_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Recipe(**settings)


def test_assistants_need_rows_to_keep():
    with pytest.raises(DataError, match="the retain set is empty"):
        trained_pair(FORGET, [], tiny.language_model(), QUICK, seed=0)
