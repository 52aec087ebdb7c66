"""A model of a few thousand parameters and rows of random tokens: what exactness tests run on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from framework import LanguageModel, LocalEngine, Row, UnlearningTrainer, distributed
from framework.assistants import Recipe
from framework.averaging import WeightAveraging
from framework.data import Rows
from framework.engine import Engine
from framework.method import layer_of, read_of_reference, reference_needed
from framework.muon import Muon
from framework.optimizers import SGD, AdamW, Optimizer
from framework.parts import Perturbation, Selection, Weighting
from framework.prompt_format import PromptFormat
from framework.reference import CachedReference, FrozenReference
from framework.selection import select
from framework.tuning import Full, Layers, LoRA, Tuning
from trainers.blur import BLUR
from trainers.curvature import Curvature
from trainers.dpo import DPO
from trainers.finetune import Finetune
from trainers.grad_ascent import GradAscent, GradDiff
from trainers.gradient_penalty import GradientPenalty
from trainers.gru import GRU
from trainers.log_barrier import LogBarrier
from trainers.ngdiff import NormalizedGradients
from trainers.npo import NPO
from trainers.primal_dual import PrimalDual
from trainers.random_smoothing import RandomSmoothing
from trainers.rmu import RMU
from trainers.sam import SAM
from trainers.selective import SelectiveUnlearning

VOCABULARY = 64


class Point(PreTrainedModel):
    """A model that is one vector of parameters: for losses that are worked out by hand."""

    config_class = LlamaConfig

    def __init__(self, *values: float) -> None:
        super().__init__(LlamaConfig())
        self.weight = nn.Parameter(torch.tensor(values))


class Watching:
    """Calls a function of the step where a run is to be measured; writes nothing."""

    def __init__(self, measure: Callable[[int], object]) -> None:
        self.measure = measure

    def was_measured(self, step: int) -> bool:
        """See `framework.loop.Watch`: whatever was due."""
        del step
        return True

    def keep(self, step: int) -> None:
        """See `framework.loop.Watch`."""


class Bowls(UnlearningTrainer):
    """Forget 1/2 |w - a|^2, retain 1/2 |w - b|^2, whatever the rows."""

    a: Sequence[float] = ()
    b: Sequence[float] = ()

    @classmethod
    def reads_once(cls, config: UnlearningTrainer.Config) -> bool:
        """See `Method.reads_once`: it reads no rows."""
        del config
        return False

    def forget_loss(self, rows: Rows) -> Tensor:
        return self._bowl(rows, self.a)

    def retain_loss(self, rows: Rows) -> Tensor:
        return self._bowl(rows, self.b)

    def _bowl(self, rows: Rows, centre: Sequence[float]) -> Tensor:
        weight = self.model.module.weight
        height = 0.5 * (weight - torch.tensor(centre, dtype=weight.dtype)).square().sum()
        return rows.row_mean(height.expand(len(rows)))


class FirstBlock(UnlearningTrainer):
    """The forget loss reaches the embeddings and the first decoder block only, as in RMU."""

    @classmethod
    def reads_once(cls, config: UnlearningTrainer.Config) -> bool:
        """See `Method.reads_once`: it reads hidden states."""
        del config
        return False

    def forget_loss(self, rows: Rows) -> Tensor:
        states = self.model.states(rows, layer=1)
        return rows.token_mean(states.square().mean(-1))


class FirstBlockEveryOtherStep(FirstBlock):
    """Every parameter is reached at even steps, the first block's alone at odd ones."""

    objectives = ("forget",)

    def forget_loss(self, rows: Rows) -> Tensor:
        if self.steps_done % 2 == 0:
            return rows.token_mean(self.model.token_log_probs(rows))
        return super().forget_loss(rows)


class BreaksOnce(GradDiff):
    """Its forget loss is infinite at the second step of `step_rows`, for one row on one rank."""

    def forget_loss(self, rows: Rows) -> Tensor:
        broken = self.steps_done == 1 and "f1-0" in rows.ids
        return super().forget_loss(rows) * (math.inf if broken else 1.0)


METHODS: dict[str, tuple[type[UnlearningTrainer], Mapping[str, object]]] = {
    "finetune": (Finetune, {}),
    "grad_ascent": (GradAscent, {}),
    "grad_diff": (GradDiff, {"retain_weight": 2.0}),
    "npo": (NPO, {}),
    "npo_kl": (NPO, {"retain_loss": "kl"}),
    "npo_states": (NPO, {"retain_loss": "states"}),
    "rmu": (RMU, {}),
    "dpo": (DPO, {}),
    "breaks_once": (BreaksOnce, {"on_nonfinite": "skip"}),
    "first_block": (FirstBlock, {}),
    "first_block_every_other_step": (FirstBlockEveryOtherStep, {}),
}
WEIGHTINGS = {
    "none": lambda: None,
    "ngdiff": lambda: NormalizedGradients(NormalizedGradients.Config()),
    "blur": lambda: BLUR(BLUR.Config()),
    # the tiny model begins at a loss of about 4.5
    "primal_dual": lambda: PrimalDual(PrimalDual.Config(level=4.0)),
    "primal_dual_relative": lambda: PrimalDual(PrimalDual.Config(level=0.01, relative=True)),
    "gru": lambda: GRU(GRU.Config(rate=0.3, retain=1.0)),
    "log_barrier": lambda: LogBarrier(LogBarrier.Config(level=8.0, growth=1.5)),
}
PERTURBATIONS = {
    "none": lambda: None,
    "sam": lambda: SAM(SAM.Config(rho=0.05)),
    # large enough that bf16, at weights of 0.1, does not round them away
    "random_smoothing": lambda: RandomSmoothing(RandomSmoothing.Config(sigma=0.01, draws=2)),
    "gradient_penalty": lambda: GradientPenalty(GradientPenalty.Config(penalty=0.1, step=0.1)),
    "curvature": lambda: Curvature(Curvature.Config(penalty=0.03, radius=0.3, step=0.3)),
}
SELECTIONS = {
    "none": lambda: None,
    "su": lambda: SelectiveUnlearning(
        SelectiveUnlearning.Config(
            left=0, right=0, assistants=Recipe(steps=3, batch_size=4, hidden_size=8, layers=1)
        )
    ),
}
TUNINGS: dict[str, Tuning] = {
    "full": Full(Full.Config()),
    "layers": Layers(Layers.Config(parameters=r"layers\.1\.mlp|layers\.0\.input_layernorm")),
    "lora": LoRA(LoRA.Config(rank=4, alpha=8.0)),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token: `t3`, `t4`, ..., with end and padding tokens."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"t{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",  # noqa: S106 - a token, not a password
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
    )


def module(*, seed: int = 0, tied: bool = False, **settings: object) -> LlamaForCausalLM:
    """A Llama of width 32 with grouped-query attention, in fp32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": tied,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.1,
            **settings,
        }
    )
    return LlamaForCausalLM(config)


def language_model(*, tuning: str = "full", **settings: object) -> LanguageModel:
    """The tiny module with its tokenizer, the parameters that `tuning` names trainable."""
    return wrapped(TUNINGS[tuning].apply(module(**settings)))


def wrapped(module: PreTrainedModel) -> LanguageModel:
    """A module of this vocabulary with the tokenizer."""
    model = LanguageModel(
        module,
        tokenizer(),
        prompt_format=PromptFormat(),
        max_length=64,
        tokens_per_micro_batch=64,
    )
    model.linear_head = True  # as a first pass over a few tokens would find
    return model


def point_engine(*values: float, optimizer: Optimizer, precision: str = "fp32") -> LocalEngine:
    """A point under LocalEngine."""
    model = LanguageModel(
        Point(*values),  # type: ignore[arg-type]
        tokenizer(),
        prompt_format=PromptFormat(),
        max_length=64,
    )
    return LocalEngine(
        LocalEngine.Config(),
        model=model,
        optimizer=optimizer,
        precision=precision,  # type: ignore[arg-type]
    )


def rows(n: int, *, name: str, seed: int = 0) -> list[Row]:
    """`n` rows of 4 to 24 random tokens; the first third is prompt."""
    draw = random.Random(f"{name}:{seed}")
    made = []
    for i in range(n):
        length = draw.randint(4, 24)
        ids = (1, *(draw.randrange(3, VOCABULARY) for _ in range(length - 2)), 2)
        prompt = 1 + length // 3
        made.append(Row(f"{name}{i}", ids, (0.0,) * prompt + (1.0,) * (length - prompt)))
    return made


def pairs(n: int, *, name: str, seed: int = 0) -> list[Row]:
    """Rows as `rows` gives them, each with a preferred answer of 2 to 12 tokens to its prompt."""
    draw = random.Random(f"preferred {name}:{seed}")
    made = []
    for row in rows(n, name=name, seed=seed):
        prompt = row.weights.index(1.0)
        answer = (*(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 11))), 2)
        weights = (0.0,) * prompt + (1.0,) * len(answer)
        other = Row(f"{row.id}/preferred", row.input_ids[:prompt] + answer, weights)
        made.append(replace(row, preferred=other))
    return made


def packed(rows: Sequence[Row]) -> Rows:
    """One micro-batch that is a whole step."""
    return Rows.pack(rows)


def step_rows(steps: int, n: int = 5, *, prefers: bool = False) -> list[dict[str, list[Row]]]:
    """Forget and retain rows of each step; every step has other rows, of unequal lengths.

    `prefers`: as `UnlearningTrainer.prefers`, the forget rows come with preferred answers.
    """
    return [
        {
            "forget": (pairs if prefers else rows)(n, name=f"f{s}-"),
            "retain": rows(n, name=f"r{s}-"),
        }
        for s in range(steps)
    ]


def selected(
    plan: Sequence[Mapping[str, Sequence[Row]]], selection: Selection | None
) -> list[dict[str, Sequence[Row]]]:
    """The plan with the selection applied to the forget rows of all its steps."""
    if selection is None:
        return [dict(step) for step in plan]
    forget, retain = ([row for step in plan for row in step[x]] for x in ("forget", "retain"))
    rows = select(selection, forget, retain, language_model(), seed=0).rows
    share = sum(row.weight for row in rows) / sum(row.weight for row in forget)
    assert 0.1 < share < 0.9, share
    left = iter(rows)
    return [{**step, "forget": [next(left) for _ in step["forget"]]} for step in plan]


def optimizer(
    name: str,
    *,
    clip: float | None,
    learning_rate: float | None = None,
    automatic_every: int = 0,
) -> Optimizer:
    """AdamW or Muon at 1e-3 or SGD at 0.1 unless told; Muon is never clipped."""
    if name == "muon":
        rate = learning_rate or 1e-3
        return Muon(
            Muon.Config(learning_rate=rate, weight_decay=0.1, automatic_every=automatic_every)
        )
    shared = {"max_gradient_norm": clip, "automatic_every": automatic_every}
    if name == "adamw":
        rate = learning_rate or 1e-3
        return AdamW(AdamW.Config(learning_rate=rate, weight_decay=0.1, **shared))
    rate = learning_rate or 0.1
    return SGD(SGD.Config(learning_rate=rate, **shared))


def trainer(
    engine: Engine,
    reference_model: LanguageModel,
    plan: Sequence[Mapping[str, Sequence[Row]]],
    *,
    method: str,
    optimizer: Optimizer,
    weighting: Weighting | None = None,
    perturbation: Perturbation | None = None,
    averaging: WeightAveraging | None = None,
    compare_every: int = 0,
    **settings: object,
) -> UnlearningTrainer:
    """A trainer of `method` on `engine`, its reference built from `reference_model`."""
    kind, defaults = METHODS[method]
    return assemble(
        kind,
        kind.Config(**{"compare_every": compare_every, **defaults, **settings}),  # type: ignore[arg-type]
        engine,
        reference_model,
        plan,
        weighting=weighting,
        perturbation=perturbation,
        averaging=averaging,
        optimizer=optimizer,
    )


def assemble(
    kind: type[UnlearningTrainer],
    config: UnlearningTrainer.Config,
    engine: Engine,
    reference_model: LanguageModel,
    plan: Sequence[Mapping[str, Sequence[Row]]],
    **parts: object,
) -> UnlearningTrainer:
    """A trainer with the reference that its losses need, of `plan`'s rows.

    `parts`: the trainer's own arguments `optimizer`, `weighting`, `perturbation` and so on.
    """
    needed = reference_needed(kind, config)
    reference = None
    if needed == "frozen":
        reference = FrozenReference(reference_model)
    elif needed == "cached":
        rows: dict[str, list[Row]] = {}
        for step in plan:
            for name, drawn in step.items():
                rows.setdefault(name, []).extend(drawn)
        asked = read_of_reference(kind, config, rows)
        layer = layer_of(config, reference_model.module.config)
        reference = CachedReference.build(reference_model, asked, layer=layer)
    return kind(config, engine=engine, reference=reference, **parts)  # type: ignore[arg-type]


def train(
    trainer: UnlearningTrainer,
    plan: Sequence[Mapping[str, Sequence[Row]]],
    *,
    tokens: int,
    as_ranks: int | None = None,
) -> None:
    """Take every step of `plan`, micro-batches holding at most `tokens` tokens.

    `as_ranks`: read the very micro-batches that so many ranks would read, one after another.
    """
    trainer.model.tokens_per_micro_batch = tokens
    for step in plan:
        of = distributed.world_size() if as_ranks is None else as_ranks
        mine = [distributed.rank()] if as_ranks is None else range(as_ranks)
        batches = [
            batch
            for rank in mine
            for batch in trainer.micro_batches(step, trainer.steps_done, share=(rank, of))
        ]
        trainer.step(batches, learning_rate=trainer.optimizer.peak)


def local_engine(
    optimizer: Optimizer, *, precision: str = "fp32", **settings: object
) -> LocalEngine:
    """The tiny model under LocalEngine."""
    return LocalEngine(
        LocalEngine.Config(),
        model=language_model(**settings),
        optimizer=optimizer,
        precision=precision,  # type: ignore[arg-type]
    )
