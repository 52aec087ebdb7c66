"""Runs of two steps whose memory is measured, and their rehearsals: what both come to.

    torchrun --nproc_per_node 2 memory_worker.py CASES.json RESULTS.json

A case is a dict, see `Case`; a result is the bytes that were measured at most.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tiny
import torch

from framework import LanguageModel, LocalEngine, Row, distributed
from framework.engine import Engine
from framework.method import reference_needed
from framework.recomputation import Recomputed, recompute
from launch.peak_bytes import peak_bytes
from launch.rehearsal import Ledger, Rehearsed, rehearse
from launch.rehearsed_zero import Spread

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}
"""4 million parameters."""
RANKS = 2


@dataclass(frozen=True)
class Case:
    """One run of two steps."""

    stage: str = "none"
    method: str = "grad_diff"
    weighting: str = "none"
    perturbation: str = "none"
    precision: str = "fp32"
    tuning: str = "full"
    rows: int = 8
    tokens: int = 4096
    bucket: int = 1_000_000
    length: int = 96
    offload: bool = False
    checkpointing: Recomputed = False

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def step(self) -> dict[str, list[Row]]:
        """The rows of a step."""
        weights = (0.0,) * (self.length // 2) + (1.0,) * (self.length - self.length // 2)
        ids = [tuple(range(3 + i, 3 + i + self.length)) for i in range(2 * self.rows)]
        made = [Row(f"row{i}", ids[i], weights) for i in range(2 * self.rows)]
        return {"forget": made[: self.rows], "retain": made[self.rows :]}


def measured(case: Case) -> int:
    """The most bytes that this process's tensors held at once, from no model to two steps taken."""
    optimizer = tiny.optimizer("adamw", clip=1.0)
    steps = [case.step()] * 2
    with peak_bytes(torch.device("cpu")) as peak:
        model = _model(case)
        model.cast(case.dtype)
        twin = model
        kind, defaults = tiny.METHODS[case.method]
        if reference_needed(kind, kind.Config(**defaults)) == "frozen" and case.tuning != "lora":
            twin = tiny.language_model(**SHAPE)
            twin.cast(case.dtype)
        engine = _engine(case, model, optimizer)
        trainer = tiny.trainer(
            engine,
            twin,
            steps,
            method=case.method,
            optimizer=optimizer,
            weighting=tiny.WEIGHTINGS[case.weighting](),
            perturbation=tiny.PERTURBATIONS[case.perturbation](),
        )
        for step in steps:
            model.tokens_per_micro_batch = case.tokens
            batches = trainer.micro_batches(step, trainer.steps_done)
            trainer.step(batches, learning_rate=1e-3)
    engine.close()
    return peak.bytes


def _model(case: Case) -> LanguageModel:
    model = tiny.language_model(tuning=case.tuning, **SHAPE)
    if case.checkpointing:
        recompute(model.module, case.checkpointing)
    model.module.train()
    return model


def _engine(case: Case, model: LanguageModel, optimizer: tiny.Optimizer) -> Engine:
    precision = case.precision
    if case.stage == "none":
        return LocalEngine(
            LocalEngine.Config(), model=model, optimizer=optimizer, precision=precision
        )
    from framework.zero import ZeroEngine

    settings = ZeroEngine.Config(stage=case.stage, bucket=case.bucket)
    return ZeroEngine(settings, model=model, optimizer=optimizer, precision=precision)


def rehearsed(case: Case) -> Ledger:
    """The same run's rehearsal."""
    with torch.device("meta"):
        model = _model(case)
    model.tokens_per_micro_batch = case.tokens
    kind, defaults = tiny.METHODS[case.method]
    settings = kind.Config(compare_every=0, **defaults)
    ranks = 1 if case.stage == "none" else RANKS
    zero = None
    if case.stage != "none":
        zero = Spread(int(case.stage), ranks, case.bucket, overlap=False, offload=case.offload)
    needed = reference_needed(kind, settings)
    run = Rehearsed(
        kind,
        settings,
        model,
        "itself" if needed == "frozen" and case.tuning == "lora" else needed,
        tiny.optimizer("adamw", clip=1.0),
        case.dtype,
        zero,
        tiny.WEIGHTINGS[case.weighting](),
        tiny.PERTURBATIONS[case.perturbation](),
    )
    return rehearse(run, case.step())


if __name__ == "__main__":
    distributed.connect()
    found = []
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        found.append(measured(Case(**settings)))
        gc.collect()
    if distributed.is_main():
        Path(sys.argv[2]).write_text(json.dumps(found))
    distributed.disconnect()
