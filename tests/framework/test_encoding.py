"""Encoding: where the prompt ends, what is scored, what is cut; generation starts alike."""

from __future__ import annotations

import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from framework.data import Example, Row
from framework.encoding import (
    Truncation,
    TruncationWarning,
    encode,
    encode_all,
    encode_pair,
    encode_pairs,
    encode_prompt,
    encode_prompts,
)
from framework.errors import ConfigError, DataError, ModelError
from framework.prompt_format import PromptFormat

CORPUS = [
    "Question: Who wrote the book? Answer: The book was written by Ada North.",
    "Where does she live? She lives in Oslo, and the year is 1984.",
]
CHAT = (
    "{{ bos_token }}<h>system\nToday is {{ date_string }}, or "
    "{{ strftime_now('%Y-%m-%d') }}.\n"
    "{% for message in messages %}<h>{{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant\n{% endif %}"
)


def tokenizer(
    *, bos: bool = True, eos: bool = True, chat: str | None = None
) -> PreTrainedTokenizerFast:
    """A small byte-level BPE, as GPT-2, Llama 3 and OLMo have."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<bos>", "<eos>", "<h>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<bos>" if bos else None,
        eos_token="<eos>" if eos else None,
        chat_template=chat,
    )


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Characters with the mark of a space before every text, as Llama 2 has."""
    letters = sorted(set("\u2581" + "".join(CORPUS).replace(" ", "")))
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))  # noqa: S106
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",  # noqa: S106  # marks of a vocabulary, not secrets
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
    )


WITH_BOS = tokenizer()
WITHOUT_BOS = tokenizer(bos=False)
WITH_CHAT = tokenizer(chat=CHAT)
PLAIN = PromptFormat()
BOS, EOS = WITH_BOS.bos_token_id, WITH_BOS.eos_token_id

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
answers = texts.filter(str.strip)
tokenizers = st.sampled_from([WITH_BOS, WITHOUT_BOS, WITH_CHAT])


def scored(row: Row) -> list[int]:
    return [t for t, w in zip(row.input_ids, row.weights, strict=True) if w]


def test_prompt_and_answer_meet_at_an_exact_boundary() -> None:
    row = encode(Example("a", "Who wrote the book?", "Ada North"), WITH_BOS, PLAIN, 100)
    prompt = [BOS, *WITH_BOS.encode("Who wrote the book?", add_special_tokens=False)]
    answer = [*WITH_BOS.encode(" Ada North", add_special_tokens=False), EOS]
    assert row.input_ids == (*prompt, *answer)
    assert row.weights == (0.0,) * len(prompt) + (1.0,) * len(answer)
    assert row.id == "a"


def test_trailing_spaces_of_the_separator_belong_to_the_answer() -> None:
    form = PromptFormat(template="Question: {prompt}", separator="\nAnswer: ")
    row = encode(Example("a", "Who?", "Ada"), WITH_BOS, form, 100)
    assert WITH_BOS.decode(scored(row)) == " Ada<eos>"
    assert WITH_BOS.decode(row.input_ids) == "<bos>Question: Who?\nAnswer: Ada<eos>"


def test_a_sentencepiece_answer_begins_with_one_space_not_two() -> None:
    spiece = sentencepiece_tokenizer()
    row = encode(Example("a", "Who?", "Ada"), spiece, PLAIN, 100)
    assert spiece.convert_ids_to_tokens(scored(row)) == ["\u2581", "A", "d", "a", "</s>"]


def test_braces_in_a_prompt_are_text() -> None:
    form = PromptFormat(template="{a} {prompt}")
    row = encode(Example("a", "{x} {prompt", "1"), WITH_BOS, form, 100)
    assert WITH_BOS.decode(row.input_ids) == "<bos>{a} {x} {prompt 1<eos>"


@pytest.mark.parametrize("form", [PLAIN, PromptFormat(style="chat")])
@pytest.mark.parametrize("prompt", ["Who?", "<bos>Who?"])
def test_bos_comes_once_and_eos_comes_once(form: PromptFormat, prompt: str) -> None:
    if form.style == "chat":
        prompt = "Who?"  # a BOS inside a message is the user's own text
    row = encode(Example("a", prompt, "Ada<eos>"), WITH_CHAT, form, 100)
    assert row.input_ids[0] == BOS
    assert row.input_ids.count(BOS) == 1
    assert row.input_ids[-1] == EOS
    assert row.input_ids.count(EOS) == 1
    assert row.weights[-1] == 1


def test_text_without_a_prompt_follows_bos_alone() -> None:
    form = PromptFormat(template="Question: {prompt}", separator="\nAnswer: ")
    row = encode(Example("a", "", "The book"), WITH_BOS, form, 100)
    assert row.input_ids == (BOS, *WITH_BOS.encode("The book", add_special_tokens=False), EOS)
    assert row.weights == (0.0,) + (1.0,) * (len(row) - 1)
    again = encode(Example("a", "", "<bos>The book"), WITH_BOS, form, 100)
    assert again.input_ids == row.input_ids


def test_a_piece_of_a_text_that_goes_on_has_no_end_token() -> None:
    piece = Example("a", "", "The book", fields={"continues": True})
    row = encode(piece, WITH_BOS, PLAIN, 100)
    assert row.input_ids == (BOS, *WITH_BOS.encode("The book", add_special_tokens=False))
    assert row.weights == (0.0,) + (1.0,) * (len(row) - 1)


def test_without_bos_and_prompt_the_first_token_is_not_scored() -> None:
    row = encode(Example("a", "", "The book"), WITHOUT_BOS, PLAIN, 100)
    assert row.input_ids == (*WITHOUT_BOS.encode("The book", add_special_tokens=False), EOS)
    assert row.weights == (0.0,) + (1.0,) * (len(row) - 1)


@settings(deadline=None, max_examples=200)
@given(prompt=texts.filter(bool), answer=answers, tok=tokenizers, system=texts)
def test_generation_starts_from_the_tokens_that_training_saw(
    prompt: str, answer: str, tok: PreTrainedTokenizerFast, system: str
) -> None:
    form = PromptFormat(style="chat", system=system) if tok is WITH_CHAT else PLAIN
    row = encode(Example("a", prompt, answer), tok, form, 10_000)
    start = encode_prompt(prompt, tok, form, 10_000)
    assert row.input_ids[: len(start)] == tuple(start)
    assert row.weights == (0.0,) * len(start) + (1.0,) * (len(row) - len(start))


@settings(deadline=None, max_examples=300)
@given(prompt=texts, answer=answers, tok=tokenizers, max_length=st.integers(2, 60))
def test_truncation_spares_the_answer_while_prompt_tokens_remain(
    prompt: str, answer: str, tok: PreTrainedTokenizerFast, max_length: int
) -> None:
    example = Example("a", prompt, answer)
    whole = encode(example, tok, PLAIN, 10_000)
    [row], truncation = encode_all([example], tok, PLAIN, max_length)
    bos = 0 if tok.bos_token_id is None else 1
    lost_prompt = truncation.prompt_tokens.get("a", 0)
    lost_answer = truncation.answer_tokens.get("a", 0)
    assert len(row) == min(len(whole), max_length) == len(whole) - lost_prompt - lost_answer
    assert row.input_ids[:bos] == whole.input_ids[:bos]
    kept = whole.input_ids[bos + lost_prompt : len(whole) - lost_answer]
    assert row.input_ids[bos:] == kept
    if lost_answer:
        assert not any(w == 0 for w in row.weights[1:])  # no prompt token is left
    else:
        assert row.input_ids[-1] == EOS
    assert row.weights[0] == 0


def test_a_long_row_loses_the_head_of_its_prompt_first_and_its_end_token_last() -> None:
    prompt, answer = "the book was written by", "Ada"
    length = len(encode_prompt(prompt, WITH_BOS, PLAIN))
    own = [*WITH_BOS.encode(" Ada", add_special_tokens=False), EOS]
    examples = [Example(str(n), prompt, answer) for n in range(2)]
    rows, truncation = encode_all(examples, WITH_BOS, PLAIN, len(own) + 1)
    assert rows[0].input_ids == (BOS, *own)
    assert truncation.prompt_tokens == {"0": length - 1, "1": length - 1}
    rows, truncation = encode_all(examples, WITH_BOS, PLAIN, len(own))
    assert rows[0].input_ids == (BOS, *own[:-1])
    assert truncation.answer_tokens == {"0": 1, "1": 1}


def test_the_report_is_one_line_with_counts_and_ids() -> None:
    truncation = Truncation(
        rows=10,
        max_length=8,
        prompt_tokens={"a": 1, "b": 2, "c": 3, "d": 4},
        answer_tokens={"d": 5},
    )
    assert truncation.cut_rows == 4
    assert truncation.describe() == (
        "4 of 10 rows are longer than 8 tokens: 4 lost 10 prompt tokens ('a', 'b', 'c', 'd'); "
        "1 lost 5 answer tokens ('d')"
    )
    assert Truncation(10, 8).describe() == "all 10 rows fit into 8 tokens"


def test_cutting_without_a_report_warns() -> None:
    example = Example("long", "the book was written by", "Ada")
    with pytest.warns(TruncationWarning, match=r"1 of 1 rows are longer than 6 tokens.*'long'"):
        encode(example, WITH_BOS, PLAIN, 6)
    with pytest.warns(TruncationWarning, match="longer than 3 tokens"):
        assert encode_prompt(example.prompt, WITH_BOS, PLAIN, 3)[0] == BOS
    with pytest.warns(TruncationWarning, match="2 of 2 rows are longer than 3 tokens"):
        encode_prompts([example.prompt, example.prompt], WITH_BOS, PLAIN, 3)
    with pytest.warns(TruncationWarning, match="longer than 6 tokens"):
        encode_pairs([(example.prompt, example.answer)], WITH_BOS, PLAIN, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_pair(example.prompt, example.answer, WITH_BOS, PLAIN, 100)


def test_the_chat_prompt_is_the_models_own_template() -> None:
    form = PromptFormat(style="chat", template="Q: {prompt}", system="Be brief.")
    row = encode(Example("a", "Who?", "Ada"), WITH_CHAT, form, 200)
    assert WITH_CHAT.decode(row.input_ids) == (
        "<bos><h>system\nToday is 26 Jul 2024, or 2024-07-26.\n<h>system\nBe brief.\n"
        "<h>user\nQ: Who?\n<h>assistant\nAda<eos>"
    )
    assert WITH_CHAT.decode(scored(row)) == "Ada<eos>"


def test_the_date_in_a_chat_prompt_is_the_formats_not_todays() -> None:
    form = PromptFormat(style="chat", date="1999-12-31")
    text = WITH_CHAT.decode(encode_prompt("Who?", WITH_CHAT, form))
    assert "31 Dec 1999, or 1999-12-31" in text
    assert "2024" not in text


def test_a_chat_template_without_bos_gets_none() -> None:
    tok = tokenizer(chat="{% for m in messages %}<h>{{ m['content'] }}{% endfor %}<h>")
    ids = encode_prompt("Who?", tok, PromptFormat(style="chat"))
    assert tok.decode(ids) == "<h>Who?<h>"


def test_a_missing_chat_template_says_to_use_plain() -> None:
    with pytest.raises(ModelError, match=r"set model\.prompt_format\.style=plain"):
        encode_prompt("Who?", WITH_BOS, PromptFormat(style="chat"))


def test_a_template_that_refuses_a_system_message_says_so() -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    with pytest.raises(ModelError, match=r"refuses these messages \(no system\)"):
        encode_prompt("Who?", tokenizer(chat=refusing), PromptFormat(style="chat", system="Hi"))


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(ModelError, match=r'"eos_token" in the tokenizer_config.json'):
        encode(Example("a", "Who?", "Ada"), tokenizer(eos=False), PLAIN, 100)


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_refused_by_its_id(answer: str) -> None:
    with pytest.raises(DataError, match="row 'tofu:7' has an empty answer"):
        encode(Example("tofu:7", "Who?", answer), WITH_BOS, PLAIN, 100)


def test_generating_from_nothing_is_refused() -> None:
    assert encode_prompt("", WITH_BOS, PLAIN) == [BOS]
    with pytest.raises(DataError, match="no BOS token to start from"):
        encode_prompt("", WITHOUT_BOS, PLAIN)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"style": "chta"}, "style must be 'plain' or 'chat', got 'chta'"),
        ({"template": "Question:"}, "must contain '{prompt}'"),
        ({"system": "Be brief."}, "system needs style=chat"),
        ({"date": "26 Jul 2024"}, "must be a date such as '2024-07-26'"),
    ],
)
def test_a_format_that_could_not_be_meant_is_refused(
    settings_: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptFormat(**settings_)  # type: ignore[arg-type]


def test_a_row_needs_room_for_two_tokens() -> None:
    with pytest.raises(ConfigError, match="at least 2 tokens, got 1"):
        encode(Example("a", "Who?", "Ada"), WITH_BOS, PLAIN, 1)


def test_pairs_are_rows_named_by_position() -> None:
    rows = encode_pairs([("Who?", "Ada"), ("", "The book")], WITH_BOS, PLAIN, 100)
    assert [row.id for row in rows] == ["0", "1"]
    assert rows[0].input_ids == encode_pair("Who?", "Ada", WITH_BOS, PLAIN, 100).input_ids
    assert encode_pairs([], WITH_BOS, PLAIN, 100) == []


def test_a_batch_equals_its_rows_one_by_one() -> None:
    examples = [Example(str(i), "Who?" * (i % 3), f"Ada {i}") for i in range(20)]
    rows, truncation = encode_all(examples, WITH_BOS, PLAIN, 100)
    assert rows == [encode(x, WITH_BOS, PLAIN, 100) for x in examples]
    assert truncation == Truncation(20, 100)


def test_four_thousand_chat_rows_take_seconds() -> None:
    examples = [Example(str(i), CORPUS[0] * 3, CORPUS[1]) for i in range(4000)]
    start = time.process_time()
    encode_all(examples, WITH_CHAT, PromptFormat(style="chat"), 512)
    assert time.process_time() - start < 20  # 2 to 3 on one core
