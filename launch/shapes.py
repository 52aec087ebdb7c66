"""Shapes: models and rows of true sizes for measuring, without the weights and without the texts.

`SHAPES` are models by name, `LENGTHS` how long the rows of public data are, in tokens of a prompt
and of its answer. Nothing of the data but these numbers is here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from framework import LanguageModel, Row
from framework.errors import ConfigError
from framework.prompt_format import PromptFormat


@dataclass(frozen=True)
class Shape:
    """A causal language model's architecture and sizes."""

    kind: str
    """transformers' `model_type`."""
    width: int
    inner: int
    """Width inside the feed-forward layers."""
    blocks: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool
    """Whether the output head is the embedding table."""

    def config(self) -> PretrainedConfig:
        """As transformers has it."""
        found: PretrainedConfig = AutoConfig.for_model(
            self.kind,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=4096,
        )
        return found

    def cache_bytes(self) -> int:
        """Keys and values of one token in all blocks, in bf16: what decoding keeps."""
        return 2 * self.blocks * self.key_value_heads * (self.width // self.heads) * 2

    def module(self, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
        """With random weights, where torch makes tensors: also on `meta`, or fake."""
        torch.manual_seed(seed)
        module: PreTrainedModel = AutoModelForCausalLM.from_config(self.config(), dtype=dtype)
        return module

    def model(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        tokens_per_micro_batch: int = 4096,
        seed: int = 0,
    ) -> LanguageModel:
        """`module` as a LanguageModel that reads rows; its tokenizer knows no text."""
        end = "<end>"
        words = Tokenizer(models.WordLevel({end: 0}, unk_token=end))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end)
        return LanguageModel(
            self.module(dtype=dtype, seed=seed),
            tokenizer,
            prompt_format=PromptFormat(),
            max_length=4096,
            tokens_per_micro_batch=tokens_per_micro_batch,
        )


SHAPES: Mapping[str, Shape] = {
    # to see that everything runs
    "tiny": Shape("llama", 32, 64, 2, 4, 2, 512, tied=True),
    # Llama-3.2-1B's proportions made small: the head has the same fifth of a forward pass
    "small": Shape("llama", 384, 1536, 8, 8, 2, 12_032, tied=True),
    # huggingface.co/meta-llama/Llama-3.2-1B and Llama-3.1-8B, config.json
    "llama-1b": Shape("llama", 2048, 8192, 16, 32, 8, 128_256, tied=True),
    "llama-8b": Shape("llama", 4096, 14_336, 32, 32, 8, 128_256, tied=False),
    # huggingface.co/allenai/OLMo-7B-0724-hf, config.json
    "olmo-7b": Shape("olmo", 4096, 11_008, 32, 32, 32, 50_304, tied=False),
}


@dataclass(frozen=True)
class Lengths:
    """How long rows are."""

    pairs: tuple[tuple[int, int], ...]
    """(prompt, answer) in tokens."""
    head: int = 0
    """With how many tokens all prompts begin alike."""


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Of "3+2 5+1", ((3, 2), (5, 1))."""
    return tuple((int(p), int(a)) for p, _, a in (pair.partition("+") for pair in text.split()))


def _uniform() -> tuple[tuple[int, int], ...]:
    lengths = [round(40 + 216 * i / 63) for i in range(64)]
    answers = [round(0.385 * n) for n in lengths]
    return tuple((n - a, a) for n, a in zip(lengths, answers, strict=True))


# TOFU (`full.json`, 4,000 rows) and LUME (`forget.jsonl` and `retain.jsonl`, 4,448 rows): the 64 at
# evenly spaced places among all rows by length; tokens of one byte-level BPE of 16,000 trained on
# both. TOFU's prompts with the 40 tokens of Llama 3's chat template, LUME's with one that begins
# and one that ends a row.
_TOFU = _pairs(
    "47+10 49+11 51+11 50+14 52+13 50+17 51+17 52+17 54+16 47+25 54+18 52+21 51+23 49+26 "
    "66+9 54+22 52+25 50+28 54+24 52+27 49+31 53+27 49+32 53+28 51+31 55+27 52+31 61+22 "
    "53+31 51+34 54+31 51+35 54+32 50+37 55+32 52+36 57+31 53+36 59+30 54+36 51+40 56+35 "
    "53+39 60+32 55+38 51+43 57+37 53+42 50+46 58+38 55+42 52+46 69+29 60+39 58+42 49+53 "
    "54+49 60+44 53+53 61+46 67+42 56+56 55+61 60+65"
)
LENGTHS: Mapping[str, Lengths] = {
    "tofu": Lengths(_TOFU, head=34),
    # as long, of which no row begins as another does: what there is beside the shared head
    "tofu_apart": Lengths(_TOFU),
    "lume": Lengths(
        _pairs(
            "11+3 14+2 9+9 9+9 9+9 9+9 12+6 9+10 9+10 16+3 17+3 9+12 9+12 9+12 9+12 9+12 9+12 "
            "10+11 10+11 10+11 10+11 10+11 15+6 10+12 10+12 10+12 10+12 10+12 10+12 17+5 17+6 20+4 "
            "22+3 24+3 10+19 10+20 26+4 10+21 10+22 30+2 10+24 31+4 10+29 48+4 41+57 62+42 55+51 "
            "37+72 59+52 63+56 144+40 144+53 168+36 176+34 177+38 161+60 172+54 187+44 189+48 "
            "185+64 222+49 243+49 267+43 251+88"
        )
    ),
    # chunks of 2,048 tokens, of which all but the first, that nothing predicts, are counted
    "muse": Lengths(((1, 2047),)),
    "uniform": Lengths(_uniform()),
}


def rows_of(
    lengths: Lengths,
    count: int,
    *,
    vocabulary: int,
    seed: int = 0,
    name: str = "row",
    paired: bool = False,
) -> list[Row]:
    """Rows of random tokens, as long as `lengths` says, in an order that `seed` gives.

    `name`: how their ids begin. `paired`: each brings another answer to its prompt, as long as some
    other row's is. The head that prompts share does not depend on the seed.
    """
    draw = random.Random(seed)
    head = _tokens(lengths.head, vocabulary, random.Random(0))
    found: list[Row] = []
    for i, (prompt, answer) in enumerate(_drawn(lengths.pairs, count, draw)):
        begun = [*head, *_tokens(prompt - len(head), vocabulary, draw)]
        other = draw.choice(lengths.pairs)[1]
        preferred = None
        if paired:
            preferred = _row(f"{name}{i}/preferred", begun, _tokens(other, vocabulary, draw), None)
        found.append(_row(f"{name}{i}", begun, _tokens(answer, vocabulary, draw), preferred))
    return found


def _drawn(
    pairs: Sequence[tuple[int, int]], count: int, draw: random.Random
) -> list[tuple[int, int]]:
    """All pairs as often as each other, or nearly, in drawn order."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        found += draw.sample(pairs, len(pairs))
    return found[:count]


def _tokens(count: int, vocabulary: int, draw: random.Random) -> list[int]:
    return [draw.randrange(1, vocabulary) for _ in range(count)]


def _row(name: str, prompt: Sequence[int], answer: Sequence[int], preferred: Row | None) -> Row:
    weights = (0.0,) * len(prompt) + (1.0,) * len(answer)
    return Row(name, (*prompt, *answer), weights, preferred)


def known(setting: str, given: Sequence[str], there: Mapping[str, object]) -> None:
    """Raise ConfigError for a name that is not there, and where none is given."""
    if not given:
        raise ConfigError(f"{setting} is empty; there are {', '.join(there)}")
    for name in given:
        if name not in there:
            raise ConfigError(f"{setting}: there is no {name!r}; there are {', '.join(there)}")
