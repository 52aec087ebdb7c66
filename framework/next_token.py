"""Raw prompts and what may follow, one token or a text: how multiple choice asks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import transformers

from .data import Row
from .encoding import Truncation, TruncationWarning
from .errors import DataError, ModelError

Next = tuple[Row, tuple[int, ...]]


def encode_next(
    prompts: Sequence[str],
    continuations: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
    max_length: int,
) -> list[Next]:
    """Each prompt with its first continuation as a row, and the tokens of all continuations.

    A row is named by the prompt's position, and its last token alone counts. Special tokens are
    those that the tokenizer puts before any text by itself, as in lm-evaluation-harness.
    """
    if len(prompts) > 1:  # a tokenizer that cannot do it is found out before thousands of prompts
        _last_tokens(prompts[:1], continuations, tokenizer)
    found: list[Next] = []
    cut: dict[str, int] = {}
    encoded = _last_tokens(prompts, continuations, tokenizer)
    for i, (prompt, (ids, tokens)) in enumerate(zip(prompts, encoded, strict=True)):
        kept = 1 if ids[0] == tokenizer.bos_token_id else 0
        lost = max(0, len(ids) + 1 - max_length)
        if lost:
            cut[f"{i}: {prompt[:40]}"] = lost  # prompts may begin alike
        read = (*ids[:kept], *ids[kept + lost :], tokens[0])
        weights = (0.0,) * (len(read) - 1) + (1.0,)
        found.append((Row(str(i), read, weights), tokens))
    if cut:
        report = Truncation(len(prompts), max_length, prompt_tokens=cut)
        warnings.warn(report.describe(), TruncationWarning, stacklevel=3)
    return found


def _last_tokens(
    prompts: Sequence[str],
    continuations: Sequence[str],
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> list[tuple[list[int], tuple[int, ...]]]:
    """The tokens of each prompt, and the one that each continuation is after it."""
    before = _tokens(prompts, tokenizer)
    whole = [_tokens([p + text for p in prompts], tokenizer) for text in continuations]
    for i, (prompt, ids) in enumerate(zip(prompts, before, strict=True)):
        if not ids:
            raise DataError("cannot ask what follows an empty prompt; give the prompt some text")
        for text, together in zip(continuations, whole, strict=True):
            if together[i][:-1] != ids:
                raise ModelError(
                    f"{text!r} is not one token after {prompt[-20:]!r} to this model's tokenizer, "
                    "so it cannot be asked for as the next token"
                )
    return [(ids, tuple(together[i][-1] for together in whole)) for i, ids in enumerate(before)]


def encode_raw(
    prompts: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, max_length: int
) -> list[list[int]]:
    """The last `max_length` tokens of each raw prompt; raises DataError for one without any."""
    encoded = _tokens(prompts, tokenizer)
    if not all(encoded):
        raise DataError("cannot go on from an empty prompt; give the prompt some text")
    lost = {
        f"{i}: {prompts[i][:40]}": len(ids) - max_length
        for i, ids in enumerate(encoded)
        if len(ids) > max_length
    }
    if lost:
        report = Truncation(len(prompts), max_length, prompt_tokens=lost)
        warnings.warn(report.describe(), TruncationWarning, stacklevel=3)
    return [ids[-max_length:] for ids in encoded]


def encode_continuations(
    pairs: Sequence[tuple[str, str]],
    tokenizer: transformers.PreTrainedTokenizerBase,
    max_length: int,
) -> list[Row]:
    """Each raw prompt with a text right after it, whose tokens alone count; named by position.

    As in lm-evaluation-harness: the two are tokenized together and cut where the prompt's own
    tokens end; spaces at its end go to the text; no end token is added.
    """
    spaces = [prompt[len(prompt.rstrip()) :] for prompt, _ in pairs]
    prompts = [prompt.rstrip() for prompt, _ in pairs]
    wholes = [
        prompt + space + text
        for prompt, space, (_, text) in zip(prompts, spaces, pairs, strict=True)
    ]
    rows: list[Row] = []
    cut: dict[str, int] = {}
    encoded = zip(pairs, _tokens(prompts, tokenizer), _tokens(wholes, tokenizer), strict=True)
    for i, ((prompt, text), before, whole) in enumerate(encoded):
        after = whole[len(before) :]
        if not before or not after:
            raise DataError(f"there is no token of {text[:40]!r} after the prompt {prompt[-20:]!r}")
        lost = max(0, len(before) + len(after) - max_length)
        if lost >= len(before):
            raise DataError(
                f"{text[:40]!r} has {len(after)} tokens, of which the model can read "
                f"{max_length - 1} after a prompt; leave it out"
            )
        if lost:
            cut[f"{i}: {prompt[:40]}"] = lost
        weights = (0.0,) * (len(before) - lost) + (1.0,) * len(after)
        rows.append(Row(str(i), (*before[lost:], *after), weights))
    if cut:
        report = Truncation(len(pairs), max_length, prompt_tokens=cut)
        warnings.warn(report.describe(), TruncationWarning, stacklevel=3)
    return rows


def _tokens(
    texts: list[str] | Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase
) -> list[list[int]]:
    """The tokens of each text, less an end token that the tokenizer puts behind it.

    Less a second first token, too: chat templates write it into their texts.
    """
    encoded = tokenizer(list(texts), verbose=False)["input_ids"]
    first, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = [ids[:-1] if len(ids) > 1 and ids[-1] == end else list(ids) for ids in encoded]
    return [ids[1:] if first is not None and ids[:2] == [first] * 2 else ids for ids in found]
