"""The target and gold models of a tiny model: made once per benchmark, kept, found again.

The target has learned all rows, the gold model all but the forget rows: fine-tuning runs like any
other, side by side, in a folder named by a hash of what made them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import framework
from framework import Benchmark
from framework.distributed import launcher_rank
from framework.errors import ConfigError
from framework.evaluation.benchmark import Evaluation
from framework.terminal import say

from .outcome import add_aggregates, write_json, write_official
from .settings import as_overrides
from .side_by_side import train_side_by_side

ROLES = ("target", "gold")
EVALUATION = "evaluation.json"
CODE = (
    "attention",
    "data",
    "decoding",
    "encoding",
    "engine",
    "gradient_norms",
    "language_model",
    "loading",
    "losses",
    "method",
    "modules",
    "next_token",
    "optimizers",
    "prompt_format",
    "sampler",
    "sampling",
    "scores",
    "shared",
    "trainer",
)
"""Modules that decide what a target model becomes; those of `evaluation` decide its numbers."""
SHOWING = ("provenance", "ranking", "sequence")
"""Modules of `evaluation`, beside its folder `report`, that only show numbers."""


def prepare(config: DictConfig, benchmark: Benchmark) -> None:
    """Make and measure the target and gold models of `config` unless they are there already.

    The first process does it, before the processes meet: however long it takes, no collective
    times out. The others wait for the folder.
    """
    final = _folder(config, benchmark)
    while launcher_rank() > 0 and not final.is_dir():
        time.sleep(0.5)
    if final.is_dir():
        return
    partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"cache={config.cache} is where the target and gold models are to be made, and nothing "
            f"can be written there ({error.strerror}); type cache=DIR, a folder of yours"
        ) from error
    say(f"no target model for these settings yet: fine-tuning target and gold into {final}")
    train_side_by_side(
        {role: _overrides(config, benchmark, role, partial / role) for role in ROLES},
        log=partial,
    )
    _compare_with_gold(partial, benchmark)
    try:
        partial.rename(final)
    except OSError:  # another run was faster: its result is the same
        if not final.is_dir():
            raise
        shutil.rmtree(partial)


def prepared(config: DictConfig, benchmark: Benchmark) -> dict[str, Path]:
    """The runs of the target and the gold model."""
    return {role: _folder(config, benchmark) / role for role in ROLES}


def _overrides(config: DictConfig, benchmark: Benchmark, role: str, output: Path) -> list[str]:
    recipe = benchmark.config.target
    return [
        "trainer=finetune",
        "weighting=none",
        "perturbation=none",
        "selection=none",
        "averaging=none",
        "tuning=full",
        "zero=none",
        "tracker=none",
        "optimizer=adamw",
        f"benchmark={config.benchmark.name}",
        f"model={config.model.name}",
        *as_overrides("benchmark", config.benchmark),
        *as_overrides("model", config.model),
        f"finetune_on={role}",
        f"optimizer.learning_rate={recipe.learning_rate}",
        "optimizer.schedule=cosine",
        "optimizer.warmup=0.05",
        "optimizer.betas=[0.9,0.98]",
        f"epochs={recipe.epochs}",
        f"batch_size={recipe.batch_size}",
        "precision=fp32",
        f"seed={config.seed}",
        "save_every=0",
        f"output={output}",
    ]


def _folder(config: DictConfig, benchmark: Benchmark) -> Path:
    """Named by a hash of all that decides the models and their numbers: rows, settings, code."""
    made_by = {
        "rows": {name: [asdict(x) for x in rows] for name, rows in benchmark.splits().items()},
        "overrides": _overrides(config, benchmark, "target", Path()),
        "code": code(),
        "packages": [version(name) for name in ("torch", "transformers")],
    }
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
    return Path(config.cache).expanduser() / f"{config.benchmark.name}-{digest}"


@cache
def code() -> list[str]:
    """The code as this process runs it: read once, for a file may be edited while it runs."""
    here = Path(framework.__file__).parent
    measuring = [p for p in (here / "evaluation").glob("*.py") if p.stem not in SHOWING]
    files = [here / f"{name}.py" for name in CODE] + sorted(measuring)
    return [path.read_text(encoding="utf-8") for path in files]


def _compare_with_gold(folder: Path, benchmark: Benchmark) -> None:
    """Both were measured at the same time; now what each is beside the other is known."""
    contents: Mapping[str, dict[str, Any]] = {
        role: json.loads((folder / role / EVALUATION).read_text(encoding="utf-8")) for role in ROLES
    }
    models = {role: Evaluation.from_json(content) for role, content in contents.items()}
    for model in models.values():
        model.metrics |= benchmark.beside_gold(model.rows, models["gold"])
    add_aggregates(benchmark, list(models.values()), models)
    for role, model in models.items():
        content = contents[role] | {"metrics": model.metrics}
        write_json(folder / role / EVALUATION, content)
        write_official(folder / role, model, benchmark)
