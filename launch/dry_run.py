"""--dry-run: what a run would do and need, without loading anything large."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from framework import Benchmark, build, distributed
from framework.config import part_of
from framework.engine import trained
from framework.memory import GIB, model_state_bytes
from framework.method import reference_needed
from framework.objectives import objectives_of
from framework.terminal import table
from framework.tuning import parameter_counts

from .assembly import retain_sources
from .rows import pairs_of, training_texts
from .settings import steps_of


def dry_run(config: DictConfig, benchmark: Benchmark) -> None:
    """Print the resolved config, parameter count, memory per rank, and steps."""
    method, settings = part_of(config.trainer)
    module = build(config.tuning).apply(build(config.model).skeleton())
    parameters, trainable = parameter_counts(module)
    name, rows_learned = learned_rows(config, benchmark)
    per_epoch = steps_per_epoch(config, benchmark)
    weighting = build(config.weighting)
    sources = list(retain_sources(config, benchmark))
    objectives = objectives_of(method.objectives, settings.retain_loss, sources)
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
        vectors=(len(objectives) - 1 if apart or settings.compare_every else 0)
        + (0 if weighting is None else len(weighting.running_means))
        + int(config.averaging["class"] is not None)
        + max(
            3 if config.perturbation["class"] is not None else 0,
            2 if config.optimizer.get("automatic_every") else 0,
        ),
        frozen_copies=int(needed == "frozen" and config.tuning.name != "lora"),
        optimizer=build(config.optimizer).state_bytes(trained(module)),
    )
    rows: list[list[str | float | None]] = [
        ["parameters", f"{parameters:,}"],
        ["of them trained", f"{trainable:,}"],
        [f"rows to learn from ({name})", f"{rows_learned:,}"],
        ["steps per epoch", str(per_epoch)],
        ["steps", str(steps_of(config, per_epoch))],
        ["reference", needed or "none"],
        ["ranks", str(ranks)],
        ["device memory per rank, model states", f"{states['device'] / GIB:.2f} GiB"],
        ["host memory per rank, model states", f"{states['host'] / GIB:.2f} GiB"],
        ["run folder", str(Path(config.output))],
    ]
    print(OmegaConf.to_yaml(config).rstrip())
    table("dry run (activations and logits come on top)", ["what", "value"], rows)


def learned_rows(config: DictConfig, benchmark: Benchmark) -> tuple[str, int]:
    """Which rows an epoch passes over, and how many there are."""
    method, _ = part_of(config.trainer)
    texts = training_texts(config, benchmark, method)
    if "forget" in method.objectives:
        return "forget", pairs_of(config, texts["forget"])
    return str(config.finetune_on), len(texts["retain"])


def steps_per_epoch(config: DictConfig, benchmark: Benchmark) -> int:
    """How many optimizer steps one epoch has."""
    _, rows = learned_rows(config, benchmark)
    return -(-rows // int(config.batch_size))
