"""Counts the collectives of single steps under ZeRO, in one process group (see `worker.py`).

What is counted is all here: it is asked for no cases.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from inspect import getclosurevars
from pathlib import Path
from typing import Any

import tiny
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from framework import distributed
from framework.data import Rows
from framework.zero import RELEASES, ZeroEngine
from launch.collectives import Collective, collectives

SMALL = 100
"""Elements of the most that a step exchanges beside vectors of the model's size."""
SIZES = {"hidden_size": 128, "intermediate_size": 1024}  # matrices that ZeRO-3 thinks worth sharing


Step = Callable[[], None]
Begun = Callable[[ZeroEngine], Step]


def measured(stage: str, precision: str, begun: Begun, *, released: bool) -> dict[str, Any]:
    """What the fourth of four equal steps sends: ZeRO-3 needs three to learn what is read when."""
    # no weight decay: all parameters are one group
    optimizer = tiny.optimizer("sgd", clip=1.0)
    engine = ZeroEngine(
        ZeroEngine.Config(stage=stage),  # type: ignore[arg-type]
        model=tiny.language_model(**SIZES),
        optimizer=optimizer,
        precision=precision,  # type: ignore[arg-type]
    )
    if released:
        keep_nothing_gathered(engine)
    engine.model.check_packing()  # passes without a gradient come first, as in every run
    step = begun(engine)
    for _ in range(3):
        step()
    with collectives() as found:
        step()
    shapes = [getattr(p, "ds_shape", p.shape) for p in engine.model.module.parameters()]
    kept = [p.numel() for p in engine.model.module.parameters()] if stage == "3" else []
    engine.close()
    return {
        "parameters": sum(map(torch.Size.numel, map(torch.Size, shapes))),
        "persistent": sum(kept),
        "large": tallied([each for each in found if each.elements > SMALL]),
        "small": tallied([each for each in found if each.elements <= SMALL]),
    }


def keep_nothing_gathered(engine: ZeroEngine) -> None:
    """From its forward to its backward pass, as of a model of more than 1e9 parameters."""
    coordinator = engine.deepspeed.optimizer.parameter_offload.get_param_coordinator()
    for limit in ("max_n_available_params", "max_reuse_dist_in_numel"):
        name = f"_PartitionedParameterCoordinator__{limit}"
        assert getattr(coordinator, name) == 1e9
        setattr(coordinator, name, 0)


def tallied(found: list[Collective]) -> dict[str, list[int]]:
    """How many collectives of each name, and the elements of them all."""
    names = {each.name for each in found}
    sizes = {name: [each.elements for each in found if each.name == name] for name in names}
    return {name: [len(own), sum(own)] for name, own in sizes.items()}


def one_gradient(parts: int) -> Begun:
    """One gradient of so many micro-batches, and a step along it."""

    def begun(engine: ZeroEngine) -> Step:
        batch = Rows.pack(tiny.rows(3, name="collectives"))
        losses = [lambda: -engine.model.token_log_probs(batch).sum()] * parts
        return lambda: engine.step(engine.gradient(losses), 0.01, skip=torch.tensor(False))

    return begun


def whole_step(method: str, weighting: str, perturbation: str) -> Begun:
    """A trainer's step, one micro-batch."""

    def begun(engine: ZeroEngine) -> Step:
        plan = tiny.step_rows(1)
        trainer = tiny.trainer(
            engine,
            tiny.language_model(**SIZES),
            plan,
            method=method,
            weighting=tiny.WEIGHTINGS[weighting](),
            perturbation=tiny.PERTURBATIONS[perturbation](),
            optimizer=tiny.optimizer("sgd", clip=1.0),
        )
        engine.model.tokens_per_micro_batch = 1000
        batches = trainer.micro_batches(plan[0], 0)
        return lambda: trainer.step(batches, learning_rate=0.01)

    return begun


WORK = {
    "one micro-batch": one_gradient(1),
    "three micro-batches": one_gradient(3),
    "grad_diff": whole_step("grad_diff", "none", "none"),
    "blur": whole_step("grad_diff", "blur", "none"),
    "npo sam": whole_step("npo", "none", "sam"),
}


def remembered() -> list[int]:
    """Coordinators and entries that DeepSpeed keeps after 5, 6, 11 and 12 steps of two orders."""
    engine = ZeroEngine(
        ZeroEngine.Config(stage="3"),
        model=tiny.language_model(),
        optimizer=tiny.optimizer("sgd", clip=None),
        precision="fp32",
    )
    model, batch = engine.model, Rows.pack(tiny.rows(3, name="collectives"))
    cache = getclosurevars(getattr(PartitionedParameterCoordinator, RELEASES)).nonlocals["func"]
    found = []
    for done in range(1, 13):
        engine.gradient([lambda: model.states(batch, 1).square().sum()])
        engine.gradient([lambda: model.token_log_probs(batch).sum()])
        if done in (5, 6, 11, 12):
            objects = gc.get_objects()
            coordinators = sum(type(each) is PartitionedParameterCoordinator for each in objects)
            found += [coordinators, cache.cache_info().currsize]
    engine.close()
    return found


STAGES = {
    "1 fp32": ("1", "fp32", False),
    "1 bf16": ("1", "bf16", False),
    "2 bf16": ("2", "bf16", False),
    "3 bf16": ("3", "bf16", False),
    "3 bf16 released": ("3", "bf16", True),
}


def main(asked: Path, found: Path) -> None:
    """Measure everything; rank 0 writes it."""
    del asked
    results: dict[str, Any] = {"remembered": remembered()}
    results |= {
        f"{name} {done}": measured(stage, precision, work, released=released)
        for name, (stage, precision, released) in STAGES.items()
        for done, work in WORK.items()
    }
    if distributed.is_main():
        found.write_text(json.dumps(results))
