"""--dry-run: what a run would do and need, without loading anything large."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from framework import Benchmark, build, distributed
from framework.config import part_of
from framework.memory import GIB, model_state_bytes
from framework.terminal import table
from framework.trainer import reference_needed
from framework.tuning import parameter_counts

from .settings import steps_of


def dry_run(config: DictConfig, benchmark: Benchmark) -> None:
    """Print the resolved config, parameter count, memory per rank, and steps."""
    print(OmegaConf.to_yaml(config).rstrip())
    method, settings = part_of(config.trainer)
    module = build(config.tuning).apply(build(config.model).skeleton())
    parameters, trainable = parameter_counts(module)
    forgets = "forget" in method.objectives
    name = "forget" if forgets else config.finetune_on
    splits = benchmark.splits()
    examples = (
        splits[name]
        if name in splits
        else benchmark.training_examples("gold" if name == "gold" else "target")
    )
    per_epoch = -(-len(examples) // config.batch_size)
    weighting, _ = part_of(config.weighting)
    asked = weighting is not None and (weighting.needs_gram or weighting.losses_first)
    apart = asked or config.perturbation["class"] is not None
    needed = reference_needed(method, settings)
    ranks = distributed.intended_world_size()
    states = model_state_bytes(
        parameters,
        trainable,
        stage=config.zero.get("stage", "none"),
        ranks=ranks,
        offload=config.zero.get("offload", "none") == "cpu",
        bf16=config.precision == "bf16",
        vectors=(len(method.objectives) - 1 if apart or settings.compare_every else 0)
        + (3 if config.perturbation["class"] is not None else 0),
        frozen_copies=int(needed == "frozen" and config.tuning.name != "lora"),
    )
    rows: list[list[str | float | None]] = [
        ["parameters", f"{parameters:,}"],
        ["of them trained", f"{trainable:,}"],
        [f"rows to learn from ({name})", f"{len(examples):,}"],
        ["steps per epoch", str(per_epoch)],
        ["steps", str(steps_of(config, per_epoch))],
        ["reference", needed or "none"],
        ["ranks", str(ranks)],
        ["device memory per rank, model states", f"{states['device'] / GIB:.2f} GiB"],
        ["host memory per rank, model states", f"{states['host'] / GIB:.2f} GiB"],
        ["run folder", str(Path(config.output))],
    ]
    table("dry run (AdamW; activations and logits come on top)", ["what", "value"], rows)
