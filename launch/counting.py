"""Counting: what one step does, told by a run's own trainer on tensors without memory.

Method, weighting, perturbation and `LocalEngine`'s passes are those of a run, the model has its
true sizes in bf16, and every operation is dispatched; only nothing is computed. So there are exact
numbers for models that no machine at hand could hold, in seconds: the blocks of a model are alike,
so two depths are counted, and the line through them gives the rest.

FLOPs are counted as `flops.py` says. A cached reference holds its values already; a frozen one
reads along, and its passes are counted as `reads`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from framework import LanguageModel, LocalEngine, Row, Rows, UnlearningTrainer, build
from framework.config import part_of
from framework.data import laid_out
from framework.engine import Loss, Shift, measure_shift
from framework.method import Method, layer_of, read_of_reference, reference_needed
from framework.optimizers import AdamW
from framework.parts import Plan
from framework.reference import Asked, CachedReference, FrozenReference, Reference, frozen_head
from framework.token_table import TokenTable, counted_tokens
from framework.vectors import Vector

from .flops import flops_of
from .peak_bytes import Peak, peak_bytes
from .peer_style import BEST, PeerStyle, Update
from .shapes import Shape
from .training_world import RATE, method_config, recipe_of

StepRows = Mapping[str, Sequence[Row]]
DEPTHS = (2, 4)
"""Blocks of the models that are counted in place of a deeper one; RMU reads up to half of them."""
CPU = torch.device("cpu")
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
    early_bytes: int
    """The most that a forward and backward pass held until half of the gradients were there."""
    whole_bytes: int
    """The most at any time."""

    @property
    def peak_bytes(self) -> int:
        """The most that a forward and backward pass held beside weights, gradients and optimizer.

        Of gradients, only those being made.
        """
        return max(self.early_bytes, self.whole_bytes)


@dataclass(frozen=True)
class PeerWork:
    """What a step of the peers does on the same rows, all in one batch."""

    flops: int
    early_bytes: int
    whole_bytes: int

    @property
    def peak_bytes(self) -> int:
        """As `Work.peak_bytes`; and the gradient that waits in one branch for that of the other."""
        return max(self.early_bytes, self.whole_bytes)


def count(method: str, shape: Shape, rows: StepRows, *, tokens: int) -> Work:
    """One step of the method, by its name in `training_world`; `tokens`: of a micro-batch."""
    return _of_all_blocks(
        shape, lambda shallow: count_directly(method, shallow, rows, tokens=tokens)
    )


def count_peers(method: str, shape: Shape, rows: StepRows) -> PeerWork:
    """The same step as peers take it at their best (`peer_style.BEST`)."""
    return _of_all_blocks(shape, lambda shallow: _peers_directly(method, shallow, rows))


def _of_all_blocks(shape: Shape, counted: Callable[[Shape], W]) -> W:
    """What is counted of two shallow models, carried on to the model's depth."""
    if shape.blocks <= max(DEPTHS):
        return counted(shape)
    low, high = (counted(replace(shape, blocks=depth)) for depth in DEPTHS)
    share = (shape.blocks - DEPTHS[0]) // (DEPTHS[1] - DEPTHS[0])
    assert DEPTHS[0] + share * (DEPTHS[1] - DEPTHS[0]) == shape.blocks, shape
    pairs = zip(asdict(low).items(), asdict(high).values(), strict=True)
    return type(low)(**{name: a + share * (b - a) for (name, a), b in pairs})


def count_directly(method: str, shape: Shape, rows: StepRows, *, tokens: int) -> Work:
    """The same with every block there is: seconds become minutes."""
    prepared = _Prepared(method, shape, rows, tokens)
    trainer, engine = prepared.trainer, prepared.engine
    watch = _Watch(shape.vocabulary)
    batches = trainer.micro_batches(rows, trainer.steps_done)
    with FakeCopyMode(_without_memory()):
        batches = copy.deepcopy(batches)
    passes = [_Passes(x.module) for x in (prepared.model, prepared.twin) if x is not None]
    with _without_memory(), watch:
        flops = flops_of(lambda: trainer.step(batches, learning_rate=RATE))
    return Work(
        flops=flops,
        forwards=passes[0].forwards,
        backwards=engine.backwards,
        reads=sum(each.reads for each in passes),
        gradients=engine.gradients,
        shifts=engine.shifts,
        tokens=sum(each.tokens for each in passes),
        logits=watch.logits,
        syncs=watch.syncs,
        early_bytes=engine.arrivals.early,
        whole_bytes=engine.arrivals.whole,
    )


def _peers_directly(method: str, shape: Shape, rows: StepRows) -> PeerWork:
    prepared = _Prepared(method, shape, rows, tokens=4096)
    with _without_memory():
        module, before = (shape.module(dtype=torch.bfloat16) for _ in range(2))
        before.requires_grad_(requires_grad=False)
        arrivals = _Arrivals(list(module.parameters()))
        peers = PeerStyle(
            recipe_of(method, prepared.trainer),
            BEST,
            module=module,
            reference=before,
            update=Update(module, prepared.optimizer),
            batch=len(rows["forget"]),
        )
    with _without_memory(), _Watch(shape.vocabulary), peak_bytes(CPU) as peak:
        arrivals.begin(peak)
        flops = flops_of(lambda: peers.differentiate(rows["forget"], rows["retain"]))
    arrivals.end()
    return PeerWork(flops, arrivals.early, arrivals.whole)


class _Prepared:
    """A trainer in the middle of its run, on a model without memory."""

    def __init__(self, method: str, shape: Shape, rows: StepRows, tokens: int) -> None:
        config = method_config(method)
        kind, settings = part_of(config.trainer)
        needed = reference_needed(kind, settings)
        self.optimizer = AdamW(AdamW.Config(learning_rate=RATE))
        warm = Rows.pack([Row("", (1, 1), (0.0, 1.0))])
        with _without_memory():
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
            reference = _cached(kind, settings, self.model, rows)
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


@cache
def _without_memory() -> FakeTensorMode:
    """One for the process: what trainers remember from step to step is of one mode only."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class _Model(LanguageModel):
    """A model whose weights have their precision already: fake ones cannot be exchanged."""

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
        self.arrivals = _Arrivals(self._parameters)

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """See `Engine.gradient`."""
        self.gradients += 1
        for loss in losses:
            with peak_bytes(self.model.device) as peak:
                self.arrivals.begin(peak)
                loss().backward()
            self.backwards += 1
            self.arrivals.end()
        return _vector()

    def noise(self, seed: int) -> Vector:
        """See `Engine.noise`."""
        del seed
        return _vector()

    def shift(self, delta: Vector) -> Shift:
        """See `Engine.shift`."""
        self.shifts += 1
        return measure_shift(zip(delta.shards, delta.shards, strict=True), replicated=True)

    def unshift(self) -> None:
        """See `Engine.unshift`."""

    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """See `Engine.step`."""


def _vector() -> Vector:
    return Vector([torch.ones(1)], replicated=True)


class _Arrivals:
    """What is held at most while gradients arrive, which are let go as they do.

    Two peaks are kept apart: until half of the gradients are there it is activations and logits,
    which grow with the number of blocks, at last the embeddings' gradient, which does not.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.early = self.whole = 0
        self._seen: list[int] = []
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin(self, peak: Peak) -> None:
        """Watch a forward and backward pass."""
        self._peak, self._seen = peak, []

    def end(self) -> None:
        """It is over."""
        self.early = max(self.early, self._seen[len(self._seen) // 2])
        self.whole = max(self.whole, self._peak.bytes)

    def _arrived(self, parameter: Tensor) -> None:
        self._seen.append(self._peak.bytes)
        parameter.grad = None


class _Passes:
    """The forward passes of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.forwards = self.reads = self.tokens = 0
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module, args
        self.tokens += kwargs["input_ids"].numel()
        if torch.is_grad_enabled():
            self.forwards += 1
        else:
            self.reads += 1


class _Watch(TorchDispatchMode):
    """Counts logits, and answers 0 where the host asks for a number."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self.logits = self.syncs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.name() == "aten::_local_scalar_dense" and isinstance(args[0], FakeTensor):
            self.syncs += 1
            return 0.0 if args[0].is_floating_point() else 0
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default and result.shape[1] == self._vocabulary:
            self.logits += result.shape[0]
        return result


def _model(shape: Shape, tokens: int) -> _Model:
    model = shape.model(dtype=torch.bfloat16)
    return _Model(
        model.module,
        model.tokenizer,
        prompt_format=model.prompt_format,
        max_length=model.max_length,
        tokens_per_micro_batch=tokens,
    )


def _cached(
    kind: type[UnlearningTrainer], settings: Method.Config, model: LanguageModel, rows: StepRows
) -> Reference:
    """A reference that holds its values, whatever they are."""
    tables: dict[Asked, TokenTable] = {}
    for asked, given in read_of_reference(kind, settings, rows).items():
        read = laid_out(given)
        width = [] if asked == "log_probs" else [model.module.config.hidden_size]
        with _without_memory():
            values = torch.zeros(counted_tokens(read), *width)
        tables[asked] = TokenTable(read, values, CPU)
    with _without_memory():
        head = frozen_head(model) if "logits" in tables else None
    layer = layer_of(settings, model.module.config)
    return CachedReference(tables, layer=layer, head=head)
