"""Runs in processes of their own, at the same time, with a progress bar each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from framework.errors import LetheError
from framework.terminal import Progress

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def train_side_by_side(runs: Mapping[str, Sequence[str]], *, log: Path) -> None:
    """`python -m launch.train <overrides>` for each name, all at once, on shared cores.

    What the runs print goes to `log`/<name>.log. Raises LetheError with the last line of the first
    run that fails; the others are ended.
    """
    log.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // len(runs))
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    environment = kept | {"OMP_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        processes = {}
        for name, overrides in runs.items():
            output = stack.enter_context((log / f"{name}.log").open("w", encoding="utf-8"))
            command = [sys.executable, "-m", "launch.train", *overrides]
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            folder = Path(next(o.split("=", 1)[1] for o in overrides if o.startswith("output=")))
            processes[name] = (process, _Watched(name, folder, stack))
        while any(process.poll() is None for process, _ in processes.values()):
            for name, (process, watched) in processes.items():
                watched.look()
                if process.poll():
                    raise LetheError(f"{name} failed: {_last_line(log / f'{name}.log')}")
            time.sleep(0.2)
        for name, (process, watched) in processes.items():
            watched.look()
            if process.returncode:
                raise LetheError(f"{name} failed: {_last_line(log / f'{name}.log')}")


class _Watched:
    """The bar of one run, drawn from what the run writes."""

    def __init__(self, name: str, folder: Path, stack: ExitStack) -> None:
        self.name, self.folder, self.stack = name, folder, stack
        self.bar: Progress | None = None
        self.position = 0

    def look(self) -> None:
        """Advance the bar by the lines that are new."""
        plan, metrics = self.folder / "run.json", self.folder / "metrics.jsonl"
        if not (plan.is_file() and metrics.is_file()):
            return
        if self.bar is None:
            steps = json.loads(plan.read_text(encoding="utf-8"))["steps"]
            self.bar = self.stack.enter_context(Progress(self.name, steps))
        with metrics.open(encoding="utf-8") as file:
            file.seek(self.position)
            while (line := file.readline()).endswith("\n"):
                self.position = file.tell()
                record = json.loads(line)
                losses = {
                    key.split("/")[1]: record[key]
                    for key in ("train/forget/loss", "train/retain/loss")
                    if record.get(key) is not None
                }
                if losses:
                    self.bar.advance(record["step"] - self.bar.done, **losses)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return f"{last} (see {path})"
