"""The target and gold models of a tiny model: made once per benchmark, kept, found again.

The target has learned all rows, the gold model all but the forget rows: fine-tuning runs like any
other, side by side, in a folder named by a hash of what made them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import framework.loading
from framework import Benchmark
from framework.evaluation.benchmark import Evaluation, forget_quality
from framework.terminal import say

from .settings import as_overrides
from .side_by_side import train_side_by_side

ROLES = ("target", "gold")
EVALUATION = "evaluation.json"


def prepare(config: DictConfig, benchmark: Benchmark) -> None:
    """Make and measure the target and gold models of `config` unless they are there already."""
    final = _folder(config, benchmark)
    if final.is_dir():
        return
    say(f"no target model for these settings yet: fine-tuning target and gold into {final}")
    partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    train_side_by_side(
        {role: _overrides(config, benchmark, role, partial / role) for role in ROLES},
        log=partial,
    )
    _compare_with_gold(partial)
    if not final.is_dir():  # another process may have been faster: the result is the same
        partial.rename(final)


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
    """Named by a hash of the settings, the rows themselves and the code that builds the model."""
    rows = [(x.id, x.prompt, x.answer) for x in benchmark.training_examples("target")]
    made_by = {
        "rows": rows,
        "overrides": _overrides(config, benchmark, "target", Path()),
        "loading": Path(framework.loading.__file__).read_text(encoding="utf-8"),
    }
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
    return Path(config.cache).expanduser() / f"{config.benchmark.name}-{digest}"


def _compare_with_gold(folder: Path) -> None:
    """Both were measured at the same time; now the forget quality of each is known."""
    contents: Mapping[str, dict[str, Any]] = {
        role: json.loads((folder / role / EVALUATION).read_text(encoding="utf-8")) for role in ROLES
    }
    gold = Evaluation.from_json(contents["gold"])
    for role, content in contents.items():
        if "forget_quality" in content["metrics"]:
            content["metrics"]["forget_quality"] = forget_quality(content["rows"], gold)
            (folder / role / EVALUATION).write_text(json.dumps(content), encoding="utf-8")
