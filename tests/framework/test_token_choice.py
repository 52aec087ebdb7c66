"""From scores to tokens: numbers worked by hand, and words of every kind of vocabulary."""

from __future__ import annotations

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from framework.data import Row
from framework.loading import train_tokenizer
from framework.token_choice import (
    above,
    adaptive_threshold,
    differences,
    ngram_scores,
    whole_words,
    with_context,
    words_of,
)

SCORES = [0.8, 0.0, 0.1, 0.0]


def answers(*texts: str, prompt: str = "") -> list[Row]:
    """One row per text, a token per letter; the prompt counts nothing, nor does BOS (0)."""
    rows = []
    for number, text in enumerate(texts):
        before = (0, *map(ord, prompt))
        weights = (0.0,) * len(before) + (1.0,) * len(text)
        rows.append(Row(f"{prompt}{number}", (*before, *map(ord, text)), weights))
    return rows


# ---- scores --------------------------------------------------------------------------------------


def test_the_score_is_how_far_two_models_disagree_on_the_true_token():
    knowing, ignorant = [0.9, 0.5, 0.9, 0.2], [0.1, 0.5, 0.8, 0.2]
    (found,) = differences([knowing], [ignorant])
    assert found == pytest.approx(SCORES)
    assert differences([ignorant], [knowing]) == [found]


def test_an_n_gram_that_only_the_forget_rows_have_scores_one():
    # forget "abc", retain "abd", n = 3: c after ab is 1/1 there and 0/1 here
    assert ngram_scores(answers("abc"), answers("abd"), n=3) == [[0, 0, 0, 1]]


def test_n_grams_score_the_difference_of_count_ratios():
    # P_f: a 2/3, x 1/3; b after a 2/2; P_r: a 1/2, y 1/2; b after a 0/1
    forget, retain = answers("ab", "ab", "x"), answers("ac", "y")
    found = ngram_scores(forget, retain, n=2)
    assert found[0] == pytest.approx([0, 1 / 6, 1])
    assert found[1] == found[0]
    assert found[2] == pytest.approx([0, 1 / 3])


def test_a_context_that_the_retain_rows_lack_counts_nothing_there():
    assert ngram_scores(answers("ab"), answers("cd"), n=2) == [[0, 1, 1]]
    assert ngram_scores(answers("ab", "ac"), [], n=2)[0] == [0, 1, 0.5]


def test_the_prompt_is_in_no_n_gram():
    forget, retain = answers("ab", prompt="q"), answers("ab", prompt="r")
    assert ngram_scores(forget, retain, n=3) == [[0, 0, 0, 0]]


def test_a_one_gram_has_no_context():
    assert ngram_scores(answers("ab"), answers("ab", "bb"), n=1) == [[0, 0.25, 0.25]]


# ---- the threshold and the context ---------------------------------------------------------------


def test_tokens_over_the_threshold_are_chosen_and_those_on_it_are_not():
    assert above(SCORES, 0.3) == [True, False, False, False]
    assert above(SCORES, 0.1) == [True, False, False, False]
    assert above(SCORES, 0.0) == [True, False, True, False]


def test_the_adaptive_threshold_is_the_mean_and_kappa_standard_deviations():
    # mean 0.9 / 4; variance (0.64 + 0.01) / 4 - 0.225^2 = 0.111875
    assert adaptive_threshold(SCORES, 0.0) == pytest.approx(0.225)
    assert adaptive_threshold(SCORES, 2.0) == pytest.approx(0.225 + 2 * 0.111875**0.5)
    assert adaptive_threshold(SCORES, -1.0) == pytest.approx(0.225 - 0.111875**0.5)
    assert adaptive_threshold([0.7], 3.0) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (0, 0, "...x....x"),
        (1, 1, "..xxx..xx"),
        (2, 2, ".xxxxxxxx"),
        (2, 0, ".xxx..xxx"),
        (0, 1, "...xx...x"),
        (9, 0, "xxxxxxxxx"),
    ],
)
def test_context_reaches_to_both_sides_and_not_beyond_the_answer(left, right, expected):
    chosen = [mark == "x" for mark in "...x....x"]
    found = with_context(chosen, left=left, right=right)
    assert "".join("x" if c else "." for c in found) == expected


def test_context_of_the_first_token_is_clipped_where_the_answer_begins():
    assert with_context([True, False, False, False], left=1, right=1) == [True, True, False, False]


# ---- words ---------------------------------------------------------------------------------------

TEXT = " Tobril Fedror, born 1987, wrote café."


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and our own: a word's space is in its first token."""
    return train_tokenizer([" To bril Fed ror, born wrote"] * 3, vocabulary=275)


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2: a mark for the space, unknown characters as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁", *"Tobrilfedro,nwtca.F1987", "To", "▁To", "br", "il", "▁F", "ed", "▁b", "or"]
    merges = [("T", "o"), ("▁", "To"), ("b", "r"), ("i", "l"), ("▁", "F"), ("e", "d")]
    merges += [("▁", "b"), ("o", "r")]
    pieces = list(dict.fromkeys(pieces))
    inner = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            merges,
            byte_fallback=True,
            unk_token="<unk>",  # noqa: S106 - a token, not a password
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")  # noqa: S106


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: a mark for what continues a word."""
    letters = sorted(set(TEXT) - {" "})
    pieces = ["[UNK]", "[SEP]", *letters, *(f"##{x}" for x in letters), "To", "##bril"]
    inner = Tokenizer(
        models.WordPiece(
            {piece: i for i, piece in enumerate(pieces)},
            unk_token="[UNK]",  # noqa: S106
        )
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]")  # noqa: S106


VOCABULARIES = {
    "byte-level": byte_level,
    "SentencePiece": sentence_piece,
    "WordPiece": word_piece,
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_the_tokens_between_two_spaces_are_a_word_and_the_end_is_its_own(kind):
    tokenizer = VOCABULARIES[kind]()
    ids = [*tokenizer(TEXT, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    words = words_of(ids, tokenizer)
    assert len(ids) > 2 * len(TEXT.split()), "words of several tokens, or nothing is tested"
    assert words == sorted(words)
    spelled: dict[int, list[int]] = {}
    for token, word in zip(ids, words, strict=True):
        spelled.setdefault(word, []).append(token)
    decoded = [tokenizer.decode(tokens).strip() for tokens in spelled.values()]
    assert decoded == [*TEXT.split(), tokenizer.eos_token]


def test_a_tokenizer_of_whole_words_has_as_many_words_as_tokens():
    ids = [1, 5, 6, 7, 2]
    assert words_of(ids, tiny.tokenizer()) == [0, 1, 2, 3, 4]
    assert words_of([], tiny.tokenizer()) == []


def test_two_end_tokens_are_two_words():
    tokenizer = byte_level()
    eos = tokenizer.eos_token_id
    (piece,) = tokenizer("x", add_special_tokens=False)["input_ids"]
    assert words_of([piece, piece, eos, eos, piece], tokenizer) == [0, 0, 1, 2, 3]


def test_a_lone_space_belongs_to_the_word_after_it_and_a_line_break_ends_one():
    tokenizer = byte_level()
    ids = tokenizer("19 87.\nTo", add_special_tokens=False)["input_ids"]
    spelled = [tokenizer.decode([i]) for i in ids]
    assert spelled == ["1", "9", " ", "8", "7", ".", "\n", "T", "o"] or "To" in spelled[-1]
    words = words_of(ids, tokenizer)
    assert words[:6] == [0, 0, 1, 1, 1, 1]
    assert words[6] == 2
    assert set(words[6:]) == {2}


def test_a_word_is_chosen_whole_if_any_of_its_tokens_is():
    chosen = [False, True, False, False, False, True]
    assert whole_words(chosen, [0, 0, 0, 1, 1, 2]) == [True, True, True, False, False, True]
