"""--dry-run: what a run would do and need, without loading anything large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from framework import Benchmark, build, distributed
from framework.config import part_of
from framework.decoding import bytes_per_token
from framework.memory import GIB, device_memory, in_words
from framework.method import reference_needed
from framework.terminal import table
from framework.tuning import parameter_counts

from .fitted import fitted
from .rows import pairs_of, training_texts
from .settings import steps_of

if TYPE_CHECKING:
    from .ledger import Ledger

PHASES = {
    "loading": "loading",
    "backward": "the backward pass",
    "update": "combining gradients",
    "step": "the optimizer's step",
}
"""A ledger's phases in the order of a run, and in words."""
ORDER = (
    "a step of the run: backward passes, each after its forward pass; combining their gradients "
    "(weighting, perturbation); the optimizer's step"
)
GUESSED = (
    "rows' lengths are guessed, four characters a token, for the tokenizer is not at hand: the "
    "run's rows may have a third or more tokens more, and what grows with them is more, too"
)


def dry_run(config: DictConfig, benchmark: Benchmark) -> None:
    """Print the resolved config, parameter count, memory per rank, and steps."""
    from .fit import planned  # what tensors without memory take is seconds to import

    there = device_memory()
    config = fitted(config, benchmark, there)
    method, settings = part_of(config.trainer)
    module = build(config.tuning).apply(build(config.model).skeleton())
    parameters, trainable = parameter_counts(module)
    plan = planned(config, benchmark)
    name, rows_learned = learned_rows(config, benchmark)
    per_epoch = steps_per_epoch(config, benchmark)
    rows: list[list[str | float | None]] = [
        ["parameters", f"{parameters:,}"],
        ["of them trained", f"{trainable:,}"],
        [f"rows to learn from ({name})", f"{rows_learned:,}"],
        ["steps per epoch", str(per_epoch)],
        ["steps", str(steps_of(config, per_epoch))],
        ["reference", reference_needed(method, settings) or "none"],
        ["ranks", str(distributed.intended_world_size())],
        ["run folder", str(Path(config.output))],
    ]
    if plan.reference_bytes:
        rows.insert(6, ["its files on disk", in_words(plan.reference_bytes)])
    print(OmegaConf.to_yaml(config).rstrip())
    table("dry run", ["what", "value"], rows)
    ledger = plan.memory()
    table("device memory per rank", ["what", "GiB"], memory_rows(ledger))
    print(ORDER)
    if plan.guessed:
        print(GUESSED)
    kept = float(config.model.generation_memory)
    print(
        f"beside these: while it is measured, keys and values of answers take up to {kept:g} GiB "
        f"({bytes_per_token(module):,} bytes a token), and nothing of the backward pass is there"
    )
    print(verdict(ledger, there))
    if there is not None and ledger.most > there:
        print("to change, what costs least first:", *advice(config), sep="\n  ")


def memory_rows(ledger: Ledger) -> list[list[str | float | None]]:
    """What is held when most is held, and the most that is held in each phase, in GiB."""
    from .ledger import ON_HOST, on_device

    highest = max(ledger.peaks, key=lambda name: on_device(ledger.peaks[name]))
    held = ledger.peaks[highest]
    parts = sorted(held.items(), key=lambda item: -item[1])
    sizes: list[tuple[str, int]] = [
        *((name, size) for name, size in parts if name != ON_HOST and size >= 1 << 20),
        (f"peak, in {PHASES[highest]}", on_device(held)),
        *((f"most in {told}", on_device(ledger.peaks[name])) for name, told in PHASES.items()),
        ("most on the host", max(at[ON_HOST] for at in ledger.peaks.values())),
    ]
    return [[name, f"{size / GIB:.2f}"] for name, size in sizes]


def verdict(ledger: Ledger, there: int | None) -> str:
    """One line: whether it fits a device of `there` bytes."""
    needed = ledger.most
    if there is None:
        return f"needs {in_words(needed)} per rank; there is no GPU here to compare with"
    sizes = f"{needed / GIB:.1f} of {there / GIB:.1f} GiB"
    return f"{'fits' if needed <= there else 'does not fit'}: {sizes}"


def advice(config: DictConfig) -> list[str]:
    """What takes less memory than the run of `config`, what costs least first."""
    tokens, stage = int(config.model.tokens_per_micro_batch), config.zero.get("stage", "none")
    recomputed = config.model.gradient_checkpointing
    possible = {
        "model.gradient_checkpointing=selective": not recomputed,
        "model.gradient_checkpointing=true": recomputed is not True,
        f"model.tokens_per_micro_batch={tokens // 2}": tokens >= 2 * int(config.model.max_length),
        "zero=2 on more GPUs": stage in ("none", "0", "1"),
        "zero=3 on more GPUs": stage != "3",
        "zero=3_offload": config.zero.get("offload", "none") == "none",
        "tuning=lora": config.tuning.name != "lora",
    }
    return [change for change, there in possible.items() if there]


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
