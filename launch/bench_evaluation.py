"""How fast answers are scored and made: one by one, in padded batches, and as Lethe does it.

python -m launch.bench evaluation
python -m launch.bench evaluation benchmark=tofu model=pretrained model.path=DIR rows=100
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig

from framework import Benchmark, LanguageModel, Row, Rows, attention, build, distributed
from framework.encoding import encode_pairs, encode_prompts
from framework.errors import ConfigError, require
from framework.evaluation.benchmark import spaced, texts_of
from framework.loading import ModelSource, Pretrained
from framework.scores import numbers_of, scores_of
from framework.shared import pack, packs_of

from .bench_result import Table, leave
from .outcome import make_folder
from .prepare import prepare, prepared
from .settings import is_tiny, parse
from .timing import Comparison, Way, in_turns

T = TypeVar("T")
BATCH = 32
"""Rows of a padded batch: what OpenUnlearning's evaluation takes."""


@dataclass
class EvaluationBench:
    """The settings of the bench beside its groups."""

    rounds: int = 5
    """How often each way does the work, at least 1."""
    rows: int | None = 40
    """At most so many rows of each split, evenly spaced; null: all."""
    max_new_tokens: int = 64
    """Tokens of an answer at most."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """In bf16 the ways agree to two digits only."""
    seed: int = 0
    """Of the tiny model."""
    cache: str = "~/.cache/lethe"
    """Where the target and gold models of tiny models are kept."""
    output: str = "runs/bench"
    """The folder of the results."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("rounds", "max_new_tokens"):
            require(name, getattr(self, name), at_least=1)
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"rows must be at least 1 or null, got {self.rows}")


def main(arguments: list[str]) -> None:
    """Load, time, show, record."""
    config, _ = parse(
        arguments, entry="bench_evaluation", schema=EvaluationBench, about=__doc__ or ""
    )
    if distributed.launched():
        raise ConfigError("this bench is of one process; start it without torchrun")
    benchmark: Benchmark = build(config.benchmark)
    model = _model(config, benchmark)
    make_folder(Path(config.output))
    found = compare(config, benchmark, model)
    tables = [
        Table(f"{x.name} {x.count} {x.unit} of {config.benchmark.name}", x.columns(), x.rows())
        for x in found
    ]
    leave("evaluation", config, tables, {"comparisons": [each.to_json() for each in found]})


def _model(config: DictConfig, benchmark: Benchmark) -> LanguageModel:
    """The model at `model.path`, or the benchmark's target model."""
    source: ModelSource = build(config.model)
    if is_tiny(config):
        prepare(config, benchmark)
        path = str(prepared(config, benchmark)["target"])
    elif isinstance(source, Pretrained):
        path = source.config.path
    else:
        raise ConfigError("a bench takes one model: model=tiny, or model.path=<folder>")
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = source.load(path, dtype=dtype, revision=config.model.get("revision"))
    model.move(distributed.device())
    model.check_packing()
    return model


def compare(config: DictConfig, benchmark: Benchmark, model: LanguageModel) -> list[Comparison]:
    """Scoring and answering the benchmark's rows in every way."""
    splits = [spaced(rows, config.rows) for rows in benchmark.splits().values()]
    pairs = list(dict.fromkeys(p for rows in splits for row in rows for p in texts_of(row)))
    prompts = list(dict.fromkeys(row.prompt for rows in splits for row in rows if row.prompt))
    encoded = encode_pairs(pairs, model.tokenizer, model.prompt_format, model.max_length)
    rows = [Row(str(i), row.input_ids, row.weights) for i, row in enumerate(encoded)]
    return [
        _scoring(model, rows, config.rounds),
        _answering(model, prompts, config.max_new_tokens, config.rounds),
    ]


# ---- scoring -------------------------------------------------------------------------------------


def _scoring(model: LanguageModel, rows: Sequence[Row], rounds: int) -> Comparison:
    budget = model.tokens_per_micro_batch
    ways = [
        Way("one by one", lambda: _padded(model, rows, 1)),
        Way(f"padded batches of {BATCH}", lambda: _padded(model, rows, BATCH)),
        Way("packed", lambda: _packed(model, rows)),
        Way("packed, beginnings read once", lambda: _shared(model, rows)),
    ]
    lengths = [len(row) for row in rows]
    padded = sum(len(part) * max(part) for part in _cut(lengths, BATCH))
    once = sum(sum(pack(part).lengths) for part in packs_of(rows, tokens=budget))
    timed = in_turns(ways, rounds, description="scoring")
    right = np.concatenate(timed[0].found)
    notes = [
        {
            "tokens read": str(tokens),
            "largest error (nats)": _difference(way.found, right),
        }
        for way, tokens in zip(timed, (sum(lengths), padded, sum(lengths), once), strict=True)
    ]
    return Comparison("scoring", "rows", len(rows), tuple(timed), tuple(notes))


def _difference(found: Sequence[np.ndarray], right: np.ndarray) -> str:
    return f"{np.abs(np.concatenate(found) - right).max():.0e}"


def _padded(model: LanguageModel, rows: Sequence[Row], size: int) -> list[np.ndarray]:
    """Padded on the right in the order given, logits everywhere: as the released programs do."""
    found: list[np.ndarray] = []
    with model.evaluating(), _attending(model, "sdpa"):
        for batch in _cut(rows, size):
            longest = max(map(len, batch))
            padding = [[0] * (longest - len(row)) for row in batch]
            ids = _table([[*r.input_ids, *p] for r, p in zip(batch, padding, strict=True)], model)
            mask = _table([[1] * len(r) + p for r, p in zip(batch, padding, strict=True)], model)
            logits = model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
            log_probs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])
            values = log_probs[..., 0].double().cpu().numpy()
            for own, row in zip(values, batch, strict=True):
                found.append(own[: len(row) - 1][np.array(row.weights[1:]) > 0])
    return found


def _packed(model: LanguageModel, rows: Sequence[Row]) -> list[np.ndarray]:
    found: dict[int, np.ndarray] = {}
    with model.evaluating():
        for part in packs_of(rows, tokens=model.tokens_per_micro_batch, shares=False):
            batch = Rows.pack(part, device=model.device)
            scores = scores_of(model.of_logits(batch, numbers_of(batch)), batch)
            found.update(zip(map(int, batch.ids), (x.log_probs for x in scores), strict=True))
    return [found[i] for i in range(len(rows))]


def _shared(model: LanguageModel, rows: Sequence[Row]) -> list[np.ndarray]:
    return [score.log_probs for score in model.score_rows(rows)]


# ---- answering -----------------------------------------------------------------------------------


def _answering(model: LanguageModel, prompts: Sequence[str], new: int, rounds: int) -> Comparison:
    passes: dict[str, int] = {}

    def counted(name: str, work: Callable[[], list[str]]) -> Way:
        def run() -> list[str]:
            with _counting(model) as count:
                found = work()
            passes[name] = count[0]
            return found

        return Way(name, run)

    ways = [
        counted("one by one", lambda: _generated(model, prompts, new, 1)),
        counted(f"padded batches of {BATCH}", lambda: _generated(model, prompts, new, BATCH)),
        counted("batches by memory", lambda: model.generate(prompts, new)),
    ]
    timed = in_turns(ways, rounds, description="answering")
    right = timed[0].found
    notes = []
    for way in timed:
        equal = sum(a == b for a, b in zip(way.found, right, strict=True))
        notes.append(
            {"forward passes": str(passes[way.name]), "equal answers": f"{equal} of {len(right)}"}
        )
    return Comparison("answering", "answers", len(prompts), tuple(timed), tuple(notes))


def _generated(model: LanguageModel, prompts: Sequence[str], new: int, size: int) -> list[str]:
    """By transformers' own `generate`, in batches in the order given, padded on the left."""
    found: list[str] = []
    room = model.positions() - new
    encoded = encode_prompts(prompts, model.tokenizer, model.prompt_format, room)
    with model.evaluating(), _attending(model, "sdpa"):
        for batch in _cut(encoded, size):
            longest = max(map(len, batch))
            padding = [[model.padding_id()] * (longest - len(ids)) for ids in batch]
            ids = _table([p + x for p, x in zip(padding, batch, strict=True)], model)
            mask = _table([[0] * (longest - len(x)) + [1] * len(x) for x in batch], model)
            output = model.module.generate(  # type: ignore[operator] # of transformers
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=model.end_ids(),
                pad_token_id=model.padding_id(),
            )
            texts = model.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
            found += [text.strip() for text in texts]
    return found


# ---- both ----------------------------------------------------------------------------------------


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _table(rows: Sequence[Sequence[int]], model: LanguageModel) -> torch.Tensor:
    return torch.tensor(rows, device=model.device)


@contextmanager
def _attending(model: LanguageModel, implementation: str) -> Iterator[None]:
    model.attend(implementation)
    try:
        yield
    finally:
        model.attend(attention.NAME)


@contextmanager
def _counting(model: LanguageModel) -> Iterator[list[int]]:
    """The number of forward passes inside."""
    count = [0]

    def one_more(*_: object) -> None:
        count[0] += 1

    hook = model.module.register_forward_pre_hook(one_more)
    try:
        yield count
    finally:
        hook.remove()
