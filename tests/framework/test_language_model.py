"""A language model's log-probabilities, scores and greedy answers: whatever shares the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from families import EXACT, family
from families import language_model as wrapped
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel

from framework import FrozenReference, LanguageModel, Row, Rows
from framework.encoding import encode_prompt
from framework.errors import ConfigError, ModelError
from framework.modules import final_block
from framework.prompt_format import PromptFormat
from framework.scores import TokenScores

ROWS = tiny.rows(9, name="scored")
PROMPTS = [" ".join(f"t{(7 * n + 3 * i) % 60 + 3}" for i in range(n)) for n in (1, 9, 4, 14, 2, 7)]


def text(row: Row) -> tuple[str, str]:
    """The row as prompt and answer, without its first and last tokens, which encoding adds."""
    words = [f"t{i}" for i in row.input_ids[1:-1]]
    prompt = sum(w == 0 for w in row.weights) - 1
    return " ".join(words[:prompt]), " ".join(words[prompt:])


def plain_log_probs(row: Row) -> list[float]:
    """Of the row's counted tokens, by transformers alone, one row at a time."""
    with torch.no_grad():
        table = tiny.module().eval()(input_ids=torch.tensor([row.input_ids])).logits[0]
    table = table.log_softmax(-1)
    ids = row.input_ids
    return [float(table[t - 1, ids[t]]) for t, weight in enumerate(row.weights) if weight > 0]


@pytest.mark.parametrize("tokens", [30, 64, 10_000])
def test_scores_are_those_of_each_row_alone_in_the_order_given(tokens):
    model = tiny.language_model()
    model.tokens_per_micro_batch = tokens
    scores = model.score_rows(ROWS)
    for row, score in zip(ROWS, scores, strict=True):
        assert score.log_probs.tolist() == pytest.approx(plain_log_probs(row), abs=1e-5)
        assert len(score.log_probs) == int(row.weight)


def test_scores_of_texts_are_those_of_their_rows():
    model = tiny.language_model()
    by_text = model.scores([text(row) for row in ROWS])
    by_row = model.score_rows(ROWS)
    for one, other in zip(by_text, by_row, strict=True):
        assert one.log_probs.tolist() == pytest.approx(other.log_probs.tolist(), abs=1e-6)


def test_a_token_is_correct_where_it_is_the_first_choice():
    model = tiny.language_model()
    (greedy,) = model.generate([PROMPTS[0]], 4)
    right, wrong = model.scores([(PROMPTS[0], greedy), (PROMPTS[0], "t3 t3 t3")])
    assert right.correct[:-1].all()  # the model did not choose to end there
    assert len(right.correct) == 5
    assert not wrong.correct.all()
    assert right.correct.dtype == bool


def test_the_numbers_of_an_answer_by_hand():
    scores = TokenScores(np.log([0.5, 0.125]), np.array([True, False]), np.zeros(2))
    assert scores.nll == pytest.approx(2 * np.log(2))
    assert scores.probability == pytest.approx(0.25)


def test_nothing_to_score_or_to_answer_is_nothing():
    assert tiny.language_model().scores([]) == []
    assert tiny.language_model().generate([], 5) == []


def test_evaluation_leaves_training_as_it_was():
    model = tiny.language_model()
    for training in (True, False):
        model.module.train(training)
        model.scores([text(ROWS[0])])
        model.generate(PROMPTS[:1], 2)
        assert model.module.training is training
    batch = Rows.pack(ROWS[:2])
    before = model.logits(batch)
    model.generate(PROMPTS, 5)
    after = model.logits(batch)
    assert torch.equal(before, after)
    assert after.requires_grad


def test_log_probs_of_a_row_are_the_weighted_sum_over_its_tokens():
    model = tiny.language_model()
    half = Row("half", ROWS[0].input_ids, tuple(w / 2 for w in ROWS[0].weights))
    batch = Rows.pack([ROWS[0], half, ROWS[1]])
    found = model.log_probs(batch).detach()
    right = [sum(plain_log_probs(row)) for row in (ROWS[0], ROWS[1])]
    assert found.tolist() == pytest.approx([right[0], right[0] / 2, right[1]], abs=2e-5)


# ---- hidden states -------------------------------------------------------------------------------


def states_gradient(model: LanguageModel, layer: int) -> dict[str, torch.Tensor]:
    """Of the squared states of `layer`, by the parameters that they reach."""
    model.module.zero_grad()
    model.hidden_states(Rows.pack(ROWS), layer).square().sum().backward()
    named = model.module.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_hidden_states_have_the_gradient_of_transformers_own():
    model, plain = tiny.language_model(), tiny.module()
    found = states_gradient(model, 1)
    for row in ROWS:
        output = plain(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        output.hidden_states[1].square().sum().backward()
    right = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert found.keys() == right.keys()
    assert not any("layers.1." in name for name in found)
    for name in found:
        assert (found[name] - right[name]).abs().max() <= 1e-5 * float(right[name].abs().max())


def test_recomputed_activations_give_the_same_hidden_states_and_gradient():
    model = tiny.language_model(num_hidden_layers=3)
    model.module.train()
    right, states = states_gradient(model, 2), model.hidden_states(Rows.pack(ROWS), 2)
    model.module.activation_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(model.hidden_states(Rows.pack(ROWS), 2), states)
    found = states_gradient(model, 2)
    assert found.keys() == right.keys()
    assert all(torch.equal(found[name], right[name]) for name in found)


def test_with_adapters_hidden_states_are_those_of_the_model_around_them():
    batch, plain = Rows.pack(ROWS), tiny.language_model(num_hidden_layers=3)
    adapted = tiny.language_model(tuning="lora", num_hidden_layers=3)
    right = plain.hidden_states(batch, 2)
    assert (adapted.hidden_states(batch, 2) - right).abs().max() <= 1e-6
    with torch.no_grad():
        for name, p in adapted.module.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    assert (adapted.hidden_states(batch, 2) - right).abs().max() > 1e-2
    before = FrozenReference(adapted).states(batch, 2)
    assert (before - right[batch.scored]).abs().max() <= 1e-6


def test_states_that_training_cannot_change_are_refused_in_one_line():
    model = tiny.language_model(num_hidden_layers=3)
    model.module.requires_grad_(False)
    model.module.model.layers[1].requires_grad_(True)
    batch = Rows.pack(ROWS)
    with pytest.raises(ConfigError, match=r"set a higher trainer\.layer, or name") as said:
        model.hidden_states(batch, 1)
    assert "\n" not in str(said.value)
    assert model.hidden_states(batch, 2).requires_grad
    with torch.no_grad():
        model.hidden_states(batch, 1)


def test_a_reading_that_fails_leaves_the_model_whole():
    model = tiny.language_model()
    right = model.logits(Rows.pack(ROWS))
    outside = replace(Rows.pack(ROWS), input_ids=torch.full((999,), 1))
    with pytest.raises(RuntimeError):
        model.hidden_states(outside, 1)
    assert torch.equal(model.logits(Rows.pack(ROWS)), right)


def test_a_model_without_a_list_of_blocks_is_refused_in_one_line():
    model = tiny.language_model()
    model.module.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match=r"LlamaModel has no list of its 5 decoder blocks") as said:
        model.hidden_states(Rows.pack(ROWS), 1)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("error", [AttributeError, ValueError])
def test_a_model_that_tells_no_number_of_blocks_can_be_wrapped_and_is_refused_in_one_line(error):
    class Untold(LlamaConfig):
        def get_text_config(self, *_args):  # as of Blt, of Musicgen
            raise error

    module = tiny.module()
    module.config.__class__ = Untold
    assert final_block(module) is None
    with pytest.raises(ModelError, match=r"LlamaModel has no list of its decoder blocks,") as said:
        tiny.wrapped(module).hidden_states(Rows.pack(ROWS), 1)
    assert "\n" not in str(said.value)


# ---- greedy answers ------------------------------------------------------------------------------


def answer_of_transformers(
    prompt: str, new: int, ends: list[int], module: PreTrainedModel | None = None
) -> str:
    """What transformers generates for one prompt; by the tiny model unless told."""
    module, tokenizer = module or tiny.module().eval(), tiny.tokenizer()
    ids = torch.tensor([encode_prompt(prompt, tokenizer, PromptFormat(), 64)])
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=ends, pad_token_id=0
    )
    output = module.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
    )
    answer: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return answer.strip()


def test_answers_are_transformers_own_whatever_shares_the_batch():
    right = [answer_of_transformers(prompt, 12, [2]) for prompt in PROMPTS]
    model = tiny.language_model()
    assert len(set(right)) > 3
    assert model.generate(PROMPTS, 12) == right
    assert [model.generate([prompt], 12)[0] for prompt in PROMPTS] == right
    assert model.generate(PROMPTS[::-1], 12) == right[::-1]


@pytest.mark.parametrize("kept", [10, 40, 100])
def test_how_many_prompts_share_a_batch_does_not_matter(kept):
    model = tiny.language_model()
    right = model.generate(PROMPTS, 12)
    model.generation_memory = kept * model.cache_bytes() / 2**30
    assert model.generate(PROMPTS, 12) == right


@pytest.mark.parametrize("name", EXACT)
def test_answers_of_every_family_are_those_to_each_prompt_alone(name):
    module = family(name, **EXACT[name])
    model = wrapped(module)
    together = model.generate(PROMPTS, 12)
    assert len(set(together)) > 3
    module.set_attn_implementation("eager")
    assert together == [answer_of_transformers(prompt, 12, [2], module) for prompt in PROMPTS]


def test_every_end_token_ends_an_answer():
    model = tiny.language_model()
    whole = [answer.split() for answer in model.generate(PROMPTS, 12)]
    ends = [int(whole[0][3][1:]), int(whole[1][5][1:])]  # words that occur in the middle
    model.module.generation_config.eos_token_id = ends
    cut = []
    for words in whole:
        stops = [i for i, word in enumerate(words) if int(word[1:]) in ends]
        cut.append(" ".join(words[: stops[0] + 1] if stops else words))
    assert [len(words) for words in whole] != [len(answer.split()) for answer in cut]
    # these ends are ordinary words of the tokenizer, so the last one stays in the text
    assert model.generate(PROMPTS, 12) == cut
    assert cut == [answer_of_transformers(prompt, 12, [*ends, 2]) for prompt in PROMPTS]


def test_an_answer_after_the_longest_prompt_keeps_within_the_known_positions():
    # 128 positions: a prompt of 200 words is cut from the left to leave room for 100 new tokens
    model = tiny.language_model(max_position_embeddings=128)
    model.max_length = 128
    prompt = " ".join(f"t{i % 60 + 3}" for i in range(200))
    with pytest.warns(UserWarning, match="tokens"):
        (answer,) = model.generate([prompt], 100)
    assert len(answer.split()) <= 100


def test_an_answer_that_is_begun_goes_on_as_the_model_itself_would():
    model = tiny.language_model()
    (whole,) = model.generate([PROMPTS[1]], 6)
    first, second, *rest = whole.split()
    (continued,) = model.generate([PROMPTS[1]], 4, begun=f"{first} {second}")
    assert continued.split() == rest
    assert model.generate([PROMPTS[1]], 4, begun="t5 t9") != model.generate([PROMPTS[1]], 4)


def test_a_model_is_written_as_transformers_reads_it(tmp_path):
    model = tiny.language_model(tied=True)
    model.save(tmp_path / "model", model.module.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    batch = Rows.pack(ROWS[:3])
    again = LanguageModel(loaded, model.tokenizer, prompt_format=model.prompt_format, max_length=64)
    assert torch.equal(model.logits(batch), again.logits(batch))
    assert "attn" not in (tmp_path / "model" / "config.json").read_text()


def test_answers_keep_the_white_space_around_them_where_asked():
    model = tiny.language_model()
    model._decoded = lambda prompts, *_: [f" {len(ids)}\n\n" for ids in prompts]
    assert model.generate(PROMPTS[:2], 5, stripped=False) == [" 2\n\n", " 10\n\n"]
    assert model.generate(PROMPTS[:2], 5) == ["2", "10"]


def test_a_text_begins_with_the_tokens_that_are_asked_for():
    model = tiny.language_model()
    assert model.beginnings(["t5 t6 t7 t8", "t9"], 3) == ["t5 t6 t7", "t9"]
