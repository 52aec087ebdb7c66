"""Counting: what one step does, told by a run's own trainer on tensors without memory.

Method, weighting, perturbation and `LocalEngine`'s passes are those of a run, the model has its
true sizes in bf16, and every operation is dispatched on `meta`; only nothing is computed. So there
are exact numbers for models that no machine at hand could hold, in seconds: the blocks of a model
are alike, so two depths are counted, and the line through them gives the rest. Attention is what a
GPU does (`counted_attention.py`).

FLOPs are counted as `flops.py` says. A cached reference holds its values already; a frozen one
reads along, and its passes are counted as `reads`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from framework import LanguageModel, LocalEngine, Row, Rows, UnlearningTrainer, attention, build
from framework.config import part_of
from framework.engine import Loss, Shift, measure_shift
from framework.method import asked_of_reference, reference_needed
from framework.optimizers import AdamW
from framework.parts import Plan
from framework.reference import FrozenReference, Reference
from framework.vectors import Vector

from .counted_attention import PACKED, PADDED
from .peer_style import BEST, PeerStyle, Update
from .rehearsal import Remembered
from .shapes import Shape
from .step_watch import Passes, Watch, let_go
from .training_world import RATE, method_config, recipe_of

StepRows = Mapping[str, Sequence[Row]]
DEPTHS = (1, 2)
"""Blocks of the models that are counted in place of a deeper one; where the middle block's states
are read, twice as many."""
META = torch.device("meta")
W = TypeVar("W", "Work", "PeerWork")


@dataclass(frozen=True)
class Work:
    """What one step does."""

    flops: int
    forwards: int
    """Forward passes whose gradient is taken."""
    backwards: int
    reads: int
    """Forward passes of a frozen reference."""
    gradients: int
    """Gradients of the whole model: one, or one for each objective and reading."""
    shifts: int
    """How often the weights were moved to take a gradient elsewhere."""
    tokens: int
    """Read by all these passes."""
    logits: int
    """Positions of which logits were computed forward, the reference's too."""
    syncs: int
    """Numbers that the host waited for."""
    stretches: tuple[int, ...]
    """The most bytes that were held in each stretch of the step (`step_watch.Watch`)."""

    @property
    def peak_bytes(self) -> int:
        """The most that a forward and backward pass held beside weights, gradients and optimizer.

        Of gradients, only those being made.
        """
        return max(self.stretches)


@dataclass(frozen=True)
class PeerWork:
    """What a step of the peers does on the same rows."""

    flops: int
    """Batch by batch, each padded to its longest row."""
    stretches: tuple[int, ...]
    """As `Work.stretches`, of all rows in one batch: as many in flight as ours has."""

    @property
    def peak_bytes(self) -> int:
        """As `Work.peak_bytes`; and the gradient that waits in one branch for that of the other."""
        return max(self.stretches)


def count(method: str, shape: Shape, rows: StepRows, *, tokens: int) -> Work:
    """One step of the method, by its name in `training_world`; `tokens`: of a micro-batch."""
    return _of_all_blocks(
        method, shape, lambda shallow: count_directly(method, shallow, rows, tokens=tokens)
    )


def count_peers(method: str, shape: Shape, rows: StepRows, *, batch: int) -> PeerWork:
    """The same step as peers take it at their best (`peer_style.BEST`), in batches."""

    def counted(batch: int) -> PeerWork:
        return _of_all_blocks(
            method, shape, lambda shallow: _peers_directly(method, shallow, rows, batch)
        )

    there = len(rows["forget"])
    whole = counted(there)
    return whole if batch >= there else replace(whole, flops=counted(batch).flops)


def _of_all_blocks(method: str, shape: Shape, counted: Callable[[Shape], W]) -> W:
    """What is counted of two shallow models, carried on to the model's depth."""
    asked = asked_of_reference(*part_of(method_config(method).trainer))
    low_depth, high_depth = (d * (2 if "states" in asked.values() else 1) for d in DEPTHS)
    if shape.blocks <= high_depth:
        return counted(shape)
    low, high = (counted(replace(shape, blocks=depth)) for depth in (low_depth, high_depth))
    share = (shape.blocks - low_depth) // (high_depth - low_depth)
    assert low_depth + share * (high_depth - low_depth) == shape.blocks, shape

    def told(a: Any, b: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(told(*pair) for pair in zip(a, b, strict=True))
        return a + share * (b - a)

    pairs = zip(asdict(low).items(), asdict(high).values(), strict=True)
    return type(low)(**{name: told(a, b) for (name, a), b in pairs})


def count_directly(method: str, shape: Shape, rows: StepRows, *, tokens: int) -> Work:
    """The same with every block there is: seconds become minutes."""
    prepared = _Prepared(method, shape, tokens)
    trainer, engine = prepared.trainer, prepared.engine
    watch = engine.watch
    batches = trainer.micro_batches(rows, trainer.steps_done)
    passes = [Passes(x.module) for x in (prepared.model, prepared.twin) if x is not None]
    with watch:
        trainer.step(batches, learning_rate=RATE)
    return Work(
        flops=watch.flops,
        forwards=passes[0].forwards,
        backwards=engine.backwards,
        reads=sum(each.reads for each in passes),
        gradients=engine.gradients,
        shifts=engine.shifts,
        tokens=sum(each.tokens for each in passes),
        logits=watch.logits,
        syncs=watch.syncs,
        stretches=tuple(watch.stretches),
    )


def _peers_directly(method: str, shape: Shape, rows: StepRows, batch: int) -> PeerWork:
    prepared = _Prepared(method, shape, tokens=4096)
    with META:
        module, before = (shape.module(dtype=torch.bfloat16) for _ in range(2))
        for each in (module, before):
            each.set_attn_implementation(PADDED)
        before.requires_grad_(requires_grad=False)
        let_go(list(module.parameters()))
        peers = PeerStyle(
            recipe_of(method, prepared.trainer),
            BEST,
            module=module,
            reference=before,
            update=_NoUpdate(module),
            batch=batch,
        )
    watch = Watch(shape.vocabulary)
    with watch, watch.holding():
        peers.differentiate(rows["forget"], rows["retain"])
    return PeerWork(watch.flops, tuple(watch.stretches))


class _NoUpdate(Update):
    """The parameters of a step whose gradient alone is asked for."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = list(module.parameters())


class _Prepared:
    """A trainer in the middle of its run, on a model without memory."""

    def __init__(self, method: str, shape: Shape, tokens: int) -> None:
        config = method_config(method)
        kind, settings = part_of(config.trainer)
        needed = reference_needed(kind, settings)
        self.optimizer = AdamW(AdamW.Config(learning_rate=RATE))
        warm = Rows.pack([Row("", (1, 1), (0.0, 1.0))], device=META)
        with META:
            self.model = _model(shape, tokens)
            self.twin = _model(shape, tokens) if needed == "frozen" else None
            self.engine = _Counted(
                LocalEngine.Config(),
                model=self.model,
                optimizer=self.optimizer,
                precision="bf16",
            )
            for model in (self.model, self.twin):
                if model is not None:
                    with model.evaluating():  # what is found out at a first reading
                        model.token_log_probs(warm)
        reference: Reference | None = None
        if self.twin is not None:
            self.twin.module.requires_grad_(requires_grad=False)
            reference = FrozenReference(self.twin)
        elif needed is not None:
            with_head = "logits" in asked_of_reference(kind, settings).values()
            reference = Remembered(self.model, self.engine.watch, with_head=with_head)
        self.trainer: UnlearningTrainer = kind(
            settings,
            engine=self.engine,
            optimizer=self.optimizer,
            reference=reference,
            weighting=build(config.weighting),
            perturbation=build(config.perturbation),
            seed=-1,  # what is remembered by seed is never taken for a real run's
        )
        self.trainer.begin(Plan(10, 10))
        self.model.module.train()


class _Model(LanguageModel):
    """A model that attends as on a GPU; fake weights have their precision already."""

    def attend(self, implementation: str) -> None:
        """See `Reader.attend`."""
        super().attend(PACKED if implementation == attention.NAME else implementation)

    def shares_beginnings(self) -> bool:
        """See `Reader.shares_beginnings`."""
        return True

    def cast(self, dtype: torch.dtype) -> None:
        """See `LanguageModel.cast`."""
        assert self.module.dtype == dtype


class _Counted(LocalEngine):
    """LocalEngine, which counts what it differentiates, and lets go of what it found.

    No pass depends on how long a vector is: all are of one number here.
    """

    def __init__(self, config: LocalEngine.Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.backwards = self.gradients = self.shifts = 0
        let_go(self._parameters)
        self.watch = Watch(self.model.module.config.vocab_size)

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """See `Engine.gradient`."""
        self.gradients += 1
        for loss in losses:
            with self.watch.holding():
                loss().backward()
            self.backwards += 1
        return _vector()

    def noise(self, seed: int) -> Vector:
        """See `Engine.noise`."""
        del seed
        return _vector()

    def shift(self, delta: Vector) -> Shift:
        """See `Engine.shift`."""
        self.shifts += 1
        return measure_shift(zip(delta.shards, delta.shards, strict=True), replicated=True)

    def unshift(self, *, alone: bool = False) -> None:
        """See `Engine.unshift`."""
        del alone

    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """See `Engine.step`."""


def _vector() -> Vector:
    return Vector([torch.ones(1)], replicated=True)


def _model(shape: Shape, tokens: int) -> _Model:
    model = shape.model(dtype=torch.bfloat16)
    return _Model(
        model.module,
        model.tokenizer,
        prompt_format=model.prompt_format,
        max_length=model.max_length,
        tokens_per_micro_batch=tokens,
    )
