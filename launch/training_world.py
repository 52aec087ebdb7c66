"""What the training bench steps: a model of random weights, an engine, rows, a trainer per method.

One model and one engine serve all methods, so that what is compared differs in the method alone,
and ten methods of a large model need no more room than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from omegaconf import DictConfig

from framework import LanguageModel, Row, Rows, UnlearningTrainer, build, distributed
from framework.config import choices, compose, part_of, plain
from framework.engine import Engine, LocalEngine
from framework.errors import ConfigError
from framework.method import Method, layer_of, read_of_reference, reference_needed
from framework.optimizers import AdamW, Optimizer
from framework.parts import Plan
from framework.reference import CachedReference, FrozenReference, Reference
from framework.schema import hint
from framework.tuning import Tuning

from .assembly import loading, selection
from .peer_style import Recipe
from .settings import CONFIGS, KINDS, RunSettings, is_sharded
from .shapes import LENGTHS, SHAPES, rows_of
from .step_looks import Look, Losses, look

METHODS: Mapping[str, tuple[str, ...]] = {
    "grad_diff": ("trainer=grad_diff",),
    "ga": ("trainer=grad_ascent",),
    "npo": ("trainer=npo",),
    "npo_kl": ("trainer=npo", "trainer.retain_loss=kl"),
    "simnpo": ("trainer=simnpo",),
    "pdu": ("trainer=logit_margin", "weighting=primal_dual"),
    "su": ("trainer=npo", "selection=su_ngram"),
    "blur": ("trainer=npo", "weighting=blur"),
    "ngdiff": ("trainer=grad_diff", "weighting=ngdiff"),
    "sam": ("trainer=npo", "perturbation=sam"),
    "dpo": ("trainer=dpo",),
    "rmu": ("trainer=rmu",),
}
"""What is typed after launch.train; every other `trainer=` is a method by its own name."""
RATE = 1e-6
"""Of the optimizer: steps change the weights, and do not ruin them in a hundred steps."""

Batch = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class World:
    """The model and its engine, before any step."""

    config: DictConfig
    model: LanguageModel
    before: LanguageModel | None
    """A frozen copy, where a method or a peer reads one."""
    engine: Engine
    optimizer: Optimizer

    @property
    def parameters(self) -> int:
        """All of the model's."""
        numbers = (getattr(p, "ds_numel", p.numel()) for p in self.model.module.parameters())
        return sum(numbers)

    def batch(self, lengths: str, *, rows: int | None = None, draw: int = 0) -> Batch:
        """A step's rows: forget ones that bring a preferred answer, and retain ones.

        `draw`: 0, 1 ...: other rows each, which is the same as another `seed` gives.
        """
        count = self.config.rows if rows is None else rows
        return {
            name: rows_of(
                LENGTHS[lengths],
                count,
                vocabulary=int(self.model.module.config.vocab_size),
                seed=2 * (self.config.seed + draw) + index,
                name=f"{draw}/{name}",
                paired=name == "forget",
            )
            for index, name in enumerate(("forget", "retain"))
        }

    def draws(self, lengths: str) -> list[Batch]:
        """The rows of each round."""
        return [self.batch(lengths, draw=i) for i in range(self.config.rounds)]

    def stepper(self, method: str, rows: Batch) -> Stepper:
        """The trainer of a method, with the reference that it needs of these rows."""
        (stepper,) = self.steppers(method, [rows])
        return stepper

    def steppers(self, method: str, draws: Sequence[Batch]) -> list[Stepper]:
        """One trainer of the method, for a step of the rows of each draw."""
        config = method_config(method)
        kind, settings = part_of(config.trainer)
        given = {
            name: [_read_by(kind, row, name) for rows in draws for row in rows[name]]
            for name in draws[0]
        }
        selected = selection(config, given, self.model)
        if selected is not None:
            given["forget"] = selected.rows
        needed = reference_needed(kind, settings)
        known = self.model if self.before is None else self.before
        reference: Reference | None = None
        if needed == "frozen":
            reference = FrozenReference(known)
        elif needed == "cached":
            asked = read_of_reference(kind, settings, given)
            layer = layer_of(settings, known.module.config)
            reference = CachedReference.build(known, asked, layer=layer)
        trainer: UnlearningTrainer = kind(
            settings,
            engine=self.engine,
            optimizer=self.optimizer,
            reference=reference,
            weighting=build(config.weighting),
            perturbation=build(config.perturbation),
            seed=self.config.seed,
        )
        trainer.begin(Plan(steps=10**6, steps_per_epoch=100))
        read = {name: {row.id: row for row in given[name]} for name in trainer.objectives}
        return [
            Stepper(trainer, {name: [read[name][row.id] for row in rows[name]] for name in read})
            for rows in draws
        ]

    def leave_reference(self) -> None:
        """Move the weights a little off the reference, so that no difference to it is zero."""
        self.engine.set_weights(self.engine.weights().add_(self.engine.noise(0), 5e-3))


def _read_by(kind: type[Method], row: Row, objective: str) -> Row:
    """As the method has it: a forget row with its preferred answer only where it reads that."""
    reads = kind.prefers or objective != "forget"
    return row if reads else Row(row.id, row.input_ids, row.weights)


@dataclass(frozen=True)
class Stepper:
    """A trainer and the rows of its step."""

    trainer: UnlearningTrainer
    rows: Batch
    budget: int | None = None
    """Tokens of a micro-batch, where not the model's own."""

    def step(self, rate: float = RATE) -> None:
        """Pack the rows, take the step."""
        self.trainer.step(self.batches(), learning_rate=rate)

    def look(self) -> Look:
        """The step, taken where nothing moves."""
        trainer = self.trainer
        engine = trainer.engine
        assert isinstance(engine, LocalEngine)

        def step() -> Losses:
            self.step()
            found = trainer.metrics()
            return {name: found[f"train/{name}/loss"] for name in trainer.objectives}

        return look(engine, trainer.optimizer.config, engine.optimizer, step)

    def batches(self) -> list[dict[str, Rows]]:
        """The rows, packed."""
        trainer, model = self.trainer, self.trainer.model
        whole = model.tokens_per_micro_batch
        model.tokens_per_micro_batch = whole if self.budget is None else self.budget
        try:
            return trainer.micro_batches(self.rows, trainer.steps_done)
        finally:
            model.tokens_per_micro_batch = whole

    def in_two(self) -> Stepper:
        """The same step with the smallest budget that cuts no micro-batch into more than two.

        To a twentieth, and where rows are not too long for it.
        """
        found = self.batches()
        longest = max(len(rows.input_ids) for batch in found for rows in batch.values())
        budget = longest // 2
        while len(replace(self, budget=budget).batches()) > 2 * len(found):
            budget += max(1, budget // 20)
        return replace(self, budget=budget)

    @property
    def tokens(self) -> int:
        """Real tokens of the step: of its rows, and of their preferred answers' rows."""
        return sum(row.tokens for rows in self.rows.values() for row in rows)


def make_world(config: DictConfig, *, copied: bool) -> World:
    """The world of these settings; `copied`: with the frozen copy.

    Weights are drawn where they will be, under ZeRO-3 each rank its share: no whole copy of a large
    model is ever in host memory.
    """
    if distributed.launched() or is_sharded(config):
        distributed.connect()
    model = draw(config)
    before = None
    if copied and config.tuning.name != "lora":
        before = draw(config, sharded=False)  # of the same seed
        before.module.requires_grad_(False)
        before.module.eval()
        before.check_packing()
    tuning: Tuning = build(config.tuning)
    torch.manual_seed(config.seed)
    model.module = tuning.apply(model.module)
    model.move(distributed.device())
    optimizer = AdamW(AdamW.Config(learning_rate=RATE))
    engine: Engine = build(
        config.zero, model=model, optimizer=optimizer, precision=config.precision
    )
    model.check_packing()
    model.module.train()
    engine.step(engine.noise(0).scale_(0.0), 0.0)  # the optimizer has its moments now
    return World(config, model, before, engine, optimizer)


def draw(config: DictConfig, *, sharded: bool = True) -> LanguageModel:
    """The model with random weights; under ZeRO-3 this rank's share of it, where `sharded`."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with torch.device(distributed.device()), loading(config) if sharded else nullcontext():
        return SHAPES[config.shape].model(
            dtype=dtype,
            tokens_per_micro_batch=config.tokens_per_micro_batch,
            seed=config.seed,
        )


def method_config(method: str) -> DictConfig:
    """The settings of a run of the method, by its name here or by its `trainer=`."""
    known = [*METHODS, *choices(CONFIGS, "trainer")]
    if method not in known:
        there = hint(method, list(dict.fromkeys(known)), "known")
        raise ConfigError(f"methods: there is no {method!r}{there}")
    # without the steps in ten that take gradients apart to log their cosine
    given = [*METHODS.get(method, (f"trainer={method}",)), "trainer.compare_every=0"]
    return compose("train", given, configs=CONFIGS, schema=RunSettings, kinds=KINDS)


def known_methods(named: Sequence[str] | None) -> None:
    """Raise ConfigError for a method that is not there, and where none is named."""
    if named is not None and not named:
        raise ConfigError("methods is empty; name some, or leave it out: [npo,npo_kl]")
    for method in named or []:
        method_config(method)


def needs_copy(method: str) -> bool:
    """Whether the method reads the whole model before unlearning."""
    return reference_needed(*part_of(method_config(method).trainer)) == "frozen"


def recipe_of(method: str, trainer: UnlearningTrainer) -> Recipe:
    """The peers' recipe of a method, with our settings."""
    config = method_config(method)
    settings = plain(config.trainer) | plain(config.perturbation) | plain(config.weighting)
    own = {each.name: settings[each.name] for each in fields(Recipe) if each.name in settings}
    own |= {"layer": layer_of(trainer.config, trainer.model.module.config), "seed": trainer.seed}
    return Recipe(**{**own, "method": method})
