"""A rehearsal: a run's real trainer takes its largest step on tensors without memory.

Everything that decides how much memory a step takes is the run's own: model, method, weighting,
perturbation, averaging, optimizer, rows. Only the weights are not there, and under ZeRO the engine
is one that makes what DeepSpeed would (`rehearsed_zero.py`). Its tensors say that they are on a
CPU, but the head's chunks are a GPU's. Seconds for a model of 8 billion parameters, on any machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from framework import LanguageModel, Row, head
from framework.averaging import WeightAveraging
from framework.data import Rows
from framework.engine import Engine, LocalEngine, Loss
from framework.method import Method, asked_of_reference
from framework.optimizers import Optimizer
from framework.parts import Perturbation, Plan, Weighting
from framework.reference import (
    FrozenHead,
    FrozenReference,
    Reference,
    frozen_head,
    logits_in_chunks,
)
from framework.trainer import UnlearningTrainer
from framework.vectors import Vector

from .ledger import ACTIVATIONS, BUFFERS, GRADIENTS, VECTORS, Ledger
from .rehearsed_zero import REDUCED, RehearsedZero, Spread, states_of

StepRows = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Rehearsed:
    """What is rehearsed."""

    method: type[UnlearningTrainer]
    settings: Method.Config
    model: LanguageModel
    """With its adapters, if any, on the meta device."""
    reference: Literal["cached", "frozen", "itself"] | None
    """What keeps the model before unlearning; itself: the model, its adapters off."""
    optimizer: Optimizer
    dtype: torch.dtype
    zero: Spread | None
    weighting: Weighting | None = None
    perturbation: Perturbation | None = None
    averaging: WeightAveraging | None = None
    sources: Sequence[str] = ()


def rehearse(run: Rehearsed, rows: StepRows) -> Ledger:
    """The ledger of a small step and of steps of `rows`, on the rank that reads most of them."""
    vocabulary = run.model.module.get_output_embeddings().weight.shape[0]
    ledger = Ledger(vocabulary=vocabulary)
    copies = _Copies(FakeTensorMode())
    twin = None
    if run.reference == "frozen":
        twin = _without_memory(run.model, run.dtype, copies.mode)
        twin.module.requires_grad_(False)
    model = _without_memory(run.model, run.dtype, copies.mode)
    with copies.mode, ledger:
        with ledger.phase("loading"):
            if twin is not None:
                ledger.assign(list(twin.module.parameters()), "frozen reference")
            engine = _engine(run, model, ledger)
        trainer = run.method(
            run.settings,
            engine=engine,
            optimizer=run.optimizer,
            reference=_reference(run, model, twin, ledger),
            weighting=copy.deepcopy(run.weighting),  # what it learns is of this rehearsal
            perturbation=copy.deepcopy(run.perturbation),
            averaging=copy.deepcopy(run.averaging),
            sources=run.sources,
        )
    model.module.train()
    steps = {0: {name: list(chosen[:1]) for name, chosen in rows.items()}, 1: rows}
    if run.settings.compare_every > 2:  # a step whose gradients are compared holds each of them
        steps[run.settings.compare_every - 1] = rows
    trainer.begin(Plan(max(steps) + 1, max(steps) + 1))
    for step, chosen in steps.items():
        trainer.steps_done = step
        share = 0, 1 if run.zero is None else run.zero.ranks
        batches = copies.of(_some(trainer.micro_batches(chosen, step, share=share)))
        with _chunks_of_a_gpu(), copies.mode, ledger, ledger.phase("update"):
            trainer.step(batches, learning_rate=run.optimizer.peak)
    return ledger


def _some(batches: Sequence[Mapping[str, Rows]]) -> list[Mapping[str, Rows]]:
    """Two micro-batches of each kind, which a third would need no more memory than."""
    kept: list[Mapping[str, Rows]] = []
    for batch in batches:
        if sum(list(batch) == list(other) for other in kept) < 2:
            kept.append(batch)
    return kept


@contextmanager
def _chunks_of_a_gpu() -> Iterator[None]:
    """Inside, a chunk of logits has as many tokens as on a GPU."""
    tokens = head.TOKENS.pop("cpu")
    try:
        yield
    finally:
        head.TOKENS["cpu"] = tokens


CPU = torch.device("cpu")


class _Model(LanguageModel):
    """A model whose tensors have their precision and place already."""

    def cast(self, dtype: torch.dtype) -> None:
        """See `LanguageModel.cast`."""


class _Copies:
    """Things made again of tensors without memory; what was one thing stays one."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, thing: Any) -> Any:
        """`thing`, its tensors without memory."""
        if id(thing) in self._made:
            return self._made[id(thing)][1]
        made = self._of(thing)
        self._made[id(thing)] = thing, made
        return made

    def _of(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            with self.mode:
                return torch.empty(thing.shape, dtype=thing.dtype, device="cpu")
        if isinstance(thing, Mapping):
            return {name: self.of(part) for name, part in thing.items()}
        if isinstance(thing, list):
            return [self.of(part) for part in thing]
        if is_dataclass(thing) and not isinstance(thing, type):
            return replace(
                thing, **{f.name: self.of(getattr(thing, f.name)) for f in fields(thing)}
            )
        return thing


class _Local(LocalEngine):
    """LocalEngine, whose steps are entered into a ledger; under ZeRO-0 it reduces, too."""

    def __init__(self, run: Rehearsed, model: LanguageModel, ledger: Ledger) -> None:
        parameters = list(model.module.parameters())
        ledger.assign([*parameters, *model.module.buffers()], "weights")
        with ledger.making("masters"):
            super().__init__(
                LocalEngine.Config(),
                model=model,
                optimizer=run.optimizer,
                precision="bf16" if run.dtype == torch.bfloat16 else "fp32",
            )
        self._ledger, self._reduces = ledger, run.zero is not None
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._ledger.assign([parameter.grad], GRADIENTS)

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """See `Engine.gradient`."""
        with self._ledger.phase("backward"):
            found = super().gradient([self._watched(loss) for loss in losses])
            self._ledger.assign(found.shards, VECTORS)
            if self._reduces:
                with self._ledger.making(BUFFERS):
                    elements = sum(shard.numel() for shard in found.shards)
                    torch.empty(min(elements, REDUCED), dtype=torch.float32, device="cpu")
        return found

    def _watched(self, loss: Loss) -> Loss:
        """The loss; from it to the end of its backward pass, activations are made."""

        def watched() -> Tensor:
            self._ledger.part = ACTIVATIONS
            value = loss()
            value.register_hook(lambda _: engine.queue_callback(ended))
            return value

        def ended() -> None:
            self._ledger.part = VECTORS

        engine = torch.autograd.Variable._execution_engine  # noqa: SLF001 - torch's own name for it
        return watched

    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """See `Engine.step`."""
        first = not self.optimizer.state
        with self._ledger.phase("step"), self._ledger.making("the step's own"):
            super().step(direction, learning_rate, skip=skip)
            if first:
                self._ledger.assign(states_of(self.optimizer), "optimizer")


def _engine(run: Rehearsed, model: LanguageModel, ledger: Ledger) -> Engine:
    if run.zero is None or run.zero.stage == 0:
        return _Local(run, model, ledger)
    return RehearsedZero(
        run.zero, model=model, optimizer=run.optimizer, dtype=run.dtype, ledger=ledger
    )


class Remembered(Reference):
    """What a cached reference hands out, of no values; the head it keeps for logits is held."""

    def __init__(self, model: LanguageModel, ledger: Ledger, *, with_head: bool) -> None:
        """`with_head`: whether its logits are asked for."""
        self._width = int(model.module.config.get_text_config().hidden_size)
        self._head: FrozenHead | None = None
        if with_head:
            with ledger.making("the reference's head"):
                self._head = frozen_head(model)
        self._dtype = next(model.module.parameters()).dtype

    def token_log_probs(self, rows: Rows) -> Tensor:
        """See `Reference.token_log_probs`."""
        return torch.zeros_like(rows.weights)

    def logits_of(self, rows: Rows) -> Callable[[slice], Tensor]:
        """See `Reference.logits_of`."""
        assert self._head is not None
        return logits_in_chunks(self.states(rows, 0), self._head)

    def states(self, rows: Rows, layer: int) -> Tensor:
        """See `Reference.states`."""
        del layer
        return rows.weights.new_zeros(len(rows.scored), self._width, dtype=self._dtype)


def _reference(
    run: Rehearsed, model: LanguageModel, twin: LanguageModel | None, ledger: Ledger
) -> Reference | None:
    if run.reference in ("frozen", "itself"):
        return FrozenReference(model if twin is None else twin)
    if run.reference is None:
        return None
    with_head = "logits" in asked_of_reference(run.method, run.settings).values()
    return Remembered(model, ledger, with_head=with_head)


def _without_memory(model: LanguageModel, dtype: torch.dtype, mode: FakeTensorMode) -> _Model:
    """A model as `model` is, of tensors of `dtype` that are not there; tied ones stay tied."""
    module: PreTrainedModel = copy.deepcopy(model.module)
    made: dict[Tensor, Tensor] = {}
    for part in module.modules():
        tables: list[dict[str, Any]] = [part._parameters, part._buffers]  # noqa: SLF001 - no public way keeps ties
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor not in made:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    with mode:
                        empty = torch.empty(tensor.shape, dtype=kind, device=CPU)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        made[tensor] = (
                            nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                        )
                if tensor is not None:
                    table[name] = made[tensor]
    return _Model(
        module,
        model.tokenizer,
        prompt_format=model.prompt_format,
        max_length=model.max_length,
        tokens_per_micro_batch=model.tokens_per_micro_batch,
    )
