"""ZeroEngine: the engine over DeepSpeed ZeRO-0/1/2/3. The only file that imports deepspeed.

What DeepSpeed 0.19.8 really does, and what follows here:

- After the backward pass that ends an accumulation window, this rank's share of the gradient lies
  in a buffer of the ZeRO optimizer, in different places by stage and precision (`_Layout`). It is
  taken out per objective. The optimizer that steps the masters is torch's, inside DeepSpeed's, and
  is called here: DeepSpeed's own `step` copies gradients and waits for norms that nobody asked for.
- Nothing but `engine.optimizer.zero_grad()` and the layouts' `clear` makes the accumulators clean:
  otherwise the second objective silently contains the first, and a parameter that a loss does not
  reach (ZeRO-3, CPU offload) is stepped with its gradient of the previous step.
- Gradients are averaged over ranks; our losses divide by the global count already, so they are
  multiplied by the world size. DeepSpeed's own division and clipping (1.0 unless told) are off.
- Forward passes go through the engine, forward and backward strictly in turn, the accumulation
  boundary set before each forward. Two forwards before a backward lose a gradient under ZeRO-3.
- Gradients are reduced to the rank whose share they are, not to all (`deepspeed_config`): at stage
  1 once per gradient, and at stages 2 and 3 once per micro-batch, for they keep no whole gradient.
- bf16 at stage 0 would accumulate gradients in bf16; it is refused.

The private attributes that this rests on are named in PRIVATE and held by a test, so that a new
DeepSpeed fails loudly.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from inspect import getclosurevars
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("DS_LOG_LEVEL", "error")  # read by deepspeed when it is imported
import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.utils import all_gather_dp_groups
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION, ZeroStageEnum
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from . import distributed
from .engine import (
    Engine,
    Loss,
    Precision,
    Shift,
    check_fingerprint,
    fingerprint,
    move,
    trained,
)
from .errors import CheckpointError, ConfigError, WorldSizeError
from .kept import read
from .language_model import LanguageModel
from .matrices import Matrices, Place
from .modules import trainable_parameters
from .noise import standard_normal
from .optimizers import Optimizer, skips_on_device, step_along
from .vectors import Vector

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# DeepSpeed 0.19.8 calls collectives by names that torch 2.13 has deprecated: once per call site
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")

CHECKPOINT_TYPES = (LossScaler, ZeroStageEnum, fragment_address)
"""What DeepSpeed writes into its files beside tensors and plain data."""
PRIVATE = {
    "stages 1 and 2": (
        "_wait_for_offload_copies", "accumulated_grads_in_cpu", "all_grad_tensors",
        "allgather_bucket_size", "averaged_gradients", "bit16_groups", "bit16_groups_flat",
        "cpu_offload", "micro_step_id", "nccl_start_alignment_factor", "optimizer",
        "parallel_partitioned_bit16_groups", "partition_size", "real_dp_process_group",
        "round_robin_bit16_groups", "round_robin_bit16_offsets",
        "single_partition_of_fp32_groups",
    ),
    "stage 3": (
        "_clear_fp32_optimizer_param_groups", "_offload_boundary_param_ids",
        "_partition_all_parameters", "_set_fp32_optimizer_param_groups",
        "_unflatten_partitioned_parameters", "fp16_groups",
        "fp16_partitioned_groups_flat", "fp16_partitioned_groups_flat_numel",
        "fp32_partitioned_groups_flat", "grad_partitions_flat_buffer",
        "invalidate_secondary_tensor", "offload_optimizer", "optimizer", "parameter_offload",
        "persistent_parameters",
    ),
}  # fmt: skip
"""Attributes of DeepSpeed's optimizers that are not promised, by layout."""
RELEASES = "_PartitionedParameterCoordinator__params_to_release"
"""Of DeepSpeed's coordinator: which weights to let go after a module; an `lru_cache` without end
lies within it."""
GATHERS = "_PartitionedParameterCoordinator__allgather_stream"
"""Of DeepSpeed's coordinator: the stream that weights are gathered on; None on a CPU."""


class ZeroEngine(Engine):
    """DeepSpeed ZeRO, driven so that every step equals LocalEngine's."""

    @dataclass
    class Config:
        """How the model states are spread over the ranks."""

        stage: Literal["0", "1", "2", "3"] = "2"
        """0 replicates; 1 shards the optimizer, 2 also gradients, 3 also parameters. 1 reduces a
        gradient once where 2 and 3 do so for each of its micro-batches."""
        offload: Literal["none", "cpu"] = "none"
        """cpu: optimizer states and fp32 master weights live in host memory (stages 1 to 3)."""
        overlap: bool = True
        """Reduce gradients while the backward pass goes on."""
        bucket: int = 100_000_000
        """Elements that one collective moves at most."""

    def __init__(
        self,
        config: Config,
        *,
        model: LanguageModel,
        optimizer: Optimizer,
        precision: Precision,
    ) -> None:
        """Hand `model` to DeepSpeed. The process group must be connected."""
        check_supported(config, precision)
        self.config = config
        self.model = model
        if precision == "bf16":
            model.cast(torch.bfloat16)
        self._names = {p: n for n, p in trainable_parameters(model.module)}
        parameters = trained(model.module)
        built = optimizer.build(optimizer.groups(parameters))
        with _one_optimizer_of_stage_1(), redirect_stdout(io.StringIO()):  # it prints its memory
            settings = deepspeed_config(config, precision)
            # it makes the whole bucket, twice where it overlaps, however little is trained
            whole = sum(math.prod(p.shape) for p in parameters)
            settings["zero_optimization"]["reduce_bucket_size"] = min(config.bucket, whole)
            self.deepspeed = deepspeed.initialize(
                model=model.module, optimizer=built, config=settings
            )[0]
        model.forward = self.deepspeed
        model.partitioned = config.stage == "3"
        if model.partitioned:
            model.gathered = deepspeed.zero.GatheredParameters
        self._layout = _layout_of(self.deepspeed)
        self._shaper = optimizer.shaper(parameters)
        self.skips_on_device = self._shaper is None and skips_on_device(built)
        self._matrices = self._spread({} if self._shaper is None else self._shaper.matrices)
        self._published = False

    def gradient(self, losses: Sequence[Loss]) -> Vector:
        """See `Engine.gradient`."""
        world = distributed.world_size()
        for k, loss in enumerate(losses):
            self._layout.begin()
            self.deepspeed.set_gradient_accumulation_boundary(k == len(losses) - 1)
            self.deepspeed.backward(loss() * world, scale_wrt_gas=False)
        with torch.no_grad():
            shards = self._layout.take()
            self._layout.clear()
        return self._vector(shards)

    @torch.no_grad()
    def shift(self, delta: Vector) -> Shift:
        """See `Engine.shift`. The shift starts from the rounded parameters, not from the master."""
        shift = move(self._layout.shares(), self._layout.origins(), delta)
        self._published = True
        self._layout.publish()
        return shift

    @torch.no_grad()
    def unshift(self, *, alone: bool = False) -> None:
        """See `Engine.unshift`."""
        self._layout.put_back()
        if alone and distributed.world_size() > 1:
            return
        if self._published:  # else the shift failed before any rank took part in it
            self._layout.publish()
        self._published = False

    def noise(self, seed: int) -> Vector:
        """See `Engine.noise`. Padding stays zero."""
        shards = [torch.zeros_like(master) for master in self._layout.masters()]
        for shard, pieces in zip(shards, self._layout.pieces(), strict=True):
            for p, start, offset, length in pieces:
                shard[offset : offset + length] = standard_normal(
                    seed, self._names[p], start=start, length=length, device=self.model.device
                )
        return self._vector(shards)

    @torch.no_grad()
    def step(self, direction: Vector, learning_rate: float, *, skip: Tensor | None = None) -> None:
        """See `Engine.step`. Of each rank's shards by torch's optimizer, as DeepSpeed would."""
        if self._shaper is not None:
            direction = self._shaper.shaped(direction, self._matrices)
        with self._layout.stepping() as (optimizer, masters):
            step_along(optimizer, masters, direction.shards, learning_rate, skip)
        self._layout.restore()
        self.deepspeed.global_steps += 1  # what its checkpoints say

    def vector(self, shards: Sequence[Tensor]) -> Vector:
        """See `Engine.vector`."""
        places = [master.device for master in self._layout.masters()]
        return self._vector([s.to(place) for s, place in zip(shards, places, strict=True)])

    def weights(self) -> Vector:
        """See `Engine.weights`."""
        return self._vector([master.clone() for master in self._layout.masters()])

    @torch.no_grad()
    def set_weights(self, weights: Vector) -> None:
        """See `Engine.set_weights`."""
        torch._foreach_copy_(self._layout.masters(), weights.shards)
        self._layout.restore()

    def save(self, folder: Path) -> None:
        """See `Engine.save`. DeepSpeed's own format, so that its converters work on it."""
        with _raised_at_the_end(
            (self.deepspeed.checkpoint_engine, "save"), (self.deepspeed, "_copy_recovery_script")
        ):
            self.deepspeed.save_checkpoint(
                str(folder),
                tag="engine",
                client_state={
                    "fingerprint": fingerprint(self.model),
                    "world_size": distributed.world_size(),
                    "stage": self.config.stage,
                    "universal_checkpoint_info": {},
                },
                save_latest=False,
                exclude_frozen_parameters=True,
            )
        if self._shaper is not None and (distributed.is_main() or not self._layout.replicated):
            torch.save(self._shaper.state_dict(), self._shaper_file(folder))

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        if not (folder / "engine").is_dir():
            raise CheckpointError(
                f"{folder} was written by another engine (no engine/ folder); resume with the "
                "`zero` setting in its config.yaml"
            )
        with _read_as_data(self.deepspeed.checkpoint_engine):
            path, state = self.deepspeed.load_checkpoint(
                str(folder), tag="engine", load_module_strict=False
            )
        if path is None:
            raise CheckpointError(f"{folder}/engine could not be read by DeepSpeed")
        check_fingerprint(state["fingerprint"], self.model, folder)
        if state["world_size"] != distributed.world_size():
            raise WorldSizeError(
                f"{folder} was written by {state['world_size']} processes, this run has "
                f"{distributed.world_size()}; start it with the same number"
            )
        if self._shaper is not None:
            device = self._layout.masters()[0].device
            shaping = read(self._shaper_file(folder), device=device)
            self._shaper.load_state_dict(shaping)

    def state_dict(self) -> dict[str, Tensor]:
        """See `Engine.state_dict`."""
        weights: dict[str, Tensor] = {}
        for name, p in self.model.module.named_parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=self.config.stage == "3"):
                if distributed.is_main():
                    weights[name] = p.detach().cpu().clone()
        if distributed.is_main():
            kept = self.model.module.state_dict().keys()
            buffers = self.model.module.named_buffers()
            weights |= {name: b.detach().cpu() for name, b in buffers if name in kept}
        return weights

    def master_weights(self) -> dict[str, Tensor]:
        """See `Engine.master_weights`."""
        weights = {}
        for p, name in self._names.items():
            master = safe_get_full_fp32_param(p)
            weights[name] = (p.detach() if master is None else master).float().clone()
        return weights

    def close(self) -> None:
        """Free DeepSpeed's hooks and buffers."""
        self.model.forward = self.model.module
        self.deepspeed.destroy()

    def _vector(self, shards: list[Tensor]) -> Vector:
        return Vector(shards, replicated=self._layout.replicated)

    def _spread(self, shapes: Mapping[str, tuple[int, ...]]) -> Matrices:
        """Where matrices lie, by the shapes of those that are asked for."""
        places = [
            [Place(self._names[p], start, offset, length) for p, start, offset, length in held]
            for held in self._layout.pieces()
        ]
        return Matrices(
            places,
            shapes,
            device=self.model.device,
            together=True,
            replicated=self._layout.replicated,
        )

    def _shaper_file(self, folder: Path) -> Path:
        """Beside what DeepSpeed writes, for it knows nothing of this state."""
        rank = 0 if self._layout.replicated else distributed.rank()
        return folder / f"direction-{rank:05d}.pt"


def check_supported(config: ZeroEngine.Config, precision: Precision) -> None:
    """Raise ConfigError for stages, precisions and offloads that do not go together."""
    if config.stage == "0" and precision == "bf16":
        raise ConfigError(
            "zero=0 with precision=bf16 would accumulate gradients in bf16; use zero=1 (same "
            "memory for one process) or precision=fp32"
        )
    if config.stage == "0" and config.offload != "none":
        raise ConfigError("zero=0 cannot offload; use zero=2_offload or zero=3_offload")


def deepspeed_config(config: ZeroEngine.Config, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's own configuration: nothing clipped, nothing scheduled, fp32 accumulation."""
    stage, several = int(config.stage), distributed.world_size() > 1
    zero: dict[str, Any] = {
        "stage": stage,
        # alone there is nothing to overlap, and the streams would be waited for
        "overlap_comm": config.overlap and torch.cuda.is_available() and several,
        "contiguous_gradients": True,
        "reduce_scatter": several or stage == 3,  # alone: a copy of every gradient less
        # a bucket's share to each rank: all of it to all of them is twice the bytes
        "use_multi_rank_bucket_allreduce": False,
        "reduce_bucket_size": config.bucket,
        "allgather_bucket_size": config.bucket,
    }
    if config.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping of DeepSpeed's; token budgets rule here
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in each forward
    }
    if precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    return settings


@contextmanager
def _one_optimizer_of_stage_1() -> Iterator[None]:
    """Inside, DeepSpeed shards stage 1 as it does stage 2, in every precision.

    Its own choice in bf16 reduces whole fp32 gradients to every rank, and keeps them there.
    """
    kind, name = deepspeed.DeepSpeedEngine, "_do_optimizer_sanity_check"
    own = getattr(kind, name)

    def chosen(engine: Any, optimizer: Any) -> Any:
        return ZERO_OPTIMIZATION if engine.zero_optimization() else own(engine, optimizer)

    setattr(kind, name, chosen)
    try:
        yield
    finally:
        setattr(kind, name, own)


@contextmanager
def _raised_at_the_end(*methods: tuple[object, str]) -> Iterator[None]:
    """Inside, (object, method) that cannot write lets the caller go on; then its error is raised.

    A rank whose disk is full would leave `save_checkpoint` alone, the others wait for it forever.
    """
    failures: list[OSError | RuntimeError] = []  # torch reports a full disk as RuntimeError

    def patient(write: Callable[..., object]) -> Callable[..., None]:
        def attempt(*arguments: object, **named: object) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:
                failures.append(error)

        return attempt

    for owner, name in methods:
        setattr(owner, name, patient(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in methods:
            delattr(owner, name)
    if failures:
        raise failures[0]


@contextmanager
def _read_as_data(checkpoint_engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed reads its files, equally many on every rank, and runs nothing in them."""

    def load(path: str, map_location: Any = None) -> Any:
        file = Path(path)
        return distributed.on_all_ranks(
            lambda: read(file, device=map_location, types=CHECKPOINT_TYPES)
        )

    checkpoint_engine.load = load
    try:
        yield
    finally:
        del checkpoint_engine.load


@contextmanager
def partitioned_loading(config: ZeroEngine.Config, precision: Precision) -> Iterator[None]:
    """Under ZeRO-3, pretrained weights that are loaded inside never exist whole on one rank."""
    if config.stage != "3":
        yield
        return
    with redirect_stdout(io.StringIO()):  # its compiler's success again
        deepspeed.init_distributed()
    alive = HfDeepSpeedConfig(deepspeed_config(config, precision))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


def check_reading(config: ZeroEngine.Config) -> None:
    """Raise ConfigError for stages that divide only what training has."""
    if config.stage != "3" or config.offload != "none":
        raise ConfigError(
            "a model that is only read has no gradients and no optimizer to divide; type zero=3, "
            "which divides its weights, or zero=none"
        )


def read_partitioned(model: LanguageModel, config: ZeroEngine.Config, precision: Precision) -> None:
    """Keep a share of every weight on each rank, for reading only: every rank must take part.

    The model was loaded within `partitioned_loading`.
    """
    with redirect_stdout(io.StringIO()):  # its compiler's success
        settings = deepspeed_config(config, precision)
        model.forward = deepspeed.initialize(model=model.module, config=settings)[0]
    model.partitioned = True
    model.gathered = deepspeed.zero.GatheredParameters


# ---- where DeepSpeed keeps things ----------------------------------------------------------------


class _Piece(NamedTuple):
    """A run of one parameter's elements in this rank's share of a (sub)group."""

    parameter: nn.Parameter
    start: int
    """Of the run, in the parameter."""
    offset: int
    """Of the run, in the share."""
    length: int


class _Layout(ABC):
    """Where one ZeRO optimizer keeps gradients, fp32 masters and the parameters of the forward.

    All lists hold flat fp32 tensors, one per (sub)group, this rank's share, in the same order.
    """

    replicated = False

    def __init__(self, engine: Any) -> None:
        self.optimizer = engine.optimizer
        self._origins: list[Tensor] | None = None

    def begin(self) -> None:  # noqa: B027 (most have nothing to do)
        """Before a forward pass that a backward pass follows."""

    @abstractmethod
    def take(self) -> list[Tensor]:
        """The gradient after a boundary backward; the tensors are the caller's."""

    @abstractmethod
    def clear(self) -> None:
        """Leave no gradient anywhere: the next backward starts from zero."""

    @abstractmethod
    def stepping(self) -> AbstractContextManager[tuple[torch.optim.Optimizer, list[Tensor]]]:
        """Inside, torch's optimizer has the masters in its groups: it, and these, to be stepped."""

    @abstractmethod
    def masters(self) -> list[Tensor]:
        """The fp32 master weights, aliased."""

    @abstractmethod
    def pieces(self) -> list[list[_Piece]]:
        """Which elements of which parameters each share holds; what is missing is padding."""

    @abstractmethod
    def shares(self) -> list[Tensor]:
        """This rank's share of what the forward pass reads, in its precision, aliased."""

    @abstractmethod
    def publish(self) -> None:
        """Make what is in all ranks' `shares` the parameters of the forward pass."""

    def origins(self) -> list[Tensor]:
        """The fp32 weights that a shift starts from; from now on they outlive what is written."""
        if self._origins is None:  # masters that the forward itself reads are not beside it
            pairs = zip(self.masters(), self.shares(), strict=True)
            self._origins = [m.clone() if m.data_ptr() == s.data_ptr() else m for m, s in pairs]
        return self._origins

    def restore(self) -> None:
        """Make the masters the parameters of the forward pass."""
        self.put_back()
        self.publish()

    def put_back(self) -> None:
        """Make this rank's share of them what the masters are, those from before a shift."""
        origins = self.masters() if self._origins is None else self._origins
        for share, origin in zip(self.shares(), origins, strict=True):
            if share.data_ptr() != origin.data_ptr():
                share.copy_(origin)
        self._origins = None


class _Replicated(_Layout):
    """Stage 0 in fp32: `p.grad`, whole, the same on every rank after the boundary backward."""

    replicated = True

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        groups = self.optimizer.param_groups
        self.parameters: list[nn.Parameter] = [p for g in groups for p in g["params"]]

    def take(self) -> list[Tensor]:
        return [
            torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1)
            for p in self.parameters
        ]

    def clear(self) -> None:
        for p in self.parameters:
            p.grad = None

    @contextmanager
    def stepping(self) -> Iterator[tuple[torch.optim.Optimizer, list[Tensor]]]:
        yield self.optimizer, [*self.parameters]

    def masters(self) -> list[Tensor]:
        return [p.data.view(-1) for p in self.parameters]

    def pieces(self) -> list[list[_Piece]]:
        return [[_Piece(p, 0, 0, p.numel())] for p in self.parameters]

    def shares(self) -> list[Tensor]:
        return self.masters()

    def publish(self) -> None:
        pass


class _Partitioned(_Layout):
    """Stages 1 and 2: `averaged_gradients`, or `.grad` of the masters on the host (offload)."""

    def take(self) -> list[Tensor]:
        o = self.optimizer
        if o.cpu_offload:
            o._wait_for_offload_copies()
            return [m.grad.detach().clone() for m in o.single_partition_of_fp32_groups]
        return [self._taken(i) for i in range(len(o.bit16_groups))]

    def _taken(self, i: int) -> Tensor:
        o = self.optimizer
        pieces = o.averaged_gradients.get(i)
        whole: Tensor | None = getattr(pieces, "flat_partition", None)
        if whole is not None and whole.dtype == torch.float32:
            return whole  # no copy: DeepSpeed makes a fresh buffer for the next backward
        if pieces is None:
            return torch.zeros_like(o.single_partition_of_fp32_groups[i].data)
        return torch.cat([piece.reshape(-1).float() for piece in pieces])  # padding among them

    def clear(self) -> None:
        o = self.optimizer
        o.micro_step_id = -1  # the next backward overwrites instead of adding
        for i in range(len(o.bit16_groups)):
            o.averaged_gradients[i] = None
            o.all_grad_tensors[i] = None
            if o.cpu_offload:
                o.single_partition_of_fp32_groups[i].grad.zero_()
        if o.cpu_offload:
            o._wait_for_offload_copies()
            for buffer in o.accumulated_grads_in_cpu.values():
                buffer.zero_()
        o.zero_grad(set_to_none=True)

    @contextmanager
    def stepping(self) -> Iterator[tuple[torch.optim.Optimizer, list[Tensor]]]:
        o = self.optimizer
        yield o.optimizer, list(o.single_partition_of_fp32_groups)

    def masters(self) -> list[Tensor]:
        return [m.data for m in self.optimizer.single_partition_of_fp32_groups]

    def pieces(self) -> list[list[_Piece]]:
        o = self.optimizer
        found = []
        for i, group in enumerate(o.round_robin_bit16_groups):
            rank = dist.get_rank(group=o.real_dp_process_group[i])
            size = int(o.partition_size[i])
            found.append(_cut(group, o.round_robin_bit16_offsets[i], rank * size, size))
        return found

    def shares(self) -> list[Tensor]:
        o = self.optimizer
        ranks = [dist.get_rank(group=group) for group in o.real_dp_process_group]
        groups = o.parallel_partitioned_bit16_groups
        return [parts[rank].data for parts, rank in zip(groups, ranks, strict=True)]

    def publish(self) -> None:
        o = self.optimizer
        all_gather_dp_groups(
            groups_flat=o.bit16_groups_flat,
            partitioned_param_groups=o.parallel_partitioned_bit16_groups,
            dp_process_group=o.real_dp_process_group,
            start_alignment_factor=o.nccl_start_alignment_factor,
            allgather_bucket_size=o.allgather_bucket_size,
        )


class _Sharded(_Layout):
    """Stage 3: `grad_partitions_flat_buffer`, or `.grad` of the masters on the host (offload)."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        releases = getattr(PartitionedParameterCoordinator, RELEASES)
        self._forget_releases: Callable[[], None] = (
            getclosurevars(releases).nonlocals["func"].cache_clear
        )

    def begin(self) -> None:
        if not self.optimizer.parameter_offload.param_coordinator.is_complete_trace():
            # When it learns a new order of passes it still lets weights go as in the order before:
            # after passes without a gradient, all of them, to be gathered again one by one.
            self._forget_releases()

    def take(self) -> list[Tensor]:
        o = self.optimizer
        if o.offload_optimizer:
            # gradients reach the host by asynchronous copies
            deepspeed.accelerator.get_accelerator().synchronize()
            return [m.grad.detach().clone() for m in o.fp32_partitioned_groups_flat]
        buffer = o.grad_partitions_flat_buffer.detach().to(torch.float32, copy=True)
        return list(buffer.split(o.fp16_partitioned_groups_flat_numel))

    def clear(self) -> None:
        o = self.optimizer
        o.zero_grad(set_to_none=True)  # public; also resets the accumulation counter
        o.grad_partitions_flat_buffer.zero_()
        o._offload_boundary_param_ids = set()
        if o.offload_optimizer:
            for master in o.fp32_partitioned_groups_flat:
                if master.grad is not None:
                    master.grad.zero_()

    @contextmanager
    def stepping(self) -> Iterator[tuple[torch.optim.Optimizer, list[Tensor]]]:
        o = self.optimizer
        o._set_fp32_optimizer_param_groups()
        try:
            yield o.optimizer, list(o.fp32_partitioned_groups_flat)
        finally:
            o._clear_fp32_optimizer_param_groups()

    def masters(self) -> list[Tensor]:
        return [m.data for m in self.optimizer.fp32_partitioned_groups_flat]

    def pieces(self) -> list[list[_Piece]]:
        found = []
        for group in self.optimizer.fp16_groups:  # every parameter is cut by itself
            sizes = [p.partition_numel() for p in group]
            starts = [size * dist.get_rank() for size in sizes]
            offsets = accumulate(sizes[:-1], initial=0)
            found.append(
                [
                    _Piece(p, start, offset, min(size, p.ds_numel - start))
                    for p, size, start, offset in zip(group, sizes, starts, offsets, strict=True)
                    if start < p.ds_numel
                ]
            )
        return found

    def shares(self) -> list[Tensor]:
        return [flat.data for flat in self.optimizer.fp16_partitioned_groups_flat]

    def publish(self) -> None:
        o = self.optimizer
        o._partition_all_parameters()  # drop every gathered copy, persistent ones included
        for i in range(len(o.fp16_partitioned_groups_flat)):
            o._unflatten_partitioned_parameters(i)
        o.invalidate_secondary_tensor()
        if len(o.persistent_parameters) > 0:
            o.persistent_parameters[0].all_gather(o.persistent_parameters)
        gathers = getattr(o.parameter_offload.param_coordinator, GATHERS)
        if gathers is not None:  # DeepSpeed has it wait for nothing: it would read what was before
            gathers.wait_stream(deepspeed.accelerator.get_accelerator().current_stream())


_LAYOUTS: dict[str, type[_Layout]] = {
    "DeepSpeedZeroOptimizer": _Partitioned,
    "DeepSpeedZeroOptimizer_Stage3": _Sharded,
}


def _layout_of(engine: Any) -> _Layout:
    kind = type(engine.optimizer)
    if issubclass(kind, torch.optim.Optimizer):
        return _Replicated(engine)
    assert kind.__name__ in _LAYOUTS, f"DeepSpeed chose {kind.__name__}, which is not known here"
    return _LAYOUTS[kind.__name__](engine)


def _cut(
    parameters: Sequence[nn.Parameter], offsets: Iterable[int], begin: int, size: int
) -> list[_Piece]:
    """What lies from `begin` to `begin + size` of parameters that lie at `offsets` in a row."""
    pieces = []
    for p, offset in zip(parameters, offsets, strict=True):
        first, last = max(offset, begin), min(offset + p.numel(), begin + size)
        if first < last:
            pieces.append(_Piece(p, first - offset, first - begin, last - first))
    return pieces
