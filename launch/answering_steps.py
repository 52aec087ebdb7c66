"""Answering TOFU: how many steps of decoding its 1,017 questions take, told from their lengths.

Answers end where TOFU's do. A step is one forward pass, of whatever size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from framework.decoding import batches_of_prompts

from .bench_result import Table
from .shapes import SHAPES, Shape

QUESTIONS, NEW = 1017, 200
"""Of TOFU's evaluation, and tokens of an answer at most."""
BATCH = 32
"""Of those who decode in fixed batches: OpenUnlearning's."""
MEMORY = 8 * 2**30
"""Bytes of keys and values: `model.generation_memory`'s default."""
HEAD = 40
"""Tokens of Llama 3's chat template around a question."""
PROMPT_DECILES = (7, 10, 12, 12, 13, 14, 15, 17, 18, 21, 54)
ANSWER_DECILES = (2, 6, 9, 19, 26, 31, 34, 38, 42, 50, 85)
"""Of the 1,017 questions and answers, in tokens of a tokenizer that was trained on them."""


@dataclass(frozen=True)
class Steps:
    """Of one model."""

    shape: str
    tokens: int
    """That the memory holds the keys and values of."""
    batches: int
    steps: int
    refilled: int
    """If a new prompt took the place of each row that ends, a pass for each time some are read."""
    fixed: int
    """In fixed batches."""


@dataclass(frozen=True)
class Answering:
    """Of all models."""

    found: Sequence[Steps]

    def table(self) -> Table:
        """As a document shows it."""
        lines = [
            [
                each.shape,
                f"{each.tokens:,}",
                str(each.batches),
                str(each.steps),
                f"{each.steps / each.fixed:.3f}",
                f"{each.refilled / each.fixed:.3f}",
            ]
            for each in self.found
        ]
        columns = ["shape", "tokens held", "batches", "steps", f"/ batches of {BATCH}", "refilled"]
        return Table(f"answering TOFU's {QUESTIONS:,} questions in 8 GiB", columns, lines)

    def numbers(self) -> list[dict[str, object]]:
        """As the JSON holds it."""
        return [asdict(each) for each in self.found]


def answering(shapes: Sequence[str]) -> Answering:
    """The steps of these models."""
    draw = random.Random(0)
    prompts = [HEAD + _drawn(PROMPT_DECILES, draw) for _ in range(QUESTIONS)]
    answers = [_drawn(ANSWER_DECILES, draw) for _ in range(QUESTIONS)]
    return Answering([_steps(name, SHAPES[name], prompts, answers) for name in shapes])


def _steps(name: str, shape: Shape, prompts: Sequence[int], answers: Sequence[int]) -> Steps:
    tokens = MEMORY // shape.cache_bytes()
    batches = batches_of_prompts(prompts, NEW, tokens=tokens)
    return Steps(
        shape=name,
        tokens=tokens,
        batches=len(batches),
        steps=sum(max(answers[i] for i in batch) for batch in batches),
        refilled=_refilled(prompts, answers, tokens),
        fixed=sum(max(answers[k : k + BATCH]) for k in range(0, QUESTIONS, BATCH)),
    )


def _refilled(prompts: Sequence[int], answers: Sequence[int], tokens: int) -> int:
    """Steps where ended rows leave at once and the next prompts enter as soon as there is room.

    The room of a row is that of its prompt and its longest answer; a quarter of the rows have to be
    gone before others are read, a pass of their own.
    """
    rows = tokens // (max(prompts) + NEW)
    waiting, going, steps = list(answers), list[int](), 0
    while waiting or going:
        if waiting and len(going) <= 0.75 * rows:
            room = rows - len(going)
            going, waiting = going + waiting[:room], waiting[room:]
            steps += 1
        going = [left - 1 for left in going if left > 1]
        steps += 1
    return steps


def _drawn(deciles: Sequence[int], draw: random.Random) -> int:
    place = draw.random() * 10
    low, high = deciles[int(place)], deciles[int(place) + 1]
    return round(low + (high - low) * (place % 1))
