"""Tracker: every number of a run goes to `metrics.jsonl`, and to a view of it when asked.

`metrics.jsonl` is the record: one JSON object per line, `{"step": 3, "time": 1767225600.0,
"train/forget/loss": 1.25, ...}`, flushed line by line, so that a killed run loses at most the line
it was writing. A number that is not finite is written as null. W&B and TensorBoard are views of
that record: where one fails, training goes on and a TrackingWarning says so, once.

Only rank 0 writes. On the other ranks every method returns at once.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from .distributed import is_main
from .view import JSONL_ALONE, Kind, View, first_line, html_table, warn

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """The record of one run, appended to its folder."""

    def __init__(
        self,
        view: View | None,
        folder: Path,
        *,
        run_config: Mapping[str, Any],
        name: str,
        job_type: str,
    ) -> None:
        """Open the record in `folder`, and the run's `view`, new or old.

        `run_config` is the resolved config, and what else the view shows beside it; `job_type` is
        train, eval, attack or report.
        """
        self._path = Path(folder) / METRICS_FILE
        self._file: TextIO | None = None
        self._view: View | None = None
        if not is_main():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        if view is not None and view.open(
            self._path.parent, run_config=run_config, name=name, job_type=job_type
        ):
            self._view = view

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append one line. `step` counts finished updates; None and NaN are written as null."""
        if self._file is None:
            return
        assert not {"step", "time", "global_step"} & values.keys(), sorted(values)
        finite = {key: _finite(value) for key, value in values.items()}
        record = {"step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        known = {key: value for key, value in finite.items() if value is not None}
        self._show(lambda view: view.log(step, known))

    def log_evaluation(
        self, step: int, metrics: Mapping[str, float | None], *, benchmark: str
    ) -> None:
        """Append a benchmark's metrics as `eval/<benchmark>/<metric>`."""
        self.log(step, {f"eval/{benchmark}/{name}": value for name, value in metrics.items()})

    def evaluated(self, step: int, *, benchmark: str) -> bool:
        """Whether the benchmark's metrics of that step are on record; to be asked of rank 0."""
        records, _ = read_metrics(self._path)
        prefix = f"eval/{benchmark}/"
        return any(
            line["step"] == step and any(name.startswith(prefix) for name in line)
            for line in records
        )

    def log_generations(self, step: int, generations: Sequence[Mapping[str, Any]]) -> None:
        """Show answers in the view, a table row each; the record of them is `evaluation.json`."""
        if generations:
            self._show(lambda view: view.log(step, {"eval/generations": html_table(generations)}))

    def preempting(self) -> None:
        """Show that the run ends early, and is to be continued."""
        self._show(lambda view: view.preempting())

    def keep(self, kind: Kind, path: Path, *, name: str) -> None:
        """Have the view keep a file or folder of the run, where its settings ask for that kind."""
        self._show(lambda view: view.keep(kind, path, name=name))

    def rewind(self, step: int) -> None:
        """Drop every line after `step`, where the run is resumed, so that no step is there twice.

        TensorBoard forgets them, too; W&B cannot, and draws them twice, over one `global_step`.
        """
        if self._file is None:
            return
        self._file.close()
        records, _ = read_metrics(self._path)
        kept = "".join(json.dumps(line) + "\n" for line in records if line["step"] <= step)
        rewritten = self._path.with_suffix(".tmp")
        with rewritten.open("w", encoding="utf-8") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        rewritten.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._show(lambda view: view.rewind(step))

    def finish(self, exit_code: int = 0) -> None:
        """Close the record and the view, which shows a failure where `exit_code` is not 0."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._show(lambda view: view.finish(exit_code))
        self._view = None

    def _show(self, act: Callable[[View], None]) -> None:
        """Do it where there is a view; the first failure is a warning and ends the view."""
        if self._view is None:
            return
        try:
            act(self._view)
        except self._view.failures as error:
            warn(f"{self._view.title} failed ({first_line(error)}): {JSONL_ALONE}")
            self._view = None


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a `metrics.jsonl`, and how many of its lines are torn (cut off by a kill)."""
    records, torn = [], 0
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
            else:
                torn += 1
    return records, torn


def _drop_torn_line(path: Path) -> None:
    """Cut what stands behind the last newline: a killed process left it, and we would write on."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
