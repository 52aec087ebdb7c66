"""The settings of a run, from the command line to the resolved config."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from framework import Benchmark, UnlearningTrainer
from framework.averaging import WeightAveraging
from framework.config import choices, compose, describe, load, plain
from framework.engine import Engine
from framework.errors import ConfigError, require
from framework.evaluation.attacks.attack import Attack
from framework.loading import TOKENS_PER_MICRO_BATCH, ModelSource
from framework.optimizers import Optimizer
from framework.parts import Perturbation, Selection, Weighting
from framework.schema import untyped
from framework.tuning import Tuning
from framework.view import View

from .entry import Parser

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OF_RUNS = ("train", "selection", "eval")
"""The entries that go on from a resolved config: that of a run, or of an evaluation."""
REPEATABLE = (
    *("output", "resume", "cache", "tracker", "log_every", "save_every", "keep_checkpoints"),
    *("evaluate", "evaluate_every", "evaluate_rows", "target", "gold"),
    *("time_limit", "hang_timeout"),
)
"""What may differ between a run and its continuation: it changes no weight."""
KINDS: Mapping[str, type] = {
    "trainer": UnlearningTrainer,
    "weighting": Weighting,
    "perturbation": Perturbation,
    "selection": Selection,
    "averaging": WeightAveraging,
    "benchmark": Benchmark,
    "model": ModelSource,
    "tuning": Tuning,
    "optimizer": Optimizer,
    "zero": Engine,
    "tracker": View,
    "attack": Attack,
}
"""What the class of each group's choice must be."""
FITTED = {"tokens_per_micro_batch": TOKENS_PER_MICRO_BATCH, "gradient_checkpointing": False}
"""The settings of a model that `auto` fits to a GPU's memory, and what they are without one."""
PARTS = ("selection", "perturbation", "weighting", "averaging")
"""The groups that a run is named by beside its method."""


@dataclass
class RunSettings:
    """The settings of a training run beside its groups."""

    output: str | None = None
    """The run's folder; null: runs/<benchmark>-<trainer>-...-seed<seed>."""
    seed: int = 0
    """Fixes the order of rows, dropout and fresh weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 keeps fp32 master weights; auto: bf16 on a GPU, fp32 on a CPU."""
    epochs: float = 10.0
    """Passes over the forget set (over the rows to learn when fine-tuning)."""
    max_steps: int | None = None
    """At most so many optimizer steps."""
    batch_size: int = 32
    """Rows of each objective in one optimizer step, over all ranks."""
    retain_by: Literal["all", "task"] = "all"
    """task: each task of the retain rows is an objective of its own, `retain/<task>`, with its own
    loss, weight and, under weighting=primal_dual or log_barrier, level and dual variable."""
    finetune_on: Literal["retain", "forget", "target", "gold"] = "retain"
    """What a method without a forget objective learns: the retain rows, the forget rows, what the
    target model knows (both), or what the gold model knows. A tiny model learns the last two from
    nothing, the first two on top of its target model."""
    forget_part: str | None = None
    """k/n: only the k-th of n equal parts of the forget rows is read, in their order; what is
    measured stays the same. Null: all of them."""
    after: str | None = None
    """A finished run from whose result this one goes on, in the place of the model that it would
    begin with: a further request to forget. Null: none."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the newest complete checkpoint of `output`, if there is one."""
    save_every: int = 100
    """Steps between checkpoints; 0: none."""
    keep_checkpoints: int = 1
    """How many of the newest checkpoints stay on disk."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    hang_timeout: float = 30.0
    """Minutes without a step, or a batch of an evaluation, after which every rank prints where it
    stands and ends; 0: never."""
    evaluate: bool = True
    """Measure the benchmark on the result."""
    evaluate_every: int = 0
    """Steps between evaluations during training; 0: none."""
    evaluate_rows: int | None = None
    """Those evaluations read at most so many rows of each split, evenly spaced; null: all."""
    keep_best: str | None = None
    """The metric by which the best of the models evaluated during training, and of the last, is
    the run's; null: the last. Needs evaluate_every."""
    time_limit: float | None = None
    """Minutes from the start until the model is in place: the run ends before its last step where
    it must. The last evaluation comes after. Each start of a run has the whole limit."""
    target: str | None = None
    """The run or evaluation.json of the model before unlearning, shown beside the result; a tiny
    model brings its own."""
    gold: str | None = None
    """The run or evaluation.json of a model that never saw the forget rows; likewise."""
    cache: str = "~/.cache/lethe"
    """Where the target and gold models of tiny models are kept, and what runs of the same weights
    and rows share of the model before unlearning (`reference/`)."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        require("hang_timeout", self.hang_timeout, at_least=0.0, below=math.inf)
        if not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs must be a number > 0, got {self.epochs:g}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1 or null, got {self.max_steps}")
        if self.forget_part is not None:
            part_of_rows(self.forget_part)
        if self.evaluate_rows is not None and self.evaluate_rows < 1:
            raise ConfigError(
                f"evaluate_rows must be at least 1 row or null, got {self.evaluate_rows}"
            )
        if self.time_limit is not None:
            require("time_limit", self.time_limit, above=0)
        least = {"batch_size": 1, "keep_checkpoints": 1, "save_every": 0, "log_every": 0}
        for name, allowed in {**least, "evaluate_every": 0}.items():
            if getattr(self, name) < allowed:
                raise ConfigError(f"{name} must be at least {allowed}, got {getattr(self, name)}")


def part_of_rows(text: str) -> tuple[int, int]:
    """`2/4` as 2 and 4; raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, n = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= k <= n:
        raise ConfigError(
            f"forget_part must be k/n, the k-th of n parts, such as 1/4, or null, got {text!r}"
        )
    return k, n


def parse(
    arguments: Sequence[str], *, entry: str, schema: type, about: str
) -> tuple[DictConfig, argparse.Namespace]:
    """The resolved config of `entry` and the options beside it; --help ends the process."""
    parser = Parser(prog=f"python -m launch.{entry}", add_help=False)
    parser.set_defaults(config=None)
    parser.add_argument("--help", "-h", action="store_true")
    if entry == "train":
        parser.add_argument("--dry-run", action="store_true")
    if entry in OF_RUNS:
        parser.add_argument("--config", type=Path)
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        there = {"--help": True, "--config FILE": entry in OF_RUNS, "--dry-run": entry == "train"}
        options_there = ", ".join(name for name, taken in there.items() if taken)
        raise ConfigError(
            f"unknown option {unknown[0]!r}; there are {options_there}, and settings as key=value"
        )
    if options.help:
        print(help_text(entry, schema, about))
        raise SystemExit(0)
    if entry == "eval" and options.config is not None and "trainer" in load(options.config):
        raise ConfigError(f"{options.config} is a run's config; type run={options.config.parent}")
    overrides = [text for given in options.overrides for text in _model_by_name(given)]
    config = compose(
        entry, overrides, configs=CONFIGS, schema=schema, base=options.config, kinds=KINDS
    )
    output = config.get("output")
    if output is not None and not output.strip():
        raise ConfigError("output is empty; name a folder, or leave it out")
    filled = _filled(config)
    if filled:
        config = compose(
            entry,
            [*overrides, *filled],
            configs=CONFIGS,
            schema=schema,
            base=options.config,
            kinds=KINDS,
        )
    return config, options


def _model_by_name(override: str) -> list[str]:
    """`model=<path or hub name>` in full, where it is no choice of the group."""
    key, _, value = override.partition("=")
    named = key == "model" and value not in choices(CONFIGS, "model")
    if named and ("/" in value or Path(value).is_dir()):
        return ["model=pretrained", f"model.path={value}"]
    return [override]


def _filled(config: DictConfig) -> list[str]:
    """Values for the settings that say `auto` or null and mean something by it."""
    filled = []
    if config.get("precision") == "auto":
        filled.append(f"precision={'bf16' if torch.cuda.is_available() else 'fp32'}")
    if "optimizer" in config and config.optimizer.get("learning_rate", 0.0) is None:
        filled.append(f"optimizer.learning_rate={5e-4 if is_tiny(config) else 1e-5}")
    if "model" in config and (is_tiny(config) or not torch.cuda.is_available()):
        filled += [f"model.{name}={json.dumps(FITTED[name])}" for name in to_fit(config)]
    if "output" in config and config.output is None and "trainer" in config:
        filled.append(f"output=runs/{run_name(config)}")
    return filled


def to_fit(config: DictConfig) -> list[str]:
    """The settings of the model that are to be fitted to the memory there is."""
    return [name for name in FITTED if config.model.get(name) == "auto"]


def with_model(config: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """The config with these settings of its model."""
    changed = OmegaConf.merge(config, {"model": dict(settings)})
    assert isinstance(changed, DictConfig)
    OmegaConf.set_readonly(changed, value=True)
    return changed


def as_begun(config: DictConfig, earlier: DictConfig) -> DictConfig:
    """The config with what an earlier start of the run was fitted to."""
    return with_model(config, {name: earlier.model.get(name, "auto") for name in to_fit(config)})


def is_sharded(config: DictConfig) -> bool:
    """Whether the run goes through DeepSpeed."""
    return str(config.zero["class"]) != "framework.engine.LocalEngine"


def is_tiny(config: DictConfig) -> bool:
    """Whether the model is made offline rather than given."""
    return bool(config.model["class"] == "framework.loading.Tiny")


def needs_target(config: DictConfig) -> bool:
    """Whether the run starts from a target model that must be made first."""
    return is_tiny(config) and config.finetune_on in ("retain", "forget")


def as_overrides(group: str, section: Mapping[str, Any] | DictConfig) -> list[str]:
    """A section's settings as they would be typed."""
    settings = {key: value for key, value in plain(section).items() if key != "name"}
    return [f"{group}.{key}={json.dumps(untyped(value))}" for key, value in settings.items()]


def run_name(config: DictConfig) -> str:
    """What tells a run from its neighbors: benchmark, method, parts, seed."""
    chosen = _chosen(config)
    if config.finetune_on != "retain":
        chosen.append(config.finetune_on)
    if config.get("after") is not None:
        chosen.append(f"after-{Path(config.after).name}")
    names = [config.benchmark.name, config.trainer.name, *chosen]
    return "-".join([*names, f"seed{config.seed}"])


def label(config: DictConfig) -> str:
    """The run in a table: `blur x npo`."""
    return " x ".join([*_chosen(config), config.trainer.name])


def _chosen(config: DictConfig) -> list[str]:
    """What a run has beside its method that others have not."""
    chosen = [config[group].name for group in PARTS if config[group].name != "none"]
    if config.optimizer.name != "adamw":
        chosen.append(config.optimizer.name)
    if config.get("retain_by") == "task":  # a config of an earlier version may lack it
        chosen.append("by_task")
    if config.get("forget_part") is not None:
        chosen.append("part" + config.forget_part.replace("/", "of"))
    return chosen


def check_same(config: DictConfig, earlier: DictConfig) -> None:
    """Refuse to go on with a run under other settings than it was begun with."""
    config = as_begun(config, earlier)
    for key in config:
        if key not in REPEATABLE and config[key] != earlier.get(key):
            changed = _first_difference(str(key), config[key], earlier.get(key))
            raise ConfigError(
                f"{config.output} was begun with {changed[0]}={changed[2]}, not {changed[1]}; "
                f"resume it with its own settings (--config {config.output}/config.yaml "
                "resume=auto), or choose another output"
            )


def _first_difference(path: str, now: Any, before: Any) -> tuple[str, Any, Any]:
    if isinstance(now, DictConfig) and isinstance(before, DictConfig):
        for key in [*now, *before]:
            if now.get(key) != before.get(key):
                return _first_difference(f"{path}.{key}", now.get(key), before.get(key))
    return path, now, before


def steps_of(config: DictConfig, steps_per_epoch: int) -> int:
    """How many optimizer steps the run takes."""
    steps: int = math.ceil(config.epochs * steps_per_epoch)
    limit: int | None = config.max_steps
    return steps if limit is None else min(steps, limit)


def help_text(entry: str, schema: type, about: str) -> str:
    """What --help prints: the command, every group with its choices, every setting."""
    width = min(100, shutil.get_terminal_size().columns)
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    described = describe(CONFIGS, entry, schema)
    lines = [about.strip()]
    if any(each.name in groups for each in described):
        lines += ["", "groups (group=choice; group.setting=value)"]
    for name, default, allowed, _ in described:
        if name in groups:
            lines += _columns(f"{name}={default}", ", ".join(allowed), width)
    lines += ["", "settings (setting=value)"]
    for name, default, allowed, meaning in described:
        if name not in groups:
            kind = ", ".join(allowed)
            lines += _columns(f"{name}={default}", f"{kind}: {meaning}" if meaning else kind, width)
    if entry in OF_RUNS:
        lines += ["", "options"]
        own = "an evaluation's" if entry == "eval" else "a run's"
        place = "runs/x/lume" if entry == "eval" else "runs/x"
        told = f"start from {own} resolved config, such as {place}/config.yaml"
        lines += _columns("--config FILE", told, width)
    if entry == "train":
        lines += _columns(
            "--dry-run", "say what would be done and needed; load nothing large", width
        )
    return "\n".join(lines)


def _columns(left: str, right: str, width: int) -> list[str]:
    indent = " " * 32
    wrapped = textwrap.wrap(right, max(20, width - len(indent))) or [""]
    first = f"  {left:<28}  {wrapped[0]}"
    return [first, *(indent + line for line in wrapped[1:])]
