"""The model that a run leaves in `model/`, and what is measured of it on the way.

`model/` is a whole model at every moment, however the run ends: a new one is written beside it and
takes its place at once. It is the newest, or with `keep_best` the best by that metric of those that
were measured every `evaluate_every` steps and after the last; of equals the later one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError

from framework import Benchmark, LanguageModel, Tracker, build, distributed
from framework.checkpoint import Checkpoints
from framework.config import plain
from framework.errors import CheckpointError, ConfigError
from framework.evaluation import membership
from framework.evaluation.benchmark import Evaluation
from framework.kept import keep
from framework.loading import ModelSource
from framework.terminal import say
from framework.time_limit import TimeLimit

from .assembly import Assembly, read_model
from .outcome import measure

BEST = "best.json"


class KeptModel:
    """`model/` in a run's folder."""

    def __init__(self, config: DictConfig, parts: Assembly, folder: Path, limit: TimeLimit) -> None:
        """Nothing is written yet, but for what an earlier start found best."""
        self._config = config
        self._parts = parts
        self.limit = limit
        self.folder = folder / "model"
        self.step: int | None = None
        """The step whose model lies there, as far as this start knows."""
        self.best: float | None = None
        """Its value of the metric, turned so that higher is better; None without one."""
        earlier = distributed.on_rank_zero(lambda: _read(folder / BEST))
        asked = {"metric": config.keep_best, "evaluate_rows": config.evaluate_rows}
        if config.keep_best is not None and asked.items() <= earlier.items():
            self.step = int(earlier["step"])
            self.best = _turned(config, parts.benchmark, earlier)
        elif earlier:  # found on other rows: from now on another model may lie there
            distributed.on_rank_zero(lambda: (folder / BEST).unlink(missing_ok=True))

    def write_newest(self, step: int) -> None:
        """Write the model as it is, unless it lies there, or one that was found best."""
        lies_there = self.step == step and self._parts.trainer.averaging is None
        if self.best is None and not lies_there:
            self._write(step)

    def offer(self, step: int, measured: Mapping[str, float | None]) -> None:
        """Write the model as it is if it is the best so far; every rank measured the same."""
        metric = self._config.keep_best
        if metric is None:
            return
        found = {
            "step": step,
            "metric": metric,
            "evaluate_rows": self._config.evaluate_rows,
            "value": measured.get(metric),
        }
        value = _turned(self._config, self._parts.benchmark, found)
        if self.best is not None and value < self.best:
            return
        self._write(step)
        self.best = value
        text = json.dumps(found)
        keep(
            self.folder.with_name(BEST),
            lambda partial: partial.write_text(text, encoding="utf-8"),
            what="which model is best",
        )

    def model(self) -> LanguageModel:
        """What lies there: the model in memory, or with `keep_best` the one that was best."""
        if self.best is None:
            return self._parts.model
        say(f"measuring the model of step {self.step}")
        source: ModelSource = build(self._config.model)
        return read_model(self._config, source, str(self.folder))

    def _write(self, step: int) -> None:
        """The model as it is, as a plain transformers model; every rank takes part."""
        with self.limit.timed("model"):
            weights = self._parts.engine.state_dict()
            distributed.on_rank_zero(lambda: self._save(weights))
        self.step = step

    def _save(self, weights: dict[str, torch.Tensor]) -> None:
        parts = self._parts
        try:
            with torch.random.fork_rng(devices=[]):  # merging adapters makes a model of its own
                module, exported = parts.tuning.export(parts.model.module, weights)
            parts.model.save(self.folder, exported, module=module)
        except (OSError, SafetensorError) as error:
            checkpoints = Checkpoints(self.folder.with_name("checkpoints")).complete()
            goes_on = "goes on from the newest checkpoint" if checkpoints else "begins again"
            raise CheckpointError(
                f"the model could not be written to {self.folder} ({error}); free some space and "
                f"start again: resume=auto {goes_on}"
            ) from error


class Watch:
    """Measures the model during training, on the rows that `evaluate_rows` says."""

    def __init__(
        self,
        config: DictConfig,
        parts: Assembly,
        references: Mapping[str, Evaluation],
        tracker: Tracker,
        kept: KeptModel,
    ) -> None:
        """`references`: the target's and the gold model's evaluations, on all rows."""
        self._parts, self._tracker, self._kept = parts, tracker, kept
        self._best_wanted = config.keep_best is not None
        self._benchmark = parts.benchmark
        self._references = references
        self._name = parts.benchmark.name
        if config.evaluate_every and config.evaluate_rows is not None:
            self._benchmark = _sample(config, parts.benchmark)
            self._references = _of_sample(references, self._benchmark)
            self._name += f"_{config.evaluate_rows}_rows"

    def measure(self, step: int) -> None:
        """Measure the model as it is, record what is found, keep it if it is the best."""
        measured = measure(self._benchmark, self._parts.model, self._references)
        self._kept.offer(step, measured.metrics)
        self._tracker.log_evaluation(step, measured.metrics, benchmark=self._name)

    def was_measured(self, step: int) -> bool:
        """Whether that step's numbers are on record; every rank must ask."""
        return distributed.on_rank_zero(lambda: self._tracker.evaluated(step, benchmark=self._name))

    def keep(self, step: int) -> None:
        """Write the model as it is, unless there is one that was found best."""
        self._kept.write_newest(step)

    def finish(self, step: int) -> None:
        """After the last step: the run's model is in its place."""
        self._kept.write_newest(step)  # first: how long an evaluation takes may not be known yet
        unseen = self._best_wanted and not self.was_measured(step)
        if unseen and self._kept.limit.room_for("evaluation"):
            self.measure(step)


def check_best(config: DictConfig, benchmark: Benchmark) -> None:
    """Refuse a metric that cannot choose among the models of a run."""
    metric = config.keep_best
    if metric is None:
        return
    if not config.evaluate_every:
        raise ConfigError(
            "keep_best chooses among the models that are measured during training; set "
            "evaluate_every to a number of steps"
        )
    known = [name for name, best in benchmark.directions.items() if best != "gold"]
    if metric not in known:
        raise ConfigError(
            f"keep_best must be a metric of benchmark={config.benchmark.name} of which higher or "
            f"lower is better, got {metric!r}; choose among {', '.join(known)}"
        )


def _turned(config: DictConfig, benchmark: Benchmark, found: Mapping[str, Any]) -> float:
    """The value of the metric, so that higher is better; what is undefined is worst."""
    value = found["value"]
    if not isinstance(value, int | float):
        return -math.inf
    return float(value) if benchmark.directions[config.keep_best] == "higher" else -float(value)


def _sample(config: DictConfig, benchmark: Benchmark) -> Benchmark:
    """The benchmark with fewer rows."""
    settings = plain(config.benchmark)
    given = settings["limit"]
    rows = config.evaluate_rows if given is None else min(given, config.evaluate_rows)
    found: Benchmark = build({**settings, "limit": rows})
    # what the model learned is no fewer
    found.training_examples = benchmark.training_examples  # type: ignore[method-assign]
    return found


def _of_sample(references: Mapping[str, Evaluation], benchmark: Benchmark) -> dict[str, Evaluation]:
    """What was measured of the other models on the sample's rows; their means are not of these."""
    ids = {split: {row.id for row in rows} for split, rows in benchmark.splits().items()}
    everywhere = set().union(*ids.values())

    def sample(name: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
        # a name need not begin with its rows' split: MUSE's forget/nll is of privleak_forget
        own = values.keys() & ids.get(name.partition("/")[0], set())
        kept = own or everywhere
        return {row_id: value for row_id, value in values.items() if row_id in kept}

    found = {}
    for role, whole in references.items():
        rows = {name: sample(name, values) for name, values in whole.rows.items()}
        known = {n: x for n, x in membership.attacks(rows).items() if n in whole.metrics}
        found[role] = replace(whole, rows=rows, metrics=known)
    return found


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
