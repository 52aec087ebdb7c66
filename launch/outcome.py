"""What a run leaves behind: run.json, evaluation.json, and a table in the terminal."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from framework import distributed
from framework.errors import ConfigError, DataError
from framework.evaluation.benchmark import Benchmark, Evaluation
from framework.terminal import table

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft")


def record_run(
    folder: Path, config: DictConfig, *, steps: int, seconds: float | None = None
) -> None:
    """Write run.json: what the run ran on; `seconds` once it is finished."""
    if not distributed.is_main():
        return
    content: dict[str, Any] = {
        "steps": steps,
        "seconds": seconds,
        "finished": seconds is not None,
        "world_size": distributed.world_size(),
        "precision": config.precision,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "hardware": _hardware(),
    }
    _write(folder / "run.json", content)


def make_folder(folder: Path) -> None:
    """Make the folder of a run or an evaluation, before anything is computed for it."""
    if not distributed.is_main():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={folder} cannot be made: {error.strerror}") from error


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` has come to its end."""
    record = folder / "run.json"
    return record.is_file() and bool(json.loads(record.read_text(encoding="utf-8"))["finished"])


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    references: Mapping[str, Evaluation],
    benchmark: Benchmark,
    label: str,
) -> None:
    """Write evaluation.json, with the target's and the gold model's numbers beside its own.

    Beside it, what the benchmark's own program would write.
    """
    if not distributed.is_main():
        return
    known = {
        role: {"metrics": found.metrics, "generations": found.generations}
        for role, found in references.items()
    }
    content = {
        **evaluation.to_json(),
        "label": label,
        "headline": list(benchmark.headline),
        "directions": dict(benchmark.directions),
        "target": known.get("target"),
        "gold": known.get("gold"),
    }
    _write(folder / "evaluation.json", content)
    write_official(folder, evaluation, benchmark)


def write_official(folder: Path, evaluation: Evaluation, benchmark: Benchmark) -> None:
    """Write the files of the benchmark's own program, if it has any."""
    for name, text in benchmark.official_files(evaluation).items():
        (folder / name).write_text(text, encoding="utf-8")


def evaluation_of(path: Path) -> Evaluation:
    """The evaluation in a run's folder or in a file."""
    file = path / "evaluation.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"there is no evaluation at {file}; make one: python -m launch.eval run={path}"
        ) from None
    except ValueError as error:
        raise DataError(f"{file} is no evaluation ({error}); run launch.eval again") from None
    return Evaluation.from_json(content)


def references_of(config: DictConfig) -> dict[str, Evaluation]:
    """The target's and the gold model's evaluations that the config names."""
    named = {role: config[role] for role in ("target", "gold")}
    return {role: evaluation_of(Path(path)) for role, path in named.items() if path is not None}


def show(
    benchmark: Benchmark,
    label: str,
    evaluation: Evaluation,
    references: Mapping[str, Evaluation],
) -> None:
    """Print the headline numbers, the target's and the gold model's rows first."""
    models = {**{role: references[role] for role in ("target", "gold") if role in references}}
    models[label] = evaluation
    table(
        benchmark.name,
        ["model", *benchmark.headline],
        [
            [name, *(found.metrics.get(metric) for metric in benchmark.headline)]
            for name, found in models.items()
        ],
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def _commit() -> str | None:
    """The git commit of the code, with a + where it has changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
