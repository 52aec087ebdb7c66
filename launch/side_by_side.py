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
                    raise LetheError(f"{name} failed: {last_line(log / f'{name}.log')}")
            time.sleep(0.2)
        for name, (process, watched) in processes.items():
            watched.look()
            if process.returncode:
                raise LetheError(f"{name} failed: {last_line(log / f'{name}.log')}")


class _Watched:
    """The bar of one run, drawn from what the run writes."""

    def __init__(self, name: str, folder: Path, stack: ExitStack) -> None:
        self.name, self.stack = name, stack
        self.run = RunningRun(folder)
        self.bar: Progress | None = None

    def look(self) -> None:
        """Advance the bar by the steps that are new."""
        self.run.look()
        if self.bar is None:
            if not self.run.steps:
                return
            self.bar = self.stack.enter_context(Progress(self.name, self.run.steps))
        if self.run.step > self.bar.done:
            self.bar.advance(self.run.step - self.bar.done, **self.run.losses)


class RunningRun:
    """How far a run in another process has come, read from what it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = 0
        """All of them; 0 while nobody knows."""
        self.step = 0
        self.losses: dict[str, float] = {}
        """The objectives' losses at the last logged step."""
        self._inode = self._position = 0

    def look(self) -> None:
        """Read the lines that are new."""
        plan, metrics = self.folder / "run.json", self.folder / "metrics.jsonl"
        if not (plan.is_file() and metrics.is_file()):
            return
        if not self.steps:
            self.steps = json.loads(plan.read_text(encoding="utf-8"))["steps"]
        with metrics.open(encoding="utf-8") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:  # new, or written anew where the run was taken up again
                self._inode, self._position = inode, 0
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                record = json.loads(line)
                losses = {
                    key.split("/")[1]: record[key]
                    for key in ("train/forget/loss", "train/retain/loss")
                    if record.get(key) is not None
                }
                if losses:
                    self.step, self.losses = record["step"], losses


def last_line(path: Path) -> str:
    """The last thing that a run said, and where the rest stands."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return f"{last} (see {path})"
