"""Measure a model on a benchmark: its numbers in a table and in evaluation.json.

    python -m launch.eval run=runs/x
    python -m launch.eval benchmark=lume benchmark.path=DIR model.path=allenai/OLMo-1B-0724-hf
    torchrun --nproc_per_node 8 -m launch.eval benchmark=lume benchmark.path=DIR model.path=DIR2

`run=` takes the benchmark, the model and its prompt format from a finished run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig

from framework import Benchmark, build, distributed
from framework.config import load, plain
from framework.errors import ConfigError
from framework.loading import ModelSource

from .entry import run_entry
from .outcome import make_folder, references_of, show, write_evaluation
from .prepare import EVALUATION, ROLES, prepared
from .settings import as_overrides, label, needs_target, parse


@dataclass
class EvalSettings:
    """The settings of an evaluation beside its groups."""

    run: str | None = None
    """A finished run: its model is measured on its benchmark."""
    output: str | None = None
    """The folder of evaluation.json; null: the run's, the model's own, or runs/eval-<model> where
    the model comes from the hub."""
    label: str | None = None
    """The model's name in tables; null: the run's method, or the folder's name."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    target: str | None = None
    """The run or evaluation.json of the model before unlearning, shown beside the result; `run`
    brings its own."""
    gold: str | None = None
    """The run or evaluation.json of a model that never saw the forget rows; likewise."""


def main(arguments: list[str]) -> None:
    """Load, measure, record, show."""
    config, _ = parse(_of_run(arguments), entry="eval", schema=EvalSettings, about=__doc__ or "")
    if distributed.launched():
        distributed.connect()
    benchmark: Benchmark = build(config.benchmark)
    source: ModelSource = build(config.model)
    references = references_of(config)
    path = config.model.get("path")
    if path is None:
        raise ConfigError("launch.eval measures a model that exists; type model.path=<folder>")
    folder = _output(config)
    make_folder(folder)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = source.load(path, dtype=dtype, revision=config.model.revision)
    model.move(distributed.device())
    model.check_packing()
    measured = benchmark.measure(model, references.get("gold"))
    name = config.label or _label(config)
    write_evaluation(folder, measured, references, benchmark, name)
    show(benchmark, name, measured, references)


def _of_run(arguments: list[str]) -> list[str]:
    """`run=X` stands for X's benchmark and model; what follows it on the command line wins."""
    runs = [text.partition("=")[2] for text in arguments if text.startswith("run=")]
    if not runs:
        return arguments
    folder = Path(runs[-1])
    if not (folder / "model").is_dir():
        raise ConfigError(f"{folder} holds no finished run (no model/ in it)")
    earlier = load(folder / "config.yaml")
    taken = [f"benchmark={earlier.benchmark.name}", f"model.path={folder / 'model'}"]
    model = plain(earlier.model)
    reading = {key: model[key] for key in ("max_length", "prompt_format")}
    taken += as_overrides("benchmark", earlier.benchmark) + as_overrides("model", reading)
    return [*taken, *_references(earlier), *arguments]


def _references(earlier: DictConfig) -> list[str]:
    """The target and gold that a run was compared with, as far as they are still there."""
    known = {role: earlier[role] for role in ROLES}
    if needs_target(earlier):
        made = prepared(earlier, build(earlier.benchmark))
        there = {role: path for role, path in made.items() if (path / EVALUATION).is_file()}
        known |= {role: path for role, path in there.items() if known[role] is None}
    return [f"{role}={path}" for role, path in known.items() if path is not None]


def _output(config: DictConfig) -> Path:
    if config.output or config.run:
        return Path(config.output or config.run)
    model = Path(config.model.path)
    return model if model.is_dir() else Path("runs") / f"eval-{model.name}"


def _label(config: DictConfig) -> str:
    if config.run is not None:
        return label(load(Path(config.run) / "config.yaml"))
    return Path(config.model.path).name


if __name__ == "__main__":
    run_entry(main)
