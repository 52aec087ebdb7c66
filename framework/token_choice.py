"""Scores per token, and the choice of tokens by them: over a threshold, in context, whole words.

Choices are of one answer: lists with one entry per token, in reading order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from .data import Row


class Decoder(Protocol):
    """What finding words asks of a transformers tokenizer."""

    @property
    def all_special_ids(self) -> Any:
        """The ids of tokens that are no text: begin, end, padding."""

    def decode(self, token_ids: Any, *, clean_up_tokenization_spaces: bool) -> Any:
        """The text of tokens."""


def differences(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> list[list[float]]:
    """|p_A - p_B| of each token of each row."""
    return [[abs(p - q) for p, q in zip(x, y, strict=True)] for x, y in zip(a, b, strict=True)]


def ngram_scores(forget: Sequence[Row], retain: Sequence[Row], *, n: int) -> list[list[float]]:
    """|P_f - P_r| of each answer token of `forget`, given the n - 1 tokens before it.

    P is a ratio of counts over the answers of one set, 0 where the context does not occur there.
    Contexts end where the answer begins: the first tokens have shorter ones. Others score 0.
    """
    spelled = {"forget": [_grams(row, n) for row in forget]}
    spelled["retain"] = [_grams(row, n) for row in retain]
    grams = {name: Counter(g for row in rows for g in row if g) for name, rows in spelled.items()}
    contexts: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in grams}
    for name, counted in grams.items():
        for gram, count in counted.items():
            contexts[name][gram[:-1]] += count

    def ratio(name: str, gram: tuple[int, ...]) -> float:
        return grams[name][gram] / max(1, contexts[name][gram[:-1]])

    return [
        [abs(ratio("forget", gram) - ratio("retain", gram)) if gram else 0.0 for gram in row]
        for row in spelled["forget"]
    ]


def _grams(row: Row, n: int) -> list[tuple[int, ...]]:
    """Each answer token behind the up to n - 1 answer tokens before it; () for other tokens."""
    first = next((t for t, weight in enumerate(row.weights) if weight > 0), 0)
    return [
        tuple(row.input_ids[max(first, t - n + 1) : t + 1]) if weight > 0 else ()
        for t, weight in enumerate(row.weights)
    ]


def above(scores: Sequence[float], threshold: float) -> list[bool]:
    """Which scores are more than the threshold."""
    return [score > threshold for score in scores]


def adaptive_threshold(scores: Sequence[float], kappa: float) -> float:
    """The mean + kappa standard deviations, both of these scores and no others."""
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
    return mean + kappa * math.sqrt(variance)


def with_context(chosen: Sequence[bool], *, left: int, right: int) -> list[bool]:
    """The chosen tokens, the `left` tokens before and the `right` tokens after each of them."""
    n = len(chosen)
    wider = [False] * n
    for t in (t for t in range(n) if chosen[t]):
        first, last = max(0, t - left), min(n - 1, t + right)
        wider[first : last + 1] = [True] * (last - first + 1)
    return wider


def whole_words(chosen: Sequence[bool], words: Sequence[int]) -> list[bool]:
    """Every token of a word of which any token is chosen."""
    touched = {word for word, c in zip(words, chosen, strict=True) if c}
    return [word in touched for word in words]


def words_of(ids: Sequence[int], tokenizer: Decoder) -> list[int]:
    """The number of the word that each token belongs to, from 0.

    A word begins where the decoded text has a space, whatever mark the vocabulary has for it; the
    space belongs to what follows. A special token is a word of its own.
    """
    special = set(tokenizer.all_special_ids)
    words, word = [0] * min(1, len(ids)), 0
    for before, here in pairwise(ids):
        if special & {before, here} or _space_between(before, here, tokenizer):
            word += 1
        words.append(word)
    return words


def _space_between(before: int, here: int, tokenizer: Decoder) -> bool:
    """Whether a space ends one token's text or begins the other's.

    Decoded together, for a lone token may be spelled without its space (SentencePiece) or without
    saying that it continues a word (WordPiece).
    """
    first = str(tokenizer.decode([before], clean_up_tokenization_spaces=False))
    both = str(tokenizer.decode([before, here], clean_up_tokenization_spaces=False))
    if not both.startswith(first):  # bytes of one character
        return False
    rest = both[len(first) :]
    return rest[:1].isspace() or (first[-1:].isspace() and not first.isspace())
