"""Whether a run fits: its rehearsal, from a resolved config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import torch
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from framework import Benchmark, Example, Row, build, distributed
from framework.config import part_of
from framework.data import laid_out
from framework.encoding import encode_all
from framework.errors import ModelError
from framework.loading import ModelSource, Pretrained, Tiny, load_tokenizer, train_tokenizer
from framework.method import read_of_reference, reference_needed
from framework.objectives import objectives_of
from framework.reference import Asked
from framework.sampler import ForgetRetainSampler
from framework.token_table import counted_tokens

from .assembly import retain_sources
from .ledger import Ledger
from .rehearsal import Rehearsed, rehearse
from .rehearsed_zero import Spread
from .rows import training_texts
from .settings import is_sharded, steps_of

CHARACTERS = 4
"""Of a token, where the tokenizer is not there: what English has under usual tokenizers."""


@dataclass(frozen=True)
class Planned:
    """A run, before anything of it is there."""

    run: Rehearsed
    rows: dict[str, list[Row]]
    """Of its largest step."""
    tokens: int
    """Of that step, on one rank."""
    reference_bytes: int
    """Of the files that keep what the losses read of the model before unlearning."""
    guessed: bool
    """The rows' lengths are guessed from their characters: the tokenizer is not there."""

    def memory(self) -> Ledger:
        """The ledger of the run's largest step, on one rank."""
        return rehearse(self.run, self.rows)


def planned(config: DictConfig, benchmark: Benchmark) -> Planned:
    """The run of `config`, on one rank."""
    method, settings = part_of(config.trainer)
    source: ModelSource = build(config.model)
    tokenizer = _tokenizer(source, benchmark)
    skeleton = source.skeleton()  # type: ignore[attr-defined] # of those that can be trained
    model = source.wrap(skeleton, tokenizer)  # type: ignore[arg-type] # None where it is not asked
    model.module = build(config.tuning).apply(model.module)
    sources = retain_sources(config, benchmark)
    texts = training_texts(config, benchmark, method)
    sets = {name: _rows(examples, source, tokenizer) for name, examples in texts.items()}
    if method.prefers:
        sets["forget"] = [replace(row, preferred=_other(row)) for row in sets["forget"]]
    for task, ids in sources.items():
        sets[f"retain/{task}"] = [row for row in sets["retain"] if row.id in ids]
    names = objectives_of(method.objectives, settings.retain_loss, list(sources))
    sampler = ForgetRetainSampler(
        {name: sets[name] for name in names}, batch_size=config.batch_size, seed=config.seed
    )
    ranks = distributed.intended_world_size()
    needed = reference_needed(method, settings)
    run = Rehearsed(
        method,
        settings,
        model,
        "itself" if needed == "frozen" and config.tuning.name == "lora" else needed,
        build(config.optimizer),
        torch.bfloat16 if config.precision == "bf16" else torch.float32,
        _spread(config, ranks),
        build(config.weighting),
        build(config.perturbation),
        build(config.averaging),
        list(sources),
    )
    rows = _largest(sampler)
    kept = 0
    if needed == "cached":
        drawn = sampler.drawn(steps_of(config, sampler.steps_per_epoch))
        kept = _on_disk(read_of_reference(method, settings, drawn), run)
    tokens = sum(row.tokens for part in rows.values() for row in part)
    return Planned(run, rows, -(-tokens // ranks), kept, guessed=tokenizer is None)


def _on_disk(asked: Mapping[Asked, Sequence[Row]], run: Rehearsed) -> int:
    """Bytes of a number, or of a vector of the model's width, for each token that counts."""
    vector = run.model.module.config.get_text_config().hidden_size * run.dtype.itemsize
    size = 0
    for kind, rows in asked.items():
        distinct = {row.id: row for row in laid_out(rows)}
        size += counted_tokens(list(distinct.values())) * (4 if kind == "log_probs" else vector)
    return size


def _largest(sampler: ForgetRetainSampler) -> dict[str, list[Row]]:
    """The step of the first epoch that reads most tokens."""
    steps = (sampler[step] for step in range(sampler.steps_per_epoch))
    return max(steps, key=lambda rows: sum(row.tokens for part in rows.values() for row in part))


def _spread(config: DictConfig, ranks: int) -> Spread | None:
    if not is_sharded(config):
        return None
    zero = config.zero
    return Spread(
        stage=int(zero.stage),
        ranks=ranks,
        bucket=int(zero.bucket),
        overlap=bool(zero.overlap) and torch.cuda.is_available(),
        offload=zero.offload == "cpu",
    )


def _tokenizer(source: ModelSource, benchmark: Benchmark) -> PreTrainedTokenizerBase | None:
    """The run's tokenizer; None where it is not there, and lengths have to be guessed."""
    if isinstance(source, Tiny):
        texts = [f"{x.prompt} {x.answer}" for x in benchmark.training_examples("target")]
        return train_tokenizer(texts, vocabulary=source.config.vocabulary)
    assert isinstance(source, Pretrained)
    try:
        return load_tokenizer(
            source.tokenizer_at(source.config.path),
            trust_remote_code=source.config.trust_remote_code,
        )
    except ModelError:
        return None


def _rows(
    examples: Sequence[Example], source: ModelSource, tokenizer: PreTrainedTokenizerBase | None
) -> list[Row]:
    settings = source.config
    if tokenizer is None:
        return [_guessed(example, settings.max_length) for example in examples]
    if not examples:
        return []
    return encode_all(examples, tokenizer, settings.prompt_format, settings.max_length)[0]


def _other(row: Row) -> Row:
    """A row that has the prompt alone in common with `row`, and is as long."""
    pairs = zip(row.input_ids, row.weights, strict=True)
    return replace(row, input_ids=tuple(-1 if weight else token for token, weight in pairs))


def _guessed(example: Example, longest: int) -> Row:
    """A row about as long as the example's would be, and begun like no other."""
    answer = min(longest - 1, 1 + len(example.answer) // CHARACTERS)
    prompt = min(longest - answer, 1 + len(example.prompt) // CHARACTERS)
    weights = (0.0,) * prompt + (1.0,) * answer
    return Row(example.id, (crc32(example.id.encode()),) * len(weights), weights)
